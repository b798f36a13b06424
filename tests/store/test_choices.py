"""What was chosen for a store: once, for everybody."""

from __future__ import annotations

import multiprocessing as mp
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyfeat import Space
from pyfeat.errors import CorruptStoreError
from pyfeat.store import (
    Golden,
    claim_choice,
    read_choice,
    read_golden,
    repair,
    verify,
    write_golden,
)
from pyfeat.store._choices import choice_file

QUESTION = {"parts": {"name": "a"}, "min_cosine": 0.9}
N = 8


def claim(store: str, i: int, barrier: Barrier, answers: Any) -> None:
    """Claim a choice of one's own at the same moment as others."""
    barrier.wait()
    try:
        answers.put((i, claim_choice(store, QUESTION, ("torch", str(i)))))
    except Exception as error:  # the test names it
        answers.put((i, repr(error)))


def test_first_choice_stands(tmp_path: Path) -> None:
    assert read_choice(tmp_path, QUESTION) is None
    assert claim_choice(tmp_path, QUESTION, ("torch", "bf16")) == ("torch", "bf16")
    assert claim_choice(tmp_path, QUESTION, ("openvino", "fp32")) == ("torch", "bf16")
    assert read_choice(tmp_path, QUESTION) == ("torch", "bf16")


def test_another_question_has_its_own_answer(tmp_path: Path) -> None:
    claim_choice(tmp_path, QUESTION, ("torch", "bf16"))
    assert read_choice(tmp_path, {**QUESTION, "min_cosine": 0.8}) is None


def test_processes_that_choose_at_once_agree(tmp_path: Path) -> None:
    server = mp.get_context("forkserver")
    server.set_forkserver_preload(["pyfeat.store"])
    barrier, answers = server.Barrier(N), server.Queue()
    store = str(tmp_path / "feats")
    claims = [server.Process(target=claim, args=(store, i, barrier, answers)) for i in range(N)]
    for process in claims:
        process.start()
    given = dict(answers.get() for _ in claims)
    for process in claims:
        process.join()
    (standing,) = set(given.values())
    assert given[int(standing[1])] == standing == read_choice(store, QUESTION)
    assert [p.name for p in (tmp_path / "feats" / "choices").iterdir() if p.suffix == ".tmp"] == []


def test_every_flipped_byte_is_told_with_its_path(tmp_path: Path) -> None:
    claim_choice(tmp_path, QUESTION, ("torch", "bf16"))
    file = choice_file(tmp_path, QUESTION)
    assert verify(tmp_path) == []
    good = file.read_bytes()
    for at in range(len(good)):
        file.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(CorruptStoreError, match=str(file)):
            read_choice(tmp_path, QUESTION)
    assert [d.path for d in verify(tmp_path)] == [str(file)]


def test_damaged_choice_is_set_aside_and_the_next_one_stands(tmp_path: Path) -> None:
    claim_choice(tmp_path, QUESTION, ("torch", "bf16"))
    for precision in ("fp16", "fp32"):  # a second time, too
        file = choice_file(tmp_path, QUESTION)
        file.write_bytes(b"")
        done = repair(tmp_path)
        assert ([d.path for d in done.found], done.left) == ([str(file)], [])
        assert [Path(aside).read_bytes() for aside in done.aside] == [b""]
        assert claim_choice(tmp_path, QUESTION, ("torch", precision)) == ("torch", precision)
        assert read_choice(tmp_path, QUESTION) == ("torch", precision)


@pytest.mark.parametrize("text", ['{"a":NaN,"crc32c":0}', "[" * 100_000, "[]", "1"])
def test_hostile_json_is_told_with_its_path(tmp_path: Path, text: str) -> None:
    claim_choice(tmp_path, QUESTION, ("torch", "bf16"))
    write_golden(tmp_path, Space(1), Golden("image-1", np.zeros(1, np.float32)))
    choice, golden = choice_file(tmp_path, QUESTION), next(tmp_path.rglob("golden.json"))
    for file in (choice, golden):
        file.write_text(text)
    with pytest.raises(CorruptStoreError, match=str(choice)):
        read_choice(tmp_path, QUESTION)
    with pytest.raises(CorruptStoreError, match=str(golden)):
        read_golden(tmp_path, Space(1))
    assert {d.path for d in verify(tmp_path)} == {str(choice), str(golden)}


def test_format_of_a_choice(tmp_path: Path) -> None:
    claim_choice(tmp_path, {"a": 1}, ("torch", "bf16"))
    file = tmp_path / "choices" / "d59b6562d7c9b121bc9760873d787890" / "choice.json"
    assert file.read_text() == (
        '{"choice":["torch","bf16"],"crc32c":"c2a2ee15",'
        '"format":"pyfeat-choice","question":{"a":1},"version":1}'
    )
