from typing import TypedDict

class _Devices(TypedDict):
    count: int
    runtime: int
    driver: int
    reason: str

def devices() -> _Devices: ...
def pool(
    x: int,
    item: int,
    shape: tuple[int, int, int],
    strides: tuple[int, int, int],
    method: int,
    p: float,
    rows: int,
    row_stride: int,
    stream: int,
) -> None: ...
def quantize_rows(
    rows: int,
    source: int,
    stride: int,
    n: int,
    d: int,
    scales: int,
    l2: bool,
    target: int,
    out: int,
    codes: int,
    stream: int,
) -> None: ...
