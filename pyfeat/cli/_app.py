"""The command line as a whole: commands, exit codes, errors in one line.

Exit codes: 0 everything has its row, 3 some items are in quarantine, 2 wrong usage, 1 error, 130
Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer
from typer.core import TyperGroup

from pyfeat._signals import exit_code_of, terminable

if TYPE_CHECKING:
    from pyfeat.jobs import Collected

OK, ERROR, USAGE, QUARANTINED = 0, 1, 2, 3

P = ParamSpec("P")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, no bar.")]
Column = Annotated[
    str | None,
    typer.Option(
        help="Column of a table that holds the paths, the files or the texts; of a tar archive "
        "what follows the stem of its members, like jpg."
    ),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        help="File of weights for the architecture that the name of the backbone means; of a model "
        "or index also the ONNX file or the folder that the backbone came from."
    ),
]
SpaceOption = Annotated[
    str | None,
    typer.Option("--space", help="First digits of a space, when the store holds several."),
]
InputArguments = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...",
        help="Folders (recursive), globs, files, lists of paths (.txt .csv .tsv .parquet), tar "
        "archives, columns of files (.parquet .arrow, data sets of Hugging Face on disk), or "
        "addresses of any of these (s3:// http:// ...). For texts: tables (the cells of a column), "
        ".txt (its lines), or folders of .txt files.",
    ),
]

app = typer.Typer(
    name="pyfeat",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Images, texts and recordings to features to predictions: frozen backbones, a crash-safe "
    "store, light heads.",
    epilog="Exit codes: 0 done, 3 some inputs could not be read (listed with reason), "
    "2 wrong usage, 1 error, 130 Ctrl-C, 143 SIGTERM. PYFEAT_NUM_THREADS limits the threads that "
    "decode, compute and read rows (default: the cores there are); torch's own obey "
    "OMP_NUM_THREADS.",
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        from pyfeat import __version__

        typer.echo(f"pyfeat {__version__}")
        raise typer.Exit


class UsageProblem(Exception):
    """What the user typed cannot be meant: exit code 2."""


def command(*path: str) -> Callable[[Callable[P, int]], Callable[P, None]]:
    """Register a function that returns an exit code as `pyfeat PATH`.

    Errors a user can mend are told in one line; anything else is a defect and keeps its traceback.
    """

    def register(function: Callable[P, int]) -> Callable[P, None]:
        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            wants_json = bool(kwargs.get("json_out"))
            try:
                with terminable():
                    code = function(*args, **kwargs)
            except UsageProblem as error:
                code = _tell(str(error), USAGE, wants_json)
            except KeyboardInterrupt as error:
                text = "interrupted; what was computed is kept"
                code = _tell(text, exit_code_of(error), wants_json)
            except (ValueError, TypeError, OSError, RuntimeError, ImportError, KeyError) as error:
                logging.getLogger("pyfeat").debug("the error's origin", exc_info=True)
                text = str(error) or type(error).__name__
                code = _tell(text, ERROR, wants_json)
            raise typer.Exit(code)

        _group(path[:-1]).command(path[-1])(run)
        return run

    return register


class ListByDefault(TyperGroup):
    """A group whose command `list` is meant where no command is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `list` in front of what is no command."""
        if not args or args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


_groups: dict[str, typer.Typer] = {}


def _group(path: tuple[str, ...]) -> typer.Typer:
    if not path:
        return app
    (name,) = path
    if name not in _groups:
        helps = {
            "store": "Look into a store, and look after it.",
            "index": "Search for the images nearest to others.",
            "backbones": "List the backbones that `--backbone` takes, or look into one. "
            "`pyfeat backbones PATTERN` is `pyfeat backbones list PATTERN`.",
        }
        lists = name == "backbones"
        _groups[name] = typer.Typer(
            cls=ListByDefault if lists else None,
            help=helps[name],
            no_args_is_help=not lists,
            rich_markup_mode=None,
        )
        app.add_typer(_groups[name], name=name)
    return _groups[name]


def _tell(message: str, code: int, json_out: bool) -> int:
    if json_out:
        print_json({"error": message, "exit_code": code})
    typer.echo(f"pyfeat: {message}", err=True)
    return code


def print_json(value: Any) -> None:
    """Print one JSON object on stdout."""
    typer.echo(json.dumps(value, indent=2))


@contextmanager
def usage() -> Iterator[None]:
    """Tell a `ValueError` of the block as wrong usage: it is about what the user typed."""
    try:
        yield
    except ValueError as error:
        raise UsageProblem(str(error)) from None


def check_there(inputs: list[str]) -> None:
    """Refuse what is not there before a backbone is loaded, or downloaded, for it.

    Raises
    ------
    UsageProblem
        If an input is neither there nor a pattern nor an address.
    """
    from pyfeat.jobs import is_there

    for item in inputs:
        if not is_there(item):
            raise UsageProblem(f"inputs must exist, got {item!r}: no such file or folder")


def inputs_of(inputs: list[str], modality: str, column: str | None) -> Collected:
    """Return the inputs that were typed; what is not there is wrong usage.

    Raises
    ------
    UsageProblem
        If an input is not there or names nothing.
    """
    from pyfeat.jobs import collect_inputs

    with usage():
        return collect_inputs(inputs, modality, column)


def shows_progress(json_out: bool) -> bool:
    """Return whether a bar is wanted: a person watches, and no machine reads."""
    return sys.stderr.isatty() and not json_out


def main() -> None:
    """Run the command line."""
    # The threads that decode and those of the backbone share the cores: a thread that waits for
    # the others of its team must not burn the core they need. torch reads this once, when it loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from pyfeat.cli import (  # noqa: F401  they register their commands
        _data,
        _extract,
        _model,
        _plan,
        _store,
        _tools,
    )

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")  # names of files are bytes
    app()
