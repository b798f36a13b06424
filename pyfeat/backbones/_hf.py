"""Models of transformers: images, texts, towers of both, and recordings."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pyfeat.backbones._hf_audio import AUDIO_TYPES, load_hf_audio
from pyfeat.backbones._hf_files import (
    architecture_of,
    check_complete,
    first_line,
    import_transformers,
    load_model,
    place_of,
    quiet,
    read_json,
    reading,
    without_path,
)
from pyfeat.backbones._hf_images import load_preprocessing
from pyfeat.backbones._hf_text import (
    TextRows,
    TokenPooling,
    load_tokenizer,
    max_length_of,
    tokenization_of,
)
from pyfeat.backbones._hf_towers import ImageTower, TextTower, drop_other_tower, joint_of
from pyfeat.backbones._layers import prefix_tokens
from pyfeat.backbones._modality import Preparation
from pyfeat.backbones._pretrained import Pretrained
from pyfeat.backbones._st_config import pooling_modes

# Models of two towers whose rows lie in one space.
_TOWERS = ("altclip", "chinese_clip", "clip", "metaclip_2", "siglip")
# Read every text filled up to one length, and take the row from its last position.
_FIXED_LENGTH = ("siglip",)
# Of an encoder and a decoder, the encoder reads texts on its own.
_WITH_DECODER = ("mt5", "t5", "t5gemma", "umt5")
_TEXT = "text"


def load_hf(name: str, preprocessing: Preparation | None) -> Pretrained:
    """Return a model of transformers without its head.

    Parameters
    ----------
    name : str
        A folder, or a repository of the Hugging Face hub. `NAME#text` is the text tower of a
        model of images and texts, of which `NAME` is the image tower.
    preprocessing : Preprocessing or None
        None means the one that belongs to the weights.

    Raises
    ------
    ImportError
        If transformers is missing.
    ValueError
        If it is no model of images, texts or samples of sound, or needs code, a tokenizer or a
        preprocessing that we do not run.
    OSError
        If files can neither be read from the cache nor downloaded.

    Notes
    -----
    The row of an image is the model's own pooled output, or its class token where that goes
    through a layer of its own (ViT, DeiT) that most weights were never trained with. The row of a
    text is the mean of its tokens, or what `1_Pooling/config.json` beside the weights says. Towers
    give their projected rows, brought to norm 1. For recordings see `load_hf_audio`.
    """
    place, _, part = name.partition("#")
    place = place_of(place)
    return without_path(_load(place, part, preprocessing), place)


def _load(place: str, part: str, preprocessing: Preparation | None) -> Pretrained:
    full_name = f"hf/{place}#{part}" if part else f"hf/{place}"
    config = _config(place, full_name)
    if config.model_type in AUDIO_TYPES and not part:
        return load_hf_audio(place, preprocessing)
    is_pair = config.model_type in _TOWERS
    if part and not (is_pair and part == _TEXT):
        raise ValueError(f"backbone must be NAME, or NAME#text of two towers, got {full_name!r}")
    model, missing = load_model(_class_of(config), place, full_name)
    model.config.use_cache = False
    if is_pair:
        check_complete(missing, full_name)
        return _tower(model, place, full_name, part == _TEXT, preprocessing)
    takes = model.main_input_name
    if takes == "pixel_values":
        return _images(model, missing, place, full_name, preprocessing)
    if takes == "input_ids":
        check_no_preprocessing(preprocessing, full_name)
        return _texts(model, missing, place, full_name)
    raise ValueError(f"{full_name} must take pixel_values or input_ids, got {takes}")


def encoder_of_texts(place: str, name: str) -> Any:
    """Return a network on tokens, without the pooler that belongs to its pre-training.

    Raises
    ------
    ValueError, OSError
        As `load_hf`.
    """
    model, missing = load_model(_class_of(_config(place, name)), place, name)
    model.config.use_cache = False
    check_complete(_drop_pooler(model, missing), name)
    return model


class _ImageRows(nn.Module):
    """Pixels to what a model makes of a whole image."""

    def __init__(self, model: nn.Module, use_pooled: bool) -> None:
        super().__init__()
        self.model = model
        self._use_pooled = use_pooled
        self._has_class_token = prefix_tokens(model) > 0

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (n, d), or maps (n, d, h, w) of a model that does not pool."""
        out = self.model(pixel_values=pixels)
        pooled = getattr(out, "pooler_output", None)
        if self._use_pooled and pooled is not None:
            rows: Tensor = pooled.flatten(1)
            return rows
        tokens: Tensor = out.last_hidden_state
        if tokens.ndim == 4:
            return tokens
        return tokens[:, 0] if self._has_class_token else tokens.mean(dim=1)


def _images(model: Any, missing: set[str], place: str, name: str, preprocessing: Any) -> Pretrained:
    if hasattr(model.config, "mask_ratio"):
        rule = "see the whole image: its encoder hides patches at random"
        raise ValueError(f"{name} must {rule}, got {type(model).__name__}")
    pooler = getattr(model, "pooler", None)
    is_trained_apart = hasattr(pooler, "dense")
    if is_trained_apart:
        missing = _drop_pooler(model, missing)
    check_complete(missing, name)
    module = _ImageRows(model, use_pooled=not is_trained_apart)
    chosen = preprocessing or load_preprocessing(place, name)
    return Pretrained(name, "hf", architecture_of(model, place), module, chosen)


def _texts(model: Any, missing: set[str], place: str, name: str) -> Pretrained:
    check_complete(_drop_pooler(model, missing), name)
    tokenizer = load_tokenizer(place, name)
    own = read_json(place, "1_Pooling/config.json")
    modes = ("mean",) if own is None else pooling_modes(own, name)
    module = TextRows(model, TokenPooling(modes))
    chosen = tokenization_of(tokenizer, max_length_of(model, tokenizer))
    return Pretrained(name, "hf", architecture_of(model, place, list(modes)), module, chosen)


def _tower(model: Any, place: str, name: str, is_text: bool, preprocessing: Any) -> Pretrained:
    kind = model.config.model_type
    tower = _TEXT if is_text else "image"
    architecture = architecture_of(model, place, tower)
    joint = joint_of(model, tower)
    drop_other_tower(model, tower)
    if not is_text:
        return Pretrained(
            name,
            "hf",
            architecture,
            ImageTower(model),
            preprocessing or load_preprocessing(place, name),
            l2=True,
            text=lambda: load_hf(f"{place}#{_TEXT}", None),
            joint=joint,
        )
    check_no_preprocessing(preprocessing, name)
    tokenizer = load_tokenizer(place, name)
    fixed = kind in _FIXED_LENGTH
    chosen = tokenization_of(tokenizer, max_length_of(model, tokenizer), fixed=fixed)
    module = TextTower(model, chosen.pad_id if fixed else 0, use_mask=not fixed)
    return Pretrained(name, "hf", architecture, module, chosen, l2=True, joint=joint)


def _config(place: str, name: str) -> Any:
    transformers = import_transformers(name)
    with quiet(), reading(place):
        try:
            return transformers.AutoConfig.from_pretrained(place, trust_remote_code=False)
        except (ImportError, KeyError, ValueError) as error:
            rule = "be a model that transformers knows without code from the hub"
            raise ValueError(f"{name} must {rule}, got {first_line(error)}") from error


def _class_of(config: Any) -> Any:
    from transformers import AutoModel, AutoModelForTextEncoding

    return AutoModelForTextEncoding if config.model_type in _WITH_DECODER else AutoModel


def check_no_preprocessing(preprocessing: Any, name: str) -> None:
    """Raise ValueError if images are to be prepared for a model of texts."""
    if preprocessing is not None:
        rule = "be None for texts, which take max_length="
        raise ValueError(f"preprocessing of {name} must {rule}, got {preprocessing!r}")


def _drop_pooler(model: Any, missing: set[str]) -> set[str]:
    """Take the pooler off, and return the missing weights that are not of it."""
    if isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = None
    return {key for key in missing if not key.startswith("pooler.")}
