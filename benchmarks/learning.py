"""The learning benchmark: a grid of tasks, algorithms and seeds, each run a process and a small JSON file.

It is started from the root of the repository, as `python -m benchmarks.learning`.

A run whose file is there is not repeated, so a stopped grid goes on where it stopped; one that was cut off starts
again. A run that fails is reported at the end, with its last lines, and does not stop the others. `python -m
benchmarks.report` makes tables and pictures of the files.
"""

from __future__ import annotations

import itertools
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from benchmarks import learning_run
from benchmarks.algorithms import ALGORITHMS, OURS
from benchmarks.grid import ROOT, Bounds, Job, run_missing
from benchmarks.learning_run import Value
from benchmarks.suite import SUITE

RESULTS = ROOT / "benchmarks" / "results" / "learning"


@dataclass
class Options(Bounds):
    tasks: tuple[str, ...] = tuple(SUITE)
    """names of benchmarks/suite.py"""
    algorithms: tuple[str, ...] = tuple(ALGORITHMS)
    """names of benchmarks/algorithms.py"""
    seeds: tuple[int, ...] = (100, 101, 102)
    """of the trainings; the first one of all tasks and algorithms comes before the second. Those below 10 are for
    tuning"""
    updates: int = 10_000
    """gradient updates of a run"""
    equal_seconds: bool = True
    """algorithms with cheaper updates get more of them, by the factors of benchmarks/algorithms.py, so that curves can
    be compared at equal seconds"""
    recipe: dict[str, Value] = field(default_factory=dict)
    """options of examples/train_vmas.py for all runs, names and values separated by spaces, such as `n_steps 1
    critic_num_cells "(128,)"`; give another --output with it"""
    output: Path = RESULTS
    """where the results go: runs/TASK/ALGORITHM-seedSEED.json"""
    run_folders: Path = ROOT / "runs" / "learning"
    """where runs are while they go on, and where the logs of failed ones stay"""
    quick: bool = False
    """see in a minute that it works, in runs/learning-quick: runs of one task, too short to tell anything"""


QUICK = {
    "tasks": ("guess_the_sum",),
    "algorithms": ("bicnet", "none_id"),
    "seeds": (0, 1),
    "updates": 80,
    "recipe": {"num_envs": 32, "eval_episodes": 50, "test_episodes": 50, "compile": False},
    "output": ROOT / "runs" / "learning-quick",
    "run_folders": ROOT / "runs" / "learning-quick" / "running",
}


def main(options: Options) -> int:
    """Run what is missing; returns the number of runs that failed."""
    if options.quick:
        options = replace(options, **QUICK)
    for name, given, known in (("tasks", options.tasks, SUITE), ("algorithms", options.algorithms, ALGORITHMS)):
        if unknown := [each for each in given if each not in known]:
            raise ValueError(f"--{name} must be of {', '.join(known)}, found {', '.join(unknown)}.")
    return run_missing(list(plan(options)), options, outcome=test_score, output=options.output)


def plan(options: Options) -> Iterator[Job]:
    """Every run, in the order in which they are to run; options that one would not take are refused."""
    for seed, task, algorithm in itertools.product(options.seeds, options.tasks, options.algorithms):
        run_options = learning_run.Options(task, algorithm, seed, Path(), recipe=options.recipe)
        learning_run.train_options(SUITE[task], ALGORITHMS[algorithm], run_options)
        yield job_of(task, algorithm, seed, options)


def job_of(task: str, algorithm: str, seed: int, options: Options) -> Job:
    name = f"{task}/{algorithm}-seed{seed}"
    result = options.output / "runs" / f"{name}.json"
    factor = ALGORITHMS[algorithm].budget if options.equal_seconds else 1.0
    command = [sys.executable, "-m", "benchmarks.learning_run", "--task", task, "--algorithm", algorithm]
    command += ["--seed", seed, "--updates", round(factor * options.updates)]
    command += ["--output", result.absolute(), "--run-folder", options.run_folders.absolute() / name]
    if options.recipe:
        command += ["--recipe", *itertools.chain(*options.recipe.items())]
    if algorithm == OURS and seed == min(options.seeds):
        command += ["--team", (options.output / "teams" / task).absolute()]
    return Job(name, tuple(map(str, command)), result, options.run_folders / f"{name}.log")


def test_score(result: Path) -> str:
    mean, error = json.loads(result.read_text())["test"]["after"]
    return f"{mean:.3f} ± {error:.2g} in the test"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that its processes end too
    try:
        sys.exit(min(main(tyro.cli(Options, description=__doc__)), 1))
    except (TypeError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
