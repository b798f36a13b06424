"""What a source hands over, and what goes wrong while it fetches weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from pyfeat.backbones._modality import Preparation
from pyfeat.ops._preprocess import Preprocessing

# torch.load raises it for a damaged file.
_serialization: Any = torch.serialization
UnpicklingError: type[Exception] = _serialization.pickle.UnpicklingError
INSTALL_HINT = 'pip install "pyfeat[quickstart]"'
IMAGENET = Preprocessing(
    resize=256,
    crop=224,
    interpolation="bilinear",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


@dataclass(frozen=True)
class Joint:
    """The space that the two towers of a model share.

    Parameters
    ----------
    model : str
        Hash of the weights of both towers.
    tower : {"image", "text"}
        Which of them this is.
    logit_scale : float
        What the model multiplies the cosine of an image and a text with, before a softmax.
    """

    model: str
    tower: str
    logit_scale: float

    def to_parts(self) -> dict[str, Any]:
        """Return what makes rows of two towers comparable, for a fingerprint."""
        return {"model": self.model, "tower": self.tower}


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A module without its classifier, as its source hands it over: not yet frozen.

    Parameters
    ----------
    name : str
        Full name: it loads the same weights again, whatever the defaults become; of weights in a
        file or folder of the caller's what they belong to, so that no path is part of an identity.
    source : str
        "pyfeat", "torchvision", "timm", "hf", "st", "onnx", "keras", "file" (the
        caller's weights for a model of torchvision or timm), "folder" (a folder as "hf" and "st"
        read it) or "module".
    architecture : str
        What the forward pass is, besides the weights.
    module : nn.Module
        Returns (n, d) or (n, c, h, w).
    preprocessing : Preprocessing, Tokenization or AudioPreprocessing
        What the weights were trained with, or what the caller wants instead.
    l2 : bool
        Whether the mean of the rows of several windows is brought to norm 1.
    text : callable, optional
        Loads the text tower, whose rows are of the same space as those of this image tower.
    joint : Joint, optional
        The space that both towers share; both say it.
    """

    name: str
    source: str
    architecture: str
    module: nn.Module
    preprocessing: Preparation
    l2: bool = False
    text: Callable[[], Pretrained] | None = None
    joint: Joint | None = None


@contextmanager
def explain_missing_weights(name: str, address: str, cache: str) -> Iterator[None]:
    """Turn every failure to fetch or read weights into one `OSError` that says how to go on."""
    try:
        yield
    except (OSError, EOFError, RuntimeError, UnpicklingError, SafetensorError) as error:
        raise OSError(
            f"weights of {name} must be readable from {address} or from the cache {cache}, got "
            f"{type(error).__name__}: {error}. Put the file into the cache, or load the model "
            f"yourself and pass the nn.Module."
        ) from error
