"""Precision "fp8": blocks of transformers in 8-bit floats, on the reference and in Triton."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyfeat.backbones import ENGINES, _fp8_modules, choose_engine, load_backbone
from pyfeat.backbones._engine_torch import TorchEngine
from pyfeat.backbones._fp8 import put_fp8_into, why_not_fp8
from pyfeat.backbones._fp8_layouts import is_gelu, parts_of
from pyfeat.backbones._fp8_modules import Fp8Block, Fp8Linear, _mask_of
from pyfeat.backbones._layers import Tapped
from pyfeat.errors import BackendError
from pyfeat.ops import Preprocessing, quantize_fp8

CPU = torch.device("cpu")
SMALL = Preprocessing(resize=36, crop=32, interpolation="bilinear")
DEPTH = 2
TIMM = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 64,
    "depth": DEPTH,
    "num_heads": 2,
    "num_classes": 0,
}
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "intermediate_size": 128,
}
# e4m3 keeps 3 bits behind the leading one: within a binade [1, 2) numbers are 2^-3 apart, the
# error is even in +-2^-4, and its mean square 2^-8 / 3 of the least number there.
ROUNDING = 2.0**-8 / 3
PRODUCTS = 3  # in 8-bit floats, in a row through each block
BF16 = 2.0**-8


def least_cosine(depth: int) -> float:
    """Return what the cosine is at least.

    Both sides of a product are rounded: independent errors of 2 u^2 of its square, u^2 being
    `ROUNDING`. Through `depth` blocks these add up, were each branch all that there is of a row,
    to e = 2 u^2 * 3 * depth; an error at a right angle leaves the cosine 1 / sqrt(1 + e).
    """
    return 1 / math.sqrt(1 + 2 * ROUNDING * PRODUCTS * depth)


def images(n: int) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(n))


def spread(module: nn.Module) -> nn.Module:
    """Give every parameter that begins as a constant a value of its own."""
    generator = torch.Generator().manual_seed(3)
    for p in module.parameters():
        if p.ndim == 1:
            p.data += 0.1 * torch.randn(p.shape, generator=generator)
    return module.eval().requires_grad_(False)


def timm_vit(**settings: Any) -> nn.Module:
    models = pytest.importorskip("timm.models.vision_transformer")
    torch.manual_seed(0)
    return spread(models.VisionTransformer(**TIMM, **settings))


def torchvision_vit() -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    module = models.VisionTransformer(32, 8, DEPTH, 2, 64, 128)
    module.heads = nn.Identity()
    return spread(module)


class Pooled(nn.Module):
    """A model of transformers, its tokens averaged."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(*inputs).last_hidden_state.mean(dim=1)


def transformers_model(name: str, **settings: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, name.removesuffix("Model") + "Config")(**SIZES, **settings)
    return spread(Pooled(getattr(transformers, name)(config)))


VISION = {"image_size": 32, "patch_size": 8}
TEXT = {"vocab_size": 100}
IMAGE_MODELS = {
    "timm": timm_vit,
    "timm LayerScale": lambda: timm_vit(init_values=0.5),
    "timm qk_norm": lambda: timm_vit(qk_norm=True),
    "timm SiLU": lambda: timm_vit(act_layer=nn.SiLU),
    "torchvision": torchvision_vit,
    "ViT": lambda: transformers_model("ViTModel", **VISION),
    "DINOv2": lambda: transformers_model("Dinov2Model", layerscale_value=0.5, **VISION),
    "CLIP": lambda: transformers_model("CLIPVisionModel", **VISION),  # quick_gelu
    "SigLIP": lambda: transformers_model("SiglipVisionModel", **VISION),  # GELU by tanh
}
TEXT_MODELS = {
    "BERT": lambda: transformers_model("BertModel", **TEXT),
    "RoBERTa": lambda: transformers_model("RobertaModel", **TEXT),
    "CLIP": lambda: transformers_model("CLIPTextModel", eos_token_id=99, **TEXT),  # causal
}


def engine_of(module: nn.Module, *example: Tensor) -> TorchEngine:
    """Return the engine as it is on a GPU, but for the device and the backend of its ops."""
    return TorchEngine("fp8", module, example, CPU)


def blocks_of(engine: TorchEngine) -> list[str]:
    return [name for name, m in engine._module.named_modules() if isinstance(m, Fp8Block)]


def cosines(rows: Tensor, wanted: Tensor) -> Tensor:
    return functional.cosine_similarity(rows.double(), wanted.double())


@pytest.mark.parametrize("kind", IMAGE_MODELS)
def test_rows_of_images_are_as_true_as_e4m3_allows(kind: str) -> None:
    module = IMAGE_MODELS[kind]()
    engine = engine_of(module, images(1))
    assert len(blocks_of(engine)) == DEPTH
    assert cosines(engine((images(5),)), module(images(5))).min() > least_cosine(DEPTH)


def tokens(n: int) -> tuple[Tensor, Tensor]:
    mask = torch.ones(n, 12, dtype=torch.int64)
    mask[1::2, 5:] = 0
    return torch.randint(3, 90, (n, 12), generator=torch.Generator().manual_seed(n)), mask


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", TEXT_MODELS)
def test_rows_of_texts_are_as_true_and_masks_hold(kind: str, attention: str) -> None:
    module: Any = TEXT_MODELS[kind]()
    module.model.set_attn_implementation(attention)
    ids, mask = tokens(4)
    engine = engine_of(module, ids[:1], mask[:1])
    assert len(blocks_of(engine)) == DEPTH
    rows = engine((ids, mask))
    assert cosines(rows, module(ids, mask)).min() > least_cosine(DEPTH)
    first = engine._module.model(ids, mask).last_hidden_state
    changed = engine._module.model(torch.where(mask == 1, ids, 7), mask).last_hidden_state
    assert torch.equal(first[mask == 1], changed[mask == 1])


def test_texts_without_a_mask_stay_causal() -> None:
    module: Any = TEXT_MODELS["CLIP"]()
    ids, _ = tokens(4)
    engine = engine_of(module, ids[:1])
    assert cosines(engine((ids,)), module(ids)).min() > least_cosine(DEPTH)
    first = engine._module.model(ids).last_hidden_state
    ids[:, -1] = 7
    changed = engine._module.model(ids).last_hidden_state
    assert torch.equal(first[:, :-1], changed[:, :-1])


def test_a_known_block_becomes_one_that_runs_in_fp8() -> None:
    module = timm_vit()
    assert blocks_of(engine_of(module, images(1))) == ["blocks.0", "blocks.1"]
    assert not any(isinstance(m, Fp8Block) for m in module.modules())


def rounded(x: Tensor) -> Tensor:
    """Return rows rounded to e4m3, in float32."""
    most = x.abs().amax(dim=-1, keepdim=True)
    return (x * (torch.tensor(448.0) / most)).to(torch.float8_e4m3fn).float() * (most / 448)


def product(layer: nn.Linear, rows: Tensor, shift: Tensor | None = None) -> Tensor:
    """Return what a layer gives for rows + shift, when rows and its weight are rounded to e4m3."""
    exact = layer.bias if shift is None else layer.weight @ shift + layer.bias
    return rounded(rows) @ rounded(layer.weight).T + exact


def normed(layer: nn.Linear, norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return product(layer, norm(x) - norm.bias, norm.bias)


def to_bf16(t: Tensor) -> Tensor:
    return t.bfloat16().float()


def emulated(block: Any, x: Tensor) -> Tensor:
    """Return what a pre-norm block of timm gives when six of its operands are rounded."""
    n, length, d = x.shape
    qkv = to_bf16(normed(block.attn.qkv, block.norm1, x))
    q, k, v = qkv.reshape(n, length, 3, block.attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
    attended = to_bf16((weights @ v).transpose(1, 2).reshape(n, length, d))
    x = to_bf16(x + to_bf16(block.ls1(block.attn.proj(attended))))
    hidden = to_bf16(functional.gelu(normed(block.mlp.fc1, block.norm2, x)))
    return to_bf16(x + block.ls2(product(block.mlp.fc2, hidden)))


@pytest.fixture(params=["reference", "triton"])
def ops(request: pytest.FixtureRequest) -> str:
    if request.param == "triton":
        skip_unless_triton_runs()
    return str(request.param)


def some_rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).bfloat16()


@pytest.mark.parametrize("init_values", [None, 0.5])
def test_each_product_is_that_of_numbers_rounded_to_e4m3(
    ops: str, init_values: float | None
) -> None:
    block: Any = timm_vit(init_values=init_values).get_submodule("blocks.0")
    made, x = Fp8Block(parts_of(block), ops), some_rows(9, 64)
    wide = x.float()
    got = made.qkv.product(made._rounded(x, 0))
    # Sums in float32, and one rounding to bfloat16.
    close = {"rtol": BF16, "atol": 1e-5}
    torch.testing.assert_close(got.float(), normed(block.attn.qkv, block.norm1, wide), **close)
    hidden = made.fc1.product(made._rounded(x, 1), gelu=True)
    wanted = functional.gelu(normed(block.mlp.fc1, block.norm2, wide))
    torch.testing.assert_close(hidden.float(), wanted, **close)
    wanted = wide + block.ls2(product(block.mlp.fc2, hidden.float()))
    got = made.fc2.product(quantize_fp8(hidden, backend=ops), residual=x)
    torch.testing.assert_close(got.float(), wanted, **close)


@pytest.mark.parametrize("init_values", [None, 0.5])
def test_a_block_is_the_same_arithmetic_written_plainly(
    ops: str, init_values: float | None
) -> None:
    block: Any = timm_vit(init_values=init_values).get_submodule("blocks.0")
    x = some_rows(1, 9, 64)
    got, wanted = Fp8Block(parts_of(block), ops)(x).float(), emulated(block, x.float())
    # What is rounded to bfloat16 may fall to the other side, seven times in a row with the weight
    # of the product that is not e4m3.
    assert ((got - wanted).norm(dim=-1) <= 7 * BF16 / 2 * wanted.norm(dim=-1)).all()


def skip_unless_triton_runs() -> None:
    from pyfeat.ops import explain

    if (why := explain("quantize_fp8", torch.ones(1, 1))["triton"]) != "ok":
        pytest.skip(why)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_triton_gives_the_rows_of_the_reference() -> None:
    skip_unless_triton_runs()
    module = timm_vit(init_values=0.5)
    rows = []
    for backend in ("reference", "triton"):
        own = put_fp8_into(timm_vit(init_values=0.5).bfloat16(), module, (images(1),), backend)
        with torch.inference_mode():
            rows.append(own(images(1).bfloat16()).float())
    # Sums in another order, rounded to bfloat16 six times in each block (see above).
    difference = (rows[0] - rows[1]).norm(dim=1)
    assert (difference <= 2 * 6 * DEPTH * BF16 * rows[0].norm(dim=1)).all()


def test_layer_scale_goes_into_the_scales_of_a_weight_and_changes_no_code() -> None:
    weight, bias, gamma = torch.randn(32, 48), torch.randn(32), torch.randn(32)
    plain = Fp8Linear((weight, bias), "reference")
    scaled = Fp8Linear((weight, bias), "reference", gamma)
    assert torch.equal(plain.codes.float(), scaled.codes.float())
    # One rounding of each product to float32.
    torch.testing.assert_close(scaled.scales, plain.scales * gamma, rtol=2.0**-23, atol=0)
    torch.testing.assert_close(scaled.bias, bias * gamma, rtol=2.0**-23, atol=0)


def test_layer_scale_folded_or_not_is_the_same_to_rounding() -> None:
    block: Any = timm_vit(init_values=0.5).get_submodule("blocks.0")
    x = some_rows(2, 17, 64)
    folded = Fp8Block(parts_of(block), "reference")
    got = folded(x).float()
    apart = Fp8Block(replace(parts_of(block), scales=(None, None)), "reference")
    flat = x.reshape(-1, 64)
    attended = apart._attended(flat, x.shape[:2], None, False).float() - flat.float()
    flat = (flat + block.ls1(attended)).bfloat16()
    mixed = apart._mixed(flat).float() - flat.float()
    wanted = (flat + block.ls2(mixed)).reshape(x.shape)
    # Sums are rounded to bfloat16 before and behind the scale, and weights of one product.
    size = x.float().norm(dim=-1) + wanted.norm(dim=-1)
    assert ((got - wanted).norm(dim=-1) <= 3 * BF16 * size).all()


def test_a_block_alone_is_replaced_as_a_whole() -> None:
    own, exact = (timm_vit().get_submodule("blocks.0") for _ in range(2))
    made = put_fp8_into(own.bfloat16(), exact, (torch.randn(1, 5, 64),), "reference")
    assert isinstance(made, Fp8Block)


def test_the_bias_of_a_norm_is_not_rounded_with_its_rows() -> None:
    block: Any = timm_vit().get_submodule("blocks.0")
    block.norm2.weight.data.zero_()
    block.norm2.bias.data = torch.randn(64, generator=torch.Generator().manual_seed(2))
    made = Fp8Block(parts_of(block), "reference")
    got = made.fc1.product(made._rounded(torch.randn(5, 64).bfloat16(), 1))
    wanted = block.mlp.fc1(block.norm2.bias).expand(5, -1)
    torch.testing.assert_close(got.float(), wanted, rtol=BF16, atol=1e-6)


def test_weights_are_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    module = timm_vit()
    weights = {tuple(p.shape) for p in module.parameters() if p.ndim == 2}

    def noting(rows: Tensor, **options: Any) -> Any:
        seen.append(tuple(rows.shape))
        return quantize_fp8(rows, **options)

    monkeypatch.setattr(_fp8_modules, "quantize_fp8", noting)
    engine = engine_of(module, images(1))
    made = sum(shape in weights for shape in seen)
    assert made == PRODUCTS * DEPTH
    for _ in range(2):
        engine((images(3),))
    assert sum(shape in weights for shape in seen) == made


def test_a_weight_is_kept_as_8_bit_floats() -> None:
    block = engine_of(timm_vit(), images(1))._module.get_submodule("blocks.0")
    own = {name: t for name, t in block.named_buffers() if name.endswith("codes")}
    assert {t.dtype for t in own.values()} == {torch.float8_e4m3fn}
    assert len(own) == PRODUCTS
    assert [name for name, p in block.named_parameters() if p.ndim > 1] == ["proj.weight"]


@pytest.mark.parametrize("name", ["blocks.0", "blocks.1"])
def test_taps_see_the_same_shape_at_the_same_place(name: str) -> None:
    module = Tapped(timm_vit(), [name], "none")
    engine = engine_of(module, images(1))
    assert f"module.{name}" in blocks_of(engine)
    with torch.inference_mode():
        (wanted,), (got,) = module.pooled(images(3)), engine._module.pooled(images(3).bfloat16())
    assert got.shape == wanted.shape == (3, 17, 64)
    assert cosines(got.flatten(1), wanted.flatten(1)).min() > least_cosine(DEPTH)


def test_what_a_tap_watches_on_the_inside_stays() -> None:
    module = Tapped(timm_vit(), ["blocks.0.norm2", "blocks.1"], "cls")
    engine = engine_of(module, images(1))
    assert blocks_of(engine) == ["module.blocks.1"]
    assert cosines(engine((images(3),)), module(images(3))).min() > least_cosine(DEPTH)


def test_blocks_behind_the_last_wanted_layer_stay() -> None:
    module = Tapped(timm_vit(), ["blocks.0"], "cls")
    assert blocks_of(engine_of(module, images(1))) == ["module.blocks.0"]


def test_a_tuple_stays_a_tuple() -> None:
    block = timm_vit().get_submodule("blocks.0")
    made = Fp8Block(parts_of(block), "reference")
    made.as_tuple = True
    assert [t.shape for t in made(torch.zeros(1, 3, 64))] == [(1, 3, 64)]


class Gated(nn.Module):
    """Layers of tokens that are no transformer, and two of pooled rows."""

    def __init__(self, d: int = 128) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, d, 8, 8)
        self.mix, self.gate, self.narrow = (
            nn.Linear(d, d),
            nn.Linear(d, d, bias=False),
            nn.Linear(d, 9),
        )
        self.head, self.one = nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = self.mix(tokens) * self.gate(tokens).sigmoid()
        rows = [self.head(tokens.mean(dim=1)), self.narrow(tokens).mean(dim=1)]
        pooled = self.one(tokens.mean(dim=1, keepdim=True))  # as by the head of SigLIP
        return torch.cat([*rows, pooled.flatten(1)], dim=1)


def test_other_linear_layers_of_tokens_round_their_own_rows() -> None:
    module = Gated().eval().requires_grad_(False)
    engine = engine_of(module, images(1))
    kinds = {name: type(m) for name, m in engine._module.named_children()}
    assert kinds == {
        "embed": nn.Conv2d,
        "mix": Fp8Linear,
        "gate": Fp8Linear,
        "narrow": nn.Linear,
        "head": nn.Linear,
        "one": nn.Linear,
    }
    assert cosines(engine((images(4),)), module(images(4))).min() > least_cosine(1)


def test_layers_that_are_one_stay_one() -> None:
    module = Gated().eval().requires_grad_(False)
    module.gate = module.mix
    own = engine_of(module, images(1))._module
    assert own.gate is own.mix


def test_a_network_without_such_layers_is_refused_in_one_sentence() -> None:
    module = Gated(24).eval().requires_grad_(False)
    rule = (
        "engine 'torch' cannot run fp8: the network must have transformer blocks, or linear "
        "layers of tokens, of sides divisible by 16"
    )
    with pytest.raises(BackendError, match=f"^{rule}$"):
        engine_of(module, images(1))


def test_a_block_that_does_something_else_is_left_alone() -> None:
    module = timm_vit()
    block: Any = module.get_submodule("blocks.1")
    block.forward = lambda x, attn_mask=None, is_causal=False: x + block.mlp(block.norm2(x))
    assert blocks_of(engine_of(module, images(1))) == ["blocks.0"]


@pytest.mark.parametrize(
    "settings",
    [
        {"scale_attn_norm": True},
        {"scale_mlp_norm": True},
        {"mlp_ratio": 1.1},
    ],
)
def test_a_block_with_parts_that_we_do_not_know_is_none(settings: dict[str, Any]) -> None:
    assert parts_of(timm_vit(**settings).get_submodule("blocks.0")) is None


def test_a_block_with_another_norm_is_none() -> None:
    block: Any = timm_vit().get_submodule("blocks.0")
    block.norm1 = nn.RMSNorm(64)
    assert parts_of(block) is None


def test_another_tensor_than_a_mask_is_refused() -> None:
    made = Fp8Block(parts_of(timm_vit().get_submodule("blocks.0")), "reference")
    with pytest.raises(ValueError, match="must take rows and a mask only, got rotations"):
        made(torch.zeros(1, 3, 64), rotations=torch.zeros(3))


def test_positions_are_in_the_rows_already() -> None:
    made = Fp8Block(parts_of(timm_vit().get_submodule("blocks.0")), "reference")
    x = some_rows(1, 9, 64)
    assert torch.equal(made(x, cache_position=torch.arange(9)), made(x))


def test_masks_of_two_kinds_hold_both() -> None:
    seen = torch.tensor([True, True, False]).reshape(1, 1, 1, 3)
    later = torch.ones(3, 3, dtype=torch.bool).triu(1)
    added = torch.zeros(3, 3).masked_fill(later, -torch.inf)[None, None]
    for causal in (added, ~later[None, None]):
        mask, _ = _mask_of({"attention_mask": seen, "causal_attention_mask": causal})
        assert mask is not None
        allowed = mask if mask.dtype == torch.bool else mask == 0
        assert torch.equal(allowed, seen & ~later)


@pytest.mark.parametrize(
    ("activation", "exact"),
    [
        (nn.GELU(), True),
        (nn.GELU(approximate="tanh"), False),
        (nn.SiLU(), False),
        (nn.PReLU(), False),
    ],
)
def test_only_the_exact_gelu_is_one(activation: nn.Module, exact: bool) -> None:
    assert is_gelu(activation) == exact


def test_a_cpu_refuses() -> None:
    backbone = load_backbone(timm_vit(), preprocessing=SMALL, device="cpu")
    message = "engine 'torch' cannot run fp8 on cpu: 8-bit floats are for GPUs"
    with pytest.raises(BackendError, match=message):
        backbone.with_engine("torch", "fp8")
    _, report = choose_engine(backbone, [(images(4),)], engine="torch", min_cosine=0.9)
    assert report.refused["torch fp8"] == message


@pytest.mark.parametrize(
    ("capability", "why"),
    [
        ((8, 0), "the GPU must have compute capability 8.9 or more, got 8.0"),
        ((8, 6), "the GPU must have compute capability 8.9 or more, got 8.6"),
    ],
)
def test_an_older_gpu_refuses(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], why: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert ENGINES["torch"].refuses("fp8", torch.device("cuda")) == why


def test_a_newer_gpu_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert why_not_fp8(torch.device("cuda")) is None


def _why_no_fp8() -> str | None:
    return why_not_fp8(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(_why_no_fp8() is not None, reason="needs a GPU that multiplies 8-bit floats")
@pytest.mark.parametrize("kind", IMAGE_MODELS)
def test_launches_on_a_gpu_are_recorded_and_give_true_rows(kind: str) -> None:
    module = IMAGE_MODELS[kind]()
    backbone = load_backbone(IMAGE_MODELS[kind](), preprocessing=SMALL, device="cuda")
    on_gpu: Any = backbone.with_engine("torch", "fp8")
    for n in (5, 8, 5, 1):
        rows = on_gpu(images(n)).cpu()
        assert cosines(rows, module(images(n))).min() > least_cosine(DEPTH)
        on_gpu(torch.zeros(n, 3, 32, 32, dtype=torch.uint8))
    assert on_gpu.parts["precision"] == "fp8"
    assert None not in on_gpu._engine._run._records.values()
