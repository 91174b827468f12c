"""BenchMARL's MADDPG and IDDPG on tasks of the learning benchmark, to JSON files that the report sets beside ours.

Its own networks, VMAS settings and loop, in its own environment: see benchmarks/rivals/benchmarl_run.py, which is run
once for each task, algorithm and seed. A run whose file is there is not repeated. Seconds are those of learning.py: CPU
seconds of one thread, without evaluations. An iteration of BenchMARL is 6000 frames and 1000 updates.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from benchmarks.learning import RESULTS
from benchmarks.learning_run import write
from benchmarks.suite import SUITE, Task
from benchmarks.training_time import benchmarl_versions
from torchrl_bicnet.runs import EVAL_SEED, TEST_SEED
from torchrl_bicnet.runs.provenance import command_line, provenance

SCRIPT = Path(__file__).resolve().parent / "rivals" / "benchmarl_run.py"
UPDATES_PER_FRAME = 1000 / 6000
EVAL_EPISODES, TEST_EPISODES = 200, 1000


@dataclass
class Options:
    python: Path
    """Python of an environment with BenchMARL"""
    tasks: tuple[str, ...] = ("navigation", "dispersion")
    """names of benchmarks/suite.py, of scenarios that BenchMARL has"""
    algorithms: tuple[Literal["maddpg", "iddpg"], ...] = ("maddpg", "iddpg")
    """of BenchMARL"""
    seeds: tuple[int, ...] = (100,)
    """of the trainings"""
    frames: int = 408_000
    """of a run; the defaults of examples/train_vmas.py are 409,600"""
    output: Path = RESULTS
    """where the results go: runs/TASK/benchmarl_ALGORITHM-seedSEED.json"""


def main(options: Options) -> None:
    if unknown := [name for name in options.tasks if name not in SUITE]:
        raise ValueError(f"--tasks must be of {', '.join(SUITE)}, found {', '.join(unknown)}.")
    for seed, name, algorithm in itertools.product(options.seeds, options.tasks, options.algorithms):
        file = options.output / "runs" / name / f"benchmarl_{algorithm}-seed{seed}.json"
        if not file.exists():
            print(f"{name}, BenchMARL's {algorithm.upper()}, seed {seed}", file=sys.stderr)
            write(file, measure(SUITE[name], algorithm, seed, options))


def measure(task: Task, algorithm: str, seed: int, options: Options) -> dict[str, Any]:
    about = {"max_steps": task.max_steps, "scenario": task.scenario, "scenario_options": task.scenario_options}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "evaluations.csv")
        command = [options.python, SCRIPT, "--algorithm", algorithm, "--seed", seed, "--frames", options.frames]
        command += ["--task", task.scenario, "--task-options", json.dumps(task.scenario_options)]
        command += ["--max-steps", task.max_steps, "--evaluations", file]
        command += ["--evaluation-episodes", EVAL_EPISODES, "--evaluation-seed", EVAL_SEED]
        command += ["--test-episodes", TEST_EPISODES, "--test-seed", TEST_SEED]
        subprocess.run([*map(str, command)], env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=sys.stderr, check=True)
        rows = [[float(entry) for entry in line.split(",")] for line in file.read_text().splitlines()]
    *rows, (_, *test, _, wall_seconds) = rows  # the test comes last
    # What the mean over agents is multiplied by to be the task's number
    factor = task.score(torch.ones(1, task.scenario_options["n_agents"])).item()
    curve = [
        [int(frames), round(frames * UPDATES_PER_FRAME), seconds, round(factor * value, 4), round(factor * error, 4)]
        for frames, value, error, seconds, _ in rows
    ]
    return {
        "task": task.name,
        "algorithm": f"benchmarl_{algorithm}",
        "what": f"BenchMARL's {algorithm.upper()} with its VMAS settings and networks, in its own environment",
        "seed": seed,
        "command": command_line(__file__),
        **provenance(),
        "threads": 1,
        "versions": benchmarl_versions(options.python),
        "options": about,
        "reported": task.reported,
        "curve_columns": ["frames", "updates", "seconds", "reported", "standard_error"],
        "curve": curve,
        "compiling_seconds": 0.0,
        "training_wall_seconds": wall_seconds,
        "milliseconds_per_update": round(1000 * curve[-1][2] / curve[-1][1], 3),
        "test": {"after": [round(factor * number, 4) for number in test]},
        "test_episodes": TEST_EPISODES,
    }


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
