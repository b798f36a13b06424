"""`pyfeat extract`: a row for every input into a store."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyfeat._signals import exit_code_of
from pyfeat.cli._app import (
    OK,
    QUARANTINED,
    Column,
    InputArguments,
    Json,
    WeightsOption,
    check_there,
    command,
    inputs_of,
    print_json,
    shows_progress,
    usage,
)
from pyfeat.cli._text import extraction_text

if TYPE_CHECKING:
    from pyfeat.extract import FeatureExtractor
    from pyfeat.jobs import JobInterrupted, JobOptions


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
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16, int8, fp8 or auto.")] = "fp32",
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
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1; cuda:0,cuda:1: a process for each.")
    ] = "auto",
    deterministic: Annotated[
        bool, typer.Option(help="Promise bits that do not depend on the batch; slow on a GPU.")
    ] = False,
    decode: Annotated[
        str, typer.Option(help="exact, or fast: large JPEG files at 1/2, 1/4 or 1/8.")
    ] = "exact",
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Only the I-th of N shares of the inputs, I from 1 to N."),
    ] = None,
    rehash: Annotated[
        bool, typer.Option("--rehash", help="Read files that seem unchanged too.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Only try what is in quarantine again.")
    ] = False,
    log_json: Annotated[
        str | None, typer.Option(metavar="FILE", help="JSON lines for machines; - is stdout.")
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Scalars for TensorBoard.")
    ] = None,
    runner: Annotated[
        str, typer.Option(help="local: processes of this machine; ray: actors of a cluster.")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes or actors, each with a backbone.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster.")] = None,
    json_out: Json = False,
) -> int:
    """Put a row of features for every input into a store. Run it again to go on.

    With --engine auto or --precision auto, the engines are measured on a sample of the inputs.
    """
    typed = dict(locals())  # every option by its name
    from pyfeat.jobs import JobInterrupted, extract
    from pyfeat.jobs._stop import second_signal_ends_process

    second_signal_ends_process()
    with _failure_told(log_json, json_out):
        check_there(inputs)
        with usage():
            options = _job_options(typed)
            extractor = _extractor(typed)
            modality = extractor.modality
        found = inputs_of(inputs, modality, column)
    progress = shows_progress(json_out)
    try:
        summary = extract(found, store, extractor, progress=progress, **options)
    except JobInterrupted as stopped:
        return _interrupted(stopped, json_out)
    if json_out:
        print_json(summary.to_dict())
    else:
        # A log on stdout is for a machine: nothing else stands there.
        typer.echo(extraction_text(summary, report=fidelity), err=log_json == "-")
    return QUARANTINED if summary.quarantined else OK


@contextmanager
def _failure_told(log_json: str | None, json_out: bool) -> Iterator[None]:
    """Tell the log of an error of the block, before there is a job that does."""
    from pyfeat.jobs._options import Options
    from pyfeat.jobs._report import listeners_of

    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        is_answer = log_json == "-" and json_out  # stdout is for one JSON object
        # Opened only now: who reads a pipe would see its end when it is closed before the job.
        with listeners_of(Options(log_json=None if is_answer else log_json)) as listeners:
            listeners.tell_error(error)
        raise


def _job_options(typed: dict[str, Any]) -> JobOptions:
    """Return how the job is to run.

    Raises
    ------
    ValueError, TypeError
        If an option is not as `JobOptions` describes.
    """
    from pyfeat.jobs._options import Options, check_options

    if typed["engine"] == "ray":  # who does the work, in the words of some
        typed.update(engine="torch", runner="ray")
    devices = [d.strip() for d in typed["device"].split(",")]
    typed["device"] = devices[0]
    typed["devices"] = devices if len(devices) > 1 else None
    # The column is for `collect_inputs`, the decoding for the extractor.
    names = [f.name for f in fields(Options) if f.name not in ("column", "decode")]
    options: JobOptions = {name: typed[name] for name in names}  # type: ignore[assignment]
    check_options(options)
    if typed["log_json"] == "-" and typed["json_out"]:
        raise ValueError("log_json must be a file where --json is given, got '-'")
    return options


def _extractor(typed: dict[str, Any]) -> FeatureExtractor:
    from pyfeat.extract import FeatureExtractor

    size = typed["batch_size"]
    typed["batch_size"] = int(size) if size.isdecimal() else size
    typed["layers"] = layers_of(typed["layers"])
    known = set(FeatureExtractor().get_params(deep=False)) - {"store"}
    return FeatureExtractor(**{name: v for name, v in typed.items() if name in known})


def _interrupted(stopped: JobInterrupted, json_out: bool) -> int:
    """Say what is safe, and how to go on; return 130 for Ctrl-C and 143 for SIGTERM."""
    s = stopped.summary
    again = shlex.join(["pyfeat", *sys.argv[1:]])
    typer.echo(
        f"pyfeat: interrupted: {s.total:,} of {s.total + s.left:,} inputs are done and safe in "
        f"{s.store}; go on with: {again}",
        err=True,
    )
    code = exit_code_of(stopped)
    if json_out:
        print_json({**s.to_dict(), "exit_code": code})
    return code


def layers_of(text: str) -> str | int | tuple[str | int, ...]:
    """Return the layers that were typed: names and whole numbers with commas between them."""
    words = [word.strip() for word in text.split(",")]
    wanted = [int(w) if w.removeprefix("-").isdecimal() else w for w in words]
    return wanted[0] if len(wanted) == 1 else tuple(wanted)
