"""One job, several processes."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pyfeat import FeatureExtractor, FeatureStore
from pyfeat.jobs import JobInterrupted, _workers, extract
from pyfeat.jobs._workers import devices_of
from pyfeat.store import read_items, verify

from .conftest import SMALL, pooled_colours
from .files import noise

N = 96


class Heavy(nn.Module):
    """Mean colours, and more bytes than a pipe takes before somebody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2**21))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


class Threads(nn.Module):
    """Mean colours, and in how many threads sums are taken: of that their order follows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3)) + torch.get_num_threads()


class Asleep(Heavy):
    """Stops the worker that it is sent to."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "pyfeat.jobs._worker" in sys.argv:
            os.kill(os.getpid(), signal.SIGSTOP)


class Deadly(nn.Module):
    """Mean colours; a white image kills the process."""

    last_words = b""

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean(dim=(2, 3))
        if len(x) and float(means.max()) > 2.2:
            os.write(int(sys.argv[2]), self.last_words)
            os.kill(os.getpid(), signal.SIGKILL)
        return means


class Torn(Deadly):
    """Dies amid a message."""

    last_words = struct.pack("!i", 100) + b"the first of 100 bytes"


class Lingering(nn.Module):
    """Leaves a thread behind, which its process waits for."""

    def forward(self, x: Tensor) -> Tensor:
        if "pyfeat.jobs._worker" in sys.argv:
            threading.Thread(target=threading.Event().wait).start()
        return x.mean(dim=(2, 3))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return noise(tmp_path / "photos", N, below=200)


def workers_of(log: Path) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in log.read_text().splitlines()]
    return [e for e in events if e["event"] == "worker"]


def test_killed_worker_is_named_and_its_inputs_are_done(photos: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def kill(done: int, _total: int) -> None:
        if done == 8:
            os.kill(workers_of(log)[0]["worker_pid"], signal.SIGKILL)

    (photos / "broken.png").write_bytes(b"no image")
    fx = pooled_colours().set_params(batch_size=4)
    with pytest.warns(
        RuntimeWarning, match=r"worker 1 \(process \d+, cpu\) was killed by signal 9"
    ):
        s = extract(photos, tmp_path / "feats", fx, workers=2, log_json=log, progress=kill)
    assert (s.total, s.n_quarantined) == (N + 1, 1)
    assert s.computed + s.duplicates == N
    states = [(e["worker"], e["state"]) for e in workers_of(log)]
    assert (1, "was killed by signal 9") in states
    alone = extract(photos, tmp_path / "alone", fx)
    here, there = (FeatureStore(tmp_path / f, mode="r") for f in ("feats", "alone"))
    np.testing.assert_allclose(here.get(there.keys()), there.get(there.keys()), atol=1e-5)
    assert here.space == there.space
    assert len(read_items(tmp_path / "feats", here.space)) == alone.total
    assert verify(tmp_path / "feats") == []


@pytest.mark.slow
@pytest.mark.parametrize("backbone", [Deadly(), Torn()])
def test_input_that_kills_its_process_is_in_quarantine(
    photos: Path, tmp_path: Path, backbone: nn.Module
) -> None:
    white = photos / "0050-white.png"
    Image.new("RGB", (40, 40), (255, 255, 255)).save(white)
    fx = FeatureExtractor(backbone, preprocessing=SMALL, device="cpu", batch_size=4)
    with pytest.warns(RuntimeWarning, match="was killed by signal 9"):
        s = extract(photos, tmp_path / "feats", fx, workers=1)
    assert [(q.path, q.reason) for q in s.quarantined] == [
        (str(white), "the process that read it was killed by signal 9")
    ]
    assert s.total == N + 1


def test_signal_ends_workers_with_everything_written(photos: Path, tmp_path: Path) -> None:
    def stop(done: int, _total: int) -> None:
        if done == 4:
            os.kill(os.getpid(), signal.SIGINT)

    fx, log = pooled_colours().set_params(batch_size=2), tmp_path / "log"
    with pytest.raises(JobInterrupted) as stopped:
        extract(photos, tmp_path / "feats", fx, workers=1, progress=stop, log_json=log)
    s = stopped.value.summary
    assert (s.total, s.left) == (4, N - 4)
    store = FeatureStore(tmp_path / "feats", mode="r")
    assert len(read_items(tmp_path / "feats", store.space)) == 4
    assert 4 <= len(store) < N
    assert list((tmp_path / "feats").rglob("*.tail")) == []  # it had time to seal its rows
    with pytest.raises(ProcessLookupError):
        os.kill(workers_of(log)[0]["worker_pid"], 0)


def test_no_process_is_started_where_nothing_is_to_be_done(photos: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    extract(photos, tmp_path / "feats", pooled_colours())
    options = {"retry_failed": True, "workers": 2, "log_json": log}
    s = extract(photos, tmp_path / "feats", pooled_colours(), **options)  # type: ignore[arg-type]
    assert (s.total, workers_of(log)) == (0, [])


@pytest.mark.slow
def test_signal_to_workers_that_load_does_not_end_the_job(photos: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    os.mkfifo(log)
    code = (
        "import sys; from tests.jobs.conftest import pooled_colours;"
        "from pyfeat.jobs import extract;"
        "s = extract(*sys.argv[1:3], pooled_colours(), workers=1, log_json=sys.argv[3]);"
        "print(s.computed)"
    )
    command = [sys.executable, "-c", code, str(photos), str(tmp_path / "feats"), str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job, log.open() as events:
        for line in events:
            event = json.loads(line)
            if event["event"] == "worker" and event["state"] == "started":
                os.kill(event["worker_pid"], signal.SIGINT)
                os.kill(event["worker_pid"], signal.SIGTERM)
        assert job.communicate()[0] == f"{N}\n"


def test_worker_killed_while_it_loads_is_replaced(photos: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    os.mkfifo(log)
    killed: list[int] = []

    def kill_first() -> None:
        with log.open() as lines:
            for event in map(json.loads, lines):
                if event["event"] == "worker" and event["state"] == "started" and not killed:
                    os.kill(event["worker_pid"], signal.SIGKILL)
                    killed.append(event["worker"])

    watcher = threading.Thread(target=kill_first)
    watcher.start()
    fx = FeatureExtractor(Heavy(), preprocessing=SMALL, device="cpu")
    with pytest.warns(RuntimeWarning, match="was killed by signal 9 before it began"):
        s = extract(photos, tmp_path / "feats", fx, workers=1, log_json=log)
    watcher.join()
    assert (s.computed, killed) == (N, [1])


@pytest.mark.slow
def test_signal_while_workers_load_ends_the_job(photos: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    os.mkfifo(log)
    code = (
        "import sys; from pyfeat import FeatureExtractor;"
        "from tests.jobs.conftest import SMALL; from tests.jobs.test_workers import Asleep;"
        "from pyfeat.jobs import JobInterrupted, extract\n"
        "fx = FeatureExtractor(Asleep(), preprocessing=SMALL, device='cpu')\n"
        "try: extract(*sys.argv[1:3], fx, workers=1, log_json=sys.argv[3])\n"
        "except JobInterrupted as stopped: print(stopped.summary.left)"
    )
    command = [sys.executable, "-c", code, str(photos), str(tmp_path / "feats"), str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job, log.open() as events:
        for event in map(json.loads, events):
            if event["event"] == "worker" and event["state"] == "started":
                worker = event["worker_pid"]
                os.kill(job.pid, signal.SIGINT)
        assert job.communicate()[0] == f"{N}\n"
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_rows_of_workers_that_do_not_end_are_sealed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_workers, "_SECONDS", 0.0)
    log = tmp_path / "log"

    def stop(done: int, _total: int) -> None:
        if done == 4:
            for worker in workers_of(log):
                os.kill(worker["worker_pid"], signal.SIGSTOP)
            os.kill(os.getpid(), signal.SIGINT)

    fx = pooled_colours().set_params(batch_size=2)
    with pytest.raises(JobInterrupted):
        extract(photos, tmp_path / "feats", fx, workers=2, progress=stop, log_json=log)
    for worker in workers_of(log):
        with pytest.raises(ProcessLookupError):
            os.kill(worker["worker_pid"], 0)
    assert list((tmp_path / "feats").rglob("*.tail")) == []
    assert len(FeatureStore(tmp_path / "feats", mode="r")) >= 4


def test_worker_that_does_not_end_is_not_waited_for(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_workers, "_SECONDS", 0.2)
    fx = FeatureExtractor(Lingering(), preprocessing=SMALL, device="cpu")
    with pytest.warns(RuntimeWarning, match="was killed by signal 9: 0 inputs are done again"):
        s = extract(photos, tmp_path / "feats", fx, workers=1)
    assert (s.computed, s.n_quarantined) == (N, 0)


def test_backbone_that_cannot_be_pickled_is_refused(photos: Path, tmp_path: Path) -> None:
    class Local(Deadly):
        pass

    fx = FeatureExtractor(Local(), preprocessing=SMALL, device="cpu")
    with pytest.raises(TypeError, match="backbone must be fit for pickle"):
        extract(photos, tmp_path / "feats", fx, workers=1)


def test_deterministic_rows_of_workers_are_those_of_one_process(
    photos: Path, tmp_path: Path
) -> None:
    fx = FeatureExtractor(Threads(), preprocessing=SMALL, device="cpu", deterministic=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)  # whatever the environment says to workers
    try:
        extract(photos, tmp_path / "alone", fx)
        extract(photos, tmp_path / "feats", fx, workers=2)
    finally:
        torch.set_num_threads(threads)
    here, there = (FeatureStore(tmp_path / f, mode="r") for f in ("feats", "alone"))
    np.testing.assert_array_equal(here.get(there.keys()), there.get(there.keys()))


@pytest.mark.slow
def test_second_run_of_workers_reads_no_unchanged_file(photos: Path, tmp_path: Path) -> None:
    min(photos.iterdir()).write_bytes(b"no image")
    for photo in photos.iterdir():
        os.utime(photo, (1e9, 1e9))
    s = extract(photos, tmp_path / "feats", pooled_colours(), workers=2)
    assert (s.computed + s.duplicates, s.n_quarantined) == (N - 1, 1)
    for photo in photos.iterdir():  # of the same size and time: whoever reads one now fails
        photo.write_bytes(bytes(photo.stat().st_size))
        os.utime(photo, (1e9, 1e9))
    log = tmp_path / "log"
    s = extract(photos, tmp_path / "feats", pooled_colours(), workers=2, log_json=log)
    assert (s.hits, s.n_quarantined, len(s.quarantined)) == (N - 1, 1, 1)
    assert len({e["worker"] for e in workers_of(log)}) == 1


@pytest.mark.parametrize(
    ("device", "devices", "workers", "want"),
    [
        ("cpu", None, None, []),
        ("cpu", None, 2, ["cpu", "cpu"]),
        ("cuda:0", ["cuda:0", "cuda:1"], None, ["cuda:0", "cuda:1"]),
        ("cuda:0", ["cuda:0", "cuda:1"], 3, ["cuda:0", "cuda:1", "cuda:0"]),
        ("cpu", ["cpu"], None, []),
    ],
)
def test_workers_take_devices_in_turn(
    device: str, devices: list[str] | None, workers: int | None, want: list[str]
) -> None:
    assert devices_of(device, devices, workers) == want
