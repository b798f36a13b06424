"""Feature maps and tokens to rows, in the type in which a store keeps them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyfeat._config import num_threads
from pyfeat.ops._check import (
    ITEMS,
    as_tensor,
    like,
    stream_of,
    why_not_cpp,
    why_not_cuda,
    why_not_triton,
)
from pyfeat.ops._dispatch import Backend, choose, never_refuses
from pyfeat.ops._quantize_rows import Store, cuda_store, triton_store
from pyfeat.ops._quantize_rows_out import (
    FLOATS,
    Quantized,
    addresses,
    check_out,
    dtype_of,
    empty_out,
    store_reference,
)

LAYOUTS = {"nchw": 4, "nhwc": 4, "nlc": 3}
METHODS = ("avg", "max", "gem", "cls", "cls+avg")
GEM_FLOOR = 1e-6

Fold = Callable[[Tensor, str, float, Tensor], None]

_KERNEL = {"avg": 0, "max": 1, "gem": 2, "cls": 0, "cls+avg": 0}


def pool(
    x: Any,
    method: str = "avg",
    *,
    layout: str = "nchw",
    p: float = 3.0,
    l2: bool = False,
    dtype: torch.dtype | str = torch.float32,
    out: Any = None,
    backend: str | None = None,
) -> Any:
    """Pool feature maps or tokens to one row each, normalise it, and round it to what is stored.

    Parameters
    ----------
    x : ndarray or Tensor of shape (n, c, h, w), (n, h, w, c) or (n, l, c)
        Feature maps or tokens, float32, float16 or bfloat16, as `layout` says. Not changed.
        No side but n and c may be 0. A tensor in channels_last memory is read where it lies.
    method : {"avg", "max", "gem", "cls", "cls+avg"}, default="avg"
        Mean, maximum or generalised mean over all positions (h and w, or l). "cls" is token 0;
        "cls+avg" is token 0 followed by the mean of the *other* tokens: rows of 2 c numbers, l at
        least 2. Both are for layout "nlc" only.
    layout : {"nchw", "nhwc", "nlc"}, default="nchw"
        What the axes of `x` mean.
    p : float, default=3.0
        Exponent of "gem", finite, at least 1; 1 is nearly the mean, large p nearly the maximum.
    l2 : bool, default=False
        Divide each row by its Euclidean norm; a row of zeros stays.
    dtype : torch.dtype or its name, {float32, float16, bfloat16, int8}, default=float32
        Type of the rows; int8 comes with a scale for each row, see `quantize_rows`.
    out : Tensor of shape (n, d), or Quantized of tensors, optional
        Where to write, contiguous, on the device of `x`; by default new memory.
    backend : {"cuda", "triton", "cpp", "reference"}, optional
        Force a backend; by default the fastest that can run.

    Returns
    -------
    rows : ndarray or Tensor of shape (n, d), or Quantized
        d is c, and 2 c for "cls+avg". `Quantized(rows, scales)` for int8. Of the kind of `x`,
        except that bfloat16, which numpy lacks, is always a Tensor. `out` when it was given.

    Raises
    ------
    TypeError
        If `x` is neither array nor tensor or holds another type, or `dtype` is another one.
    ValueError
        If `method`, `layout`, `p` or a shape is another one, or `out` does not fit.
    BackendError
        If the backend asked for cannot run; the message says why.

    Notes
    -----
    Generalised mean [1]_, eq. 3: (mean over positions of max(x, 1e-6)^p)^(1/p); the floor 1e-6 is
    that of the authors' code.

    Order: pool, then L2, then round, float32 in between. The reference sums in float64. The other
    backends sum in float32, many partial sums that are merged, and sum again in float64 where a
    result left the range of float32: only numbers that are not finite give a result that is not.
    Sums of squares for L2 run in float64, so that no finite row overflows.

    A channel with NaN is NaN under every method. An infinity gives what IEEE 754 says: infinity
    for mean, maximum and gem (minus infinity counts as 1e-6 there), NaN for the mean of both; after
    L2 NaN, and 0 in the finite channels. What int8 does with such rows is in `quantize_rows`.

    `x` is read once. Memory beyond the result: a few rows for each thread ("cpp"). "cpp" works on
    several threads, releases the GIL, and gives the same bits with any number of threads.

    References
    ----------
    .. [1] Radenovic, Tolias, Chum. Fine-tuning CNN image retrieval with no human annotation. IEEE
       Trans. PAMI 41(7), 2019.

    Examples
    --------
    >>> tokens = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [5.0, 2.0]]])  # (1, 3, 2)
    >>> pool(tokens, layout="nlc")
    tensor([[3., 2.]])
    >>> pool(tokens, "cls", layout="nlc", l2=True)
    tensor([[0.6000, 0.8000]])
    >>> pool(tokens, "cls+avg", layout="nlc", dtype=torch.float16)
    tensor([[3., 4., 3., 1.]], dtype=torch.float16)
    """
    source = _checked(x, method, layout, p)
    target = dtype_of(dtype, (*FLOATS, torch.int8))
    check_out(out, _shape(source, method), target, source.device)
    args = (source, method, float(p), bool(l2), target, out)
    result = choose("pool", BACKENDS, backend, *args).run(*args)
    if out is not None:
        return out
    if isinstance(result, Quantized):
        return Quantized(like(x, result.rows), like(x, result.scales))
    return like(x, result)


def _checked(x: Any, method: str, layout: str, p: float) -> Tensor:
    """Return `x` as (items, channels, positions), without a copy wherever strides can say it."""
    tensor = as_tensor(x, "x")
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {[*LAYOUTS]}, got {layout!r}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {[*METHODS]}, got {method!r}")
    if method.startswith("cls") and layout != "nlc":
        raise ValueError(f"layout must be 'nlc' for method {method!r}, got {layout!r}")
    if not (math.isfinite(p) and p >= 1):
        raise ValueError(f"p must be finite and at least 1, got {p}")
    if tensor.dtype not in FLOATS:
        raise TypeError(f"x must hold one of float32, float16, bfloat16, got {tensor.dtype}")
    shape = tuple(tensor.shape)
    if len(shape) != LAYOUTS[layout]:
        raise ValueError(f"x must have shape ({', '.join(layout)}), got {shape}")
    least = 2 if method == "cls+avg" else 1
    positions = math.prod(n for n, axis in zip(shape, layout, strict=True) if axis in "hwl")
    if positions < least:
        raise ValueError(f"x must have at least {least} positions for {method!r}, got {shape}")
    n, c = shape[0], shape[layout.index("c")]
    if layout == "nchw":
        return tensor.reshape(n, c, positions)
    return tensor.reshape(n, positions, c).transpose(1, 2)


def _shape(x: Tensor, method: str) -> tuple[int, int]:
    return len(x), x.shape[1] * (2 if method == "cls+avg" else 1)


def _reference(x: Tensor, method: str, p: float, l2: bool, dtype: torch.dtype, out: Any) -> Any:
    rows = _pooled(x.double(), method, p)
    if l2:
        # An infinite norm leaves 0 of finite numbers and NaN of infinite ones.
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        rows = rows / norms.where(norms != 0, 1.0)
    return store_reference(rows.float(), dtype, out)


def _pooled(x: Tensor, method: str, p: float) -> Tensor:
    # x is (n, c, positions)
    match method:
        case "avg":
            return x.mean(dim=2)
        case "max":
            return x.amax(dim=2)
        case "gem":
            floored = x.clamp(min=GEM_FLOOR)
            # The largest number taken out: no power overflows.
            most = floored.detach().amax(dim=2, keepdim=True)
            most = most.where(most.isfinite(), 1.0)
            return most[..., 0] * ((floored / most) ** p).mean(dim=2) ** (1 / p)  # eq. 3 of [1]
        case "cls":
            return x[..., 0]
        case _:
            return torch.cat((x[..., 0], x[..., 1:].mean(dim=2)), dim=1)


def strided(x: Tensor) -> Tensor:
    """Return (items, channels, positions) with adjacent channels or positions, else a copy."""
    by_channel = x.stride(1) == 1 or x.shape[1] < 2
    by_position = x.stride(2) == 1 or x.shape[2] < 2
    return x if by_channel or by_position else x.contiguous()


def strides_of(x: Tensor) -> tuple[int, int, int]:
    """Return the strides of a result of `strided`; a channel stride of 1 means adjacent channels.

    torch gives an axis of length 1 any stride. Of a single channel the positions are folded.
    """
    item, channel, position = x.stride()
    if x.shape[2] < 2:
        position = 1
    if x.shape[1] < 2:
        channel = 0 if position == 1 else 1
    return item, channel, position


def _cpp(x: Tensor, method: str, p: float, l2: bool, dtype: torch.dtype, out: Any) -> Any:
    from pyfeat._core import pool as run

    result = empty_out(_shape(x, method), dtype, x.device) if out is None else out
    to, scales = addresses(result)
    if method == "cls":
        x = x[..., :1]
    x = strided(x)
    n, c, positions = x.shape
    run(
        x.data_ptr(),
        ITEMS[x.dtype],
        (n, c, positions),
        strides_of(x),
        method=_KERNEL[method],
        first=method == "cls+avg",
        p=p,
        l2=l2,
        to=ITEMS[dtype],
        out=to,
        scales=scales,
        threads=num_threads(),
    )
    return result


def fold_with(fold: Fold, x: Tensor, method: str, p: float, rows: Tensor) -> None:
    """Fill float32 rows with what `method` makes of x, by a kernel that folds one map a time."""
    c = x.shape[1]
    if method.startswith("cls"):
        fold(strided(x[..., :1]), "avg", p, rows[:, :c])
    if method == "cls+avg":
        fold(strided(x[..., 1:]), "avg", p, rows[:, c:])
    elif method != "cls":
        fold(strided(x), method, p, rows)


def _fold_triton(x: Tensor, method: str, p: float, rows: Tensor) -> None:
    from pyfeat.ops._triton import pool as kernels

    number = {"avg": kernels.AVG, "max": kernels.MAX, "gem": kernels.POWERS}[method]
    if method == "gem" and p == 3:
        number = kernels.CUBES
    _, channel, position = strides_of(x)
    adjacent = channel == 1
    kernels.run(x, number, p, position if adjacent else channel, adjacent, rows)


def _fold_cuda(x: Tensor, method: str, p: float, rows: Tensor) -> None:
    from pyfeat._cuda import pool as run

    n, c, positions = x.shape
    with stream_of(x) as stream:
        run(
            x.data_ptr(),
            ITEMS[x.dtype],
            (n, c, positions),
            strides_of(x),
            method=_KERNEL[method],
            p=p,
            rows=rows.data_ptr(),
            row_stride=rows.stride(0),
            stream=stream,
        )


def _by(fold: Fold, store: Store) -> Callable[..., Any]:
    """Return a backend of two kernels: one folds to float32 rows, the other one finishes them."""

    def run(x: Tensor, method: str, p: float, l2: bool, dtype: torch.dtype, out: Any) -> Any:
        shape = _shape(x, method)
        result = empty_out(shape, dtype, x.device) if out is None else out
        finished = dtype == torch.float32 and not l2
        rows = result if finished else torch.empty(shape, dtype=torch.float32, device=x.device)
        fold_with(fold, x, method, p, rows)
        if not finished:
            store(rows, None, l2, result)
        return result

    return run


def _cuda_refuses(x: Tensor, *_: Any) -> str | None:
    return why_not_cuda(x=x)


def _triton_refuses(x: Tensor, *_: Any) -> str | None:
    return why_not_triton(x=x)


def _cpp_refuses(x: Tensor, *_: Any) -> str | None:
    return why_not_cpp(x=x)


BACKENDS = (
    Backend("cuda", _by(_fold_cuda, cuda_store), _cuda_refuses),
    Backend("triton", _by(_fold_triton, triton_store), _triton_refuses),
    Backend("cpp", _cpp, _cpp_refuses),
    Backend("reference", _reference, never_refuses),
)
