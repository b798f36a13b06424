"""The transformer: images, texts or recordings in, rows out."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray
from torch import nn

from pyfeat._identity import Space
from pyfeat.backbones import Backbone, Fidelity, Layers, load_backbone
from pyfeat.extract._choice import Wish, engine_of, measure, on_engine
from pyfeat.extract._inputs import Input, as_inputs
from pyfeat.extract._parameters import check_parameters
from pyfeat.extract._rows import split_rows
from pyfeat.extract._run import RunOptions, row_space
from pyfeat.extract._stateless import StatelessTransformer
from pyfeat.extract._text_tower import TextTower
from pyfeat.extract._transform import Progress, rows_of
from pyfeat.ops import Preprocessing
from pyfeat.store import FeatureStore


class FeatureExtractor(TextTower, StatelessTransformer):
    """Turn images, texts, recordings or videos into rows with a frozen, pretrained backbone.

    Stateless: `fit` only checks the parameters, `transform` may be called without it. Works in a
    scikit-learn `Pipeline`; with a store, the clones that cross-validation and grid search make all
    share it, so each input goes through the backbone once.

    Parameters
    ----------
    backbone : str or torch.nn.Module, default="efficientnet_lite0"
        Name ("efficientnet_lite0", "minilm", "resnet50", "timm/NAME", "hf/NAME", "st/NAME",
        "onnx/FILE"; see `load_backbone`), or a module that takes (n, 3, h, w) and returns (n, d)
        or (n, d, h, w). It says whether the inputs are images, texts or recordings.
    weights : path-like, optional
        File of weights for a model of torchvision or timm by name (see `load_backbone`).
    store : path-like or FeatureStore, optional
        Where rows are kept. What is there already is not computed again, whatever its file is
        called now.
    layers : int, str or sequence of them, default=-1
        Which layers the row is made of (see `load_backbone`); several stand beside each other, and
        `split` takes them apart.
    pooling : {"auto", "cls", "avg", "max", "gem", "cls+avg", "none"}, default="auto"
        How maps and tokens become a row. With "none", of one layer, `transform` returns them as
        they are: (n, c, h, w) or (n, l, c), texts and recordings filled up with zeros.
    engine : {"torch", "openvino", "onnxruntime", "auto"}, default="torch"
        What runs the network. "auto" measures all of them on a sample of the inputs, and takes the
        fastest that is true enough. The choice is part of the space; once made it is kept, in a
        pickle too, until `fit` is called again. A clone chooses anew.
    precision : {"fp32", "bf16", "fp16", "int8", "fp8", "auto"}, default="fp32"
        Numbers the network computes with; "auto" as for `engine`. "int8" is calibrated on a sample
        of the inputs, and goes on with the network of the store's rows (see `Backbone.keep`).
        "fp8" is for transformers on a GPU (docs/backbones.md).
    min_cosine : float, default=0.995
        What "auto" accepts: the smallest cosine over the sample between a row and that of torch in
        float32.
    preprocessing : Preprocessing, optional
        Size, crop, filter, mean and deviation; by default what the weights were trained with.
    video : {"avg", "max"}, optional
        Inputs are videos: an image backbone is given frames of each, and the rows of the frames are
        averaged, or pooled by their maximum.
    frames : int, default=8
        How many frames of a video, the middle ones of equal segments; of a shorter one all.
    max_length : int, optional
        Most tokens of a text, if fewer than the model takes.
    dtype : {"float32", "float16", "bfloat16", "int8"}, default="float32"
        What rows are rounded to, returned and stored. Those of bfloat16 and int8 (a scale for each
        row) are returned as float32, the very numbers that a store gives back.
    batch_size : int or "auto", default="auto"
        Images in one forward pass. "auto" shrinks when memory runs out.
    device : str or torch.device, default="auto"
        "auto" is the GPU when there is one, else the CPU.
    deterministic : bool, default=False
        Promise rows whose bits do not depend on the batch size or on the other images of a call. On
        a CPU that costs nothing; on a GPU it means one image a pass, which is slow. Rows with the
        promise are a space of their own, so that a store never mixes them with others.
    decode : {"exact", "fast"}, default="exact"
        "fast" decodes a large JPEG file at 1/2, 1/4 or 1/8 of its size, as far as the short side
        stays at least `preprocessing.resize` (see `pyfeat.ops.decode`). Such rows are a space of
        their own.
    on_error : {"raise", "nan"}, default="raise"
        What to do about an input that cannot be read: raise, or give it a row of NaN.
    progress : bool or callable, default=False
        True shows a bar with rate and remaining time on stderr; a callable gets (done, total).

    Attributes
    ----------
    space_ : Space
        What makes the rows comparable; after `fit` or `transform`.
    fidelity_ : Fidelity or None
        What "auto" measured when it chose; None where nothing was to be chosen, or an earlier
        choice was made for the store, which is kept.
    n_truncated_ : int
        Texts that the last `transform` or `transform_text` computed and had to cut, longer than
        the model takes; with `pooling="none"` also recordings longer than a window.

    Raises
    ------
    InputError
        From `transform`, if an input cannot be read and `on_error="raise"`: with its name and the
        reason. What was computed before it is in the store.
    SpaceError
        If `store` is a FeatureStore that holds another space.
    ValueError, TypeError
        If a parameter or X is not as described.

    Notes
    -----
    Inputs stand in a list, an object array, a pandas or polars column.

    - Images: paths, encoded `bytes`, PIL images or uint8 arrays (h, w), (h, w, 1), (h, w, 3) or
      (h, w, 4); or one array (n, h, w, c). EXIF orientation is applied, alpha is dropped, 16-bit
      images are scaled to 8 bits, of an animation the first frame is taken.
    - Texts: a str is a text; UTF-8 `bytes`; a `Path` names a file, which is one text. A text longer
      than the model takes is cut, and counted in `n_truncated_`.
    - Recordings: paths and encoded `bytes` (wav, flac, ogg, mp3), or rows of samples at the rate of
      the model; or one array (n, samples). Channels are averaged, other rates resampled, and the
      rows of the windows of a long recording averaged.
    - Videos: paths, bytes or uint8 arrays (t, h, w, 3), read by PyAV (see `VideoReader`).

    On a CPU the bits of a row never depend on the batch. On a GPU they may without `deterministic`:
    kernels are chosen by the size of the batch. Where a CPU is made to run whole batches too, rows
    of one image differ by at most 1e-5 of their norm in float32 (tests/extract); the tolerance is
    the same for a GPU. An image whose row is not finite in `dtype` counts as one that cannot be
    read.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from pyfeat import FeatureExtractor
    >>> extractor = FeatureExtractor(torch.nn.AvgPool2d(32))
    >>> extractor.transform(np.zeros((2, 300, 200, 3), np.uint8)).shape
    (2, 3)
    """

    def __init__(  # noqa: PLR0913  # scikit-learn wants every setting as an argument
        self,
        backbone: str | nn.Module = "efficientnet_lite0",
        *,
        weights: str | os.PathLike[str] | None = None,
        store: str | os.PathLike[str] | FeatureStore | None = None,
        layers: Layers = -1,
        pooling: str = "auto",
        engine: str = "torch",
        precision: str = "fp32",
        min_cosine: float = 0.995,
        preprocessing: Preprocessing | None = None,
        video: str | None = None,
        frames: int = 8,
        max_length: int | None = None,
        dtype: str = "float32",
        batch_size: int | str = "auto",
        device: Any = "auto",
        deterministic: bool = False,
        decode: str = "exact",
        on_error: str = "raise",
        progress: Progress = False,
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.store = store
        self.layers = layers
        self.pooling = pooling
        self.engine = engine
        self.precision = precision
        self.min_cosine = min_cosine
        self.preprocessing = preprocessing
        self.video = video
        self.frames = frames
        self.max_length = max_length
        self.dtype = dtype
        self.batch_size = batch_size
        self.device = device
        self.deterministic = deterministic
        self.decode = decode
        self.on_error = on_error
        self.progress = progress

    def fit(self, X: Any = None, y: Any = None) -> FeatureExtractor:
        """Check the parameters and load the backbone.

        Parameters
        ----------
        X : as for `transform`, optional
            Only looked at where engine or precision are "auto" or int8: a sample of it is measured.
        y : object
            Not looked at.

        Returns
        -------
        self : FeatureExtractor
        """
        self.__dict__.pop("_chosen", None)
        self.get_backbone(None if X is None or not self._wish.is_open else X)
        return self

    def transform(self, X: Any) -> NDArray[Any]:
        """Return one row for each input, in their order.

        Parameters
        ----------
        X : sequence of path-like, bytes, str, PIL image or array; or one array
            What the backbone takes (see Notes of the class).

        Returns
        -------
        rows : ndarray of shape (n, d), dtype as asked for
            With `pooling="none"` and one layer: the maps or tokens, (n, c, h, w) or (n, l, c).

        Raises
        ------
        InputError
            If an input cannot be read and `on_error="raise"`.
        """
        base = self._base()
        inputs = as_inputs(X, base.modality)
        backbone = self._on_engine(base, inputs)
        rows, self.n_truncated_ = rows_of(
            inputs,
            backbone,
            (self.store, self.space_),
            RunOptions(self.batch_size, self.deterministic, self.dtype, self.decode),
            raises=self.on_error == "raise",
            progress=self.progress,
        )
        return rows

    def split(self, rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Take rows of several layers apart.

        Parameters
        ----------
        rows : ndarray of shape (n, d)
            What `transform` returned, or rows of a store.

        Returns
        -------
        layers : dict of str to ndarray
            Views of what each layer gave, by its name; maps and tokens in their own shape.

        Raises
        ------
        ValueError
            If `rows` have another number of columns.
        """
        return split_rows(rows, self._base())

    def get_backbone(self, X: Any = None) -> Backbone:
        """Return the backbone, loaded, on the engine that its rows come from.

        Parameters
        ----------
        X : as for `transform`, optional
            Inputs to come, for a choice of the engine.

        Returns
        -------
        backbone : Backbone

        Raises
        ------
        ValueError
            If engine or precision are "auto" and were not chosen yet, and X is not given.
        """
        base = self._base()
        return self._on_engine(base, None if X is None else as_inputs(X, base.modality))

    def measure_fidelity(self, X: Any) -> Fidelity:
        """Return how true and how fast the engine is, on a sample of inputs.

        Parameters
        ----------
        X : as for `transform`

        Returns
        -------
        fidelity : Fidelity
            What "auto" measured when it chose; else the engine alone, whatever `min_cosine` is.

        Raises
        ------
        ValueError
            If no input of the sample can be read.
        """
        base = self._base()
        inputs = as_inputs(X, base.modality)
        taken = engine_of(self._on_engine(base, inputs).parts)
        wish = replace(self._wish, engine=taken[0], precision=taken[1])
        return self.fidelity_ or measure(base, wish, inputs)

    def get_space(self) -> Space:
        """Return what makes the rows of this extractor comparable, loading the backbone.

        Returns
        -------
        space : Space

        Raises
        ------
        ValueError
            If engine or precision are "auto" and were not chosen yet: call `fit(X)` first.
        """
        self.get_backbone()
        return self.space_

    @property
    def modality(self) -> str:
        """What it takes: "image", "text", "audio" or "video"; loads the backbone."""
        return self._base().modality

    @property
    def _n_features_out(self) -> int:
        return self._base().dim

    @property
    def _wish(self) -> Wish:
        return Wish(self.engine, self.precision, self.min_cosine, self.decode)

    def _base(self) -> Backbone:
        check_parameters(self)
        backbone = load_backbone(
            self.backbone,
            layers=self.layers,
            pooling=self.pooling,
            preprocessing=self.preprocessing,
            max_length=self.max_length,
            device=self.device,
            weights=self.weights,
        )
        return backbone if self.video is None else backbone.on_videos(self.video, self.frames)

    def _on_engine(self, base: Backbone, inputs: list[Input] | None) -> Backbone:
        wish = self._wish
        about = (wish, base.parts)
        known, pair = getattr(self, "_chosen", (None, None))
        if wish.is_open and pair is not None and known == about:
            backbone, _ = on_engine(base, replace(wish, engine=pair[0], precision=pair[1]), None)
        else:
            backbone, self.fidelity_ = on_engine(base, wish, inputs, self.store)
            self._chosen = (about, engine_of(backbone.parts))
        self.space_ = row_space(backbone, self.dtype, self.deterministic, self.decode)
        return backbone
