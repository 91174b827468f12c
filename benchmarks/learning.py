"""The learning benchmark: a grid of tasks, algorithms and seeds, each run a process and a small JSON file.

It is started from the root of the repository, as `python -m benchmarks.learning`.

A run whose file is there is not repeated, so a stopped grid goes on where it stopped; one that was cut off starts
again. A run that fails is reported at the end, with its last lines, and does not stop the others. `python -m
benchmarks.report` makes tables and pictures of the files.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from benchmarks import learning_run
from benchmarks.algorithms import ALGORITHMS, OURS
from benchmarks.learning_run import Value
from benchmarks.suite import SUITE

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "learning"
POLL = 0.2  # seconds between two looks at the processes


@dataclass
class Options:
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
    jobs: int = 1
    """processes at a time, each with one thread"""
    max_minutes: float = float("inf")
    """no run is started after so many minutes"""
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


@dataclass(frozen=True)
class Job:
    """A run of the grid."""

    task: str
    algorithm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.task}/{self.algorithm}-seed{self.seed}"

    def file(self, options: Options) -> Path:
        return options.output / "runs" / f"{self}.json"


def main(options: Options) -> int:
    """Run what is missing; returns the number of runs that failed."""
    if options.quick:
        options = replace(options, **QUICK)
    jobs = missing(options)
    for job in jobs:  # options that no run would take are refused before the first one
        run_options = learning_run.Options(job.task, job.algorithm, job.seed, Path(), recipe=options.recipe)
        learning_run.train_options(SUITE[job.task], ALGORITHMS[job.algorithm], run_options)
    print(f"{len(jobs)} runs to do", file=sys.stderr)
    failures = run_all(jobs, options)
    left = sum(not job.file(options).exists() for job in jobs) - len(failures)
    if left:
        print(f"{left} runs are left for later: start it again.")
    for job, why in failures.items():
        print(f"{job} failed: {why}")
    print(f"The results are in {options.output}")
    return len(failures)


def missing(options: Options) -> list[Job]:
    """Every run that has no file, in the order in which they are to run."""
    for name, given, known in (("tasks", options.tasks, SUITE), ("algorithms", options.algorithms, ALGORITHMS)):
        if unknown := [each for each in given if each not in known]:
            raise ValueError(f"--{name} must be of {', '.join(known)}, found {', '.join(unknown)}.")
    grid = itertools.product(options.seeds, options.tasks, options.algorithms)
    jobs = [Job(task, algorithm, seed) for seed, task, algorithm in grid]
    return [job for job in jobs if not job.file(options).exists()]


def run_all(jobs: Sequence[Job], options: Options) -> dict[Job, str]:
    """Run the jobs, some at a time; the last lines of those that failed."""
    waiting, failures = list(jobs), {}
    running: dict[Job, tuple[subprocess.Popen[bytes], Path, float]] = {}
    first, ended = time.monotonic(), 0
    deadline = first + 60 * options.max_minutes
    try:
        while True:
            if time.monotonic() >= deadline:
                waiting.clear()
            while waiting and len(running) < options.jobs:
                job = waiting.pop(0)
                running[job] = *start(job, options), time.monotonic()
            for job, (process, log, begin) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[job]
                if job.file(options).exists():
                    log.unlink()
                    mean, error = json.loads(job.file(options).read_text())["test"]["after"]
                    outcome = f"{mean:.3f} ± {error:.2g} in the test"
                else:
                    failures[job] = last_lines(log) or f"exit code {process.returncode}"
                    outcome = "failed"
                now, ended = time.monotonic(), ended + 1
                minutes = (now - first) / 60 / ended * (len(jobs) - ended)
                print(
                    f"{job}: {outcome} after {now - begin:.0f} s. {ended} of {len(jobs)} runs have ended; "
                    f"all others would take about {minutes:.0f} minutes",
                    file=sys.stderr,
                )
            if not running and not waiting:
                return failures
            time.sleep(POLL)
    finally:  # by an error or a signal
        for process, *_ in running.values():
            process.terminate()
        for process, *_ in running.values():
            process.wait()


def start(job: Job, options: Options) -> tuple[subprocess.Popen[bytes], Path]:
    """The process of a run, and the file of what it says."""
    log = options.run_folders / f"{job}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command_of(job, options), cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    return process, log


def command_of(job: Job, options: Options) -> list[str]:
    factor = ALGORITHMS[job.algorithm].budget if options.equal_seconds else 1.0
    command = [
        sys.executable,
        "-m",
        "benchmarks.learning_run",
        "--task",
        job.task,
        "--algorithm",
        job.algorithm,
    ]
    command += ["--seed", job.seed, "--updates", round(factor * options.updates)]
    command += ["--output", job.file(options).absolute(), "--run-folder", options.run_folders.absolute() / str(job)]
    if options.recipe:
        command += ["--recipe", *itertools.chain(*options.recipe.items())]
    if job.algorithm == OURS and job.seed == min(options.seeds):
        command += ["--team", (options.output / "teams" / job.task).absolute()]
    return [*map(str, command)]


def last_lines(log: Path) -> str:
    """The end of what a run said, without the states of its progress bar."""
    lines = [line.split("\r")[-1] for line in log.read_bytes().decode(errors="replace").split("\n")]
    return "\n".join([line for line in lines if line.strip()][-5:])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that its processes end too
    try:
        sys.exit(min(main(tyro.cli(Options, description=__doc__)), 1))
    except (TypeError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
