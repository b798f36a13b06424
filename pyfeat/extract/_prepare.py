"""From inputs to tensors, on threads, a little ahead of the backbone."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pyfeat._config import num_threads
from pyfeat._memory import memory_errors
from pyfeat.errors import InputError
from pyfeat.extract._inputs import Input, content_of, key_of
from pyfeat.extract._readers import Reader

# Bytes of finished tensors from which on no more are made ahead: hours of sound are long.
_AHEAD = 2**30
NO_ROOM = "it does not fit in memory"

Status = Literal["ready", "stored", "repeated", "bad"]


@dataclass(frozen=True)
class Prepared:
    """One input on its way.

    Parameters
    ----------
    position : int
        Position in the input.
    status : {"ready", "stored", "repeated", "bad"}
        Whether it has a tensor, a row in the store already, the same content as one on its way, or
        cannot be read.
    key : bytes, optional
        Key of its content; None without a store or when it could not be read.
    tensor : Tensor, optional
        What the reader made of it.
    cut : bool
        Whether something of it was cut off.
    reason : str
        Why it is bad.
    item : Input, optional
        The input itself, where it may have to be prepared again: its twin may get no row.
    read, decode : float
        Seconds it took to read and know it, and to make its tensor.
    """

    position: int
    status: Status
    key: bytes | None = None
    tensor: Tensor | None = None
    cut: bool = False
    reason: str = ""
    item: Input | None = None
    read: float = 0.0
    decode: float = 0.0


class Preparer:
    """Read, identify, decode and preprocess inputs; what is known already is not decoded.

    Parameters
    ----------
    reader : Reader
        Of what the backbone takes.
    is_stored : callable, optional
        Tells whether the row of a key is in the store. None: there is no store, no key is taken.
    """

    def __init__(
        self,
        reader: Reader,
        is_stored: Callable[[bytes], bool] | None,
    ) -> None:
        self._reader = reader
        self._is_stored = is_stored
        self._on_their_way: set[bytes] = set()
        self._lock = threading.Lock()

    def arrived(self, key: bytes) -> None:
        """Note that the row of a key is in the store now."""
        with self._lock:
            self._on_their_way.discard(key)

    def prepare(self, position: int, item: Input) -> Prepared:
        """Return one input as far as it needs to go. Never raises for a bad input."""
        began = read_by = time.perf_counter()
        key = None
        try:
            content = content_of(self._reader, item)
            if self._is_stored is not None:
                key = key_of(content)
                if (status := self._known_as(key)) is not None:
                    again = item if status == "repeated" else None
                    seconds = time.perf_counter() - began
                    return Prepared(position, status, key, item=again, read=seconds)
            read_by = time.perf_counter()
            with memory_errors():
                tensor, cut = self._reader.tensor(content, item.name)
        except (InputError, MemoryError) as error:
            if key is not None:
                self.arrived(key)
            reason = error.reason if isinstance(error, InputError) else NO_ROOM
            seconds = time.perf_counter() - began
            return Prepared(position, "bad", reason=reason, read=seconds)
        read, decode = read_by - began, time.perf_counter() - read_by
        return Prepared(position, "ready", key, tensor, cut, read=read, decode=decode)

    def _known_as(self, key: bytes) -> Status | None:
        """Return why nothing is to be computed for a key; None claims it."""
        if not self._claim(key):
            return "repeated"
        if self._is_stored is not None and self._is_stored(key):
            self.arrived(key)
            return "stored"
        return None

    def _claim(self, key: bytes) -> bool:
        with self._lock:
            if key in self._on_their_way:
                return False
            self._on_their_way.add(key)
            return True


class _Room:
    """Keeps threads from filling the memory with inputs that nobody has taken yet.

    The input that is waited for passes at any time, so that there is no dead lock; those behind it
    as long as few bytes are held.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held = 0
        self._wanted = -1

    def prepare(self, preparer: Preparer, position: int, item: Input) -> Prepared:
        """Return an input, when there is room for it."""
        with self._changed:
            self._changed.wait_for(lambda: self._held < _AHEAD or position <= self._wanted)
        prepared = preparer.prepare(position, item)
        with self._changed:
            self._held += _bytes_of(prepared)
        return prepared

    def take(self, position: int, future: Future[Prepared]) -> Prepared:
        """Wait for an input, whose bytes are then somebody else's."""
        self.let_in(position)
        prepared = future.result()
        with self._changed:
            self._held -= _bytes_of(prepared)
            self._changed.notify_all()
        return prepared

    def let_in(self, position: int) -> None:
        """Let inputs up to a position pass."""
        with self._changed:
            self._wanted = position
            self._changed.notify_all()


def _bytes_of(prepared: Prepared) -> int:
    return 0 if prepared.tensor is None else prepared.tensor.untyped_storage().nbytes()


def prepare_all(
    preparer: Preparer, inputs: Iterable[Input], ahead: int
) -> Generator[Prepared, None, None]:
    """Yield every input in order while the next `ahead` are being prepared on threads.

    Fewer are where the tensors of those that are ready hold 1 GiB.
    """
    waiting: deque[Future[Prepared]] = deque()
    room = _Room()
    taken = 0
    with ThreadPoolExecutor(num_threads(), thread_name_prefix="pyfeat-decode") as pool:
        try:
            for position, item in enumerate(inputs):
                # A copy each: `with pyfeat.backend(...)` holds in the threads too.
                context = copy_context()
                waiting.append(pool.submit(context.run, room.prepare, preparer, position, item))
                if len(waiting) > ahead:
                    yield room.take(taken, waiting.popleft())
                    taken += 1
            while waiting:
                yield room.take(taken, waiting.popleft())
                taken += 1
        finally:
            for future in waiting:
                future.cancel()
            room.let_in(sys.maxsize)
