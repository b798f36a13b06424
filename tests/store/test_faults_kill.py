"""Three writers killed again and again, readers meanwhile: every acknowledged row is there."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from numpy.typing import NDArray

from pyfeat import FeatureStore, Space
from pyfeat.store import verify

KILLS = 50
WRITERS = 3
BATCH = 5
# Rows follow from their keys, so that every row can be judged by itself.
WRITER = f"""
import sys, warnings
import numpy as np
from pyfeat import FeatureStore, Space
warnings.simplefilter("ignore")
rng = np.random.default_rng(int(sys.argv[2]))
store = FeatureStore(sys.argv[1], Space(4), segment_bytes=1000)
while True:
    keys = rng.integers(0, 256, ({BATCH}, 16), dtype=np.uint8)
    store.put(keys, keys.view(np.uint32) % 65521)
    store.flush()
    print(keys.tobytes().hex(), flush=True)
"""
READER = """
import sys, warnings
import numpy as np
from pyfeat import FeatureStore, Space
warnings.simplefilter("ignore")  # a record in the making
while True:
    store = FeatureStore(sys.argv[1], Space(4), mode="r")
    for _ in range(20):
        store.refresh()
        keys = store.keys()
        rows, intact = store.get_intact(keys)
        right = (rows == keys.view(np.uint32) % 65521).all(axis=1)
        assert right[intact].all(), keys[intact & ~right]
    print(len(keys), flush=True)
"""


def start(script: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def drain(stream: IO[bytes] | None) -> bytes:
    """Return what a living process has printed by now."""
    assert stream is not None
    said = b""
    while select.select([stream], [], [], 0)[0] and (more := os.read(stream.fileno(), 1 << 16)):
        said += more
    return said


def finish(process: subprocess.Popen[bytes]) -> bytes:
    process.kill()
    said, complaints = process.communicate()
    assert process.returncode == -signal.SIGKILL, complaints.decode()
    return said


def keys_in(said: bytes) -> NDArray[np.uint8]:
    """Return the acknowledged keys; a line cut by the kill was not read, so not acknowledged."""
    whole = [line for line in said.split(b"\n")[:-1] if len(line) == BATCH * 32]
    return np.frombuffer(bytes.fromhex(b"".join(whole).decode()), np.uint8).reshape(-1, 16)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pyfeat.errors.StoreWarning")  # records in the making
def test_fifty_kills_of_three_writers_lose_no_acknowledged_row(tmp_path: Path) -> None:
    chance = random.Random(0)
    FeatureStore(tmp_path, Space(4)).close()
    reader = start(READER, str(tmp_path))
    writers: list[subprocess.Popen[bytes]] = []
    said: dict[int, bytes] = {}
    seed = 0
    for kill in range(KILLS):
        while len(writers) < WRITERS:
            writers.append(start(WRITER, str(tmp_path), str(seed)))
            seed += 1
        victim = writers.pop(chance.randrange(WRITERS))
        # Not before it has written something, then at any moment.
        said[kill] = os.read(victim.stdout.fileno(), 1 << 16)  # type: ignore[union-attr]
        select.select([], [], [], chance.uniform(0, 0.05))
        said[kill] += finish(victim)
        assert all(writer.poll() is None for writer in writers)
    for number, writer in enumerate(writers):
        said[KILLS + number] = finish(writer)
    assert b"\n" in drain(reader.stdout)
    reader.kill()
    complaints = reader.communicate()[1].decode()
    assert "AssertionError" not in complaints
    assert "Error" not in complaints
    keys = np.concatenate([keys_in(s) for s in said.values()])
    assert len(keys) >= KILLS * BATCH
    store = FeatureStore(tmp_path)
    np.testing.assert_array_equal(store.get(keys), keys.view(np.uint32) % 65521)
    assert verify(tmp_path) == []
    assert not list(tmp_path.glob("spaces/*/*.tail"))
