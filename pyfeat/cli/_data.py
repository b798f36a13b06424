"""`pyfeat index`: rows searched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pyfeat.cli._app import (
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
