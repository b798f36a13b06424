"""Signals reach Python while OpenVINO is used, and after it."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("openvino")

# Each runs in a process of its own, which a signal without a stack would end. The plugin frees what
# it gave the main thread when it is unloaded, here by another thread.
USES = {
    "engine": """
    import torch
    from pyfeat.backbones._engine import make_engine
    module, example = torch.nn.Linear(4, 3).eval(), (torch.zeros(1, 4),)
    used = [make_engine("openvino", "fp32", module, example, torch.device("cpu"))]
    used[0](example)
    """,
    "onnx": """
    from onnx import TensorProto, helper
    from pyfeat.backbones._onnx_runtimes import OpenVinoRunner
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", "x", "y")], "g", values[:1], values[1:])
    opset = helper.make_opsetid("", 13)
    whole = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    used = [OpenVinoRunner(whole.SerializeToString())]
    """,
}
SIGNAL = """
    import signal, threading
    import pyfeat.backbones._openvino_core as shared
    freeing = threading.Thread(target=lambda: (used.clear(), shared.core.cache_clear()))
    freeing.start()
    freeing.join()
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.parametrize(
    ("use", "options"), [("engine", ()), ("engine", ("-X", "faulthandler")), ("onnx", ())]
)
def test_a_signal_is_handled_after(use: str, options: tuple[str, ...]) -> None:
    if use == "onnx":
        pytest.importorskip("onnx")
    code = "if True:" + USES[use] + SIGNAL
    run = [sys.executable, *options, "-c", "import signal\n"
           "signal.signal(signal.SIGINT, signal.default_int_handler)\n" + code]  # fmt: skip
    done = subprocess.run(run, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["interrupted"]), done.stderr
