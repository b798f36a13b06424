"""`pyfeat store`: what a store holds, and what is to be done about it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pyfeat.cli._app import ERROR, OK, Json, command, print_json
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
