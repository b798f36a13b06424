"""Models of two towers, CLIP and SigLIP: images and texts brought into one space."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3
from torch import Tensor, nn

from pyfeat._identity import canonical_json
from pyfeat.backbones._modality import Tokenization
from pyfeat.backbones._pretrained import Joint, Pretrained
from pyfeat.backbones._weights import weights_hash
from pyfeat.ops._preprocess import Preprocessing

TYPES = ("clip", "siglip")
_FILTERS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_PARTS = {
    "image": ("vision_model", "visual_projection"),
    "text": ("text_model", "text_projection"),
}


def load_clip(name: str, preprocessing: Preprocessing | None = None) -> Pretrained:
    """Return one tower of a CLIP or SigLIP model, with its projection, rows of length 1.

    Parameters
    ----------
    name : str
        A folder as `save_pretrained` writes it: config.json, model.safetensors,
        preprocessor_config.json and tokenizer.json. `FOLDER#text` is its text tower.
    preprocessing : Preprocessing, optional
        Of images; by default that of preprocessor_config.json.

    Returns
    -------
    pretrained : Pretrained
        `text` of an image tower loads the text tower. `joint` of both names the weights of the
        whole model, so that rows of one tower are known to be comparable to those of the other.

    Raises
    ------
    ImportError
        If transformers or tokenizers is missing.
    OSError
        If a file is missing.
    ValueError
        If the folder holds another type of model, or its preprocessing is not ours.

    Notes
    -----
    The rows are v / |v| with v what `get_image_features` or `get_text_features` return; the model's
    logits are exp(logit_scale) times their inner product, for SigLIP plus a bias.
    """
    folder, _, part = name.partition("#")
    at = Path(folder)
    config = _json(at / "config.json")
    if config.get("model_type") not in TYPES:
        got = f"{config.get('model_type')!r} in {folder!r}"
        raise ValueError(f"model of two towers must be of type {' or '.join(TYPES)}, got {got}")
    if part not in ("", "text"):
        raise ValueError(f"tower must be none or 'text', got {part!r}")
    tower = part or "image"
    model = _model(at)
    joint = joint_of(model, tower)
    _keep(model, tower)
    architecture = f"transformers/{type(model).__name__}:{_hash(config, tower)}"
    if tower == "text":
        tokens = tokenization_of(at, int(model.config.text_config.max_position_embeddings))
        fixed = tokens.max_length if config["model_type"] == "siglip" else None
        module = UnitRows(_Texts(model, tokens.pad_id, fixed))
        return Pretrained(f"hf/{name}", "hf", architecture, module, tokens, l2=True, joint=joint)
    own = preprocessing or clip_preprocessing(_json(at / "preprocessor_config.json"), name)
    return Pretrained(
        f"hf/{name}",
        "hf",
        architecture,
        UnitRows(_Images(model)),
        own,
        l2=True,
        text=lambda: load_clip(f"{name}#text"),
        joint=joint,
    )


def joint_of(model: Any, tower: str) -> Joint:
    """Return the space that the towers of a whole model share; before one of them is dropped."""
    scale = float(model.logit_scale.detach().float().exp())
    return Joint(weights_hash(model.float().state_dict()), tower, scale)


class UnitRows(nn.Module):
    """Rows of another module, brought to length 1."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return (n, d)."""
        return nn.functional.normalize(self.module(*inputs), dim=-1)


class _Images(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (n, d)."""
        return _rows(self.model.get_image_features(pixel_values=pixels))


class _Texts(nn.Module):
    """The text tower; one that was trained on texts of one length gets them filled up to it."""

    def __init__(self, model: Any, pad_id: int, fixed: int | None) -> None:
        super().__init__()
        self.model = model
        self.pad_id = pad_id
        self.fixed = fixed

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return (n, d)."""
        if self.fixed is None:
            return _rows(self.model.get_text_features(input_ids=ids, attention_mask=mask))
        # SigLIP sees what fills up, and takes the row from the last place.
        ids = nn.functional.pad(ids, (0, self.fixed - ids.shape[1]), value=self.pad_id)
        return _rows(self.model.get_text_features(input_ids=ids))


def _rows(output: Any) -> Tensor:
    # A tensor before transformers 5.
    rows: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return rows


def _keep(model: Any, tower: str) -> None:
    """Drop the other tower: its weights are no part of what identifies this one."""
    for part in _PARTS["text" if tower == "image" else "image"]:
        if hasattr(model, part):
            setattr(model, part, None)


def clip_preprocessing(config: Mapping[str, Any], name: str) -> Preprocessing:
    """Return a preprocessor_config.json of CLIP or SigLIP in our words.

    Raises
    ------
    ValueError
        If it does not end in a square.
    """
    size, crop = config.get("size", 224), config.get("crop_size", 224)
    size = size if isinstance(size, Mapping) else {"shortest_edge": size}
    crop = crop["height"] if isinstance(crop, Mapping) else crop
    filter_ = _FILTERS.get(config.get("resample", 3))
    short, cropped = size.get("shortest_edge"), config.get("do_center_crop", "crop_size" in config)
    side = size.get("height") if size.get("height") == size.get("width") else None
    whole = side is not None and not cropped
    resize = side if whole else short
    if filter_ is None or resize is None or whole == bool(cropped):
        raise ValueError(
            f"preprocessing of {name} must be a bilinear or bicubic square, got {dict(config)}; "
            f"pass preprocessing= to choose one"
        )
    return Preprocessing(
        resize=resize,
        crop=resize if whole else crop,
        interpolation=filter_,
        mean=tuple(config["image_mean"]),
        std=tuple(config["image_std"]),
        mode="stretch" if whole else "crop",
    )


def tokenization_of(folder: Path, max_length: int) -> Tokenization:
    """Return the tokenizer of a folder.

    Raises
    ------
    ImportError
        If tokenizers is missing.
    OSError
        If there is no tokenizer.json.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ImportError('texts need tokenizers: pip install "pyfeat[text]"') from error
    text = _text(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_str(text)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    names = folder / "tokenizer_config.json"
    pad = _json(names).get("pad_token") if names.is_file() else None
    pad = pad["content"] if isinstance(pad, Mapping) else pad
    pad_id = tokenizer.token_to_id(pad) if pad is not None else None
    identity = blake3(text.encode()).hexdigest()
    return Tokenization(tokenizer, max_length, pad_id or 0, identity)


def _model(folder: Path) -> Any:
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise ImportError('CLIP models need transformers: pip install "pyfeat[text]"') from error
    model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    model.config.use_cache = False
    return model.float().eval()


def _hash(config: Mapping[str, Any], tower: str) -> str:
    # What weights do not show, such as the number of heads or the activation.
    part = config.get("vision_config" if tower == "image" else "text_config", {})
    known = {k: v for k, v in part.items() if not k.startswith("_")}
    return blake3(canonical_json(known).encode()).hexdigest()


def _json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(_text(path))
    return value


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise OSError(f"folder of a model must hold {path.name}, got {error}") from error
