"""Batches in, rows out."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from pyfeat import Space
from pyfeat.backbones import Backbone, load_backbone
from pyfeat.backbones._tap import as_rows
from pyfeat.ops import Preprocessing

SMALL = Preprocessing(resize=36, crop=32, interpolation="bilinear")


class Small(nn.Module):
    """A convolution, a batch norm and dropout, pooled or not."""

    def __init__(self, *, pool: bool = True, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.norm = nn.Conv2d(3, 8, 5), nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.5)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout(self.norm(self.conv(x)))
        return y.mean(dim=(2, 3)) if self.pool else y


def load(module: nn.Module, preprocessing: Preprocessing = SMALL) -> Backbone:
    return load_backbone(module, preprocessing=preprocessing, device="cpu")


def images(n: int, size: int = 32) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 9])
def test_every_batch_size_gives_that_many_rows(n: int) -> None:
    rows = load(Small())(images(n))
    assert rows.shape == (n, 8)
    assert rows.dtype == torch.float32


def test_a_row_does_not_depend_on_the_batch_size() -> None:
    backbone, batch = load(Small()), images(9)
    whole = backbone(batch)
    for n in (1, 2, 3, 4, 5):
        parts = [backbone(batch[i : i + n]) for i in range(0, 9, n)]
        assert torch.equal(torch.cat(parts), whole)


def test_a_row_of_the_default_backbone_does_not_depend_on_the_batch_size(lite0: Backbone) -> None:
    batch = images(6, 224)
    whole = lite0(batch)
    assert torch.equal(torch.cat([lite0(batch[:1]), lite0(batch[1:6])]), whole)


def test_maps_are_averaged() -> None:
    maps, pooled = load(Small(pool=False)), load(Small(pool=True))
    # One mean of 784 numbers, in another order.
    torch.testing.assert_close(maps(images(3)), pooled(images(3)), rtol=0, atol=784**0.5 * 1.2e-7)


def test_maps_say_so_in_the_identity() -> None:
    assert load(Small(pool=False)).parts["pooling"] == "avg"


def test_rows_may_be_used_by_autograd() -> None:
    head = nn.Linear(8, 1)
    head(load(Small())(images(2))).sum().backward()
    assert head.weight.grad is not None


def test_rows_need_no_gradient() -> None:
    assert not load(Small())(images(2).requires_grad_()).requires_grad


def test_a_batch_in_another_memory_layout_gives_the_same_rows() -> None:
    backbone, batch = load(Small()), images(5)
    other = batch.to(memory_format=torch.channels_last)
    assert torch.equal(backbone(other), backbone(batch))


def test_the_batch_is_not_changed() -> None:
    batch = images(3)
    before = batch.clone()
    load(nn.Sequential(nn.ReLU(inplace=True), nn.Flatten()))(batch)
    assert torch.equal(batch, before)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 3, 33, 33), (1, 1, 32, 32), (1, 3, 32, 31)])
def test_batches_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"batch must have shape \(n, 3, 32, 32\), got \("):
        load(Small())(torch.zeros(shape))


def test_batches_of_another_dtype_are_refused() -> None:
    with pytest.raises(TypeError, match=r"batch must be a float32 tensor, got torch\.float64"):
        load(Small())(images(1).double())


# ---- a module of one's own


def test_dropout_and_batch_statistics_are_off() -> None:
    backbone, batch = load(Small().train()), images(4)
    assert torch.equal(backbone(batch), backbone(batch))


def test_the_module_keeps_its_mode() -> None:
    module = Small().train()
    load(module)
    assert module.training


def test_the_module_keeps_its_gradients() -> None:
    module = Small()
    load(module)
    assert all(p.requires_grad for p in module.parameters())


def test_the_module_keeps_its_numbers() -> None:
    module = Small()
    before = copy.deepcopy(module.state_dict())
    load(module)(images(2))
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


def test_training_the_module_further_does_not_change_the_backbone() -> None:
    module = Small()
    backbone = load(module)
    before = backbone(images(2))
    with torch.no_grad():
        module.conv.weight.zero_()
    assert torch.equal(backbone(images(2)), before)


def test_a_half_precision_module_computes_in_float32() -> None:
    assert load(Small().half())(images(2)).dtype == torch.float32


@pytest.mark.parametrize(
    ("module", "got"),
    [
        (nn.Flatten(2), r"\(1, 3, 1024\)"),
        (nn.Flatten(0), r"\(3072,\)"),
    ],
)
def test_modules_with_other_outputs_are_refused(module: nn.Module, got: str) -> None:
    with pytest.raises(ValueError, match=rf"backbone must return shape \(1, d\) or .*, got {got}"):
        load(module)


def test_a_tuple_is_refused() -> None:
    with pytest.raises(ValueError, match="got tuple"):
        as_rows((torch.zeros(1, 2),), 1)


def test_a_module_for_other_inputs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"backbone must take a batch of shape \(1, 3, 32, 32\)"):
        load(nn.Conv2d(4, 8, 3))


def test_a_module_that_cannot_be_copied_is_refused() -> None:
    module = Small()
    module.extra = torch.ones(2, requires_grad=True) * 2
    with pytest.raises(TypeError, match="backbone must be a module that can be copied"):
        load(module)


# ---- modules that cannot be frozen


def scripted() -> nn.Module:
    return torch.jit.trace(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 32, 32))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("inside", [False, True])
def test_script_modules_are_refused(inside: bool) -> None:
    # torch said that requires_grad_ is not supported on them.
    module = nn.Sequential(scripted()) if inside else scripted()
    with pytest.raises(TypeError, match="backbone must be made of plain modules, got a ScriptMod"):
        load(module)


@pytest.mark.parametrize(
    ("layer", "got"),
    [
        (nn.Conv2d(3, 4, 3, device="meta"), "0.weight on the meta device"),
        (nn.BatchNorm2d(3, affine=False, device="meta"), "0.running_mean on the meta device"),
        (nn.LazyBatchNorm2d(affine=False), "0.running_mean not initialised"),
    ],
    ids=["weights", "buffers", "lazy"],
)
def test_modules_without_weights_are_refused(layer: nn.Module, got: str) -> None:
    # A meta tensor ended in NotImplementedError, a lazy one in torch's words.
    with pytest.raises(ValueError, match=f"^backbone must .*{got}"):
        load(nn.Sequential(layer))


class Applies(nn.Module):
    """A convolution, and whatever a test does with what it returns."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(self.conv(x))


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (lambda y: {}["layer4"], "KeyError: 'layer4'"),
        (lambda y: y.last_hidden_state, "AttributeError: .*last_hidden_state"),
        (lambda y: y.shape[7], "IndexError: "),
        (lambda y: y / (1 // 0), "ZeroDivisionError: "),
    ],
)
def test_errors_of_a_forward_pass_are_told(
    function: Callable[[Tensor], object], error: str
) -> None:
    # They came through as they were.
    with pytest.raises(ValueError, match=rf"backbone must take a batch .*, got {error}"):
        load(Applies(function))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("ndim", [2, 4])
def test_outputs_that_are_no_real_floats_are_refused(dtype: torch.dtype, ndim: int) -> None:
    # Integers and bools were cast or failed in a mean, complex numbers lost a part on each batch.
    function = (lambda y: y[:, :, 0, 0].to(dtype)) if ndim == 2 else (lambda y: y.to(dtype))
    with pytest.raises(ValueError, match=f"must return real floating point numbers, got {dtype}"):
        load(Applies(function))


@pytest.mark.parametrize(
    ("function", "got"),
    [
        (lambda y: y[:, :0, 0, 0], r"\(1, 0\)"),
        (lambda y: y[:, :0], r"\(1, 0, 30, 30\)"),
        (lambda y: y[:, :, :0], r"\(1, 4, 0, 30\)"),
    ],
)
def test_empty_outputs_are_refused(function: Callable[[Tensor], object], got: str) -> None:
    # Rows without columns were taken, and a mean over no pixels gave NaN.
    with pytest.raises(ValueError, match=rf"backbone must return shape .*, no side 0, got {got}"):
        load(Applies(function))


# ---- hooks


def add_a_pre_hook(module: nn.Module) -> None:
    module.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))


def add_a_hook(module: nn.Module) -> None:
    module.register_forward_hook(lambda module, inputs, output: output + 1)


@pytest.mark.parametrize("add", [add_a_pre_hook, add_a_hook])
@pytest.mark.parametrize("path", ["", "conv"])
def test_modules_with_forward_hooks_are_refused(
    add: Callable[[nn.Module], None], path: str
) -> None:
    # They changed rows, not the identity: a cache took these rows for those without the hook.
    module = Small()
    add(module.get_submodule(path))
    where = f"in {path}" if path else "as a whole"
    with pytest.raises(
        ValueError, match=f"backbone must carry no forward hooks.*: remove.*{where}"
    ):
        load(module)


def test_a_module_is_taken_once_its_hooks_are_removed() -> None:
    module = Small()
    handle = module.register_forward_hook(lambda module, inputs, output: output + 1)
    handle.remove()
    assert fingerprint(load(module)) == fingerprint(load(Small()))


@pytest.mark.parametrize(
    "compute",
    [
        nn.utils.spectral_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
    ],
    ids=["spectral_norm", "parametrized spectral_norm", "parametrized weight_norm", "pruning"],
)
def test_hooks_that_compute_weights_may_stay(compute: Callable[[nn.Module], nn.Module]) -> None:
    module = Small().requires_grad_(False).eval()
    compute(module.conv)
    # Two orders of sums of 75 products, then of 784 values; all are of the order of 1.
    atol = 2 * (75 + 784**0.5) * torch.finfo(torch.float32).eps
    torch.testing.assert_close(load(module)(images(2)), module(images(2)), rtol=0, atol=atol)


def test_pruning_counts_in_the_identity() -> None:
    module = Small().requires_grad_(False)
    prune.l1_unstructured(module.conv, "weight", 0.5)
    assert fingerprint(load(module)) != fingerprint(load(Small()))


# ---- identity


def fingerprint(backbone: Backbone) -> str:
    return Space(backbone.dim, parts=backbone.parts).fingerprint


def test_equal_modules_have_one_identity() -> None:
    assert fingerprint(load(Small())) == fingerprint(load(Small()))


@pytest.mark.parametrize(
    "other",
    [
        load(Small(seed=1)),
        load(Small(pool=False)),
        load(Small(), Preprocessing(resize=40, crop=32, interpolation="bilinear")),
        load(Small(), Preprocessing(resize=36, crop=32, interpolation="bicubic")),
        load(nn.Sequential(Small())),
    ],
    ids=["weights", "pooling", "resize", "interpolation", "architecture"],
)
def test_whatever_changes_rows_changes_the_identity(other: Backbone) -> None:
    assert fingerprint(load(Small())) != fingerprint(other)


def test_identity_survives_json() -> None:
    space = Space(8, parts=load(Small()).parts)
    assert Space.from_json(space.to_json()).fingerprint == space.fingerprint


def test_mode_and_layout_of_the_module_do_not_count() -> None:
    module = Small().eval().to(memory_format=torch.channels_last)
    assert fingerprint(load(module)) == fingerprint(load(Small().train()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cpu_and_gpu_agree(lite0: Backbone) -> None:
    batch = images(5, 224)
    on_gpu = load_backbone("efficientnet_lite0", device="cuda")
    assert fingerprint(on_gpu) == fingerprint(lite0)
    expected = lite0(batch)
    # TF32 would be off by 1e-3.
    assert (on_gpu(batch).cpu() - expected).norm() < 1e-5 * expected.norm()
