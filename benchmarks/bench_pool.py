"""Feature maps and tokens to normalised rows: the op `pool`, every method and layout that counts.

Inputs are larger than any cache. On the CPU all contestants use the same number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import device
import torch
from elsewhere import elsewhere, tuned_malloc
from harness import Case, Contestant

from pyfeat import _core
from pyfeat._config import num_threads
from pyfeat.ops import explain, pool

Run = Callable[[], Any]

# name, shape, layout, memory format
INPUTS = (
    ("nchw 256x1280x7x7", (256, 1280, 7, 7), "nchw", torch.contiguous_format),
    ("channels_last 256x1280x7x7", (256, 1280, 7, 7), "nchw", torch.channels_last),
    ("tokens 256x197x768", (256, 197, 768), "nlc", torch.contiguous_format),
)
BOUND = 1e-6  # numbers of rows of norm 1, from sums of 197 numbers in float32


def cases(quick: bool) -> Iterator[Case]:
    plan = [
        (method, i, torch.float32, torch.float32)
        for method in ("avg", "max", "gem")
        for i in INPUTS
    ]
    plan += [
        ("avg", INPUTS[0], torch.float16, torch.float16),
        ("avg", INPUTS[2], torch.float32, torch.int8),
    ]
    for method, (name, shape, layout, memory), source, target in plan[:1] if quick else plan:
        for where in device.devices():
            items = shape if where == "cpu" else (4 * shape[0], *shape[1:])
            x = make(items, source, memory).to(where)
            expected = rows_of(
                pool(x, method, layout=layout, l2=True, dtype=target, backend="reference")
            )
            entries = contestants(x, method, layout, target)
            if where == "cpu":
                at = (items, source, memory, method, layout, target)
                run = elsewhere("bench_pool:torch_alone", tuned_malloc(num_threads()), *at)
                entries.append(Contestant("torch, tuned malloc", run, bound_of(target)))
            yield Case(
                name=f"{method}, {name}, {short(source)} to {short(target)}, {where}",
                contestants=entries,
                expected=expected,
                error=lambda result, wanted: float((rows_of(result) - wanted).abs().max()),
                unit="largest difference of rows of norm 1",
                items=len(x),
                bytes=x.numel() * x.element_size() + expected.numel() * target.itemsize,
                threads=num_threads(),
                torch_threads=num_threads(),
                device=where,
            )


def make(shape: tuple[int, ...], dtype: torch.dtype, memory: torch.memory_format) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return x.to(dtype).contiguous(memory_format=memory)


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def rows_of(result: Any) -> torch.Tensor:
    """Return the rows as floats, on the CPU."""
    if isinstance(result, tuple):
        return (result[0].float() * result[1][:, None]).cpu()
    return result.float().cpu()


def bound_of(target: torch.dtype) -> float:
    return BOUND + {torch.float32: 0.0, torch.float16: 2.0**-11, torch.int8: 1.1 / 127}[target]


def contestants(x: torch.Tensor, method: str, layout: str, target: torch.dtype) -> list[Contestant]:
    bound = bound_of(target)
    plain = torch_pool(x, method, layout, target)
    wait = torch.cuda.synchronize if x.is_cuda else lambda: None
    if x.is_cuda:
        args = (x, method, 3.0, True, target, None)
        ours = [
            Contestant(f"pyfeat {name}", skip=why)
            if why != "ok"
            else Contestant(
                f"pyfeat {name}", waiting(ours_on(x, method, layout, target, name), wait), bound
            )
            for name, why in explain("pool", *args).items()
            if name in ("cuda", "triton")
        ]
    else:
        ours = [
            Contestant(
                f"pyfeat cpp[{isa}]", on_isa(isa, ours_on(x, method, layout, target, "cpp")), bound
            )
            for isa in _core.isas()
        ]
    return [
        *ours,
        Contestant("torch", waiting(plain, wait), bound),
        compiled(plain, bound, wait),
    ]


def ours_on(x: torch.Tensor, method: str, layout: str, target: torch.dtype, name: str) -> Run:
    return lambda: pool(x, method, layout=layout, l2=True, dtype=target, backend=name)


def on_isa(isa: str, run: Run) -> Run:
    def forced() -> Any:
        _core.set_isa(isa)
        return run()

    return forced


def waiting(run: Run, wait: Callable[[], None]) -> Run:
    def run_and_wait() -> Any:
        result = run()
        wait()
        return result

    return run_and_wait


def torch_pool(x: torch.Tensor, method: str, layout: str, target: torch.dtype) -> Run:
    axes = (2, 3) if layout == "nchw" else (1,)

    def run() -> Any:
        if method == "avg":
            rows = x.mean(axes, dtype=torch.float32)
        elif method == "max":
            rows = x.amax(axes).float()
        else:
            rows = x.float().clamp(min=1e-6).pow(3).mean(axes).pow(1 / 3)
        rows = torch.nn.functional.normalize(rows)
        if target != torch.int8:
            return rows.to(target)
        scales = rows.abs().amax(dim=1) / 127
        return (rows / scales[:, None]).round().to(torch.int8), scales

    return run


def torch_alone(
    shape: tuple[int, ...],
    source: torch.dtype,
    memory: torch.memory_format,
    method: str,
    layout: str,
    target: torch.dtype,
) -> Run:
    return torch_pool(make(shape, source, memory), method, layout, target)


def compiled(plain: Run, bound: float, wait: Callable[[], None]) -> Contestant:
    """Compile a contestant now, while no clock runs, for as many threads as will run it."""
    torch.set_num_threads(num_threads())
    torch._dynamo.reset()  # each case is compiled anew: torch gives up after eight
    fast = torch.compile(plain, fullgraph=True, dynamic=False)
    try:
        fast()
    except (RuntimeError, OSError) as error:  # what torch raises without a C++ compiler
        lines = str(error).strip().splitlines() or [""]
        return Contestant(
            "torch.compile", skip=f"cannot compile: {type(error).__name__}: {lines[0]}"
        )
    return Contestant("torch.compile", waiting(fast, wait), bound)
