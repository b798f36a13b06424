"""What libraries raise where memory runs out, as one kind of error."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# torch's allocator of the CPU, OpenVINO and ONNX Runtime raise errors that only their texts tell
# apart, ONNX Runtime's without a base class of their own.
_SAID = re.compile(
    r"DefaultCPUAllocator: (can't allocate|not enough) memory"
    r"|Failed to allocate (\d+ bytes of )?memory"
)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn what torch, OpenVINO and ONNX Runtime say about memory into `MemoryError`.

    Of a GPU, `torch.OutOfMemoryError` stays what it is.

    Examples
    --------
    >>> import torch
    >>> with memory_errors():
    ...     torch.empty(2**45)
    Traceback (most recent call last):
    MemoryError: ...DefaultCPUAllocator: can't allocate memory...
    """
    try:
        yield
    except _kinds() as error:
        if not _SAID.search(str(error)):
            raise
        raise MemoryError(str(error).strip()) from error


def _kinds() -> tuple[type[Exception], ...]:
    state = sys.modules.get("onnxruntime.capi.onnxruntime_pybind11_state")
    own = () if state is None else vars(state).values()
    return (
        RuntimeError,
        *(e for e in own if isinstance(e, type) and issubclass(e, Exception)),
    )
