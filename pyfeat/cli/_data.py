"""`pyfeat extract`, `pyfeat index`: rows in, rows searched."""

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
    check_there,
    command,
    inputs_of,
    print_json,
    shows_progress,
    usage,
)
from pyfeat.cli._text import extraction_text, table


@command("extract")
def _extract(  # noqa: PLR0913  # each argument is an option of the command
    inputs: InputArguments,
    store: Annotated[Path, typer.Option(help="Folder of the store; made when missing.")],
    backbone: Annotated[
        str, typer.Option(help="Name of the backbone; see `pyfeat backbones`.")
    ] = "efficientnet_lite0",
    weights: WeightsOption = None,
    column: Column = None,
    video: Annotated[
        str | None, typer.Option(help="avg or max: inputs are videos, frames are pooled.")
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames of each video.")] = 8,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of a text; by default what fits.")
    ] = None,
    layers: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Layers of a row: names, or negative numbers; see `pyfeat backbones show`.",
        ),
    ] = "-1",
    pooling: Annotated[
        str, typer.Option(help="auto, cls, avg, max, gem, cls+avg or none.")
    ] = "auto",
    engine: Annotated[
        str, typer.Option(help="torch, openvino, onnxruntime; auto: the fastest that is true.")
    ] = "torch",
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16, int8 or auto.")] = "fp32",
    min_cosine: Annotated[
        float, typer.Option(help="Smallest cosine to float32 that auto accepts, over a sample.")
    ] = 0.995,
    fidelity: Annotated[
        bool, typer.Option("--fidelity", help="Say how true and how fast the engine is.")
    ] = False,
    dtype: Annotated[
        str, typer.Option(help="What rows are stored as: float32, float16, bfloat16 or int8.")
    ] = "float32",
    batch_size: Annotated[str, typer.Option(help="Inputs in one pass, or auto.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    deterministic: Annotated[
        bool, typer.Option(help="Promise bits that do not depend on the batch; slow on a GPU.")
    ] = False,
    decode: Annotated[
        str, typer.Option(help="exact, or fast: large JPEG files at 1/2, 1/4 or 1/8.")
    ] = "exact",
    json_out: Json = False,
) -> int:
    """Put a row of features for every input into a store. Run it again to go on.

    With --engine auto or --precision auto, the engines are measured on a sample of the inputs.
    """
    from pyfeat.extract import FeatureExtractor
    from pyfeat.jobs import extract

    check_there(inputs)
    with usage():
        extractor = FeatureExtractor(
            backbone,
            weights=weights,
            video=video,
            frames=frames,
            max_length=max_length,
            layers=layers_of(layers),
            pooling=pooling,
            engine=engine,
            precision=precision,
            min_cosine=min_cosine,
            dtype=dtype,
            batch_size=int(batch_size) if batch_size.isdecimal() else batch_size,
            device=device,
            deterministic=deterministic,
            decode=decode,
        )
        modality = extractor.modality
    found = inputs_of(inputs, modality, column)
    progress = shows_progress(json_out)
    summary = extract(found, store, extractor, fidelity=fidelity, progress=progress)
    if json_out:
        print_json(summary.to_dict())
    else:
        typer.echo(extraction_text(summary, report=fidelity))
    return QUARANTINED if summary.quarantined else OK


def layers_of(text: str) -> str | int | tuple[str | int, ...]:
    """Return the layers that were typed: names and whole numbers with commas between them."""
    words = [word.strip() for word in text.split(",")]
    wanted = [int(w) if w.removeprefix("-").isdecimal() else w for w in words]
    return wanted[0] if len(wanted) == 1 else tuple(wanted)


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
