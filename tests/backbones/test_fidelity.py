"""The measurement of engines, and the choice that follows."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from pyfeat.backbones import (
    Backbone,
    Fidelity,
    Measured,
    _fidelity,
    choose_engine,
    load_backbone,
)
from pyfeat.errors import BackendError
from pyfeat.ops import Preprocessing

SMALL = Preprocessing(resize=32, crop=32)


def small() -> Backbone:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten()
    )
    return load_backbone(module, preprocessing=SMALL, device="cpu")


def batches(*sizes: int) -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(2)
    return [(torch.randn(n, 3, 32, 32, generator=generator),) for n in sizes]


def test_float32_on_torch_is_measured_as_equal() -> None:
    chosen, report = choose_engine(small(), batches(3, 4), engine="torch", precision="fp32")
    (measured,) = report.measured
    assert (measured.mean_cosine, measured.min_cosine) == (1.0, 1.0)
    assert measured.same_neighbour == 1.0
    assert report.sample == 7
    assert chosen.parts["precision"] == "float32"


def test_figures_are_those_of_the_rows() -> None:
    backbone, sample = small(), batches(6)
    chosen, report = choose_engine(backbone, sample, engine="torch", precision="bf16")
    (measured,) = report.measured
    exact, rows = (b(*sample[0]).double() for b in (backbone, chosen))
    cosine = [float(a @ b / (a.norm() * b.norm())) for a, b in zip(exact, rows, strict=True)]
    # sums of a few thousand float64 terms in two orders
    assert measured.min_cosine == pytest.approx(min(cosine), abs=1e-12)
    assert measured.mean_cosine == pytest.approx(sum(cosine) / 6, abs=1e-12)
    assert measured.min_cosine < 1
    assert measured.per_second > 0


def test_same_neighbour_is_the_share_of_equal_nearest_rows() -> None:
    class Means(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=(2, 3))

    # The last row is nearer to the first by less than bfloat16 (8 bits) tells apart: there the
    # other two are equally near, and the first of them counts.
    unit, k = 2.0**-11, 205 * 2.0**-11
    rows = torch.tensor([[1, 0, 0], [1, k + 0.4 * unit, 0], [1, -k - 0.2 * unit, 0]])
    sample = [(rows[:, :, None, None].expand(3, 3, 32, 32).contiguous(),)]
    backbone = load_backbone(Means(), preprocessing=SMALL, device="cpu")
    _, report = choose_engine(backbone, sample, engine="torch", precision="bf16")
    assert report.measured[0].same_neighbour == pytest.approx(2 / 3)


def test_fastest_of_the_true_ones_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(_fidelity, "PRECISIONS", ("auto", "fp32", "bf16"))  # int8 takes a while
    _, report = choose_engine(small(), batches(8), min_cosine=0.999999)
    true = [m for m in report.measured if m.min_cosine >= 0.999999]
    best = max(true, key=lambda m: m.per_second)
    assert (report.engine, report.precision) == (best.engine, best.precision)
    assert {(m.engine, m.precision) for m in report.measured} >= {
        ("torch", "fp32"),
        ("torch", "bf16"),
        ("openvino", "fp32"),
    }


def test_rows_come_from_what_was_taken() -> None:
    pytest.importorskip("openvino")
    backbone = small()
    chosen, report = choose_engine(backbone, batches(4), engine="openvino", precision="fp32")
    assert chosen.parts["engine"] == report.engine == "openvino"
    (batch,) = batches(3)[0]
    assert torch.allclose(chosen(batch), backbone(batch), rtol=1e-4, atol=1e-4)
    assert not torch.equal(chosen(batch * 2), backbone(batch))


def test_what_cannot_run_is_reported_with_its_reason() -> None:
    _, report = choose_engine(small(), batches(2), engine="torch")
    assert "float16 is for GPUs" in report.refused["torch fp16"]
    assert [m.precision for m in report.measured] == ["fp32", "bf16"]


def test_nothing_true_enough_names_the_figures() -> None:
    with pytest.raises(BackendError, match=r"min_cosine 1, got torch bf16: 0\.99\d+$") as caught:
        choose_engine(small(), batches(4), engine="torch", precision="bf16", min_cosine=1.0)
    assert "\n" not in str(caught.value)


def test_nothing_that_runs_names_the_reason() -> None:
    with pytest.raises(BackendError, match="float16 is for GPUs"):
        choose_engine(small(), batches(4), engine="torch", precision="fp16")


def test_no_sample_is_refused() -> None:
    rule = "sample must have at least one input that fits in memory, got none"
    with pytest.raises(ValueError, match=f"^{rule}$"):
        choose_engine(small(), [])


@pytest.mark.parametrize(
    ("value", "cosine"), [(0.0, 1.0), (float("nan"), -1.0)], ids=["zeros", "not finite"]
)
def test_rows_without_a_direction(value: float, cosine: float) -> None:
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :4] * 0 + (value if x.abs().sum() > 1e7 else 0.0)

    backbone = load_backbone(Constant(), preprocessing=SMALL, device="cpu")
    sample = [(torch.full((3, 3, 32, 32), 1e5),)]
    if cosine < 0:
        with pytest.raises(BackendError, match=r"got torch fp32: -1\.00000"):
            choose_engine(backbone, sample, engine="torch", precision="fp32")
    else:
        _, report = choose_engine(backbone, sample, engine="torch", precision="fp32")
        assert report.measured[0].min_cosine == cosine


def measured(engine: str, precision: str, cosine: float, speed: float) -> Measured:
    return Measured(engine, precision, cosine, cosine, 1.0, speed)


REPORT = Fidelity(
    sample=32,
    min_cosine=0.995,
    measured=[
        measured("torch", "fp32", 1.0, 10.0),
        measured("openvino", "bf16", 0.998, 40.0),
        measured("openvino", "int8", 0.9, 80.0),
    ],
    refused={"torch fp16": "float16 is for GPUs"},
    engine="openvino",
    precision="bf16",
)


def test_reason_says_what_was_taken_and_what_was_faster_but_less_true() -> None:
    assert REPORT.reason() == (
        "openvino bf16: the fastest of 3 whose smallest cosine to float32 is at least 0.995 "
        "(0.99800, 40/s, 32 inputs); openvino int8 would be faster but less true"
    )


def test_reason_of_one_engine_is_its_figures() -> None:
    alone = replace(REPORT, measured=REPORT.measured[1:2])
    want = "openvino bf16: smallest cosine to float32 0.99800, 40/s, 32 inputs"
    assert alone.reason() == want


def test_report_is_json() -> None:
    values: Any = json.loads(json.dumps(REPORT.to_dict()))
    assert values["measured"][1]["min_cosine"] == 0.998
    assert values == REPORT.to_dict()
