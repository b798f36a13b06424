"""Networks of keras.applications: the rows and the pixels of Keras itself."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

if os.environ.setdefault("KERAS_BACKEND", "torch") != "torch":
    pytest.skip("KERAS_BACKEND is not torch", allow_module_level=True)
pytest.importorskip("keras")

from pyfeat.backbones import Backbone, list_backbones, load_backbone
from pyfeat.backbones import _keras as ours
from pyfeat.backbones._backbone import freeze
from pyfeat.backbones._weights import weights_hash
from pyfeat.errors import BackendError
from pyfeat.ops import preprocess

SIDE = 64
PARITY = 1e-4  # of the largest value: what the documentation promises for float32
CPU = torch.device("cpu")
# One network of each way to prepare pixels, the smallest.
ONE_OF_EACH = ["VGG16", "MobileNet", "MobileNetV3Small"]


def random_network(name: str) -> Any:
    """Return what the loader makes, with random weights and small images."""
    spec = replace(ours.keras_preprocessing(name), resize=SIDE, crop=SIDE)
    return ours.load_keras(name, spec, weights=None)


def pixels(n: int = 2) -> Any:
    return np.random.default_rng(0).integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)


def batch(name: str) -> torch.Tensor:
    spec = replace(ours.keras_preprocessing(name), resize=SIDE, crop=SIDE)
    return torch.stack([torch.as_tensor(preprocess(p, spec)) for p in pixels()])


def close(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    return got.shape == wanted.shape and bool(
        (got - wanted).abs().max() <= PARITY * wanted.abs().max()
    )


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_rows_are_those_of_keras_on_the_same_pixels(name: str) -> None:
    import keras

    found = random_network(name)
    home = getattr(keras.applications, type_of(name))
    own = found.module.model.predict(home.preprocess_input(pixels().astype("float32")), verbose=0)
    wanted = torch.from_numpy(own).mean(dim=(1, 2))
    backbone = freeze(found, CPU)
    assert close(backbone(batch(name)), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_give_the_rows_of_torch(engine: str) -> None:
    # OpenVINO cannot convert this one directly: it goes through ONNX.
    pytest.importorskip(engine)
    pytest.importorskip("onnx")
    backbone = freeze(random_network("MobileNetV3Small"), CPU)
    images = batch("MobileNetV3Small")
    assert close(backbone.with_engine(engine, "fp32")(images), backbone(images))


def type_of(name: str) -> str:
    """Return the module of an application."""
    homes = {"VGG16": "vgg16", "MobileNet": "mobilenet", "MobileNetV3Small": "mobilenet_v3"}
    return homes[name]


def test_every_network_is_prepared_as_keras_does() -> None:
    import keras
    from keras import applications

    grey = pixels(1)
    for name in ours.keras_names():
        home = sys.modules[getattr(applications, name).__module__]
        if not hasattr(home, "preprocess_input"):
            home = keras.applications.resnet_v2
        if name.endswith("V2") and name.startswith("ResNet"):
            home = keras.applications.resnet_v2
        wanted = np.asarray(home.preprocess_input(grey[0].astype("float32")))
        spec = replace(ours.keras_preprocessing(name), resize=SIDE, crop=SIDE)
        got = np.asarray(preprocess(grey[0], spec)).transpose(1, 2, 0)
        if ours._APPLICATIONS[name][0] == "caffe":
            got = got[:, :, ::-1]
        assert np.abs(got - wanted).max() <= 1e-5 * max(np.abs(wanted).max(), 1), name


def test_every_network_that_keras_has_is_listed() -> None:
    from keras import applications

    have = {n for n in dir(applications) if callable(getattr(applications, n)) and n[0].isupper()}
    assert set(ours.keras_names()) <= have
    listed = {b.name for b in list_backbones("keras/*")}
    assert listed == {f"keras/{n}" for n in ours.keras_names()}


def test_the_identity_does_not_depend_on_networks_made_before() -> None:
    # Keras numbers the layers of a process: the second network has other names.
    import keras

    hashes = []
    for seed in (0, 0, 1):
        keras.utils.set_random_seed(seed)
        spec = replace(ours.keras_preprocessing("InceptionV3"), crop=75)
        module = ours.load_keras("InceptionV3", spec, weights=None).module
        hashes.append(weights_hash(module.state_dict()))
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.fixture(scope="module")
def mobilenet() -> Backbone:
    return freeze(random_network("MobileNet"), CPU)


def test_eight_threads_get_the_same_bits(mobilenet: Backbone) -> None:
    images = batch("MobileNet")
    wanted = mobilenet(images)
    with ThreadPoolExecutor(8) as pool:
        assert all(torch.equal(r, wanted) for r in pool.map(mobilenet, [images] * 8))


def test_maps_can_be_pooled_otherwise() -> None:
    found = random_network("MobileNet")
    with torch.no_grad():
        maps = found.module(batch("MobileNet"))
    assert maps.shape == (2, 1024, 2, 2)
    assert close(freeze(found, CPU, pooling="max")(batch("MobileNet")), maps.amax((2, 3)))


@pytest.mark.parametrize("name", ["MobileNetV3Small", "VGG16"])
def test_inner_layers_are_those_of_keras(name: str) -> None:
    import keras

    layers = {"VGG16": ["block2_pool", "block5_conv3"], "MobileNetV3Small": ["re_lu_1", "conv_bn"]}
    found = random_network(name)
    model = found.module.model
    by_name = ours.layer_names(model)
    own = keras.Model(model.inputs, [by_name[layer].output for layer in layers[name]])
    home = getattr(keras.applications, type_of(name))
    maps = own.predict(home.preprocess_input(pixels().astype("float32")), verbose=0)
    wanted = torch.cat([torch.from_numpy(m).mean(dim=(1, 2)) for m in maps], dim=1)
    backbone = freeze(found, CPU, tuple(layers[name]))
    assert backbone.parts["layer"] == layers[name]
    assert close(backbone(batch(name)), wanted)


def test_map_of_an_inner_layer_is_kept_on_request() -> None:
    backbone = freeze(random_network("VGG16"), CPU, ("block3_pool", -1), "none")
    assert backbone.shapes == ((256, SIDE // 8, SIDE // 8), (512, SIDE // 32, SIDE // 32))


def test_what_lies_behind_a_layer_of_keras_is_not_computed() -> None:
    found = random_network("VGG16")
    tapped = found.module.tapped("block2_pool", "avg")
    assert [layer.name for layer in tapped.model.layers][-1] == "block2_pool"


@pytest.mark.slow
def test_layers_have_the_names_of_a_fresh_process() -> None:
    names = [list(ours.layer_names(random_network("MobileNetV3Small").module.model)) for _ in "ab"]
    assert names[0] == names[1]
    assert names[0][0] == "input_layer"
    code = (
        "import os; os.environ['KERAS_BACKEND'] = 'torch'\nimport keras\n"
        "model = keras.applications.MobileNetV3Small(weights=None, include_top=False)\n"
        "print([layer.name for layer in model.layers])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip().splitlines()[-1] == str(names[0])


@pytest.mark.parametrize("layers", [-2, "block9_conv1", ("block1_pool", "nosuch")])
def test_layers_that_keras_does_not_have_are_refused(layers: Any) -> None:
    with pytest.raises(ValueError, match=r"must be -1 or names of layers \(.*, \.\.\.\), got"):
        freeze(random_network("VGG16"), CPU, layers)


def test_torch_has_one_precision_for_it(mobilenet: Backbone) -> None:
    with pytest.raises(BackendError, match="a Keras network has one precision in torch: fp32"):
        mobilenet.with_engine("torch", "bf16")


@pytest.mark.parametrize("name", ["keras/VGG17", "keras/", "keras/vgg16"])
def test_names_that_keras_does_not_have_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="backbone must be a name"):
        load_backbone(name, device="cpu")


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    return done.stdout + done.stderr


LOAD = """
from pyfeat.backbones import load_backbone
try:
    load_backbone("keras/MobileNet", device="cpu")
except (ImportError, OSError) as error:
    print(type(error).__name__, error)
"""


def test_another_backend_is_refused() -> None:
    said = run(LOAD, KERAS_BACKEND="numpy")
    assert "ImportError keras models need Keras 3 on its torch backend, got " in said


def test_weights_that_cannot_be_fetched_are_named(tmp_path: Any) -> None:
    nowhere = "http://127.0.0.1:9"
    proxies = {f"{p}_proxy": nowhere for p in ("http", "https", "HTTP", "HTTPS")}
    said = run(LOAD, KERAS_BACKEND="torch", KERAS_HOME=str(tmp_path), **proxies)
    assert "OSError weights of keras/MobileNet must be readable from the cache" in said
