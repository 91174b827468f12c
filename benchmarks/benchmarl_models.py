"""BiCNet as a model of BenchMARL beside its MLP and GNN: BenchMARL's IDDPG on VMAS navigation, its settings and loop.

Each run is a process and leaves BenchMARL's own JSON; a run whose file is there is not repeated. It is started from the
root of the repository, as `python -m benchmarks.benchmarl_models --python PYTHON`, with the Python of an environment
that benchmarks/rivals/benchmarl_run.py describes, and torch_geometric in it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.grid import ROOT, Bounds, Job, run_missing
from benchmarks.learning_run import write
from benchmarks.report_benchmarl_models import read_evaluations
from benchmarks.training_time import benchmarl_versions
from torchrl_bicnet.runs.provenance import command_line, provenance

SCRIPT = ROOT / "benchmarks" / "rivals" / "benchmarl_models.py"


@dataclass
class Options(Bounds):
    python: Path
    """Python of an environment with BenchMARL"""
    models: tuple[str, ...] = ("bicnet", "mlp", "gnn")
    """names of benchmarks/rivals/benchmarl_models.py"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """of the trainings"""
    frames: int = 102_000
    """of a training; BenchMARL collects 6000 at a time"""
    output: Path = ROOT / "benchmarks" / "results" / "benchmarl_models"
    """where the results go: MODEL-seedSEED.json, and about.json"""


def main(options: Options) -> int:
    about = {"command": command_line(__file__), **provenance(), "threads": 1, "frames": options.frames}
    write(options.output / "about.json", {**about, "versions": benchmarl_versions(options.python)})
    return run_missing(list(plan(options)), options, outcome=last_return, output=options.output)


def plan(options: Options) -> Iterator[Job]:
    for seed in options.seeds:
        for model in options.models:
            name = f"{model}-seed{seed}"
            result = options.output / f"{name}.json"
            command = [options.python, SCRIPT, "--model", model, "--frames", options.frames, "--seed", seed]
            command += ["--output", result.absolute()]
            yield Job(name, tuple(map(str, command)), result, options.output / f"{name}.log")


def last_return(result: Path) -> str:
    _, returns = read_evaluations(json.loads(result.read_text()))
    return f"{returns[-1]:.2f}"


if __name__ == "__main__":
    try:
        sys.exit(min(main(tyro.cli(Options, description=__doc__)), 1))
    except (TypeError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
