"""A frozen backbone: images in, rows out, and an identity."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pyfeat.backbones._freeze import make_fast
from pyfeat.backbones._precision import exact_float32
from pyfeat.backbones._pretrained import Pretrained
from pyfeat.backbones._weights import all_tensors, weights_hash
from pyfeat.ops._preprocess import Preprocessing

# What the code of a module raises for inputs that it was not made for.
_FORWARD_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
# Raised whenever the same weights and pixels give other rows than before, beyond rounding.
NUMERICS = 1


@dataclass(frozen=True, eq=False)
class Backbone:
    """A network without its classifier, in evaluation mode and without gradients.

    Made by `load_backbone`. Calling it turns a batch of images into rows.

    Parameters
    ----------
    name : str
        Full name: loads the same weights again.
    dim : int
        Number of columns of a row.
    preprocessing : Preprocessing
        What an image goes through before it becomes part of a batch.
    device : torch.device
        Where it computes.
    parts : dict of JSON values
        What identifies the rows (see `pyfeat.Space`): source, name, weights, architecture, layer,
        pooling, preprocessing, precision, numerics.
    chunk : int or None
        How many images are computed at a time on a CPU. Any multiple of it is a good batch size.
        None, on a GPU: the whole batch.

    Notes
    -----
    On a CPU every chunk has the same size, the last one filled up with zeros. So a row does not
    depend on its neighbours or on the batch size, to the bit; without it rows differ by about
    3e-7 of their length between batches of one and of many. On a GPU they may.

    Sums run in float32: TF32, bfloat16 products and autocast are off while a batch is computed.
    """

    name: str
    dim: int
    preprocessing: Preprocessing
    device: torch.device
    parts: dict[str, Any]
    chunk: int | None
    _module: nn.Module = field(repr=False)

    def __call__(self, batch: Tensor) -> Tensor:
        """Return the rows of a batch.

        Parameters
        ----------
        batch : Tensor of shape (n, 3, crop, crop), float32
            Preprocessed images, on any device. Not changed.

        Returns
        -------
        rows : Tensor of shape (n, dim), float32
            On the device of the backbone. An ordinary tensor, which autograd may use further.

        Raises
        ------
        TypeError
            If `batch` is no float32 tensor.
        ValueError
            If `batch` has another shape.
        """
        self._check(batch)
        rows = torch.empty(len(batch), self.dim, device=self.device)
        step = self.chunk or max(len(batch), 1)
        with torch.inference_mode(), exact_float32(self.device):
            for start in range(0, len(batch), step):
                part = batch[start : start + step].to(self.device, non_blocking=True)
                rows[start : start + step] = self._run(part)[: len(part)]
        return rows

    def _check(self, batch: Tensor) -> None:
        if not isinstance(batch, Tensor) or batch.dtype != torch.float32:
            got = getattr(batch, "dtype", type(batch).__name__)
            raise TypeError(f"batch must be a float32 tensor, got {got}")
        size = self.preprocessing.crop
        if batch.ndim != 4 or batch.shape[1:] != (3, size, size):
            raise ValueError(
                f"batch must have shape (n, 3, {size}, {size}), got {tuple(batch.shape)}"
            )

    def _run(self, part: Tensor) -> Tensor:
        if self.chunk is not None:
            part = nn.functional.pad(part, (0,) * 6 + (0, self.chunk - len(part)))
            part = part.contiguous(memory_format=torch.channels_last)
        return as_rows(self._module(part), len(part))


def freeze(found: Pretrained, device: torch.device) -> Backbone:
    """Turn what a source handed over into a backbone; the module is taken over and rewritten.

    Raises
    ------
    ValueError
        If the module does not take images of the size of its preprocessing, or returns neither
        (n, d) nor (n, c, h, w).
    """
    module = found.module.eval().requires_grad_(False).float()
    # Buffers outside the state dict belong to the architecture, which a name of a model fixes.
    tensors = all_tensors(module) if found.source == "module" else module.state_dict()
    weights = weights_hash(tensors)
    module = module.to(device)
    size = found.preprocessing.crop
    with torch.no_grad(), exact_float32(device):
        output = _probe(module, size, device)
        dim = as_rows(output, 1).shape[1]
        chunk = make_fast(module, size, device)
    parts = {
        "source": found.source,
        "name": found.name,
        "weights": weights,
        "architecture": found.architecture,
        "layer": "penultimate",
        "pooling": "avg" if output.ndim == 4 else "module",
        "preprocessing": found.preprocessing.to_parts(),
        "precision": "float32",
        "numerics": NUMERICS,
    }
    return Backbone(found.name, dim, found.preprocessing, device, parts, chunk, module)


def as_rows(output: Any, n: int) -> Tensor:
    """Return (n, d) as it is, and (n, c, h, w) averaged over h and w.

    Raises
    ------
    ValueError
        If `output` is anything else, is empty, or holds no real floating point numbers.
    """
    rule = f"return shape ({n}, d) or ({n}, c, h, w), no side 0"
    if not isinstance(output, Tensor):
        raise ValueError(f"backbone must {rule}, got {type(output).__name__}")
    shape = tuple(output.shape)
    if output.ndim not in {2, 4} or len(output) != n or 0 in shape:
        raise ValueError(f"backbone must {rule}, got {shape}")
    if not output.is_floating_point():
        raise ValueError(f"backbone must return real floating point numbers, got {output.dtype}")
    return output if output.ndim == 2 else output.mean(dim=(2, 3))


def _probe(module: nn.Module, size: int, device: torch.device) -> Any:
    try:
        return module(torch.zeros(1, 3, size, size, device=device))
    except _FORWARD_ERRORS as error:
        raise ValueError(
            f"backbone must take a batch of shape (1, 3, {size}, {size}), got "
            f"{type(error).__name__}: {error}"
        ) from error
