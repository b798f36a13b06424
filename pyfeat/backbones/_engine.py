"""What runs a frozen network: one small interface, and which engines and precisions there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor, device, nn

from pyfeat.backbones._engine_onnxruntime import OnnxRuntimeEngine
from pyfeat.backbones._engine_openvino import OpenVinoEngine
from pyfeat.backbones._engine_torch import TorchEngine

Inputs = tuple[Tensor, ...]

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8", "fp8")


class Engine(Protocol):
    """Runs one network in one precision.

    Attributes
    ----------
    chunk : int or None
        How many inputs are computed at a time; None: as many as are handed in, and a row may
        depend on how many those are.
    """

    chunk: int | None

    def __call__(self, inputs: Inputs) -> Tensor:
        """Return the rows (n, d), float32, of a batch."""
        ...


# What each engine answers: `refuses(precision, device)` gives None or a sentence.
ENGINES: dict[str, Any] = {
    "torch": TorchEngine,
    "openvino": OpenVinoEngine,
    "onnxruntime": OnnxRuntimeEngine,
}


def make_engine(
    name: str,
    precision: str,
    module: nn.Module,
    example: Inputs,
    where: device,
    calibration: Sequence[Inputs] | Callable[[], Sequence[Inputs]] | None = None,
) -> Engine:
    """Return an engine for a frozen network.

    Parameters
    ----------
    name : {"torch", "openvino", "onnxruntime"}
    precision : {"fp32", "bf16", "fp16", "int8", "fp8"}
    module : nn.Module
        Frozen: in evaluation mode, without gradients, on `where`.
    example : tuple of Tensor
        Inputs as they come, one image or text or recording.
    where : torch.device
    calibration : sequence of inputs, optional
        What "int8" measures ranges on.

    Raises
    ------
    BackendError
        If the engine refuses: its package is not there, or it has no such precision or device.
    ValueError
        If there is no such engine or precision.
    """
    from pyfeat.errors import BackendError

    check_engine(name, precision)
    reason = ENGINES[name].refuses(precision, where)
    # Modules that torch runs in float32 only say so themselves.
    says: list[Any] = [m.refuses for m in module.modules() if hasattr(type(m), "refuses")]
    if reason is None and says:
        reason = says[0](name, precision)
    if reason is not None:
        raise BackendError(f"engine {name!r} cannot run {precision} on {where}: {reason}")
    engine: Engine = ENGINES[name](precision, module, example, where, calibration)
    return engine


def check_engine(name: str, precision: str) -> None:
    """Raise ValueError unless there are such an engine and precision; "auto" is one of both."""
    if name not in ("auto", *ENGINES):
        raise ValueError(f"engine must be one of {['auto', *ENGINES]}, got {name!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {list(PRECISIONS)}, got {precision!r}")
