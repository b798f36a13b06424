"""`pyfeat store`: what a store holds, whether it is whole, and how it becomes so again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyfeat.cli._app import (
    ERROR,
    OK,
    Json,
    SpaceOption,
    UsageProblem,
    WeightsOption,
    command,
    print_json,
    usage,
)
from pyfeat.cli._store_text import recomputed_text, repair_text
from pyfeat.cli._text import table

if TYPE_CHECKING:
    from pyfeat import Space

StoreArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the store.")]


@command("store", "info")
def _info(store: StoreArgument, json_out: Json = False) -> int:
    """Say what a store holds: spaces, rows, inputs, files, bytes."""
    from pyfeat.store import info

    spaces = info(store)
    if json_out:
        print_json({"store": str(store), "spaces": [s.to_dict() for s in spaces]})
        return OK
    header = (
        *("space", "backbone", "layer", "precision", "dim", "dtype", "rows", "inputs"),
        *("quarantined", "segments", "tails", "overwritten", "MB"),
    )
    rows = [
        (
            *(s.space[:12], s.backbone or "-", s.layer, f"{s.engine or '-'} {s.precision or '-'}"),
            *(s.dim, s.dtype, s.rows, s.images, len(s.quarantined), s.segments, s.tails),
            *(s.overwritten, f"{s.bytes / 1e6:.1f}"),
        )
        for s in spaces
    ]
    typer.echo(table(header, rows))
    return OK


@command("store", "verify")
def _verify(
    store: StoreArgument,
    repair_it: Annotated[
        bool,
        typer.Option("--repair", help="Keep all good rows; name and set aside what is damaged."),
    ] = False,
    recompute_n: Annotated[
        int | None,
        typer.Option(
            "--recompute",
            metavar="N",
            min=0,
            help="Compute N inputs picked at random, and the golden row, again and compare.",
        ),
    ] = None,
    space: SpaceOption = None,
    weights: WeightsOption = None,
    json_out: Json = False,
) -> int:
    """Check every byte of a store against its checksums; exit code 1 if one is wrong.

    With --repair the exit code says how things are afterwards. With --recompute it is 1 too if a
    row is another than rounding explains; --space and --weights are for that.
    """
    from pyfeat.store import repair, verify

    repaired = repair(store) if repair_it else None
    damage = repaired.left if repaired is not None else verify(store)
    again = []
    if recompute_n is not None:
        from pyfeat.jobs import recompute

        chosen = None if space is None else _space(store, space)
        again = recompute(store, recompute_n, space=chosen, weights=weights)
    if json_out:
        found: dict[str, Any] = {"store": str(store), "damage": [asdict(d) for d in damage]}
        if repaired is not None:
            found["repair"] = asdict(repaired)
        if recompute_n is not None:
            found["recomputed"] = [r.to_dict() for r in again]
        print_json(found)
    else:
        if repaired is not None and repaired.found:
            typer.echo(repair_text(repaired))
        for d in damage:
            typer.echo(f"{d.path}, byte {d.offset}: {d.reason}")
        typer.echo(f"{len(damage)} damaged places" if damage else "clean")
        for r in again:
            typer.echo(recomputed_text(r))
    return ERROR if damage or any(r.beyond for r in again) else OK


@command("store", "quarantine")
def _quarantine(store: StoreArgument, space: SpaceOption = None, json_out: Json = False) -> int:
    """List the inputs that could not be read, with the reason."""
    from pyfeat.store import FeatureStore, quarantined

    spaces = FeatureStore.spaces(store) if space is None else [_space(store, space)]
    found = [(s, item) for s in spaces for item in quarantined(store, s)]
    if json_out:
        bad = [{"space": s.fingerprint, "path": i.name, "reason": i.reason} for s, i in found]
        print_json({"store": str(store), "quarantined": bad})
    else:
        for _, item in found:
            typer.echo(f"{item.name}: {item.reason}")
        typer.echo(f"{len(found):,} inputs in quarantine", err=True)
    return OK


@command("store", "compact")
def _compact(
    store: StoreArgument,
    space: SpaceOption = None,
    segment_mb: Annotated[
        int, typer.Option(min=1, help="Most megabytes of a merged segment.")
    ] = 256,
    json_out: Json = False,
) -> int:
    """Merge small files into large ones, and drop rows that newer ones stand for.

    Jobs may read and write meanwhile.
    """
    from pyfeat.store import compact

    chosen = None if space is None else _space(store, space)
    done = compact(store, space=chosen, segment_bytes=segment_mb * 10**6)
    if json_out:
        print_json({"store": str(store), "spaces": [asdict(d) for d in done]})
        return OK
    for d in done:
        typer.echo(
            f"{d.space[:12]}: {d.segments[0]:,} -> {d.segments[1]:,} segments, "
            f"{d.lists[0]:,} -> {d.lists[1]:,} lists, {d.dropped:,} overwritten rows dropped, "
            f"{(d.bytes[0] - d.bytes[1]) / 1e6:,.1f} MB freed"
        )
    return OK


@command("store", "gc")
def _gc(
    store: StoreArgument,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPACE,...",
            help="First digits of the spaces to keep; with commas, or given several times.",
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Keep none: without --keep this must be said.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
    json_out: Json = False,
) -> int:
    """Remove all spaces of a store but those to keep.

    A space into which somebody writes is kept too.
    """
    from pyfeat.store import gc

    wanted = [word for text in keep or [] for word in text.split(",")]
    if everything and wanted:
        raise UsageProblem(f"--all must stand without --keep, got both, and {wanted}")
    with usage():
        removals = gc(store, wanted, dry_run=dry_run, everything=everything)
    freed = sum(r.bytes for r in removals if r.removed)
    if json_out:
        spaces = [asdict(r) for r in removals]
        print_json({"store": str(store), "dry_run": dry_run, "freed": freed, "spaces": spaces})
        return OK
    for r in removals:
        verb = ("would be removed" if dry_run else "removed") if r.removed else "kept"
        typer.echo(
            f"{verb}: {r.space[:12]} {r.backbone or '-'}, {r.bytes / 1e6:,.1f} MB: {r.reason}"
        )
    typer.echo(f"{freed:,} bytes {'would be freed' if dry_run else 'freed'}")
    return OK


def _space(store: Path, prefix: str | None) -> Space:
    from pyfeat.jobs import choose_space

    with usage():
        return choose_space(store, prefix)


@command("store", "export")
def _export(
    store: StoreArgument,
    out: Annotated[Path, typer.Option(help="File or folder to be made.")],
    format_: Annotated[
        str, typer.Option("--format", help="npy, parquet, safetensors, or hf (a datasets folder).")
    ] = "npy",
    where: Annotated[
        str | None,
        typer.Option(metavar="GLOB", help="Only inputs whose whole name fits, like '*/cat/*'."),
    ] = None,
    space: SpaceOption = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, where rows are stored as float16.")
    ] = None,
    json_out: Json = False,
) -> int:
    """Write rows with their keys and names for other programs."""
    from pyfeat.store import FeatureStore, export

    chosen = _space(store, space)
    with usage():
        done = export(
            FeatureStore(store, chosen, mode="r"), out, format=format_, where=where, dtype=dtype
        )
    if json_out:
        print_json(asdict(done) | {"space": chosen.fingerprint})
    else:
        typer.echo(f"{done.rows:,} rows in {done.path} ({done.bytes / 1e6:,.1f} MB)")
    return OK


@command("store", "import")
def _import(
    store: StoreArgument,
    rows: Annotated[
        Path, typer.Argument(metavar="ROWS", help="rows.npy, or a folder that `export` wrote.")
    ],
    keys: Annotated[
        Path | None, typer.Option(help="keys.npy: (n, 16) bytes; else those of the files named.")
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(help="Names of the inputs: a line for each row, or .jsonl of `export`."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What computed the rows: it tells them from others.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16, bfloat16 or int8; by default as they are.")
    ] = None,
    json_out: Json = False,
) -> int:
    """Put rows that were computed elsewhere into a store."""
    from pyfeat.jobs import import_files

    with usage():
        space, n = import_files(store, rows, keys=keys, names=names, name=name, dtype=dtype)
    if json_out:
        print_json({"store": str(store), "space": space.fingerprint, "rows": n})
    else:
        typer.echo(f"{n:,} rows in {store}, space {space.fingerprint[:12]}")
    return OK
