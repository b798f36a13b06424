"""Fixtures that every room uses."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    # Before anything imports triton: without a GPU its kernels run in the interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")
# A shell that starts the tests in the background has them ignore Ctrl-C, and so would every command
# they start; what a command does about it is tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Before anything imports keras, which has one backend for the whole process.
os.environ.setdefault("KERAS_BACKEND", "torch")


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a generator that gives every test the same numbers."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Return the folder of research data, or skip."""
    root = os.environ.get("PYFEAT_DATA")
    if not root:
        pytest.skip("PYFEAT_DATA is unset: it names the folder of research data")
    return Path(root)
