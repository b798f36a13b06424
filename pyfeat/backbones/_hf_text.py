"""Texts for models of transformers: their tokenizer, and tokens pooled into a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor, nn

from pyfeat.backbones._hf_files import import_transformers, quiet, reading
from pyfeat.backbones._modality import Tokenization

# Most tokens of a text where the model knows no bound, or one beyond what a CPU can do.
_DEFAULT_LENGTH, _LONGEST = 512, 8192
_UNBOUNDED = 10**9  # transformers' way to say that a tokenizer has no bound


class TextRows(nn.Module):
    """A network on tokens, and what makes a row of what it returns for them.

    Parameters
    ----------
    model : nn.Module
        Takes `input_ids` and `attention_mask`, returns an output with `last_hidden_state`.
    head : nn.Module
        Takes (n, l, d) and the mask (n, l), returns (n, d).
    """

    def __init__(self, model: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.head = head

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return (n, d)."""
        out = self.model(input_ids=ids, attention_mask=mask)
        rows: Tensor = self.head(out.last_hidden_state, mask)
        return rows


class TokenPooling(nn.Module):
    """Tokens (n, l, d) and their mask (n, l) to rows (n, d * number of modes).

    Parameters
    ----------
    modes : sequence of {"cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"}
        As sentence-transformers calls them; several stand beside each other.

    Raises
    ------
    ValueError
        If there is no such mode.
    """

    MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")

    def __init__(self, modes: Sequence[str]) -> None:
        super().__init__()
        unknown = [mode for mode in modes if mode not in self.MODES]
        if unknown or not modes:
            got = unknown[0] if unknown else "none"
            raise ValueError(f"pooling of tokens must be one of {list(self.MODES)}, got {got!r}")
        self.modes = tuple(modes)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the rows."""
        share = mask[:, :, None].to(tokens.dtype)  # (n, l, 1)
        rows = [self._pool(mode, tokens, share) for mode in self.modes]
        return torch.cat(rows, dim=1) if len(rows) > 1 else rows[0]

    @staticmethod
    def _pool(mode: str, tokens: Tensor, share: Tensor) -> Tensor:
        if mode == "cls":
            return tokens[:, 0]
        if mode == "max":
            return tokens.masked_fill(share == 0, -torch.inf).max(dim=1).values
        positions = torch.cumsum(share, dim=1)
        if mode == "lasttoken":
            return (tokens * (positions * share == share.sum(dim=1, keepdim=True))).sum(dim=1)
        if mode == "weightedmean":
            share = share * positions
        total, count = (tokens * share).sum(dim=1), share.sum(dim=1).clamp(min=1e-9)
        return total / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count)


def load_tokenizer(place: str, name: str) -> Any:
    """Return transformers' tokenizer of a model, one that runs without Python.

    Raises
    ------
    ValueError
        If there is none.
    OSError
        If its files cannot be read.
    """
    transformers = import_transformers(name)
    rule = (
        "come with a fast tokenizer (tokenizer.json): where transformers can make one, "
        "AutoTokenizer.from_pretrained(..., use_fast=True).save_pretrained(folder) writes it"
    )
    with quiet(), reading(place):
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                place, use_fast=True, trust_remote_code=False
            )
        except (AttributeError, ImportError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name} must {rule}, got {type(error).__name__}") from error
    if not tokenizer.is_fast:
        raise ValueError(f"{name} must {rule}, got {type(tokenizer).__name__}")
    # Where there are no files of one, transformers makes one that knows special tokens only.
    if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
        raise ValueError(f"{name} must {rule}, got a tokenizer without words")
    return tokenizer


def tokenization_of(
    tokenizer: Any,
    max_length: int,
    *,
    prefix: str = "",
    lower: bool = False,
    fixed: bool = False,
) -> Tokenization:
    """Return what texts go through, from a tokenizer of transformers.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
        Not changed.
    max_length : int
        Most tokens of a text.
    prefix : str, default=""
        Put in front of every text.
    lower : bool, default=False
        Whether texts are lowered first.
    fixed : bool, default=False
        Whether every text is filled up to `max_length`.
    """
    from tokenizers import Tokenizer, normalizers

    own = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    own.no_truncation()
    own.no_padding()
    if lower:
        first = [normalizers.Lowercase()]
        own.normalizer = normalizers.Sequence([*first, own.normalizer] if own.normalizer else first)
    identity = blake3(own.to_str().encode()).hexdigest()
    pad_id = tokenizer.pad_token_id or 0
    return Tokenization(own, max_length, pad_id, identity, prefix=prefix, fixed=fixed)


def max_length_of(model: nn.Module, tokenizer: Any) -> int:
    """Return how many tokens a text may have: what tokenizer and positions allow.

    Notes
    -----
    RoBERTa and its kin number positions from the one behind their padding token's.
    """
    limits = [_LONGEST]
    if (longest := tokenizer.model_max_length) and longest < _UNBOUNDED:
        limits.append(int(longest))
    for path, layer in model.named_modules():
        if path.endswith(("position_embeddings", "position_embedding", "wpe")):
            unused = getattr(layer, "padding_idx", None)
            count = getattr(layer, "num_embeddings", None)
            if count is not None:
                limits.append(count if unused is None else count - unused - 1)
    config: Any = model.config
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        limits.append(positions)
    return min(limits) if len(limits) > 1 else _DEFAULT_LENGTH
