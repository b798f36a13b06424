"""What runs a frozen network: one small interface, and which engines and precisions there are."""

from __future__ import annotations

import re
from typing import Any, Protocol

from torch import Tensor, device, nn

from pyfeat.backbones._calibration import Batches
from pyfeat.backbones._engine_onnxruntime import OnnxRuntimeEngine
from pyfeat.backbones._engine_openvino import OpenVinoEngine
from pyfeat.backbones._engine_torch import TorchEngine
from pyfeat.ops._preprocess_spec import Preprocessing

Inputs = tuple[Tensor, ...]

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8", "fp8")


class Engine(Protocol):
    """Runs one network in one precision.

    Attributes
    ----------
    chunk : int or None
        How many inputs are computed at a time; None: as many as are handed in, and a row may
        depend on how many those are.
    at_once : int
        How many chunks are computed side by side.
    takes_bytes : bool
        Whether images are best handed in as bytes, resized and not normalised: a quarter of the
        memory moves. All engines take both, with equal rows to rounding.
    precision : str
        What it computes in; "int8:IDENTITY" names the calibrated network too.
    """

    chunk: int | None
    at_once: int
    takes_bytes: bool
    precision: str

    def __call__(self, inputs: Inputs) -> Tensor:
        """Return the rows (n, d), float32, of a batch."""
        ...

    def keep(self) -> None:
        """Keep on disk what a later process needs for equal rows; only int8 needs something."""


# What each engine answers: `refuses(precision, device)` gives None or a sentence, and so does
# `refuses_module(module)` of one that cannot run every module.
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
    calibration: Batches | None = None,
    pixels: Preprocessing | None = None,
) -> Engine:
    """Return an engine for a frozen network.

    Parameters
    ----------
    name : {"torch", "openvino", "onnxruntime"}
    precision : {"fp32", "bf16", "fp16", "int8", "int8:IDENTITY", "fp8"}
        With an identity: the network that was calibrated earlier, from the cache.
    module : nn.Module
        Frozen: in evaluation mode, without gradients, on `where`.
    example : tuple of Tensor
        Inputs as they come, one image or text or recording.
    where : torch.device
    calibration : sequence of batches, optional
        What "int8" measures ranges on.
    pixels : Preprocessing, optional
        Of an image network: how bytes are normalised.

    Raises
    ------
    BackendError
        If the engine refuses: its package is not there, or it has no such precision or device.
    ValueError
        If there is no such engine or precision, or nothing to calibrate on.
    FileNotFoundError
        If a network calibrated before is not in the cache.
    """
    from pyfeat.errors import BackendError

    check_engine(name, precision)
    reason = ENGINES[name].refuses(precision, where)
    # Modules that torch runs in float32 only say so themselves.
    says: list[Any] = [m.refuses for m in module.modules() if hasattr(type(m), "refuses")]
    if reason is None and hasattr(ENGINES[name], "refuses_module"):
        reason = ENGINES[name].refuses_module(module)
    if reason is None and says:
        reason = says[0](name, precision)
    if reason is not None:
        raise BackendError(f"engine {name!r} cannot run {precision} on {where}: {reason}")
    engine: Engine = ENGINES[name](precision, module, example, where, calibration, pixels)
    return engine


def check_engine(name: str, precision: str) -> None:
    """Raise ValueError unless there are such an engine and precision; "auto" is one of both."""
    if name not in ("auto", *ENGINES):
        raise ValueError(f"engine must be one of {['auto', *ENGINES]}, got {name!r}")
    calibrated = isinstance(precision, str) and re.fullmatch("int8:[0-9a-f]{64}", precision)
    if precision not in PRECISIONS and not calibrated:
        raise ValueError(f"precision must be one of {list(PRECISIONS)}, got {precision!r}")
