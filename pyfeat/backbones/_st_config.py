"""What the configuration files of sentence-transformers say, in all the words they have had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Before there was one key `pooling_mode`; in the order in which several stand beside each other.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def pooling_modes(config: Mapping[str, Any], name: str, prompt: str = "") -> tuple[str, ...]:
    """Return how tokens are pooled; `prompt` is what stands in front of every text.

    Raises
    ------
    ValueError
        If the tokens of the prompt are to be left out.
    """
    if prompt and not config.get("include_prompt", True):
        rule = "pool the tokens of its prompt too"
        raise ValueError(f"{name} must {rule}, got include_prompt=False and {prompt!r}")
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in _FLAGS.items() if config.get(flag)] or "mean"
    return (modes,) if isinstance(modes, str) else tuple(modes)


def default_prompt(config: Mapping[str, Any], name: str) -> str:
    """Return what stands in front of every text unless another prompt is asked for.

    Raises
    ------
    ValueError
        If the default prompt is none of the prompts.
    """
    wanted = config.get("default_prompt_name")
    if wanted is None:
        return ""
    prompts = config.get("prompts") or {}
    if wanted not in prompts:
        rule = f"have the default prompt among its prompts {sorted(prompts)}"
        raise ValueError(f"{name} must {rule}, got {wanted!r}")
    return str(prompts[wanted] or "")


def kind_of(module: Mapping[str, Any]) -> str:
    """Return the class of an entry of `modules.json` without its package, which has moved."""
    package, _, kind = str(module["type"]).rpartition(".")
    return kind if package.partition(".")[0] == "sentence_transformers" else str(module["type"])
