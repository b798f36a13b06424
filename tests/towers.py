"""Small models of two towers with random weights, as transformers saves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

SIDE = 32
LENGTH = 20
WORDS = ["a", "photo", "of", "cat", "dog", "red", "blue", "the", "small", "drawing", "."]
# No <unk> between them: ids of words begin at 4.
SPECIAL = ["<pad>", "<unk>", "<start>", "<end>"]


def save_towers(folder: Path, kind: str) -> Any:
    """Write a model, a tokenizer and a preprocessing to a folder; return the model.

    Parameters
    ----------
    folder : Path
    kind : {"clip", "siglip"}
    """
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shared = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    shared["num_attention_heads"] = 4
    text = {**shared, "vocab_size": 16, "max_position_embeddings": LENGTH}
    text |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    vision = {**shared, "image_size": SIDE, "patch_size": 8}
    if kind == "clip":
        config = transformers.CLIPConfig(
            text_config=text, vision_config=vision, projection_dim=24, logit_scale_init_value=2.0
        )
        model = transformers.CLIPModel(config)
    else:
        text["projection_size"] = 32
        config = transformers.SiglipConfig(text_config=text, vision_config=vision)
        model = transformers.SiglipModel(config)
    for weight in model.parameters():  # as they come, towers hardly look at their inputs
        weight.data += 0.2 * torch.randn_like(weight) * (weight.ndim > 0)
    model.eval().save_pretrained(folder)
    _save_tokenizer(folder)
    square = {"height": SIDE, "width": SIDE}
    size = {"shortest_edge": SIDE} if kind == "clip" else square
    crop = {"do_center_crop": True, "crop_size": square} if kind == "clip" else {}
    settings = {
        "image_processor_type": "CLIPImageProcessor" if kind == "clip" else "SiglipImageProcessor",
        "do_resize": True,
        "size": size,
        **crop,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return model


def _save_tokenizer(folder: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<start>"}
    settings = {**names, "eos_token": "<end>", "model_max_length": LENGTH}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def their_tokens(folder: Path, texts: list[str], kind: str) -> dict[str, Any]:
    """Return what transformers' own tokenizer hands to a model."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    padding = "max_length" if kind == "siglip" else True
    tokens = tokenizer(
        texts, padding=padding, max_length=LENGTH, truncation=True, return_tensors="pt"
    )
    names = ["input_ids"] if kind == "siglip" else ["input_ids", "attention_mask"]
    return {name: tokens[name] for name in names}
