from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_U8 = NDArray[np.uint8]
_I64 = NDArray[np.int64]

class StoreError(OSError): ...

def isas() -> list[str]: ...
def isa() -> str: ...
def set_isa(name: str) -> None: ...
def flop_per_second(bf16: bool, threads: int) -> float: ...
def bytes_read_per_second(threads: int) -> float: ...
def gemm(
    a: int, b: int, c: int, m: int, n: int, k: int, item: int, bf16: bool, threads: int
) -> None: ...
def gather_rows(
    sources: list[tuple[int, int, int]],
    which: int,
    rows: int,
    m: int,
    d: int,
    row_bytes: int,
    item: int,
    out: int,
    threads: int,
) -> None: ...
def moments(
    rows: tuple[int, ...],
    item: int,
    d: int,
    bounds: int,
    groups: int,
    diagonal: bool,
    threads: int,
    state: tuple[int, ...],
) -> None: ...
def moments_mirror(scatter: int, groups: int, d: int, threads: int) -> None: ...
def pool(
    x: int,
    item: int,
    shape: tuple[int, int, int],
    strides: tuple[int, int, int],
    method: int,
    first: bool,
    p: float,
    l2: bool,
    to: int,
    out: int,
    scales: int,
    threads: int,
) -> None: ...
def preprocess(
    jobs: _I64,
    crop: int,
    bicubic: bool,
    hflip: bool,
    fill: int,
    table: int,
    item_bytes: int,
    out: int,
    threads: int,
) -> None: ...
def topk(
    queries: int,
    n: int,
    base: int,
    m: int,
    row_stride: int,
    item: int,
    scales: int,
    d: int,
    k: int,
    metric: int,
    threads: int,
    out: tuple[int, int],
) -> None: ...

class XentRows:
    def __init__(self, data: int, item: int, scales: int, shift: int, n: int, d: int) -> None: ...
    def evaluate(
        self,
        labels: int,
        weights: int,
        weight_step: int,
        theta: int,
        problems: int,
        classes: int,
        direction: bool,
        bf16: bool,
        threads: int,
        out: int,
    ) -> None: ...

def quantize_rows(
    rows: int,
    source: int,
    stride: int,
    n: int,
    d: int,
    target: int,
    out: int,
    scales: int,
    threads: int,
) -> None: ...
def dequantize_rows(
    rows: int,
    source: int,
    stride: int,
    n: int,
    d: int,
    scales: int,
    target: int,
    out: int,
    threads: int,
) -> None: ...
def rbf_sum(
    x: tuple[int, int, int, int, int],
    y: tuple[int, int, int, int, int] | None,
    d: int,
    centre: int,
    kind: int,
    gammas: list[float],
    squarings: list[int],
    power: tuple[float, int],
    wanted: int,
    leave_out: bool,
    threads: int,
) -> float: ...
def crc32c(data: bytes, before: int = 0) -> int: ...
def replace_file(name: Callable[[], bytes], hidden: bytes, content: bytes) -> None: ...
def make_folder(path: bytes) -> None: ...
def sync_folder_of(path: bytes) -> None: ...
def fail_from_operation(n: int, code: int, kept: int = ...) -> None: ...
def fail_operation(n: int, code: int, kept: int = ...) -> None: ...
def operation_count() -> int: ...
def record_operations(on: bool) -> None: ...
def recorded_operations() -> list[tuple[str, bool, str, Any]]: ...
def seal(
    tail: Tail, name: Callable[[], bytes], dtype: str, dim: int, space: str, aside: bytes
) -> int: ...
def stat_files(names: bytes, threads: int) -> _I64: ...
def merge(
    segments: list[Segment],
    keys: _U8,
    source: _I64,
    row: _I64,
    hidden: bytes,
    path: bytes,
    dtype: str,
    dim: int,
    space: str,
) -> None: ...
def rename_file(path: bytes, to: bytes) -> None: ...
def remove_file(path: bytes) -> None: ...
def remove_folder(path: bytes) -> None: ...
def locate(segments: list[Segment], keys: _U8, threads: int) -> tuple[_I64, _I64]: ...
def gather(
    segments: list[Segment],
    keys: _U8,
    source: _I64,
    row: _I64,
    out: _U8,
    item: int,
    decode: bool,
    threads: int,
) -> list[int]: ...

class SegmentIndex:
    def __init__(self, segments: list[Segment]) -> None: ...
    def locate(self, keys: _U8, threads: int) -> tuple[_I64, _I64]: ...
    def keys(self, threads: int) -> _U8: ...
    def count_keys(self, threads: int) -> int: ...

class Tail:
    @staticmethod
    def create(path: bytes, row_bytes: int, fingerprint: _U8) -> Tail: ...
    @staticmethod
    def open(path: bytes, row_bytes: int) -> Tail: ...
    @staticmethod
    def adopt(path: bytes, row_bytes: int) -> Tail | None: ...
    @staticmethod
    def discard(path: bytes) -> bool: ...
    def append(self, keys: _U8, rows: _U8) -> None: ...
    def sync(self) -> None: ...
    def refresh(self) -> int: ...
    def find(self, keys: _U8) -> _I64: ...
    def gather(
        self, keys: _U8, rows: _I64, positions: _I64, out: _U8, threads: int
    ) -> list[int]: ...
    def remove(self) -> None: ...
    def sync_folder(self) -> None: ...
    def version(self) -> int: ...
    def damaged_offsets(self) -> list[int]: ...
    def read_again(self) -> list[int]: ...
    def keys(self) -> _U8: ...
    def offset(self, row: int) -> int: ...
    @property
    def path(self) -> str: ...

class Segment:
    def __init__(
        self,
        path: bytes,
        n: int,
        row_bytes: int,
        keys: int,
        order: int,
        crcs: int,
        rows: int,
        scales: int = 0,
        there: int = ...,
    ) -> None: ...
    def __len__(self) -> int: ...
    def sorted_keys(self, begin: int, end: int) -> _U8: ...
    def intact(self) -> tuple[_U8, _I64, _U8]: ...
    def find(self, keys: _U8) -> _I64: ...
    def damaged_rows(self) -> list[int]: ...
    def crc_of(self, offset: int, size: int) -> int: ...
    def keys(self) -> _U8: ...
    def offset(self, row: int) -> int: ...
    @property
    def path(self) -> str: ...
