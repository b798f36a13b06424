"""Texts: str, UTF-8 bytes and text files become tokens."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyfeat.backbones import Tokenization, bucket_of
from pyfeat.errors import InputError
from pyfeat.extract._decode import read_file

# Of a long text first so many characters a token are looked at, then four times as many.
_FIRST_LOOK, _GROWTH = 16, 4
# A word that ends at a blank this far before a cut is not changed by what lies behind the cut.
_MARGIN = 64
_WORD_BEGINS = re.compile(r" \S")


class TextReader:
    """Texts as str or UTF-8 bytes, and text files as paths."""

    def __init__(self, tokenization: Tokenization) -> None:
        self._spec = tokenization
        special = tokenization.tokenizer.num_special_tokens_to_add(False)
        self._room = tokenization.max_length - special
        # Without a first step that splits at blanks, a token may depend on all of the text.
        self._splits = json.loads(tokenization.tokenizer.to_str())["pre_tokenizer"] is not None

    def content(self, value: Any, name: str) -> str:
        """Return the text."""
        if isinstance(value, str):
            return _checked(value, name)
        if isinstance(value, os.PathLike):
            value = read_file(Path(value))
        if not isinstance(value, (bytes, bytearray, memoryview)):
            kind = type(value).__name__
            raise InputError(name, f"must be a str, UTF-8 bytes or a Path, got {kind}")
        try:
            return _checked(bytes(value).decode(), name)
        except UnicodeDecodeError as error:
            raise InputError(name, f"it is no UTF-8 text: {error.reason}") from None

    def tensor(self, content: Any, name: str) -> tuple[Tensor, bool]:
        """Return the tokens (length,), at most `max_length`, and whether there were more."""
        encoding = self._encode(self._spec.prefix + content)
        n_tokens = len(encoding.ids)
        if n_tokens == 0:
            raise InputError(name, "it has no tokens")
        encoding.truncate(self._room)
        ids = self._spec.tokenizer.post_process(encoding).ids  # adds the special tokens
        return torch.tensor(ids, dtype=torch.int64), n_tokens > self._room

    def collate(self, tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], list[int]]:
        """Return tokens and mask, both (n, length) with one length for a bucket."""
        length = min(max(self.bucket(t) for t in tensors), self._spec.max_length)
        ids = torch.full((len(tensors), length), self._spec.pad_id)
        mask = torch.zeros_like(ids)
        for i, tokens in enumerate(tensors):
            ids[i, : len(tokens)] = tokens
            mask[i, : len(tokens)] = 1
        return (ids, mask), [1] * len(tensors)

    def bucket(self, tensor: Tensor) -> int:
        """Return the bucket of the number of tokens."""
        longest = self._spec.max_length
        return bucket_of(longest if self._spec.fixed else len(tensor), longest)

    def _encode(self, text: str) -> Any:
        """Return all tokens, or of a long text those at its beginning and some more."""
        look = _FIRST_LOOK * self._spec.max_length
        while self._splits and look < len(text):
            encoding = self._spec.tokenizer.encode(text[:look], add_special_tokens=False)
            if len(encoding.ids) > self._room:
                end = encoding.offsets[self._room - 1][1]
                if _WORD_BEGINS.search(text, end, look - _MARGIN):
                    return encoding
            look *= _GROWTH
        return self._spec.tokenizer.encode(text, add_special_tokens=False)


def _checked(text: str, name: str) -> str:
    if not text or text.isspace():
        raise InputError(name, "it is empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(name, f"it is no text: {error.reason}") from None
    return str(text)
