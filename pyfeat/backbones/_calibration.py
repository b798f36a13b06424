"""int8 networks: calibrated on a caller's own inputs, identified by their constants, kept on disk.

What ranges a network is quantised to depends on the inputs it was calibrated on, so its rows are a
space of their own: their precision is "int8:IDENTITY". More such rows need the very same network,
which is kept for that in `$XDG_CACHE_HOME/pyfeat/int8` (by default `~/.cache/pyfeat/int8`).
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray
from torch import Tensor

from pyfeat._identity import canonical_json
from pyfeat.backbones._openvino_core import core, own_signal_stack

Batches = Sequence[tuple[Tensor, ...]]


def calibrate(model: Any, batches: Sequence[tuple[NDArray[Any], ...]], chunk: int) -> Any:
    """Return an OpenVINO model in int8.

    Parameters
    ----------
    model : openvino.Model
        In float32, of `chunk` inputs. Not changed.
    batches : sequence of batches
        What ranges are measured on; multiples of `chunk` inputs.
    chunk : int

    Raises
    ------
    ValueError
        If there is nothing to calibrate on.
    """
    inputs = [
        tuple(np.ascontiguousarray(array[i : i + chunk]) for array in batch)
        for batch in batches
        for i in range(0, len(batch[0]), chunk)
    ]
    if not inputs:
        raise ValueError("calibration must have at least one input for int8, got none")
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    attends = any("ScaledDotProductAttention" in op.get_type_name() for op in model.get_ops())
    with own_signal_stack(), redirect_stdout(io.StringIO()):  # nncf's bars
        return nncf.quantize(
            model.clone(),
            nncf.Dataset(inputs),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(inputs),
            model_type=nncf.ModelType.TRANSFORMER if attends else None,
        )


def identity_of(model: Any) -> str:
    """Return a hash of the constants of an OpenVINO model: weights, and the ranges they are in.

    Neither their names nor their order count, which a file may change.
    """
    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
    digests = []
    for op in constants:
        header = canonical_json([str(op.get_element_type()), list(op.shape)])
        digests.append(blake3(header.encode() + op.data.tobytes()).hexdigest())
    return blake3(canonical_json(sorted(digests)).encode()).hexdigest()


def cache_folder() -> Path:
    """Return where calibrated networks are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "pyfeat" / "int8"


def keep(model: Any, identity: str) -> None:
    """Write a calibrated network to the cache, unless it is there."""
    import openvino

    folder = cache_folder() / identity
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix="new-"))
    try:
        openvino.save_model(model, made / "model.xml", compress_to_fp16=False)
        with suppress(OSError):  # another process was first
            made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def read(identity: str) -> Any:
    """Return a network calibrated earlier.

    Raises
    ------
    FileNotFoundError
        If the cache does not have it.
    OSError
        If it is not the network that was kept.
    """
    path = cache_folder() / identity / "model.xml"
    if not path.is_file():
        raise FileNotFoundError(
            f"calibrated network must be at {path}, got nothing: copy the folder from where the "
            f"rows were computed; or fit again, or use another store: it is then calibrated anew"
        )
    model = core().read_model(path)
    if identity_of(model) != identity:
        raise OSError(f"calibrated network must be as it was kept, got other constants in {path}")
    return model
