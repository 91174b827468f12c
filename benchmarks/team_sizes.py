"""Teams of other sizes than in training: networks trained on one size and on several, tested on all.

A grid of runs, each a process and a small JSON file; a run whose file is there is not repeated. It is started from the
root of the repository, as `python -m benchmarks.team_sizes`; `python -m benchmarks.report` draws what it leaves.
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

from benchmarks.grid import ROOT, Bounds, Job, run_missing
from benchmarks.learning_run import Value
from benchmarks.suite import SUITE
from benchmarks.team_sizes_run import CONTENDERS

RESULTS = ROOT / "benchmarks" / "results" / "team_sizes"


@dataclass
class Options(Bounds):
    tasks: tuple[str, ...] = ("navigation", "hidden_goals_4")
    """names of benchmarks/suite.py, whose observation does not depend on the number of agents"""
    contenders: tuple[str, ...] = tuple(CONTENDERS)
    """names of benchmarks/team_sizes_run.py, trained on all sizes; the first one on each size alone too"""
    sizes: tuple[int, ...] = (2, 3, 4, 6)
    """of the teams in training"""
    test_sizes: tuple[int, ...] = tuple(range(2, 13))
    """of the teams in the tests"""
    seeds: tuple[int, ...] = (100, 101, 102)
    """of the trainings"""
    frames: int = 102_400
    """of each size"""
    recipe: dict[str, Value] = field(default_factory=dict)
    """options of examples/train_vmas.py for all runs, names and values separated by spaces"""
    output: Path = RESULTS
    """where the results go: TASK/CONTENDER-SIZES-seedSEED.json"""
    logs: Path = ROOT / "runs" / "team_sizes"
    """where the logs of failed runs stay"""
    quick: bool = False
    """see in a minute that it works, in runs/team_sizes-quick: runs too short to tell anything"""


QUICK = {
    "tasks": ("hidden_goals_4",),
    "contenders": ("gru",),
    "sizes": (2, 3),
    "test_sizes": (2, 3, 4),
    "seeds": (0,),
    "frames": 320,
    "recipe": {"num_envs": 32, "frames_per_batch": 320, "eval_episodes": 20, "test_episodes": 20, "compile": False},
    "output": ROOT / "runs" / "team_sizes-quick",
}


def main(options: Options) -> int:
    if options.quick:
        options = replace(options, **QUICK)
    for name, given, known in (("tasks", options.tasks, SUITE), ("contenders", options.contenders, CONTENDERS)):
        if unknown := [each for each in given if each not in known]:
            raise ValueError(f"--{name} must be of {'; '.join(known)}, found {'; '.join(unknown)}.")
    return run_missing(list(plan(options)), options, outcome=scores, output=options.output)


def plan(options: Options) -> Iterator[Job]:
    """The first seed of all runs before the second."""
    for seed, task in itertools.product(options.seeds, options.tasks):
        for contender in options.contenders:
            yield job_of(task, contender, options.sizes, seed, options)
        for size in options.sizes:
            yield job_of(task, options.contenders[0], (size,), seed, options)


def job_of(task: str, contender: str, sizes: tuple[int, ...], seed: int, options: Options) -> Job:
    name = f"{task}/{contender.replace(', ', '_')}-{'_'.join(map(str, sizes))}-seed{seed}"
    result = options.output / f"{name}.json"
    command = [sys.executable, "-m", "benchmarks.team_sizes_run", "--task", task, "--contender", contender]
    command += ["--seed", seed, "--sizes", *sizes, "--test-sizes", *options.test_sizes, "--frames", options.frames]
    command += ["--output", result.absolute()]
    if options.recipe:
        command += ["--recipe", *itertools.chain(*options.recipe.items())]
    return Job(name, tuple(map(str, command)), result, options.logs / f"{name}.log")


def scores(result: Path) -> str:
    tests = json.loads(result.read_text())["tests"]
    return ", ".join(f"{mean:.2f} with {size} agents" for size, (mean, _) in tests.items())


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that its processes end too
    try:
        sys.exit(min(main(tyro.cli(Options, description=__doc__)), 1))
    except (TypeError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
