from typing import TypedDict

class _Devices(TypedDict):
    count: int
    runtime: int
    driver: int
    reason: str

def devices() -> _Devices: ...
