"""The benchmark of the communication layer runs, and the report is that of the committed results."""

import json
import os
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
import tyro
from torch import nn

from benchmarks import communication_layer, report
from benchmarks.report_training_time import COMPILED, OURS, pays
from torchrl_bicnet.runs.provenance import command_line

ROOT = Path(__file__).resolve().parent.parent
GPU = (ROOT / ".ci" / "gpu").read_text()


def test_the_report_is_that_of_the_results():
    assert (ROOT / "benchmarks" / "README.md").read_text() == report.report()


def test_results_that_are_missing_are_named():
    section = report.Section("nowhere/cpu.json", "nowhere.py", lambda results: "")
    assert report.section_text(section) == "## nowhere.py\n\nNot run: there is no `results/nowhere/cpu.json`.\n"


def test_a_quick_look_at_the_layer(tmp_path):
    options = communication_layer.Options(quick=True, output=tmp_path / "layer.json")
    communication_layer.main(options)
    results = json.loads(options.output.read_text())
    assert [(cell["cell"], cell["n_agents"]) for cell in results["cells"]] == [
        ("lstm", 2),
        ("lstm", 4),
        ("gru", 2),
        ("gru", 4),
    ]
    assert str(tmp_path) not in json.dumps(results["about"]["options"])
    for cell in results["cells"]:
        assert all(milliseconds > 0 for milliseconds in cell["milliseconds"].values())
        assert list(cell["left_out"]) == ["loop, compiled"]
        # They differ by less than a hidden unit of the MLP
        assert abs(cell["parameters"]["loop"] - cell["parameters"]["MultiAgentMLP"]) <= (128 + 1 + 16) / 2
    assert "compiled loop is left out" in report.communication_layer(results)


def test_memory_that_is_kept_is_that_of_the_backward_pass():
    x = torch.randn(5, 2, 4, requires_grad=True)
    assert communication_layer.megabytes_kept(nn.Linear(4, 3), x) == 0  # which needs its input and its weight alone
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    assert communication_layer.megabytes_kept(net, x) == pytest.approx(5 * 2 * 3 * 4 / 1e6)  # what tanh returned


def test_batch_and_agents_go_together():
    with pytest.raises(ValueError, match="--batch and --agents"):
        communication_layer.Options(batch=(8,))
    assert communication_layer.Options(batch=(8,), agents=(2, 3), cells=("gru",)).grid == [("gru", 8, 2), ("gru", 8, 3)]


@pytest.mark.parametrize("command", re.findall(r"^python3 benchmarks/(.*)$", GPU.replace("\\\n", ""), re.MULTILINE))
def test_the_commands_for_a_gpu_are_understood(command):
    script, *args = shlex.split(command.replace("$OUT", "out").replace("${OUT:-benchmarks/results/cuda}", "out"))
    options = tyro.cli(import_module(f"benchmarks.{script.removesuffix('.py')}").Options, args=args)
    assert options.device == "cuda"
    assert Path("out") in (options.output, *options.output.parents)


def test_the_command_line_names_no_place_of_the_machine(monkeypatch):
    arguments = ["--output", "out", "--benchmarl-python", "/a/bin/python", "--agents", "2", "3"]
    monkeypatch.setattr(sys, "argv", ["script", *arguments])
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "0")
    expected = "MALLOC_MMAP_MAX_=0 python benchmarks/update.py --benchmarl-python PYTHON --agents 2 3"
    assert command_line("/a/place/benchmarks/update.py") == expected


def test_when_compiling_pays():
    """By hand: 0.01 s a frame uncompiled and 0.004 compiled: 30 s or 6 s are saved after 5,000 and 1,000 frames."""
    speeds = {OURS: 0.01, COMPILED: 0.004}
    runs = {
        name: {"evaluations": [{"seconds": 5.0, "frames": 0}, {"seconds": 5.0 + 1000 * speed, "frames": 1000}]}
        for name, speed in speeds.items()
    }
    seconds = {"uncompiled": 10.0, "empty_cache": 40.0, "from_cache": 16.0}
    assert pays(seconds, runs) == " It pays from 5,000 frames on, and from 1,000 with the cache."
    assert pays(seconds, {OURS: runs[OURS], COMPILED: runs[OURS]}) == " It does not pay here."
    assert pays(seconds, {OURS: runs[OURS]}) == ""
