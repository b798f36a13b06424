"""`pyfeat plan`: what a job would cost."""

from __future__ import annotations

from typing import Annotated

import typer

from pyfeat.cli._app import (
    ERROR,
    OK,
    Column,
    InputArguments,
    Json,
    check_there,
    command,
    print_json,
    shows_progress,
    usage,
)
from pyfeat.cli._text import plan_text


@command("plan")
def _plan(
    inputs: InputArguments,
    backbone: Annotated[
        list[str] | None,
        typer.Option(help="Name of a backbone; give the option again for each to compare."),
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32, bf16, fp16, int8 or fp8; may be given again.")
    ] = None,
    engine: Annotated[str, typer.Option(help="torch, openvino or onnxruntime.")] = "torch",
    dtype: Annotated[str, typer.Option(help="Type of the stored numbers.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    column: Column = None,
    json_out: Json = False,
) -> int:
    """Say what time, disk and memory a job would take, before it is started.

    Each backbone in each precision is tried on 200 of the inputs, spread over all of them, in a
    process of its own. Nothing is kept.
    """
    from pyfeat.jobs import plan

    check_there(inputs)
    with usage():
        found = plan(
            inputs,
            backbone or ["efficientnet_lite0"],
            precisions=precision or ["fp32"],
            engine=engine,
            dtype=dtype,
            device=device,
            column=column,
            progress=shows_progress(json_out),
        )
    if json_out:
        print_json(found.to_dict())
    else:
        typer.echo(plan_text(found))
    return ERROR if all(e.error is not None for e in found.estimates) else OK
