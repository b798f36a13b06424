import numpy as np
from numpy.typing import NDArray

def isas() -> list[str]: ...
def isa() -> str: ...
def set_isa(name: str) -> None: ...
def preprocess(
    image: NDArray[np.uint8],
    height: int,
    width: int,
    top: int,
    left: int,
    crop: int,
    bicubic: bool,
    table: int,
    item_bytes: int,
    out: int,
) -> None: ...
