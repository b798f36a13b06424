"""timm's models: found, loaded from the hub's cache, with the preprocessing of their weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pyfeat.backbones import load_backbone
from pyfeat.backbones._timm import load_timm, preprocessing_of
from pyfeat.ops import Preprocessing

timm = pytest.importorskip("timm")

NAME = "mobilenetv3_small_050.lamb_in1k"


def config(**changes: Any) -> dict[str, Any]:
    given = {
        "input_size": (3, 224, 224),
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "crop_mode": "center",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
    }
    return given | changes


def test_preprocessing_is_that_of_the_configuration() -> None:
    assert preprocessing_of(config(), "x") == Preprocessing(
        resize=235, crop=224, interpolation="bicubic", mean=(0.5,) * 3, std=(0.25,) * 3
    )


@pytest.mark.parametrize(
    "change",
    [{"crop_mode": "random"}, {"input_size": (1, 224, 224)}, {"input_size": (3, 128, 1024)}],
)
def test_a_preprocessing_that_cannot_be_expressed_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="preprocessing of x must be a square centre crop"):
        preprocessing_of(config(**change), "x")


@pytest.mark.parametrize(("timms", "ours"), [("squash", "stretch"), ("border", "pad")])
def test_crop_modes_are_those_of_the_configuration(timms: str, ours: str) -> None:
    spec = preprocessing_of(config(crop_mode=timms), "x")
    assert (spec.mode, spec.resize, spec.crop) == (ours, 235, 224)


def test_resize_equals_timms_own_transform() -> None:
    for crop, pct in ((224, 0.875), (224, 0.9), (240, 0.882), (260, 0.89), (288, 0.95), (299, 1.0)):
        spec = preprocessing_of(config(input_size=(3, crop, crop), crop_pct=pct), "x")
        resize = timm.data.create_transform((3, crop, crop), crop_pct=pct).transforms[0]
        assert spec.resize == resize.size


def test_an_unknown_tag_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"timm weights of resnet18 must be one of \['resnet18\.a1"
    ):
        load_backbone("timm/resnet18.nope", device="cpu")


def test_a_model_without_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="one that timm has weights for, got 'efficientnet_b8'"):
        load_timm("efficientnet_b8", None)


def run_offline(home: Path, code: str) -> str:
    # A process of its own: the hub client reads its settings once, when it is imported.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout


def test_weights_come_from_the_cache_of_the_hub(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    module = timm.create_model("mobilenetv3_small_050")
    repository = tmp_path / "hub" / f"models--timm--{NAME}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    save_file(module.state_dict(), snapshot / "model.safetensors")
    answer = run_offline(
        tmp_path,
        """
import json
from pyfeat.backbones import load_backbone
b = load_backbone("timm/mobilenetv3_small_050", device="cpu")
print(json.dumps([b.parts, b.dim]))
""",
    )
    parts, dim = json.loads(answer)
    module.reset_classifier(0)
    own = load_backbone(module, device="cpu")
    assert (parts["name"], dim) == (f"timm/{NAME}", own.dim)
    assert parts["weights"] == own.parts["weights"]
    assert parts["preprocessing"] == own.parts["preprocessing"]


def test_a_failed_download_says_how_to_go_on(tmp_path: Path) -> None:
    answer = run_offline(
        tmp_path,
        f"""
from pyfeat.backbones import load_backbone
try:
    load_backbone("{NAME}", device="cpu")
except OSError as error:
    print(error)
""",
    )
    assert answer.startswith(f"weights of timm/{NAME} must be readable from huggingface.co/timm/")
    assert str(tmp_path / "hub") in answer
    assert "pass the nn.Module" in answer


def test_preprocessing_of_a_timm_module_comes_from_its_configuration() -> None:
    module = timm.create_model("mobilenetv3_small_050", num_classes=0)
    expected = preprocessing_of(timm.data.resolve_model_data_config(module), "x")
    assert load_backbone(module, device="cpu").preprocessing == expected
