"""`pyfeat backbones`, `pyfeat bench`: what there is, and how fast it is."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pyfeat.cli._app import OK, Json, UsageProblem, command, print_json, usage
from pyfeat.cli._text import backbone_text, table


@command("backbones", "list")
def _backbones(
    pattern: Annotated[
        str, typer.Argument(metavar="[PATTERN]", help="Part of a name, or a glob like '*vit*'.")
    ] = "",
    search: Annotated[str | None, typer.Option(metavar="TEXT", help="The same as PATTERN.")] = None,
    json_out: Json = False,
) -> int:
    """List the backbones that `--backbone` takes."""
    from pyfeat.backbones import list_backbones

    if pattern and search is not None:
        raise UsageProblem(f"--search must stand without PATTERN, got {pattern!r} and {search!r}")
    wanted = pattern if search is None else search
    found = list_backbones(wanted)
    if json_out:
        print_json({"backbones": [asdict(b) for b in found]})
        return OK
    if not found:
        typer.echo(f"no backbone fits {wanted!r}", err=True)
        return OK
    typer.echo(table(("backbone", "source"), [(b.name, b.source) for b in found]))
    return OK


@command("backbones", "show")
def _show(
    name: Annotated[str, typer.Argument(help="A name that `--backbone` takes.")],
    inner: Annotated[
        bool, typer.Option("--all", help="List the layers inside of blocks too.")
    ] = False,
    json_out: Json = False,
) -> int:
    """Say what a backbone takes, gives and costs, and which layers `--layers` takes.

    The weights of torchvision's and timm's models are not downloaded for it.
    """
    from pyfeat.backbones import describe

    with usage():
        found = describe(name)
    if json_out:
        print_json(found.to_dict())
    else:
        typer.echo(backbone_text(found, inner=inner))
    return OK


@command("bench")
def _bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Benchmarks; without one, they are listed."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few rounds, to see that it runs.")
    ] = False,
    backends: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Beside the other libraries, only these backends: cpp (every instruction set), "
            "cpp[avx2], triton, cuda, reference.",
        ),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Samples of each contestant; by default 30, or 3.")
    ] = None,
    json_out: Json = False,
) -> int:
    """Run benchmarks against other libraries (needs a checkout of the project).

    PYFEAT_NUM_THREADS limits the threads of pyfeat; each case says how many its rivals get.
    """
    runner = _runner()
    options = [*(["--quick"] if quick else []), *(["--json"] if json_out else [])]
    options += [f"--backends={backends}"] if backends is not None else []
    options += [f"--rounds={rounds}"] if rounds is not None else []
    arguments = names or ["--list"]
    return subprocess.run(
        [sys.executable, str(runner), *arguments, *options], check=False
    ).returncode


def _runner() -> Path:
    candidates = [Path(__file__).parents[2], Path.cwd()]
    for root in candidates:
        if (root / "benchmarks" / "run.py").is_file():
            return root / "benchmarks" / "run.py"
    where = [str(c) for c in candidates]
    raise UsageProblem(f"bench must run in a checkout, found no benchmarks/run.py in {where}")
