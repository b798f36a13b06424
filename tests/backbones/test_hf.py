"""Models of transformers: parity with their own forward pass, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pyfeat import FeatureExtractor
from pyfeat.backbones import Tokenization, load_backbone
from pyfeat.backbones._hf_images import preprocessing_of
from pyfeat.backbones._hf_text import TokenPooling
from pyfeat.ops import Preprocessing
from tests.backbones.tiny import SMALL, WORDS, save_image_model, save_text_model, save_tokenizer

pytest.importorskip("transformers")

TOLERANCE = 1e-4  # of the largest value, in fp32: what the rows are promised to
VIT = {**SMALL, "image_size": 32, "patch_size": 8}
IMAGE_MODELS = {
    "vit": ("ViTModel", "ViTConfig", "ViTImageProcessor", VIT),
    "dinov2": ("Dinov2Model", "Dinov2Config", "ViTImageProcessor", VIT),
    "convnext": (
        "ConvNextModel",
        "ConvNextConfig",
        "ConvNextImageProcessor",
        {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "image_size": 32},
    ),
    "resnet": (
        "ResNetModel",
        "ResNetConfig",
        "ConvNextImageProcessor",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    ),
}
TEXTS = ["the film is moving and funny", "a dull , boring film !", "long"]


def pixels(n: int = 3) -> torch.Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def assert_close(rows: Any, wanted: torch.Tensor) -> None:
    wanted = wanted.detach()
    bound = TOLERANCE * float(wanted.abs().max())
    torch.testing.assert_close(torch.as_tensor(rows), wanted, rtol=0, atol=bound)


@pytest.mark.parametrize("kind", IMAGE_MODELS)
def test_row_of_an_image_is_the_models_own(kind: str, tmp_path: Path) -> None:
    model, config, processor, settings = IMAGE_MODELS[kind]
    folder, made = save_image_model(tmp_path / kind, model, config, processor, **settings)
    out = made(pixels())
    wanted = out.last_hidden_state[:, 0] if kind == "vit" else out.pooler_output.flatten(1)
    assert_close(load_backbone(f"hf/{folder}", device="cpu")(pixels()), wanted)


def test_classifier_of_images_loads_as_its_body(tmp_path: Path) -> None:
    folder, made = save_image_model(
        tmp_path / "m", "ViTForImageClassification", "ViTConfig", "ViTImageProcessor", **VIT
    )
    wanted = made.vit(pixels()).last_hidden_state[:, 0]
    assert_close(load_backbone(f"hf/{folder}", device="cpu")(pixels()), wanted)


def test_inner_layer_of_a_vit_is_its_hidden_state(tmp_path: Path) -> None:
    folder, made = save_image_model(
        tmp_path / "m", "ViTModel", "ViTConfig", "ViTImageProcessor", **VIT
    )
    wanted = made(pixels(), output_hidden_states=True).hidden_states[1][:, 0]
    assert_close(load_backbone(f"hf/{folder}", layers=-2, device="cpu")(pixels()), wanted)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder, _ = save_image_model(
        tmp_path / "m", "ViTModel", "ViTConfig", "ViTImageProcessor", **VIT
    )
    weights = load_file(folder / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"must be complete, got 1 missing .* layernorm\.weight"):
        load_backbone(f"hf/{folder}", device="cpu")


def test_image_goes_through_the_processor_of_the_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder, made = save_image_model(
        tmp_path / "m", "ViTModel", "ViTConfig", "ViTImageProcessor", **VIT
    )
    ramp = np.linspace(0, 255, 50 * 70 * 3).reshape(50, 70, 3).astype(np.uint8)
    image = Image.fromarray(ramp)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    seen = processor(images=image, return_tensors="pt")["pixel_values"]
    row = FeatureExtractor(f"hf/{folder}", device="cpu").transform([image])
    wanted = made(seen).last_hidden_state[:, 0].detach()
    # A level of 255 of an intermediate pixel is rounded the other way by torchvision's resize.
    assert float(torch.nn.functional.cosine_similarity(torch.as_tensor(row), wanted)) > 1 - 1e-4


CLIP = {
    "text_config": {**SMALL, "vocab_size": len(WORDS), "max_position_embeddings": 24,
                    "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0},
    "vision_config": {**SMALL, "image_size": 32, "patch_size": 8},
    "projection_dim": 16,
}  # fmt: skip


def save_clip(folder: Path) -> tuple[Path, Any]:
    found = save_image_model(folder, "CLIPModel", "CLIPConfig", "CLIPImageProcessor", **CLIP)
    save_tokenizer(folder, max_length=24)
    return found


def projected(out: Any) -> torch.Tensor:
    rows = out if isinstance(out, torch.Tensor) else out.pooler_output
    return torch.nn.functional.normalize(rows, dim=1)


def test_image_tower_gives_projected_rows(tmp_path: Path) -> None:
    folder, made = save_clip(tmp_path / "clip")
    wanted = projected(made.get_image_features(pixel_values=pixels()))
    assert_close(load_backbone(f"hf/{folder}", device="cpu")(pixels()), wanted)


def test_text_tower_gives_projected_rows(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder, made = save_clip(tmp_path / "clip")
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False
    )
    wanted = projected(made.get_text_features(**tokens))
    assert_close(FeatureExtractor(f"hf/{folder}#text", device="cpu").transform(TEXTS), wanted)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_text_tower_is_the_same_on_another_engine(engine: str, tmp_path: Path) -> None:
    pytest.importorskip(engine)
    pytest.importorskip("onnxscript")
    folder, _ = save_clip(tmp_path / "clip")
    texts = [*TEXTS, "the film is moving and funny and long , long , long , long"]
    on_torch = FeatureExtractor(f"hf/{folder}#text", device="cpu").transform(texts)
    rows = FeatureExtractor(f"hf/{folder}#text", engine=engine, device="cpu").transform(texts)
    assert_close(rows, torch.as_tensor(on_torch))


def test_text_tower_of_a_siglip_reads_texts_of_one_length(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    text = {**SMALL, "vocab_size": len(WORDS), "max_position_embeddings": 16, "projection_size": 32}
    folder, made = save_image_model(
        tmp_path / "siglip", "SiglipModel", "SiglipConfig", "SiglipImageProcessor",
        text_config=text, vision_config=VIT,
    )  # fmt: skip
    save_tokenizer(folder, max_length=16)
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding="max_length", max_length=16, return_tensors="pt"
    )
    wanted = projected(made.get_text_features(input_ids=tokens["input_ids"]))
    assert_close(FeatureExtractor(f"hf/{folder}#text", device="cpu").transform(TEXTS), wanted)
    wanted = projected(made.get_image_features(pixel_values=pixels()))
    assert_close(load_backbone(f"hf/{folder}", device="cpu")(pixels()), wanted)


def test_encoder_of_a_t5_loads_without_its_decoder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=len(WORDS), d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2
    )
    made = transformers.T5EncoderModel(config).eval()
    made.save_pretrained(tmp_path / "t5")
    save_tokenizer(tmp_path / "t5")
    rows = FeatureExtractor(f"hf/{tmp_path / 't5'}", device="cpu").transform(TEXTS[:1])
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "t5")
    ids = tokenizer(TEXTS[:1], return_tensors="pt")["input_ids"]
    assert_close(rows, made(input_ids=ids).last_hidden_state.mean(dim=1))


def test_tower_holds_only_its_own_weights(tmp_path: Path) -> None:
    folder, _ = save_clip(tmp_path / "clip")
    backbone = load_backbone(f"hf/{folder}", device="cpu")
    assert not [name for name, _ in backbone._module.named_parameters() if "text_model" in name]


def test_other_part_than_text_is_refused(tmp_path: Path) -> None:
    folder, _ = save_clip(tmp_path / "clip")
    with pytest.raises(ValueError, match="must be NAME, or NAME#text of two towers"):
        load_backbone(f"hf/{folder}#sound", device="cpu")


@pytest.mark.parametrize(
    "model", ["BertModel", "BertForMaskedLM", "RobertaModel", "DistilBertModel"]
)
def test_row_of_a_text_is_the_mean_of_its_tokens(model: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    small = {"dim": 32, "hidden_dim": 48, "n_heads": 2, "n_layers": 2, "hidden_size": 32,
             "num_attention_heads": 2, "num_hidden_layers": 2}  # fmt: skip
    settings = small if model == "DistilBertModel" else {"pad_token_id": 0}
    folder, made = save_text_model(tmp_path / "m", model, **settings)
    rows = FeatureExtractor(f"hf/{folder}", device="cpu").transform(TEXTS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    body = getattr(made, made.base_model_prefix, made)
    for text, row in zip(TEXTS, rows, strict=True):
        ids = tokenizer([text], return_tensors="pt")["input_ids"]
        assert_close(row[None], body(input_ids=ids).last_hidden_state.mean(dim=1))


def test_pooling_beside_the_weights_is_honoured(tmp_path: Path) -> None:
    folder, _ = save_text_model(tmp_path / "m")
    mean = FeatureExtractor(f"hf/{folder}", device="cpu").transform(TEXTS)
    (folder / "1_Pooling").mkdir()
    config = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    extractor = FeatureExtractor(f"hf/{folder}", device="cpu")
    cls = FeatureExtractor(f"hf/{folder}", pooling="cls", device="cpu").transform(TEXTS)
    np.testing.assert_allclose(extractor.transform(TEXTS), cls, atol=1e-6)
    assert not np.allclose(cls, mean)


def test_slow_tokenizer_is_refused_with_a_way_out(tmp_path: Path) -> None:
    folder, _ = save_text_model(tmp_path / "m")
    for file in folder.glob("*token*"):
        file.unlink()
    # One of those that transformers has in Python only.
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CTRLTokenizer"}')
    (folder / "vocab.json").write_text('{"<unk>": 0, "a</w>": 1, "b</w>": 2}')
    (folder / "merges.txt").write_text("#version: 0.2\n")
    rule = r"must come with a fast tokenizer \(tokenizer\.json\): .*, got CTRLTokenizer"
    with pytest.raises(ValueError, match=rule):
        load_backbone(f"hf/{folder}", device="cpu")


def test_positions_bound_the_length_of_a_roberta(tmp_path: Path) -> None:
    folder, _ = save_text_model(
        tmp_path / "m", "RobertaModel", pad_token_id=1, max_position_embeddings=20
    )
    spec = load_backbone(f"hf/{folder}", device="cpu").preprocessing
    assert isinstance(spec, Tokenization)
    assert spec.max_length == 18  # positions 2 to 19


def test_model_that_is_saved_anew_is_loaded_anew(tmp_path: Path) -> None:
    folder, made = save_text_model(tmp_path / "m")
    before = FeatureExtractor(f"hf/{folder}", device="cpu").get_space()
    with torch.no_grad():
        made.embeddings.word_embeddings.weight.add_(1)
    made.save_pretrained(folder)
    assert FeatureExtractor(f"hf/{folder}", device="cpu").get_space() != before


class _Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_pickle_in_the_weights_is_not_executed(tmp_path: Path) -> None:
    folder, made = save_text_model(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    trap = {**made.state_dict(), "trap": _Trap(tmp_path / "executed")}
    torch.save(trap, folder / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"weights of .* must be readable from the folder"):
        load_backbone(f"hf/{folder}", device="cpu")
    assert not (tmp_path / "executed").exists()


def test_torch_file_of_plain_tensors_is_read(tmp_path: Path) -> None:
    folder, made = save_text_model(tmp_path / "m")
    before = FeatureExtractor(f"hf/{folder}", device="cpu").transform(TEXTS)
    (folder / "model.safetensors").unlink()
    torch.save(made.state_dict(), folder / "pytorch_model.bin")
    after = FeatureExtractor(f"hf/{folder}", device="cpu").transform(TEXTS)
    assert np.array_equal(before, after)


def test_preprocessing_is_not_for_texts(tmp_path: Path) -> None:
    folder, _ = save_text_model(tmp_path / "m")
    with pytest.raises(ValueError, match="must be None for texts, which take max_length="):
        load_backbone(f"hf/{folder}", preprocessing=Preprocessing(), device="cpu")


def test_unknown_folder_says_where_weights_may_lie(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_model"}))
    with pytest.raises(ValueError, match="must be a model that transformers knows"):
        load_backbone(f"hf/{tmp_path}", device="cpu")


def test_model_of_sound_is_refused_with_a_sentence(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.Speech2TextConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"must be one of .*, got 'speech_to_text'"):
        load_backbone(f"hf/{tmp_path}", device="cpu")


PLAIN = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "resample": 3,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.2, 0.2],
}


@pytest.mark.parametrize(
    ("kind", "settings", "wanted"),
    [
        ("ViTImageProcessor", {"size": {"height": 32, "width": 32}}, (32, 32, "stretch")),
        (
            "CLIPImageProcessorFast",
            {
                "size": {"shortest_edge": 40},
                "do_center_crop": True,
                "crop_size": {"height": 32, "width": 32},
            },
            (40, 32, "crop"),
        ),
        (
            "ConvNextFeatureExtractor",
            {"size": {"shortest_edge": 224}, "crop_pct": 0.875},
            (256, 224, "crop"),
        ),
        (
            "ConvNextImageProcessor",
            {"size": {"shortest_edge": 384}, "crop_pct": 0.875},
            (384, 384, "stretch"),
        ),
    ],
)
def test_processor_is_said_in_our_words(
    kind: str, settings: dict[str, Any], wanted: tuple[int, int, str]
) -> None:
    found = preprocessing_of(kind, {**PLAIN, **settings}, "m")
    resize, crop, mode = wanted
    assert found == Preprocessing(
        resize, crop, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), mode=mode
    )


@pytest.mark.parametrize(
    ("kind", "settings", "got"),
    [
        ("DPTImageProcessor", {}, "DPTImageProcessor"),
        ("ViTImageProcessor", {"resample": 1}, "resample 1"),
        ("ViTImageProcessor", {"rescale_factor": 1 / 127.5}, "rescale_factor"),
        ("ViTImageProcessor", {"do_normalize": False}, "without do_normalize"),
        ("ViTImageProcessor", {"size": {"height": 32, "width": 48}}, "size"),
        ("CLIPImageProcessor", {"size": {"shortest_edge": 40}}, "without a centre crop"),
    ],
)
def test_processor_that_does_more_is_refused(kind: str, settings: dict[str, Any], got: str) -> None:
    config = {**PLAIN, "size": {"height": 32, "width": 32}, **settings}
    with pytest.raises(ValueError, match=rf"{got}.*; pass preprocessing= to choose one"):
        preprocessing_of(kind, config, "m")


def test_token_pooling_agrees_with_numpy() -> None:
    tokens = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    lengths = (5, 3)
    mask = torch.tensor([[1] * n + [0] * (5 - n) for n in lengths])
    rows = TokenPooling(TokenPooling.MODES)(tokens, mask)
    for row, every, n in zip(rows.numpy(), tokens.double().numpy(), lengths, strict=True):
        x = every[:n]
        weights = np.arange(1, n + 1)
        wanted = [
            x[0], x.max(0), x.mean(0), x.sum(0) / n**0.5, weights @ x / weights.sum(), x[-1],
        ]  # fmt: skip
        np.testing.assert_allclose(row, np.concatenate(wanted), atol=8 * np.finfo("f4").eps * n)
