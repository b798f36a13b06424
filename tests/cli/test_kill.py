"""`pyfeat extract` killed with SIGKILL at random moments."""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyfeat import FeatureStore
from pyfeat.store import verify

N_PHOTOS = 48
KILLS = 20


def command(arguments: list[str], out: str, err: str | None = None) -> None:
    """Run `pyfeat ARGUMENTS` in this process with stdout, and stderr, in a file."""
    from pyfeat.cli import main

    # A process group of its own: nothing else dies with it.
    os.setsid()
    for number, path in ((1, out), (2, err)):
        if path is not None:
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["pyfeat", *arguments]
    main()


@pytest.fixture(scope="module")
def server() -> mp.context.ForkServerContext:
    """Processes that begin with everything imported: a kill hits the job, not an import."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["timm", "torchvision", "pyfeat.jobs", "pyfeat.cli._extract"])
    return context


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(N_PHOTOS):
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder


def start(server: mp.context.ForkServerContext, photos: Path, store: Path) -> mp.Process:
    arguments = ["extract", str(photos), "--store", str(store), "--json"]
    arguments += ["--deterministic", "--batch-size", "4"]
    process = server.Process(target=command, args=(arguments, f"{store}.json"))
    process.start()
    return process


def finish(process: mp.Process, store: Path) -> dict[str, object]:
    process.join()
    assert process.exitcode == 0
    return json.loads(Path(f"{store}.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(
    server: mp.context.ForkServerContext, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> FeatureStore:
    """The store of a run that nobody killed."""
    path = tmp_path_factory.mktemp("whole") / "feats"
    finish(start(server, photos, path), path)
    return FeatureStore(path, mode="r")


def stored_rows(path: Path) -> int:
    """Return how many rows a killed run left, seen by a reader that changes nothing."""
    if not (path / "pyfeat-store.json").exists() or not FeatureStore.spaces(path):
        return 0
    return len(FeatureStore(path, mode="r"))


def kill_at(process: mp.Process, store: Path, rows: int, delay: float) -> None:
    """Kill a job `delay` seconds after its store has that many rows, wherever it is then."""
    while process.is_alive() and stored_rows(store) < rows:
        process.join(timeout=0.01)
    process.join(timeout=delay)
    process.kill()  # takes it as done when the job has ended by itself
    process.join()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pyfeat.errors.StoreWarning")  # a record in the making
@pytest.mark.parametrize("seed", range(KILLS))
def test_killed_extract_goes_on_and_ends_as_if_nothing_had_happened(
    server: mp.context.ForkServerContext,
    photos: Path,
    undisturbed: FeatureStore,
    tmp_path: Path,
    seed: int,
) -> None:
    chance = random.Random(seed)
    store = tmp_path / "feats"
    moments = sorted(chance.randrange(N_PHOTOS + 1) for _ in range(2))
    for rows in moments:
        before = stored_rows(store)
        kill_at(start(server, photos, store), store, rows, chance.uniform(0, 0.2))
        assert stored_rows(store) >= before
    left = stored_rows(store)
    summary = finish(start(server, photos, store), store)
    assert (summary["stored"], summary["computed"]) == (left, N_PHOTOS - left)
    assert verify(store) == []
    again = FeatureStore(store, mode="r")
    keys = undisturbed.keys()
    np.testing.assert_array_equal(again.get(keys), undisturbed.get(keys))
