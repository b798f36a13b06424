"""Engines and precisions: the same rows as torch in float32, to what each precision can keep."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyfeat.backbones import (
    ENGINES,
    Backbone,
    Tokenization,
    _engine_onnxruntime,
    check_engine,
    load_backbone,
)
from pyfeat.backbones._cuda_graphs import CudaGraphs, bucket_size, fill_up
from pyfeat.backbones._modality import normalised
from pyfeat.errors import BackendError
from pyfeat.ops import Preprocessing, preprocess

CPU = torch.device("cpu")
SMALL = Preprocessing(resize=36, crop=32, interpolation="bilinear", std=(0.2, 0.25, 0.3))
PAIRS = [
    ("torch", "fp32"),
    ("torch", "bf16"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("onnxruntime", "fp32"),
]
# Relative rounding of one number. Errors of the three layers add up, each of them the rounding of
# inputs, weights and outputs: 9 in all.
EPS = {"fp32": 2.0**-23, "bf16": 2.0**-8}
ROUNDINGS = 9


class Small(nn.Module):
    """Two convolutions, the first with zeros around the image, and their pooled map, mixed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 5, padding=2), nn.Conv2d(8, 16, 3, stride=2)
        self.mix = nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(torch.relu(self.second(torch.relu(self.first(x)))).mean(dim=(2, 3)))


class Words(nn.Module):
    """Mean of embeddings that a mask lets through."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.mix = nn.Embedding(50, 16), nn.Linear(16, 8)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        share = mask[:, :, None].float()
        return self.mix((self.table(ids) * share).sum(1) / share.sum(1))


def skip_unless_it_runs(engine: str, precision: str) -> None:
    if (why := ENGINES[engine].refuses(precision, CPU)) is not None:
        pytest.skip(why)


@pytest.fixture(scope="module")
def exact() -> Backbone:
    return load_backbone(Small(), preprocessing=SMALL, device="cpu")


@pytest.fixture(scope="module")
def words() -> Backbone:
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {str(i): i for i in range(50)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="0"))
    return load_backbone(
        Words(), preprocessing=Tokenization(tokenizer, 64, 0, "test"), device="cpu"
    )


@pytest.fixture(params=PAIRS, ids=" ".join)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    skip_unless_it_runs(*request.param)
    engine, precision = request.param
    return engine, precision


def pixels(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8)


def images(n: int) -> Tensor:
    return normalised((pixels(n),), SMALL)[0]


def sentences(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    mask = torch.ones(n, 12, dtype=torch.int64)
    mask[::2, 7:] = 0
    return torch.randint(1, 50, (n, 12), generator=generator), mask


def assert_close(rows: Tensor, expected: Tensor, precision: str) -> None:
    bound = ROUNDINGS * EPS[precision] * expected.norm(dim=1)
    assert ((rows - expected).norm(dim=1) <= bound).all()


def test_rows_are_those_of_torch_in_float32(exact: Backbone, pair: tuple[str, str]) -> None:
    assert_close(exact.with_engine(*pair)(images(11)), exact(images(11)), pair[1])


def test_rows_of_texts_are_those_of_torch(words: Backbone, pair: tuple[str, str]) -> None:
    batch = sentences(11)
    assert_close(words.with_engine(*pair)(*batch), words(*batch), pair[1])


def test_bytes_give_the_rows_of_normalised_pixels(exact: Backbone, pair: tuple[str, str]) -> None:
    backbone = exact.with_engine(*pair)
    # Two ways to normalise in float32; what differs by that before it is rounded to bfloat16
    # differs by its rounding at most.
    assert_close(backbone(pixels(6)), backbone(images(6)), pair[1])


def test_a_row_does_not_depend_on_its_batch(exact: Backbone, pair: tuple[str, str]) -> None:
    backbone, batch = exact.with_engine(*pair), images(11)
    whole = backbone(batch)
    for n in (1, 3, 4, 8):
        assert torch.equal(torch.cat([backbone(part) for part in batch.split(n)]), whole)


def test_a_row_of_a_text_does_not_depend_on_its_batch(
    words: Backbone, pair: tuple[str, str]
) -> None:
    backbone, (ids, mask) = words.with_engine(*pair), sentences(11)
    whole = backbone(ids, mask)
    for n in (1, 3, 8):
        parts = zip(ids.split(n), mask.split(n), strict=True)
        assert torch.equal(torch.cat([backbone(*part) for part in parts]), whole)


def test_threads_may_share_an_engine(exact: Backbone, pair: tuple[str, str]) -> None:
    backbone = exact.with_engine(*pair)
    batches = [images(n) for n in (1, 2, 3, 5, 7, 8, 9, 11)]
    expected = [backbone(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        for rows, alone in zip(pool.map(backbone, batches), expected, strict=True):
            assert torch.equal(rows, alone)


def test_openvino_returns_rows_in_order_when_requests_are_used_again(exact: Backbone) -> None:
    skip_unless_it_runs("openvino", "fp32")
    backbone = exact.with_engine("openvino", "fp32")
    engine: Any = backbone._engine
    batch = pixels(5 * engine.chunk * engine.at_once)  # requests are two for each core
    alone = torch.cat([backbone(part) for part in batch.split(engine.chunk)])
    assert torch.equal(backbone(batch), alone)


def test_an_empty_batch_has_no_rows(exact: Backbone, pair: tuple[str, str]) -> None:
    assert exact.with_engine(*pair)(images(0)).shape == (0, 12)


def test_a_batch_is_not_changed(exact: Backbone, pair: tuple[str, str]) -> None:
    batch = images(3)
    before = batch.clone()
    exact.with_engine(*pair)(batch)
    assert torch.equal(batch, before)


def test_engine_and_precision_are_part_of_the_identity(exact: Backbone) -> None:
    told = set()
    for engine, precision in PAIRS:
        if ENGINES[engine].refuses(precision, CPU) is None:
            parts = exact.with_engine(engine, precision).parts
            told.add((parts.get("engine", "torch"), parts["precision"]))
    assert told >= {("torch", "float32"), ("torch", "bf16")}
    assert len(told) == sum(ENGINES[e].refuses(p, CPU) is None for e, p in PAIRS)


def test_bytes_are_normalised_as_preprocess_does() -> None:
    photo = torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8)
    whole = preprocess(photo, SMALL)
    assert torch.equal(
        normalised((preprocess(photo, SMALL, dtype=torch.uint8)[None],), SMALL)[0][0], whole
    )


@pytest.mark.parametrize(
    ("engine", "precision", "device", "why"),
    [
        ("torch", "int8", "cpu", "it has fp32, bf16, fp16, fp8"),
        ("torch", "fp16", "cpu", "float16 is for GPUs"),
        ("torch", "fp8", "cpu", "8-bit floats are for GPUs"),
        ("openvino", "fp32", "cuda", "it is for CPUs"),
        ("openvino", "fp8", "cpu", "it has fp32, bf16, int8"),
        ("onnxruntime", "fp32", "cuda", "it is for CPUs"),
        ("onnxruntime", "bf16", "cpu", "it has fp32"),
    ],
)
def test_an_engine_says_why_it_refuses(engine: str, precision: str, device: str, why: str) -> None:
    if engine != "torch":
        pytest.importorskip(engine)
    assert ENGINES[engine].refuses(precision, torch.device(device)) == why


def test_a_refusal_is_a_backend_error(exact: Backbone) -> None:
    with pytest.raises(BackendError, match="engine 'torch' cannot run int8 on cpu: it has"):
        exact.with_engine("torch", "int8")


@pytest.mark.parametrize("precision", ["half", "int8:", "int8:xyz", "bf16:" + "0" * 64, 8])
def test_other_precisions_are_refused(precision: str) -> None:
    with pytest.raises(ValueError, match="precision must be one of"):
        check_engine("torch", precision)


@pytest.mark.parametrize("package", ["openvino", "onnxruntime"])
def test_a_missing_package_is_a_refusal_that_says_what_to_install(package: str) -> None:
    code = f"""
import sys, importlib.util, torch
find = importlib.util.find_spec
sys.meta_path = [type("No", (), {{"find_spec": staticmethod(lambda *a: None)}})] + [
    f for f in sys.meta_path]
import pyfeat.backbones._engine_{package} as module
module.find_spec = lambda name: None if name == {package!r} else find(name)
from pyfeat.backbones import ENGINES
print(ENGINES[{package!r}].refuses("fp32", torch.device("cpu")))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "is not installed: pip install" in run.stdout


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_network_is_not_exported_without_the_packages_for_it(
    exact: Backbone, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_unless_it_runs("onnxruntime", "fp32")
    monkeypatch.setattr(
        _engine_onnxruntime, "find_spec", lambda name: None if name == package else find_spec(name)
    )
    with pytest.raises(BackendError, match=f"{package} is not installed, which exports networks"):
        exact.with_engine("onnxruntime", "fp32")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    skip_unless_it_runs("openvino", "int8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "pyfeat" / "int8"


def test_another_sample_is_another_network(exact: Backbone, cache: Path) -> None:
    first, again, other = (
        exact.with_engine("openvino", "int8", [(batch,)]).parts["precision"]
        for batch in (images(8), images(8), 3 * images(9))
    )
    assert first == again != other
    check_engine("openvino", first)
    assert not cache.exists()


def test_a_kept_network_comes_back_with_its_rows(exact: Backbone, cache: Path) -> None:
    calibrated = exact.with_engine("openvino", "int8", [(images(8),)])
    calibrated.keep()
    back = exact.with_engine("openvino", calibrated.parts["precision"])
    assert back.parts == calibrated.parts
    assert torch.equal(back(pixels(5)), calibrated(pixels(5)))


def test_int8_rows_are_near_float32(exact: Backbone, cache: Path) -> None:
    rows = exact.with_engine("openvino", "int8", [(images(16),)])(images(16))
    # 8 bits for inputs, weights and outputs of three layers, the ranges not filled evenly.
    assert (
        torch.nn.functional.cosine_similarity(rows, exact(images(16))).min() > 1 - ROUNDINGS / 256
    )


def test_a_network_that_is_gone_is_an_error(exact: Backbone, cache: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"calibrated network must be at .*use another store"
    ):
        exact.with_engine("openvino", "int8:" + "0" * 64)


def test_a_changed_network_is_an_error(exact: Backbone, cache: Path) -> None:
    first, second = (
        exact.with_engine("openvino", "int8", [(batch,)]) for batch in (images(8), 3 * images(9))
    )
    first.keep()
    second.keep()
    one, two = (cache / b.parts["precision"][5:] for b in (first, second))
    for name in ("model.xml", "model.bin"):
        (one / name).write_bytes((two / name).read_bytes())
    with pytest.raises(OSError, match="must be as it was kept, got other constants"):
        exact.with_engine("openvino", first.parts["precision"])


def test_int8_needs_inputs(exact: Backbone, cache: Path) -> None:
    with pytest.raises(ValueError, match="calibration must have at least one input"):
        exact.with_engine("openvino", "int8")


class _Calls(TorchDispatchMode):
    """Notes what torch is called for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, call: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(call))
        return call(*args, **(kwargs or {}))


def test_normalising_copies_nothing_from_the_host() -> None:
    # A copy from there cannot be recorded: every batch of bytes would be launched anew.
    with _Calls() as calls:
        normalised((torch.zeros(1, 3, 2, 2, dtype=torch.uint8, device="meta"),), SMALL)
    assert "aten.new_full.default" in calls.names
    assert "aten.lift_fresh.default" not in calls.names  # of `torch.tensor`


@pytest.mark.parametrize(("n", "size"), [(1, 1), (2, 2), (3, 4), (8, 8), (9, 16), (128, 128)])
def test_sizes_of_recorded_batches_are_powers_of_two(n: int, size: int) -> None:
    assert bucket_size(n) == size


class _Noted(CudaGraphs):
    """Notes what would be recorded, and records nothing."""

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        noted.append(tuple(inputs[0].shape))


noted: list[tuple[int, ...]] = []


@pytest.mark.parametrize(
    ("inputs", "recorded"),
    [
        ([torch.zeros(2, 3, 8, 8)], [(2, 3, 8, 8)]),
        ([torch.ones(2, 12, dtype=torch.int64)], [(2, 12)]),
        ([torch.zeros(2, 700)], []),
        ([torch.zeros(2, 700), torch.zeros(2, 701), torch.zeros(2, 702)], []),
        ([torch.zeros(2, 700), torch.zeros(2, 701), torch.zeros(2, 700)], [(2, 700)]),
    ],
)
def test_lengths_of_recordings_are_recorded_when_they_come_again(
    inputs: list[Tensor], recorded: list[tuple[int, ...]]
) -> None:
    noted.clear()
    graphs = _Noted(lambda batch: batch[0].flatten(1))
    for batch in inputs:
        assert torch.equal(graphs((batch,)), batch.flatten(1))
    assert noted == recorded


def test_a_filled_batch_begins_with_its_inputs() -> None:
    batch = torch.arange(6).reshape(3, 2)
    assert torch.equal(fill_up(batch, 4), torch.tensor([[0, 1], [2, 3], [4, 5], [1, 1]]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_recorded_launches_give_the_rows_of_the_cpu(exact: Backbone, precision: str) -> None:
    on_gpu = load_backbone(Small(), preprocessing=SMALL, device="cuda").with_engine(
        "torch", precision
    )
    for n in (5, 8, 5, 1):
        rows = on_gpu(pixels(n)).cpu()
        assert_close(rows, exact(images(n)), "fp32" if precision == "fp32" else "bf16")
    assert None not in on_gpu._engine._run._records.values()
