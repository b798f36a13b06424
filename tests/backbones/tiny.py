"""Tiny randomly initialised models of transformers, saved as folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

TEXT = "[PAD] [UNK] [CLS] [SEP] the film is moving and funny a dull boring long , . !"
WORDS = TEXT.split()
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}


def save_image_model(
    folder: Path, model: str, config: str, processor: str, **settings: Any
) -> tuple[Path, Any]:
    """Save a random model and its image processor; return the folder and the model."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**settings)).eval()
    made.save_pretrained(folder)
    sizes = {"crop_size": {"height": 32, "width": 32}} if processor == "CLIPImageProcessor" else {}
    size = (
        {"shortest_edge": 32} if sizes or "ConvNext" in processor else {"height": 32, "width": 32}
    )
    getattr(transformers, processor)(size=size, **sizes).save_pretrained(folder)
    return folder, made


def save_tokenizer(folder: Path, max_length: int = 40) -> None:
    """Save a tokenizer of a few whole words."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=max_length,
    ).save_pretrained(folder)


def save_text_model(folder: Path, model: str = "BertModel", **settings: Any) -> tuple[Path, Any]:
    """Save a random model on tokens and its tokenizer; return the folder and the model."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = {"vocab_size": len(WORDS), "max_position_embeddings": 64, **SMALL, **settings}
    kind = model.removesuffix("Model").removesuffix("ForMaskedLM")
    made = getattr(transformers, model)(getattr(transformers, f"{kind}Config")(**config)).eval()
    made.save_pretrained(folder)
    save_tokenizer(folder)
    return folder, made


def save_sentence_model(
    folder: Path, modules: list[tuple[str, dict[str, Any]]], **files: Any
) -> Path:
    """Save a random BERT as sentence-transformers would, with further modules and JSON files."""
    save_text_model(folder)
    listed = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    ]
    for i, (kind, config) in enumerate(modules, start=1):
        path = f"{i}_{kind}"
        package = "" if "." in kind else "sentence_transformers.models."
        listed.append({"idx": i, "name": str(i), "path": path, "type": f"{package}{kind}"})
        (folder / path).mkdir()
        (folder / path / "config.json").write_text(json.dumps(config))
    (folder / "modules.json").write_text(json.dumps(listed))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder
