"""An input that does not fit in memory costs its own row, and no other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyfeat import FeatureExtractor
from pyfeat.backbones import ENGINES, Tokenization
from pyfeat.errors import InputError
from pyfeat.extract import Input, RunOptions, run
from pyfeat.extract._batches import Batches
from tests.jobs.conftest import WORDS, word_tokenizer

SHORT = ["good film", "bad film", "a film"]
LONG = "good " * 4000


class FourthPower(nn.Module):
    """Asks for 1 PB where a text has 4000 words, and for 1 MB where it has 20."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(len(WORDS) + 2, 1)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids)[:, :, 0] * mask
        for _ in range(2):
            x = (x[:, :, None] * x[:, None, :]).flatten(1)
        return torch.stack([x.amax(dim=1), x.amin(dim=1)], dim=1)


def extractor(**settings: Any) -> FeatureExtractor:
    spec = Tokenization(word_tokenizer(), max_length=5000, pad_id=0, identity="words")
    return FeatureExtractor(FourthPower(), preprocessing=spec, device="cpu", **settings)


@pytest.mark.parametrize("engine", ENGINES)
def test_text_that_does_not_fit_is_named(engine: str) -> None:
    if (why := ENGINES[engine].refuses("fp32", torch.device("cpu"))) is not None:
        pytest.skip(why)
    with pytest.raises(InputError, match=r"X\[1\]: it does not fit in memory"):
        extractor(engine=engine).transform([SHORT[0], LONG])


@pytest.mark.parametrize("engine", ENGINES)
def test_other_texts_have_the_rows_they_have_alone(engine: str) -> None:
    if (why := ENGINES[engine].refuses("fp32", torch.device("cpu"))) is not None:
        pytest.skip(why)
    fx = extractor(engine=engine, on_error="nan")
    # The long one first: what it leaves behind in an engine must not fail those that follow.
    rows = fx.transform([LONG, *SHORT])
    assert np.isnan(rows[0]).all()
    assert np.array_equal(rows[1:], fx.transform(SHORT))


def test_batch_of_what_does_not_fit_is_taken_apart() -> None:
    fx = extractor()
    long = [LONG, LONG + "bad", LONG + "film"]
    inputs = [Input(str(i), text) for i, text in enumerate([*long, *SHORT])]
    found = run(inputs, fx.get_backbone(), None, RunOptions())
    status = {o.position: (o.status, o.reason) for o in found}
    assert [status[i][0] for i in range(6)] == ["bad"] * 3 + ["computed"] * 3
    assert {status[i][1] for i in range(3)} == {"it does not fit in memory"}


def test_engine_is_chosen_on_what_fits() -> None:
    fx = extractor(engine="torch", precision="auto").fit([LONG, *SHORT])
    assert fx.fidelity_ is not None
    assert fx.fidelity_.sample == len(SHORT)


def test_nothing_that_fits_leaves_nothing_to_choose_on() -> None:
    with pytest.raises(ValueError, match="at least one input that fits in memory, got none"):
        extractor(engine="auto").fit([LONG])


def _first_numbers(tensors: Sequence[Tensor]) -> Any:
    """Return the first number of each; asks for 32 TiB where one of them is above 100."""
    found = torch.stack(list(tensors))[:, 0]
    if found.max() > 100:
        np.empty(2**45, np.uint8)
    return found[:, None].numpy()


def test_one_large_input_leaves_the_size_of_batches_as_it_was() -> None:
    batches = Batches(_first_numbers, "auto", automatic=8)
    tensors = [torch.full((2,), float(i)) for i in range(20)]
    tensors[5] += 1000
    rows, fits = batches(tensors)
    assert batches.size == 8
    assert np.flatnonzero(~fits).tolist() == [5]
    assert rows[:, 0].tolist() == [float(i) for i in range(20) if i != 5]


def test_input_alone_at_a_size_that_was_asked_for_is_left_out_too() -> None:
    rows, fits = Batches(_first_numbers, 4)([torch.full((2,), 1000.0)])
    assert (len(rows), fits.tolist()) == (0, [False])
