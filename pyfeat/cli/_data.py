"""`pyfeat store`, `pyfeat index`: rows looked at, rows searched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pyfeat.cli._app import (
    ERROR,
    OK,
    QUARANTINED,
    Column,
    InputArguments,
    Json,
    SpaceOption,
    WeightsOption,
    command,
    inputs_of,
    print_json,
    shows_progress,
)
from pyfeat.cli._text import table


@command("store", "info")
def _store_info(
    store: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the store.")],
    json_out: Json = False,
) -> int:
    """Say what a store holds: spaces, rows, images, bytes."""
    from pyfeat.store import FeatureStore, read_items

    spaces: list[dict[str, Any]] = []
    for space in FeatureStore.spaces(store):
        opened = FeatureStore(store, space, mode="r")
        items = read_items(store, space)
        spaces.append(
            {
                "space": space.fingerprint,
                "backbone": space.parts.get("name"),
                "dim": space.dim,
                "dtype": space.dtype,
                "rows": len(opened),
                "images": sum(i.key is not None for i in items),
                "quarantined": [
                    {"path": i.name, "reason": i.reason} for i in items if i.reason is not None
                ],
                "bytes": sum(Path(f).stat().st_size for f in opened.files()),
            }
        )
    if json_out:
        print_json({"store": str(store), "spaces": spaces})
        return OK
    header = ("space", "backbone", "dim", "dtype", "rows", "images", "quarantined", "MB")
    rows = [
        (
            s["space"][:12],
            s["backbone"] or "-",
            s["dim"],
            s["dtype"],
            s["rows"],
            s["images"],
            len(s["quarantined"]),
            f"{s['bytes'] / 1e6:.1f}",
        )
        for s in spaces
    ]
    typer.echo(table(header, rows))
    return OK


@command("store", "verify")
def _store_verify(
    store: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the store.")],
    json_out: Json = False,
) -> int:
    """Check every byte of a store against its checksums; exit code 1 if one is wrong."""
    from dataclasses import asdict

    from pyfeat.store import verify

    damage = verify(store)
    if json_out:
        print_json({"store": str(store), "damage": [asdict(d) for d in damage]})
    else:
        for d in damage:
            typer.echo(f"{d.path}, byte {d.offset}: {d.reason}")
        typer.echo(f"{len(damage)} damaged places" if damage else "clean")
    return ERROR if damage else OK


@command("index", "build")
def _index_build(
    store: Annotated[Path, typer.Option(help="Folder of the store.")],
    out: Annotated[Path, typer.Option(help="File of the index.")],
    space: SpaceOption = None,
    json_out: Json = False,
) -> int:
    """Index every image of a store, for `pyfeat index search`."""
    from pyfeat.jobs import build_index

    n = build_index(store, out, space=space)
    if json_out:
        print_json({"index": str(out), "images": n})
    else:
        typer.echo(f"{n:,} images indexed in {out}")
    return OK


@command("index", "search")
def _index_search(
    inputs: InputArguments,
    index: Annotated[Path, typer.Option(help="File that `pyfeat index build` wrote.")],
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Neighbours of each image.")] = 5,
    weights: WeightsOption = None,
    column: Column = None,
    json_out: Json = False,
) -> int:
    """Print the indexed images nearest to each input, with their cosine similarity."""
    from dataclasses import asdict

    from pyfeat.index import FeatureIndex
    from pyfeat.jobs import modality_of_space, search_index

    searched = FeatureIndex.load(index).space_
    queries = inputs_of(inputs, modality_of_space(searched), column)
    progress = shows_progress(json_out)
    found, summary = search_index(index, queries, k=k, weights=weights, progress=progress)
    if json_out:
        print_json({"neighbours": [asdict(n) for n in found], "extraction": summary.to_dict()})
    else:
        rows = [(n.query, f"{n.score:.4f}", n.path) for n in found]
        typer.echo(table(("query", "similarity", "neighbour"), rows))
        for q in summary.quarantined:
            typer.echo(f"not read: {q.path}: {q.reason}", err=True)
    return QUARANTINED if summary.quarantined else OK
