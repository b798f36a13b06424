"""Networks of keras.applications, on Keras 3 with its torch backend."""

from __future__ import annotations

import os
import re
import sys
from importlib.util import find_spec
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from pyfeat.backbones._layers import OUTPUT, Layers, pool_layer
from pyfeat.backbones._modality import Preparation
from pyfeat.backbones._pretrained import IMAGENET, Pretrained
from pyfeat.ops._preprocess import Preprocessing

INSTALL_KERAS = 'pip install "pyfeat[keras]"'
_CAFFE, _TF, _TORCH, _RAW = "caffe", "tf", "torch", "raw"
# Of each network: what its `preprocess_input` does, and the side of its images.
_APPLICATIONS: dict[str, tuple[str, int]] = {
    **{f"ConvNeXt{s}": (_RAW, 224) for s in ("Tiny", "Small", "Base", "Large", "XLarge")},
    **{f"DenseNet{n}": (_TORCH, 224) for n in (121, 169, 201)},
    "EfficientNetB0": (_RAW, 224),
    "EfficientNetB1": (_RAW, 240),
    "EfficientNetB2": (_RAW, 260),
    "EfficientNetB3": (_RAW, 300),
    "EfficientNetB4": (_RAW, 380),
    "EfficientNetB5": (_RAW, 456),
    "EfficientNetB6": (_RAW, 528),
    "EfficientNetB7": (_RAW, 600),
    "EfficientNetV2B0": (_RAW, 224),
    "EfficientNetV2B1": (_RAW, 240),
    "EfficientNetV2B2": (_RAW, 260),
    "EfficientNetV2B3": (_RAW, 300),
    "EfficientNetV2S": (_RAW, 384),
    "EfficientNetV2M": (_RAW, 480),
    "EfficientNetV2L": (_RAW, 480),
    "InceptionResNetV2": (_TF, 299),
    "InceptionV3": (_TF, 299),
    "MobileNet": (_TF, 224),
    "MobileNetV2": (_TF, 224),
    "MobileNetV3Large": (_RAW, 224),
    "MobileNetV3Small": (_RAW, 224),
    "NASNetLarge": (_TF, 331),
    "NASNetMobile": (_TF, 224),
    **{f"ResNet{n}": (_CAFFE, 224) for n in (50, 101, 152)},
    **{f"ResNet{n}V2": (_TF, 224) for n in (50, 101, 152)},
    "VGG16": (_CAFFE, 224),
    "VGG19": (_CAFFE, 224),
    "Xception": (_TF, 299),
}
# Mean and deviation of pixels in [0, 1], in the order R, G, B.
_SCALES = {
    _CAFFE: ((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,) * 3),
    _TF: ((0.5,) * 3, (0.5,) * 3),
    _TORCH: (IMAGENET.mean, IMAGENET.std),
    _RAW: ((0.0,) * 3, (1 / 255,) * 3),
}


class KerasModule(nn.Module):
    """A Keras network of images (n, h, w, 3), as a module of images (n, 3, h, w).

    Parameters
    ----------
    model : keras.Model
        Without its classifier: gives maps (n, h, w, c).
    bgr : bool
        Whether it takes blue before red.

    Notes
    -----
    Keras numbers the layers of all networks of a process: their names are no identity. The weights
    are told apart by their order instead.
    """

    def __init__(self, model: Any, bgr: bool) -> None:
        super().__init__()
        self.model = model
        self.bgr = bgr

    def forward(self, images: Tensor) -> Tensor:
        """Return maps (n, c, h, w)."""
        maps: Tensor = self._run(images)
        return maps.permute(0, 3, 1, 2)

    def tapped(self, layers: Layers, pooling: str) -> KerasLayers:
        """Return the same network as far as some of its layers.

        Raises
        ------
        TypeError, ValueError
            If a layer is no name of one; or a negative integer other than -1: a network of
            `keras.applications` has no blocks to be counted.
        """
        known = layer_names(self.model)
        wanted = [layers] if isinstance(layers, (int, str)) else list(layers)
        if not wanted:
            raise ValueError("layers must name at least one layer, got none")
        for layer in wanted:
            if isinstance(layer, bool) or not isinstance(layer, (int, str)):
                raise TypeError(f"layers must be names or -1, got {layer!r}")
            if layer not in (-1, OUTPUT, *known):
                some = ", ".join(list(known)[:: max(len(known) // 5, 1)][:5])
                rule = f"be -1 or names of layers ({some}, ...)"
                raise ValueError(f"layers of a Keras network must {rule}, got {layer!r}")
        names = [OUTPUT if layer in (-1, OUTPUT) else str(layer) for layer in wanted]
        if len(set(names)) < len(names):
            raise ValueError(f"layers must differ, got {wanted}")
        return KerasLayers(self.model, self.bgr, tuple(names), pooling)

    def _run(self, images: Tensor) -> Any:
        import keras

        if self.bgr:
            images = images.flip(1)
        # Otherwise Keras takes its own default device, the GPU where there is one.
        with keras.device(str(images.device)):
            return self.model(images.permute(0, 2, 3, 1), training=False)

    def state_dict(self, *_args: Any, **_kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the weights, numbered in their order."""
        return {f"{i:04}": w.value.detach() for i, w in enumerate(self.model.weights)}

    def refuses(self, engine: str, precision: str) -> str | None:
        """Return why an engine cannot run it, or None."""
        if engine == "torch" and precision != "fp32":
            return "a Keras network has one precision in torch: fp32"
        return None


class KerasLayers(KerasModule):
    """A Keras network as far as some of its layers, pooled beside each other.

    Parameters
    ----------
    model : keras.Model
        The whole network. What lies behind the last wanted layer is not computed.
    bgr : bool
    names : tuple of str
        As `layer_names` gives them, or "output".
    pooling : str
        How each becomes part of the row (see `pool_layer`).
    """

    def __init__(self, model: Any, bgr: bool, names: tuple[str, ...], pooling: str) -> None:
        import keras

        known = layer_names(model)
        taken = [model.output if name == OUTPUT else known[name].output for name in names]
        super().__init__(keras.Model(model.inputs, taken), bgr)
        self.names = names
        self.pooling = pooling

    def forward(self, images: Tensor) -> Tensor:
        """Return (n, d)."""
        return torch.cat([row.flatten(1) for row in self.pooled(images)], dim=1)

    def pooled(self, images: Tensor) -> list[Tensor]:
        """Return what each layer gives, pooled."""
        outputs = self._run(images)  # a tensor where there is one
        outputs = [outputs] if isinstance(outputs, Tensor) else outputs
        found = [t.permute(0, 3, 1, 2) if t.ndim == 4 else t for t in outputs]
        return [
            pool_layer(t, self.pooling, 0, None, name)
            for name, t in zip(self.names, found, strict=True)
        ]


def layer_names(model: Any) -> dict[str, Any]:
    """Return the layers of a network by the names they have in a fresh process.

    Keras numbers layers without a name of their own through all networks of a process, as
    "conv2d_94". They are numbered from the first of their class in this network here, as "conv2d"
    and "conv2d_1".
    """
    numbered: dict[str, list[tuple[int, Any]]] = {}
    for layer in model.layers:
        base, _, number = layer.name.rpartition("_")
        if not (base and number.isdecimal()):
            base, number = layer.name, "0"
        if base == _snake_case(type(layer).__name__):
            numbered.setdefault(base, []).append((int(number), layer))
    new = {
        id(layer): base if i == 0 else f"{base}_{i}"
        for base, layers in numbered.items()
        for i, (_, layer) in enumerate(sorted(layers, key=itemgetter(0)))
    }
    return {new.get(id(layer), layer.name): layer for layer in model.layers}


def _snake_case(name: str) -> str:
    # As Keras makes a name of a class.
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


class _Download:
    """Turns what Keras raises where a download fails, a plain Exception, into an OSError."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, _trace: Any) -> None:
        if kind is Exception or isinstance(error, OSError):
            raise OSError(
                f"weights of keras/{self._name} must be readable from the cache ~/.keras/models or "
                f"be downloaded, got {error}"
            ) from error


def keras_names() -> list[str]:
    """Return the names of the networks."""
    return list(_APPLICATIONS)


def load_keras(
    name: str, preprocessing: Preparation | None, weights: str | None = "imagenet"
) -> Pretrained:
    """Return a network of keras.applications without its classifier.

    Parameters
    ----------
    name : str
        Such as "VGG16".
    preprocessing : Preprocessing or None
        None means `keras_preprocessing`.
    weights : {"imagenet", None}, default="imagenet"
        None: random ones.

    Raises
    ------
    ImportError
        If Keras 3 is missing, or runs on another backend than torch.
    ValueError
        If `preprocessing` is not one of images.
    OSError
        If the weights can neither be read from the cache nor downloaded.
    """
    keras = _keras()
    mode, _ = _APPLICATIONS[name]
    chosen = keras_preprocessing(name) if preprocessing is None else preprocessing
    if not isinstance(chosen, Preprocessing):
        got = type(chosen).__name__
        raise ValueError(f"preprocessing must be Preprocessing for an image model, got {got}")
    shape = (chosen.crop, chosen.crop, 3)
    build = getattr(keras.applications, name)
    with _Download(name):
        model = build(weights=weights, include_top=False, input_shape=shape)
    module = KerasModule(model, bgr=mode == _CAFFE)
    return Pretrained(f"keras/{name}", "keras", f"keras/{name}", module, chosen)


def keras_preprocessing(name: str) -> Preprocessing:
    """Return what makes of an image what `preprocess_input` of a network makes of its pixels.

    Keras says nothing about how an image comes to its size: the short side is resized to 256/224
    of it, and the centre cut out. Pixels stay in the order R, G, B (see `KerasModule`).
    """
    mode, size = _APPLICATIONS[name]
    mean, std = _SCALES[mode]
    return Preprocessing(
        resize=round(size * 256 / 224), crop=size, interpolation="bilinear", mean=mean, std=std
    )


def _keras() -> Any:
    if find_spec("keras") is None:
        raise ImportError(f"keras models need keras: {INSTALL_KERAS}")
    if "keras" not in sys.modules:
        os.environ.setdefault("KERAS_BACKEND", "torch")
    rule = "keras models need Keras 3 on its torch backend"
    hint = "set KERAS_BACKEND=torch before keras is imported"
    try:
        import keras

        backend = keras.backend.backend()
    except ImportError as error:
        raise ImportError(f"{rule}, got {error}: {hint}") from error
    if backend != "torch":
        raise ImportError(f"{rule}, got {backend!r}: {hint}")
    return keras
