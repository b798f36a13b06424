from typing import TypedDict

class _Devices(TypedDict):
    count: int
    runtime: int
    driver: int
    reason: str

def devices() -> _Devices: ...
def preprocess(
    jobs: int,
    n: int,
    rows: int,
    columns: int,
    lines: int,
    side: int,
    table: int,
    item_bytes: int,
    stream: int,
) -> None: ...
def topk_keys(
    queries: int,
    base: int,
    item: int,
    row_stride: int,
    mul: int,
    add: int,
    keys: int,
    n: int,
    m: int,
    d: int,
    stream: int,
) -> None: ...
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
def rbf_sum(
    sides: list[int],
    out: list[int],
    numbers: int,
    form: tuple[int, int],
    shape: tuple[int, int, int, int],
    within: int,
    stream: int,
) -> None: ...
def rbf_signs(
    tensors: list[int],
    shape: tuple[int, int, int],
    strides: tuple[int, int],
    within: tuple[int, int],
    stream: int,
) -> None: ...
