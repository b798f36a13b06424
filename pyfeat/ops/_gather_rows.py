"""Rows by number from several sources into one array, dequantised on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyfeat._config import num_threads
from pyfeat.ops._check import ITEMS, as_tensor, like, why_not_cpp
from pyfeat.ops._dispatch import Backend, choose, never_refuses

Rows = NDArray[Any] | Tensor

_COPY = -1


def gather_rows(
    sources: Sequence[Rows],
    which: Rows,
    rows: Rows,
    *,
    scales: Sequence[Rows] | None = None,
    dtype: torch.dtype | None = None,
    out: Rows | None = None,
    backend: str | None = None,
) -> Rows:
    """Copy rows from several arrays into one, in the order asked for.

    Parameters
    ----------
    sources : sequence of ndarray or Tensor, each of shape (n_s, d)
        At least one; of one dtype, one d and on one device. Read-only memory maps are read where
        they lie.
    which : ndarray or Tensor of shape (m,), integer
        Number of the source of each row. Range [0, len(sources)).
    rows : ndarray or Tensor of shape (m,), integer
        Number of each row in its source. Range [0, n_s).
    scales : sequence of ndarray or Tensor, each of shape (n_s,), float32, optional
        One for each source: what its rows are multiplied by. The result is then float32.
    dtype : torch.dtype, optional
        Of the result: torch.float32, from float16, bfloat16, int8 or float32; or that of the
        sources, any. By default float32 with `scales`, else that of the sources.
    out : ndarray or Tensor of shape (m, d), `dtype`, contiguous, optional
        Where to write. Must not share memory with an input.
    backend : {"cpp", "reference"}, optional
        Force a backend; by default the fastest that can run.

    Returns
    -------
    gathered : ndarray or Tensor of shape (m, d), `dtype`
        `out` when it was given; else a tensor when the first source is one, else an array.

    Raises
    ------
    TypeError
        If an argument is neither array nor tensor, or has another dtype than named above.
    ValueError
        If shapes, dtypes or devices do not fit each other, `out` is not contiguous or read-only,
        or an index lies outside.
    BackendError
        If the backend asked for cannot run; the message says why.

    Notes
    -----
    out[i, j] = scales[which[i]][rows[i]] * sources[which[i]][rows[i], j]. Widening is exact, the
    product is one rounding of float32: all backends give the same bits. NaN and infinity pass
    through (0 * inf = NaN); without `scales` and a change of dtype, rows are copied byte for byte.

    "cpp" takes no memory besides the result. Rows may lie any distance apart; a source whose
    numbers do not lie side by side within a row is copied as a whole. Random rows wait for memory:
    while one is copied, the next ones are fetched.

    "reference" takes as much again as the result.

    Examples
    --------
    >>> old, new = np.zeros((2, 3), np.float16), np.ones((5, 3), np.float16)
    >>> gather_rows([old, new], np.array([1, 0]), np.array([4, 0]), dtype=torch.float32)
    array([[1., 1., 1.],
           [0., 0., 0.]], dtype=float32)
    """
    tensors = _sources(sources)
    factors = None if scales is None else _scales(scales, tensors)
    picked = _indices(tensors, which, rows)
    wanted = _result_dtype(tensors[0].dtype, dtype, scaled=factors is not None)
    shape, device = (len(picked[0]), tensors[0].shape[1]), tensors[0].device
    place = None if out is None else _out(out, shape, wanted, device)
    arguments = (tensors, *picked, factors, wanted, place)
    gathered = choose("gather_rows", BACKENDS, backend, *arguments).run(*arguments)
    return out if out is not None else like(sources[0], gathered)


def _sources(sources: Any) -> list[Tensor]:
    if isinstance(sources, np.ndarray | Tensor):
        raise TypeError(f"sources must be a sequence of arrays, got one {type(sources).__name__}")
    tensors = [as_tensor(x, f"sources[{i}]") for i, x in enumerate(sources)]
    if not tensors:
        raise ValueError("sources must hold at least one array, got none")
    first = tensors[0]
    for i, x in enumerate(tensors):
        if x.ndim != 2:
            raise ValueError(f"sources[{i}] must have shape (n, d), got {tuple(x.shape)}")
        if (x.shape[1], x.dtype, x.device) != (first.shape[1], first.dtype, first.device):
            raise ValueError(
                f"sources[{i}] must have d, dtype and device of sources[0], "
                f"{first.shape[1]} {first.dtype} {first.device}, "
                f"got {x.shape[1]} {x.dtype} {x.device}"
            )
    return tensors


def _scales(scales: Sequence[Rows], sources: list[Tensor]) -> list[Tensor]:
    if len(scales) != len(sources):
        raise ValueError(f"scales must hold one array a source, {len(sources)}, got {len(scales)}")
    factors = [as_tensor(x, f"scales[{i}]") for i, x in enumerate(scales)]
    for i, (factor, x) in enumerate(zip(factors, sources, strict=True)):
        if factor.dtype != torch.float32:
            raise TypeError(f"scales[{i}] must have dtype torch.float32, got {factor.dtype}")
        if factor.shape != x.shape[:1]:
            raise ValueError(
                f"scales[{i}] must have shape {tuple(x.shape[:1])}, got {tuple(factor.shape)}"
            )
        if factor.device != x.device:
            raise ValueError(f"scales[{i}] must be on {x.device}, got {factor.device}")
    return factors


def _indices(sources: list[Tensor], which: Rows, rows: Rows) -> tuple[Tensor, Tensor]:
    found = []
    for name, given in (("which", which), ("rows", rows)):
        index = as_tensor(given, name)
        if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
            raise TypeError(f"{name} must hold integers, got {index.dtype}")
        if index.ndim != 1:
            raise ValueError(f"{name} must have shape (m,), got {tuple(index.shape)}")
        if len(index) != len(which):
            raise ValueError(f"{name} must have shape ({len(which)},), got {tuple(index.shape)}")
        found.append(index.to(sources[0].device, torch.int64).contiguous())
    number, row = found
    if len(number):
        _check_range(sources, number, row)
    return number, row


def _check_range(sources: list[Tensor], which: Tensor, rows: Tensor) -> None:
    low, high = (int(v) for v in which.aminmax())
    if low < 0 or high >= len(sources):
        raise ValueError(f"which must be in [0, {len(sources)}), got {low if low < 0 else high}")
    low, high = (int(v) for v in rows.aminmax())
    if low >= 0 and high < min(len(x) for x in sources):
        return
    lengths = torch.tensor([len(x) for x in sources], device=rows.device)
    outside = (rows < 0) | (rows >= lengths[which])
    if outside.any():
        i = int(outside.int().argmax())
        n = int(lengths[which[i]])
        raise ValueError(
            f"rows must be in [0, {n}) for sources[{int(which[i])}], got {int(rows[i])} at {i}"
        )


def _result_dtype(source: torch.dtype, dtype: torch.dtype | None, scaled: bool) -> torch.dtype:
    if dtype is None:
        dtype = torch.float32 if scaled else source
    if scaled and dtype != torch.float32:
        raise ValueError(f"dtype must be torch.float32 with scales, got {dtype}")
    if dtype == source and not scaled:
        return dtype
    if dtype != torch.float32:
        raise ValueError(f"dtype must be {source}, that of the sources, or float32, got {dtype}")
    if source not in ITEMS:
        raise TypeError(f"sources must be one of {[*ITEMS]} to become float32, got {source}")
    return dtype


def _out(out: Rows, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise ValueError("out must be writable, got a read-only array")
    if isinstance(out, np.ndarray) and not out.flags.c_contiguous:
        raise ValueError(f"out must be contiguous, got strides {out.strides}")
    if isinstance(out, np.ndarray) and not out.flags.aligned:
        raise ValueError("out must be aligned, got an array between the addresses of its numbers")
    place = as_tensor(out, "out")
    if isinstance(out, Tensor) and place is not out:
        raise ValueError("out must be plain memory, got a tensor that is conjugated as it is read")
    if tuple(place.shape) != shape:
        raise ValueError(f"out must have shape {shape}, got {tuple(place.shape)}")
    if place.dtype != dtype:
        raise ValueError(f"out must have dtype {dtype}, got {place.dtype}")
    if not place.is_contiguous():
        raise ValueError(f"out must be contiguous, got strides {place.stride()}")
    if place.device != device:
        raise ValueError(f"out must be on {device}, got {place.device}")
    return place


def _reference(
    sources: list[Tensor],
    which: Tensor,
    rows: Tensor,
    scales: list[Tensor] | None,
    dtype: torch.dtype,
    out: Tensor | None,
) -> Tensor:
    gathered = torch.empty((len(which), sources[0].shape[1]), dtype=dtype, device=which.device)
    for number, source in enumerate(sources):
        mine = which == number
        part = source[rows[mine]].to(dtype)
        if scales is not None:
            part = part * scales[number][rows[mine], None]
        gathered[mine] = part
    return gathered if out is None else out.copy_(gathered)


def _cpp(
    sources: list[Tensor],
    which: Tensor,
    rows: Tensor,
    scales: list[Tensor] | None,
    dtype: torch.dtype,
    out: Tensor | None,
) -> Tensor:
    from pyfeat._core import gather_rows as run

    d, size = sources[0].shape[1], sources[0].element_size()
    near = [x if x.stride(1) == 1 or d < 2 else x.contiguous() for x in sources]
    factors = [x.contiguous() for x in scales] if scales is not None else None
    if out is None:
        out = _room(len(which), d, dtype)
    copies = dtype == sources[0].dtype and scales is None
    places = [
        (x.data_ptr(), x.stride(0) * size, factors[i].data_ptr() if factors else 0)
        for i, x in enumerate(near)
    ]
    run(
        places,
        which.data_ptr(),
        rows.data_ptr(),
        m=len(which),
        d=d,
        row_bytes=d * size,
        item=_COPY if copies else ITEMS[sources[0].dtype],
        out=out.data_ptr(),
        threads=num_threads(),
    )
    return out


def _room(m: int, d: int, dtype: torch.dtype) -> Tensor:
    """Return an empty tensor that numpy allocated: it asks for huge pages.

    Else half of the time may go into the first touch of every small one.
    """
    if m * d == 0:
        return torch.empty((m, d), dtype=dtype, device="cpu")
    bytes_ = torch.from_numpy(np.empty(m * d * dtype.itemsize, np.uint8))
    return bytes_.view(dtype).reshape(m, d)


def _cpp_refuses(
    sources: list[Tensor],
    which: Tensor,
    rows: Tensor,
    scales: list[Tensor] | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> str | None:
    named: dict[str, Any] = {f"sources[{i}]": x for i, x in enumerate(sources)}
    named |= {f"scales[{i}]": x for i, x in enumerate(scales or [])} | {"out": out}
    return why_not_cpp(**{name: x for name, x in named.items() if isinstance(x, Tensor)})


BACKENDS = (
    Backend("cpp", _cpp, _cpp_refuses),
    Backend("reference", _reference, never_refuses),
)
