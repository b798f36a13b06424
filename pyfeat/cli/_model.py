"""`pyfeat fit`, `pyfeat predict`, `pyfeat quickstart`: labels learned and given."""

from __future__ import annotations

import csv
import sys
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
    UsageProblem,
    WeightsOption,
    command,
    inputs_of,
    print_json,
    shows_progress,
    usage,
)
from pyfeat.cli._text import fit_text, quickstart_text


@command("fit")
def _fit(
    store: Annotated[Path, typer.Option(help="Folder of the store.")],
    labels: Annotated[
        str, typer.Option(help="`folder`: name of an image's folder; or a table of path,label.")
    ],
    out: Annotated[Path, typer.Option(help="File of the model.")],
    C: Annotated[float, typer.Option("--C", help="Inverse strength of the penalty.")] = 1.0,
    cv: Annotated[int, typer.Option(help="Folds that measure the accuracy; 0: none.")] = 5,
    space: SpaceOption = None,
    json_out: Json = False,
) -> int:
    """Train a classifier on the rows of a store."""
    from pyfeat.jobs import choose_space, fit

    if not store.is_dir():
        raise UsageProblem(f"--store must be a folder, got {str(store)!r}: no such folder")
    if C <= 0:
        raise UsageProblem(f"--C must be positive, got {C}")
    if cv < 0 or cv == 1:
        raise UsageProblem(f"--cv must be 0 or at least 2, got {cv}")
    with usage():
        choose_space(store, space)
    if labels != "folder" and not Path(labels).is_file():
        raise UsageProblem(f"--labels must be `folder` or a file, got {labels!r}: no such file")
    summary = fit(store, labels, out, C=C, cv=cv, space=space)
    if json_out:
        print_json(summary.to_dict())
    else:
        typer.echo(fit_text(summary))
    return OK


@command("predict")
def _predict(
    inputs: InputArguments,
    model: Annotated[Path, typer.Option(help="File that `pyfeat fit` wrote.")],
    out: Annotated[Path | None, typer.Option(help="CSV to write; stdout by default.")] = None,
    store: Annotated[
        Path | None, typer.Option(help="Store to take rows from and keep new ones in.")
    ] = None,
    weights: WeightsOption = None,
    column: Column = None,
    json_out: Json = False,
) -> int:
    """Label images: CSV of path, label, probability."""
    from pyfeat.heads import LogisticHead
    from pyfeat.jobs import modality_of_space, predict

    if not model.is_file():
        raise UsageProblem(f"--model must be a file, got {str(model)!r}: no such file")
    head = LogisticHead.load(model)
    found = inputs_of(inputs, modality_of_space(head.space_), column)
    progress = shows_progress(json_out)
    summary = predict(model, found, store=store, weights=weights, progress=progress)
    rows = [(p.path, p.label, f"{p.probability:.6f}") for p in summary.predictions]
    if out is not None:
        with out.open("w", newline="", encoding="utf-8", errors="surrogateescape") as f:
            csv.writer(f).writerows([("path", "label", "probability"), *rows])
    if json_out:
        print_json(summary.to_dict())
    elif out is None:
        csv.writer(sys.stdout).writerows([("path", "label", "probability"), *rows])
    else:
        typer.echo(f"{len(rows):,} images labelled in {out}")
    quarantined = summary.extraction.quarantined
    for q in quarantined:
        typer.echo(f"not read: {q.path}: {q.reason}", err=True)
    return QUARANTINED if quarantined else OK


@command("quickstart")
def _quickstart(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FOLDER]",
            help="Folder with one folder of images per class; handwritten digits by default.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where store and model go.")] = Path("quickstart"),
    json_out: Json = False,
) -> int:
    """Run the whole chain once: features, head, accuracy on held-out images."""
    from pyfeat.jobs import quickstart

    if folder is not None and not folder.is_dir():
        raise UsageProblem(f"FOLDER must be a folder of class folders, got {str(folder)!r}")
    report = quickstart(folder, out, progress=shows_progress(json_out))
    if json_out:
        print_json(report.to_dict())
    else:
        typer.echo(quickstart_text(report))
    return QUARANTINED if report.first.quarantined else OK
