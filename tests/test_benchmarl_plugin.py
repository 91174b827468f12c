"""BiCNet inside BenchMARL, whose Python is named by BENCHMARL_PYTHON; and that our package does not need it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.skipif("BENCHMARL_PYTHON" not in os.environ, reason="BENCHMARL_PYTHON names no environment with BenchMARL")
def test_the_plugin_where_benchmarl_is():
    done = subprocess.run([os.environ["BENCHMARL_PYTHON"], "tests/benchmarl_plugin.py"], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    assert done.stdout.decode().count(": trained") == 18


def test_no_other_package_is_imported_and_runs_only_when_asked_for():
    """TorchRL 0.11, which BenchMARL pins, has no checkpoints."""
    code = """import sys
import torchrl_bicnet
assert not {"benchmarl", "onnxscript", "torchrl.checkpoint", "torchrl_bicnet.runs"} & sys.modules.keys()
from torchrl_bicnet import Checkpoints, CollectorState, Run, load_run
assert "torchrl_bicnet.runs" in sys.modules
from torchrl_bicnet import *
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
