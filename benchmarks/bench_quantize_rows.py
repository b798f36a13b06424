"""300,000 rows of 384 float32 to what a store keeps, and back.

Contestants write to new memory; those whose name says "into" write where the caller says, as a
store does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import device
import numpy as np
import torch
from harness import Case, Contestant

from pyfeat import _core
from pyfeat._config import num_threads
from pyfeat.ops import Quantized, dequantize_rows, explain, quantize_rows

Run = Callable[[], Any]
TYPES = (torch.int8, torch.float16, torch.bfloat16)
N, D = 300_000, 384


def cases(quick: bool) -> Iterator[Case]:
    for where in device.devices():
        rows = torch.randn(N // 10 if quick else N, D, generator=torch.Generator().manual_seed(0))
        rows = rows.to(where)
        for dtype in TYPES[:1] if quick else TYPES:
            kind = str(dtype).removeprefix("torch.")
            moved = rows.numel() * (4 + dtype.itemsize) + (dtype == torch.int8) * 4 * len(rows)
            stored = quantize_rows(rows, dtype, backend="reference")
            size = f"{len(rows)} x {D}, {where}"
            yield case(
                f"float32 to {kind}, {size}", quantizers(rows, dtype), stored, moved, len(rows)
            )
            parts = stored if isinstance(stored, Quantized) else (stored, None)
            floats = dequantize_rows(*parts, backend="reference")
            yield case(f"{kind} to float32, {size}", dequantizers(*parts), floats, moved, len(rows))


def case(name: str, contestants: list[Contestant], expected: Any, moved: int, items: int) -> Case:
    stored = expected[0] if isinstance(expected, tuple) else expected
    return Case(
        name=name,
        contestants=contestants,
        expected=expected,
        error=difference,
        unit="largest difference of codes or numbers",
        items=items,
        bytes=moved,
        threads=num_threads(),
        torch_threads=num_threads(),
        device=stored.device.type,
    )


def difference(result: Any, expected: Any) -> float:
    got, wanted = (r[0] if isinstance(r, tuple) else r for r in (result, expected))
    return float((torch.as_tensor(got, device=wanted.device).float() - wanted.float()).abs().max())


def quantizers(rows: torch.Tensor, dtype: torch.dtype) -> list[Contestant]:
    store: Any = torch.empty(rows.shape, dtype=dtype, device=rows.device)
    if dtype == torch.int8:
        store = Quantized(store, torch.empty(len(rows), device=rows.device))

    def plain() -> Any:
        if dtype != torch.int8:
            return rows.to(dtype)
        most = rows.abs().amax(dim=1)
        return (rows * (127 / most)[:, None]).round().to(torch.int8), most / 127

    def ours(name: str, out: Any) -> Run:
        return lambda: quantize_rows(rows, dtype, out=out, backend=name)

    # 127 / most is rounded in another way by torch: a tie may go the other way.
    entries = compared(rows, plain, ours, "quantize_rows", (rows, dtype, None), store)
    if dtype == torch.int8 and not rows.is_cuda:
        array = rows.numpy()
        entries.append(Contestant("numpy", lambda: numpy_int8(array), 1.0))
    return entries


def dequantizers(rows: torch.Tensor, scales: torch.Tensor | None) -> list[Contestant]:
    floats = torch.empty(rows.shape, device=rows.device)

    def plain() -> torch.Tensor:
        return rows.float() if scales is None else rows * scales[:, None]

    def ours(name: str, out: Any) -> Run:
        return lambda: dequantize_rows(rows, scales, out=out, backend=name)

    args = (rows, scales, torch.float32, None)
    return compared(rows, plain, ours, "dequantize_rows", args, floats)


def compared(
    rows: torch.Tensor,
    plain: Run,
    ours: Callable[[str, Any], Run],
    op: str,
    args: tuple[Any, ...],
    store: Any,
) -> list[Contestant]:
    if rows.is_cuda:
        entries = [
            Contestant(f"pyfeat {name}, into", waiting(ours(name, store)))
            if why == "ok"
            else Contestant(f"pyfeat {name}, into", skip=why)
            for name, why in explain(op, *args).items()
            if name in ("cuda", "triton")
        ]
    else:
        entries = [
            Contestant(f"pyfeat cpp[{isa}]{how}", on_isa(isa, ours("cpp", out)))
            for isa in _core.isas()
            for how, out in (("", None), (", into", store))
        ]
    torch.set_num_threads(num_threads())
    fast = torch.compile(plain, dynamic=False)
    if rows.is_cuda:
        plain, fast = waiting(plain), waiting(fast)
    return [*entries, Contestant("torch", plain, 1.0), Contestant("torch.compile", fast, 1.0)]


def on_isa(isa: str, run: Run) -> Run:
    def forced() -> Any:
        _core.set_isa(isa)
        return run()

    return forced


def waiting(run: Run) -> Run:
    def run_and_wait() -> Any:
        result = run()
        torch.cuda.synchronize()
        return result

    return run_and_wait


def numpy_int8(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    most = np.abs(rows).max(axis=1)
    return np.rint(rows * (127 / most)[:, None]).astype(np.int8), most / 127
