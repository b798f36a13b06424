"""Engines chosen on a sample of the inputs, and choices that are kept."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from torch import nn

from pyfeat import FeatureExtractor
from pyfeat.backbones import ENGINES, Backbone, _engine_openvino, _fidelity
from pyfeat.errors import BackendError
from pyfeat.extract import _choice, engine_of
from pyfeat.ops import Preprocessing
from pyfeat.store import FeatureStore, claim_choice, read_choice
from tests.extract.conftest import SmallBackbone

SMALL = Preprocessing(resize=36, crop=32, interpolation="bilinear")


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every test choose anew, and between torch and OpenVINO in fp32 and bf16 only."""
    pytest.importorskip("openvino")
    _choice._made.clear()
    monkeypatch.setattr(_fidelity, "PRECISIONS", ("auto", "fp32", "bf16"))
    monkeypatch.delitem(ENGINES, "onnxruntime")


@pytest.fixture
def images() -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40, 40 + i, 3), dtype=np.uint8) for i in range(12)]


def extractor(module: nn.Module, **settings: Any) -> FeatureExtractor:
    settings = {"engine": "auto", "precision": "auto", **settings}
    return FeatureExtractor(module, preprocessing=SMALL, device="cpu", **settings)


def test_auto_takes_the_fastest_that_is_true_enough(
    backbone: SmallBackbone, images: list[Any]
) -> None:
    chosen = extractor(backbone).fit(images)
    report = chosen.fidelity_
    assert report is not None
    true = [m for m in report.measured if m.min_cosine >= 0.995]
    best = max(true, key=lambda m: m.per_second)
    assert engine_of(chosen.space_.parts) == (best.engine, best.precision)
    assert report.sample == len(images)


def test_auto_leaves_out_what_is_not_true_enough(
    backbone: SmallBackbone, images: list[Any]
) -> None:
    chosen = extractor(backbone, min_cosine=0.9999999).fit(images)
    assert chosen.fidelity_ is not None
    assert "bf16" in {m.precision for m in chosen.fidelity_.measured}
    assert chosen.fidelity_.precision == "fp32"


def test_name_leaves_only_the_other_to_be_chosen(
    backbone: SmallBackbone, images: list[Any]
) -> None:
    chosen = extractor(backbone, engine="openvino").fit(images)
    assert chosen.fidelity_ is not None
    assert {m.engine for m in chosen.fidelity_.measured} == {"openvino"}
    assert chosen.space_.parts["engine"] == "openvino"


def test_equal_inputs_take_the_choice_without_measuring_again(
    backbone: SmallBackbone, images: list[Any]
) -> None:
    first = extractor(backbone).fit(images)
    assert extractor(backbone).fit(images).fidelity_ is first.fidelity_


def test_other_inputs_are_measured_themselves(backbone: SmallBackbone, images: list[Any]) -> None:
    first = extractor(backbone).fit(images)
    again = extractor(backbone).fit(images[:5])
    assert again.fidelity_ is not first.fidelity_
    assert again.fidelity_ is not None
    assert again.fidelity_.sample == 5


def test_fitted_extractor_keeps_its_choice_for_other_inputs(
    backbone: SmallBackbone, images: list[Any]
) -> None:
    chosen = extractor(backbone).fit(images)
    space, report = chosen.space_, chosen.fidelity_
    _choice._made.clear()
    chosen.transform(images[:3])
    assert chosen.get_space() == space
    assert chosen.fidelity_ is report


def test_first_transform_chooses_for_those_that_follow(
    backbone: SmallBackbone, images: list[Any]
) -> None:
    chosen = extractor(backbone)
    chosen.transform(images[:6])
    report = chosen.fidelity_
    chosen.transform(images[6:])
    assert report is not None
    assert chosen.fidelity_ is report


def test_choice_travels_in_a_pickle(backbone: SmallBackbone, images: list[Any]) -> None:
    chosen = extractor(backbone).fit(images)
    # What another measurement, in another process, would take.
    other = {"torch": "openvino", "openvino": "torch"}[engine_of(chosen.space_.parts)[0]]
    chosen._chosen = (chosen._chosen[0], (other, "bf16"))
    content = pickle.dumps(chosen)
    _choice._made.clear()
    loaded = pickle.loads(content)
    loaded.transform(images[:2])
    assert engine_of(loaded.space_.parts) == (other, "bf16")
    assert loaded.fidelity_ == chosen.fidelity_


def test_clone_forgets_the_choice(backbone: SmallBackbone, images: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"call fit\(X\)"):
        clone(extractor(backbone).fit(images)).get_space()


@pytest.mark.parametrize("setting", [{"min_cosine": -1}, {"engine": "torch"}, {"layers": "conv"}])
def test_choice_holds_for_the_settings_it_was_made_with(
    backbone: SmallBackbone, images: list[Any], setting: dict[str, Any]
) -> None:
    chosen = extractor(backbone).fit(images)
    with pytest.raises(ValueError, match=r"call fit\(X\)"):
        chosen.set_params(**setting).get_space()


def test_fit_chooses_again(backbone: SmallBackbone, images: list[Any]) -> None:
    chosen = extractor(backbone).fit(images)
    assert chosen.fit(images[:4]).fidelity_.sample == 4


def test_engines_are_measured_on_what_they_are_given(
    backbone: SmallBackbone, images: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {}
    call = Backbone.__call__

    def noted(self: Backbone, batch: torch.Tensor) -> torch.Tensor:
        measured[engine_of(self.parts)[0]] = batch.dtype
        return call(self, batch)

    monkeypatch.setattr(Backbone, "__call__", noted)
    chosen = extractor(backbone).fit(images)
    assert measured == {"torch": torch.float32, "openvino": torch.uint8}
    measured.clear()
    for engine in ("torch", "openvino"):
        extractor(backbone, engine=engine, precision="fp32").transform(images)
    assert measured == {"torch": torch.float32, "openvino": torch.uint8}
    assert chosen.fidelity_ is not None


def test_threads_that_choose_at_once_measure_once(
    backbone: SmallBackbone, images: list[Any]
) -> None:
    both = [extractor(backbone), extractor(backbone)]
    together = threading.Barrier(2)

    def fit(one: FeatureExtractor) -> Any:
        together.wait()
        return one.fit(images).fidelity_

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(fit, both)
    assert first is second


def test_earlier_choice_of_a_store_is_kept_whatever_a_measurement_would_say(
    backbone: SmallBackbone, images: list[Any], tmp_path: Path
) -> None:
    # Rows of a slow engine in the store, and a faster one measured in this process before.
    extractor(backbone, engine="openvino", precision="fp32", store=tmp_path).transform(images[:6])
    measured = extractor(backbone, engine="torch").fit(images)
    assert measured.space_.parts.get("engine") is None
    resumed = extractor(backbone, store=tmp_path)
    resumed.transform(images)
    assert engine_of(resumed.space_.parts) == ("openvino", "fp32")
    assert resumed.fidelity_ is None
    (space,) = FeatureStore.spaces(tmp_path)
    with FeatureStore(tmp_path, space, mode="r") as store:
        assert len(store) == len(images)


def test_choice_in_memory_gives_way_to_that_of_the_store(
    backbone: SmallBackbone, images: list[Any], tmp_path: Path
) -> None:
    extractor(backbone, engine="openvino", precision="fp32", store=tmp_path).transform(images[:6])
    taken = extractor(backbone, min_cosine=-1).fit(images).fidelity_
    assert taken is not None
    other = {"engine": taken.engine, "precision": taken.precision}
    resumed = extractor(backbone, min_cosine=-1, store=tmp_path).fit(images)
    assert engine_of(resumed.space_.parts) == ("openvino", "fp32")
    assert (resumed.fidelity_ is not None) == (other == {"engine": "openvino", "precision": "fp32"})


def test_rows_of_other_weights_do_not_decide(
    backbone: SmallBackbone, images: list[Any], tmp_path: Path
) -> None:
    other = SmallBackbone(seed=1)
    extractor(other, engine="openvino", precision="fp32", store=tmp_path).transform(images)
    assert extractor(backbone, store=tmp_path).fit(images).fidelity_ is not None


def test_rows_that_a_name_excludes_do_not_decide(
    backbone: SmallBackbone, images: list[Any], tmp_path: Path
) -> None:
    extractor(backbone, engine="openvino", precision="fp32", store=tmp_path).transform(images)
    chosen = extractor(backbone, engine="torch", store=tmp_path).fit(images)
    assert engine_of(chosen.space_.parts)[0] == "torch"


def test_nothing_true_enough_names_every_figure(images: list[Any]) -> None:
    class Noisy(SmallBackbone):
        """Rows that no two passes agree on."""

        def forward(self, x: Any) -> Any:
            import torch

            return super().forward(x) + torch.rand(len(x), 8, 1, 1, device=x.device) * 100

    with pytest.raises(BackendError, match=r"min_cosine 1, got torch fp32: \S+; torch bf16: \S+"):
        extractor(Noisy(), engine="torch", min_cosine=1.0).fit(images)


def test_choice_without_inputs_is_refused(backbone: SmallBackbone) -> None:
    with pytest.raises(
        ValueError, match=r"^engine 'auto' in 'auto' must be chosen on inputs: call fit\(X\)"
    ):
        extractor(backbone).fit()
    with pytest.raises(ValueError, match="call fit"):
        extractor(backbone).get_space()


def test_choice_without_a_readable_input_is_refused(
    backbone: SmallBackbone, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="must have one that can be read"):
        extractor(backbone).fit([tmp_path / "nosuch.png"])


def test_unreadable_inputs_are_left_out_of_the_sample(
    backbone: SmallBackbone, images: list[Any]
) -> None:
    chosen = extractor(backbone, engine="torch").fit([*images, b"no image"])
    assert chosen.fidelity_ is not None
    assert chosen.fidelity_.sample == len(images)


def test_sample_is_spread_over_all_inputs(backbone: SmallBackbone, images: list[Any]) -> None:
    many = images * 10
    chosen = extractor(backbone, engine="torch").fit(many)
    assert chosen.fidelity_ is not None
    assert chosen.fidelity_.sample == _choice.SAMPLE < len(many)


def test_missing_engine_is_refused_with_its_reason(
    backbone: SmallBackbone, images: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_engine_openvino, "find_spec", lambda _: None)
    with pytest.raises(BackendError, match=r'not installed: pip install "pyfeat\[openvino\]"'):
        extractor(backbone, engine="openvino", precision="fp32").transform(images)
    chosen = extractor(backbone).fit(images)
    assert chosen.fidelity_ is not None
    assert "not installed" in chosen.fidelity_.refused["openvino fp32"]
    assert chosen.fidelity_.engine == "torch"


def test_store_of_an_engine_that_is_gone_does_not_decide(
    backbone: SmallBackbone,
    images: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extractor(backbone, engine="openvino", precision="fp32", store=tmp_path).transform(images)
    monkeypatch.setattr(_engine_openvino, "find_spec", lambda _: None)
    assert extractor(backbone, store=tmp_path).fit(images).fidelity_ is not None


def test_engine_and_precision_are_part_of_the_space(
    backbone: SmallBackbone, images: list[Any]
) -> None:
    pairs = [("torch", "fp32"), ("torch", "bf16"), ("openvino", "fp32"), ("openvino", "bf16")]
    spaces = [extractor(backbone, engine=e, precision=p).fit(images).space_ for e, p in pairs]
    assert len({space.fingerprint for space in spaces}) == len(pairs)
    assert [engine_of(space.parts) for space in spaces] == pairs


def test_fidelity_of_a_named_engine_is_measured_on_demand(
    backbone: SmallBackbone, images: list[Any]
) -> None:
    named = extractor(backbone, engine="torch", precision="bf16", min_cosine=1.0)
    report = named.measure_fidelity(images)
    (measured,) = report.measured
    assert (measured.engine, measured.precision) == ("torch", "bf16")
    assert 0.99 < measured.min_cosine < 1
    assert named.fidelity_ is None


def test_fidelity_of_a_choice_is_what_chose(backbone: SmallBackbone, images: list[Any]) -> None:
    chosen = extractor(backbone, engine="torch")
    assert chosen.measure_fidelity(images) is chosen.fidelity_
    assert len(chosen.fidelity_.measured) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "tensorrt"}, "engine must be one of"),
        ({"precision": "fp64"}, "precision must be one of"),
        ({"min_cosine": 2}, r"min_cosine must be in \[-1, 1\], got 2"),
    ],
)
def test_wrong_settings_are_told(
    backbone: SmallBackbone, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        extractor(backbone, **settings).fit([])


def test_choice_that_was_recorded_decides_before_there_is_a_row(
    backbone: SmallBackbone, images: list[Any], tmp_path: Path
) -> None:
    for pair in [("torch", "bf16"), ("openvino", "fp32")]:
        chosen = extractor(backbone, store=tmp_path / pair[0])
        claim_choice(chosen.store, _choice._question(chosen._base(), chosen._wish), pair)
        chosen.fit(images)
        assert engine_of(chosen.space_.parts) == pair
        assert chosen.fidelity_ is None


def test_choice_is_recorded_before_there_is_a_row(
    backbone: SmallBackbone, images: list[Any], tmp_path: Path
) -> None:
    chosen = extractor(backbone, store=tmp_path).fit(images)
    question = _choice._question(chosen._base(), chosen._wish)
    assert read_choice(tmp_path, question) == engine_of(chosen.space_.parts)
    assert FeatureStore.spaces(tmp_path) == []


def test_recorded_choice_that_cannot_be_followed_is_told(
    backbone: SmallBackbone, images: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = extractor(backbone, store=tmp_path)
    question = _choice._question(first._base(), first._wish)
    claim_choice(tmp_path, question, ("openvino", "fp32"))
    monkeypatch.setattr(_engine_openvino, "find_spec", lambda _: None)
    with pytest.raises(BackendError, match=r"'openvino' and 'fp32', which were chosen for .* not"):
        first.fit(images)


def test_rows_of_another_engine_alone_decide_over_a_record(
    backbone: SmallBackbone, images: list[Any], tmp_path: Path
) -> None:
    first = extractor(backbone, store=tmp_path)
    claim_choice(tmp_path, _choice._question(first._base(), first._wish), ("torch", "bf16"))
    extractor(backbone, engine="openvino", precision="fp32", store=tmp_path).transform(images[:6])
    assert engine_of(first.fit(images).space_.parts) == ("openvino", "fp32")
