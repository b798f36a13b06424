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
