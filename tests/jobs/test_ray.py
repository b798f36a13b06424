"""`extract` on a Ray cluster: the rows and the account of a local run, whoever dies."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pyfeat import FeatureExtractor, FeatureStore, Space
from pyfeat.backbones import load_backbone
from pyfeat.errors import SpaceError, StoreError
from pyfeat.extract import Outcome, RunOptions
from pyfeat.jobs import _ray_worker as worker
from pyfeat.jobs import extract
from pyfeat.jobs._job import Job
from pyfeat.jobs._options import Options, check_options
from pyfeat.jobs._ray import _of_the_dead, _settings, _step, run_on_ray
from pyfeat.jobs._ray_cluster import Places, import_ray, places_of, share_of_cores
from pyfeat.ops import Preprocessing
from pyfeat.store import read_items, verify

from .files import noise

pytestmark = [
    # Ray leaves sockets and files of processes that it has ended to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]


class Convolved(nn.Module):
    """A small network whose rows show the order that sums are taken in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 7, stride=4), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=4)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Deadly(Convolved):
    """Takes its process with it where an image is all white."""

    def forward(self, x: Tensor) -> Tensor:
        if bool((x.flatten(1).amin(1) > 2).any()):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


class Unsteady(Convolved):
    """Has other weights wherever it arrives."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        with torch.no_grad():
            self.layers[0].bias += 1


def photos(folder: Path, n: int) -> Path:
    return noise(folder, n, side=24)


def rows_by_name(store: Path) -> dict[str, bytes]:
    opened = FeatureStore(store, mode="r")
    items = [i for i in read_items(store, opened.space) if i.key is not None]
    rows = opened.get([i.key for i in items if i.key is not None])
    return {i.name: row.tobytes() for i, row in zip(items, rows, strict=True)}


@pytest.fixture(scope="module")
def installed() -> None:
    pytest.importorskip("ray", exc_type=ImportError)


@pytest.fixture(scope="module")
def joined(installed: None) -> Iterator[None]:
    """A cluster that this process has joined, for all tests that kill none of its workers."""
    ray = import_ray()
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def test_share_of_cores_fits_on_machines() -> None:
    assert [share_of_cores([8, 8], n) for n in (1, 2, 3, 4, 16, 99)] == [8, 8, 4, 4, 1, 1]
    assert share_of_cores([], 1) == 1


def test_workers_are_told_what_was_chosen(tmp_path: Path) -> None:
    chosen = Space(2, parts={"precision": "bfloat16", "engine": "openvino"})
    extractor = FeatureExtractor(Convolved(), engine="auto", precision="auto", device="cpu")
    backbone = load_backbone(Convolved(), device="cpu")
    with FeatureStore(tmp_path / "feats", chosen) as store:
        settings = _settings(Job([], store, extractor, backbone, Options()))
    assert settings.keys() == extractor.get_params(deep=False).keys()
    told = [settings[name] for name in ("engine", "precision", "device", "store")]
    assert told == ["openvino", "bfloat16", "cpu", None]


def test_worker_takes_the_gpu_that_it_is_given(tmp_path: Path) -> None:
    extractor = FeatureExtractor(Convolved(), device="cuda:3")
    backbone = load_backbone(Convolved(), device="cpu")
    with FeatureStore(tmp_path / "feats", Space(2, parts={"precision": "float32"})) as store:
        settings = _settings(Job([], store, extractor, backbone, Options()))
    assert (settings["device"], settings["precision"]) == ("cuda", "fp32")


def test_rows_of_a_worker_that_died_count_as_computed_once(tmp_path: Path) -> None:
    keys = [bytes([i]) * 16 for i in range(2)]
    with FeatureStore(tmp_path / "feats", Space(1)) as store:
        store.put(keys[:1], [[1.0]])
        again = [Outcome(i, "stored", key) for i, key in enumerate([*keys, keys[1]])]
        assert [o.status for o in _of_the_dead(again, store)] == ["stored", "computed", "stored"]


@pytest.mark.parametrize(
    ("n", "batch_size", "places", "step"),
    [
        (10**6, "auto", Places(4, 2, 0), 128),
        (10**6, "auto", Places(4, 2, 1), 1024),
        (10**6, 100, Places(4, 2, 0), 800),
        (64, "auto", Places(4, 2, 0), 2),
        (1, "auto", Places(4, 2, 0), 1),
    ],
)
def test_piece_of_work_is_eight_batches_or_an_eighth_of_a_share(
    n: int, batch_size: int | str, places: Places, step: int
) -> None:
    assert _step(n, RunOptions(batch_size), places) == step


def test_devices_are_refused_with_ray() -> None:
    with pytest.raises(ValueError, match="devices must be left out where runner is 'ray'"):
        check_options({"runner": "ray", "devices": ["cuda:0"]})


def test_missing_ray_is_told_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'needs Ray: pip install "pyfeat\[ray\]"'):
        extract(photos(tmp_path / "photos", 1), tmp_path / "feats", Convolved(), runner="ray")


def test_no_cluster_is_started_for_nothing(tmp_path: Path) -> None:
    job = Job([], FeatureStore(tmp_path, Space(1)), FeatureExtractor(), None, Options())
    assert list(run_on_ray(job)) == []


def test_address_without_a_cluster_is_refused(installed: None, tmp_path: Path) -> None:
    given = {"runner": "ray", "address": "127.0.0.1:1"}
    with pytest.raises(ConnectionError, match="must be that of a running Ray cluster, got '127"):
        extract(photos(tmp_path / "photos", 1), tmp_path / "feats", Convolved(), **given)


def test_machine_that_does_not_see_the_store_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_PATIENCE", 0.0)
    with pytest.raises(StoreError, match=r"store must be a folder that every machine .* sees"):
        worker._check_shared(tmp_path, "ray-token.tmp")


@pytest.mark.slow
def test_rows_and_items_are_those_of_a_local_run(joined: None, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 60)
    (folder / "twin.png").write_bytes((folder / "0000.png").read_bytes())
    (folder / "text.png").write_text("no image")
    local = extract(folder, tmp_path / "local", Convolved())
    there = extract(folder, tmp_path / "ray", Convolved(), runner="ray", workers=2)
    assert there.quarantined == local.quarantined
    assert there.total == there.computed + there.stored + 1 == 62
    assert rows_by_name(tmp_path / "ray") == rows_by_name(tmp_path / "local")
    assert verify(tmp_path / "ray") == []
    assert sorted(p.name for p in (tmp_path / "ray").iterdir()) == ["pyfeat-store.json", "spaces"]


@pytest.mark.slow
def test_second_run_on_ray_reads_no_unchanged_file(joined: None, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 10)
    for photo in folder.iterdir():
        os.utime(photo, (1e9, 1e9))
    extract(folder, tmp_path / "feats", Convolved(), runner="ray", workers=2)
    for photo in folder.iterdir():  # of the same size and time: whoever reads one now fails
        photo.write_bytes(bytes(photo.stat().st_size))
        os.utime(photo, (1e9, 1e9))
    again = extract(folder, tmp_path / "feats", Convolved(), runner="ray", workers=2)
    assert (again.total, again.hits, again.n_quarantined) == (10, 10, 0)


@pytest.mark.slow
def test_second_run_on_ray_computes_nothing(joined: None, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 10)
    extract(folder, tmp_path / "feats", Convolved())
    again = extract(folder, tmp_path / "feats", Convolved(), runner="ray", rehash=True)
    assert (again.total, again.computed, again.hits) == (10, 0, 10)


@pytest.mark.slow
def test_progress_counts_every_input_once(joined: None, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    extract(
        photos(tmp_path / "photos", 10),
        tmp_path / "feats",
        Convolved(),
        progress=lambda done, total: seen.append((done, total)),
        runner="ray",
    )
    assert seen == [(i, 10) for i in range(1, 11)]


@pytest.mark.slow
def test_gpu_on_a_cluster_without_one_is_refused(joined: None) -> None:
    ray = import_ray()
    if ray.cluster_resources().get("GPU"):
        pytest.skip("this cluster has a GPU")
    with pytest.raises(ValueError, match="must be 'cpu' or 'auto' on a cluster without GPUs"):
        places_of(ray, None, "cuda")


@pytest.mark.slow
def test_worker_with_other_weights_is_refused_by_the_name_of_its_machine(
    joined: None, tmp_path: Path
) -> None:
    with pytest.raises(SpaceError, match=rf"the backbone on {os.uname().nodename}"):
        extract(photos(tmp_path / "photos", 2), tmp_path / "feats", Unsteady(), runner="ray")


def descendants(pid: int) -> Iterator[int]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:  # it has just ended
            continue
        if int(text.rpartition(")")[2].split()[1]) == pid:
            child = int(stat.parent.name)
            yield child
            yield from descendants(child)


def actors() -> list[int]:
    """Return the processes of workers that this process has started."""

    def is_worker(pid: int) -> bool:
        try:
            return b"ray::MapWorker" in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    return [pid for pid in descendants(os.getpid()) if is_worker(pid)]


@pytest.mark.slow
def test_killed_worker_costs_no_row(installed: None, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 2000)
    small = FeatureExtractor(Convolved(), preprocessing=Preprocessing(resize=24, crop=24))
    killed: list[int] = []

    def kill_one(done: int, total: int) -> None:
        if done > total / 4 and not killed:
            killed.append(actors()[0])
            os.kill(killed[0], signal.SIGKILL)

    here = tmp_path / "ray"
    there = extract(folder, here, small, progress=kill_one, runner="ray", workers=2)
    assert len(killed) == 1
    assert there.total == there.computed + there.stored == 2000
    assert there.quarantined == []
    extract(folder, tmp_path / "local", small)
    assert rows_by_name(here) == rows_by_name(tmp_path / "local")
    assert verify(here) == []
    assert [p for p in here.rglob("*") if p.suffix in (".tail", ".tmp")] == []


@pytest.mark.slow
def test_input_that_kills_workers_is_quarantined(installed: None, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 12)
    Image.new("RGB", (24, 24), (255, 255, 255)).save(folder / "white.png")
    there = extract(folder, tmp_path / "feats", Deadly(), runner="ray", workers=1)
    assert [(Path(q.path).name, q.reason) for q in there.quarantined] == [
        ("white.png", "2 workers died while they had it in hand")
    ]
    assert there.total == there.computed + there.stored + 1 == 13
