from typing import TypedDict

class _Devices(TypedDict):
    count: int
    runtime: int
    driver: int
    reason: str

def devices() -> _Devices: ...
def rbf_sum(
    sides: list[int],
    out: list[int],
    numbers: int,
    form: tuple[int, int],
    shape: tuple[int, int, int, int],
    within: int,
    stream: int,
) -> None: ...
