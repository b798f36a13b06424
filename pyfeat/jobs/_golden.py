"""Inputs that pyfeat makes itself, the same everywhere, and their rows kept with a space."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfeat._identity import Space
from pyfeat.backbones import AudioPreprocessing, Backbone, Tokenization, VideoPreprocessing
from pyfeat.extract import Input, RunOptions, run
from pyfeat.store import Golden, has_golden, write_golden

TEXT = "The quick brown fox isn't lazy: it jumps over 13 dogs."
_SECONDS = 2


def golden_input(backbone: Backbone) -> Input:
    """Return a small input of what a backbone takes; whole numbers alone make it.

    Parameters
    ----------
    backbone : Backbone

    Returns
    -------
    item : Input
        Its name says what it is, and changes when the input does.
    """
    preparation = backbone.preprocessing
    if isinstance(preparation, AudioPreprocessing):
        return Input("audio-1", _sound(preparation.sample_rate))
    if isinstance(preparation, Tokenization):
        return Input("text-1", TEXT)
    if isinstance(preparation, VideoPreprocessing):
        return Input("video-1", _video())
    return Input("image-1", _image())


def _image(shift: int = 0) -> NDArray[np.uint8]:
    """Return 240 x 320 pixels: a slope in red, one in green, a chessboard in blue."""
    y, x = np.indices((240, 320)) + shift
    board = (x // 20 + y // 20) % 2 * 255
    pixels: NDArray[np.uint8] = np.stack([x * 3 % 256, y % 256, board], axis=2).astype(np.uint8)
    return pixels


def _video() -> NDArray[np.uint8]:
    return np.stack([_image(5 * i)[::2, ::2] for i in range(8)])


def _sound(rate: int) -> NDArray[np.int16]:
    """Return two triangle waves, one on the other."""
    t = np.arange(_SECONDS * rate, dtype=np.int64)
    waves = [np.abs(t * hertz * 4 % (4 * rate) - 2 * rate) - rate for hertz in (220, 1330)]
    loud: NDArray[np.int16] = (sum(waves, np.zeros_like(t)) * 8000 // rate).astype(np.int16)
    return loud


def golden_row(backbone: Backbone, options: RunOptions) -> Golden | None:
    """Return the row of the built-in input; None where the backbone makes none of it."""
    item = golden_input(backbone)
    (outcome,) = run([item], backbone, None, options)
    if outcome.row is None:
        return None
    return Golden(item.name, np.asarray(outcome.row, np.float32))


def keep_golden(
    store: str | os.PathLike[str], space: Space, backbone: Backbone, options: RunOptions
) -> None:
    """Keep a golden row with a space, unless it has one."""
    if not has_golden(store, space) and (golden := golden_row(backbone, options)) is not None:
        write_golden(store, space, golden)


def rows_of(
    inputs: list[Input], backbone: Backbone, options: RunOptions
) -> list[NDArray[Any] | None]:
    """Return the row of each input; None for one that cannot be read."""
    rows: list[NDArray[Any] | None] = [None] * len(inputs)
    for outcome in run(inputs, backbone, None, options):
        rows[outcome.position] = outcome.row
    return rows
