"""Runs of a grid, each a process of its own that leaves one file: some at a time, resumable, with a bound."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
POLL = 0.2  # seconds between two looks at the processes


@dataclass(kw_only=True)
class Bounds:
    """Options that every grid has."""

    jobs: int = 1
    """processes at a time, each with one thread"""
    max_minutes: float = float("inf")
    """no run is started after so many minutes"""


@dataclass(frozen=True)
class Job:
    """A run: its name, its command, started in the root of the repository with one thread, and the file it leaves."""

    name: str
    command: tuple[str, ...]
    result: Path
    log: Path  # of what it says; kept if it fails


def run_missing(jobs: Sequence[Job], bounds: Bounds, *, outcome: Callable[[Path], str], output: Path) -> int:
    """Run those whose file is not there, in their order; the number of runs that failed.

    Each that ends is told, with the ``outcome`` of its file; those that failed at the end, with their last lines. None
    is started after so many minutes.
    """
    missing = [job for job in jobs if not job.result.exists()]
    print(f"{len(missing)} runs to do", file=sys.stderr)
    failures = _run(missing, bounds, outcome)
    left = sum(not job.result.exists() for job in missing) - len(failures)
    if left:
        print(f"{left} runs are left for later: start it again.")
    for name, why in failures.items():
        print(f"{name} failed: {why}")
    print(f"The results are in {output}")
    return len(failures)


def _run(jobs: Sequence[Job], bounds: Bounds, outcome: Callable[[Path], str]) -> dict[str, str]:
    waiting, failures = list(jobs), {}
    running: dict[Job, tuple[subprocess.Popen[bytes], float]] = {}
    first, ended = time.monotonic(), 0
    try:
        while True:
            if time.monotonic() >= first + 60 * bounds.max_minutes:
                waiting.clear()
            while waiting and len(running) < bounds.jobs:
                job = waiting.pop(0)
                running[job] = _start(job), time.monotonic()
            for job, (process, begin) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[job]
                if job.result.exists():
                    job.log.unlink()
                    found = outcome(job.result)
                else:
                    failures[job.name] = last_lines(job.log) or f"exit code {process.returncode}"
                    found = "failed"
                now, ended = time.monotonic(), ended + 1
                minutes = (now - first) / 60 / ended * (len(jobs) - ended)
                print(
                    f"{job.name}: {found} after {now - begin:.0f} s. {ended} of {len(jobs)} runs have ended; "
                    f"all others would take about {minutes:.0f} minutes",
                    file=sys.stderr,
                )
            if not running and not waiting:
                return failures
            time.sleep(POLL)
    finally:  # by an error or a signal
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.wait()


def _start(job: Job) -> subprocess.Popen[bytes]:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("wb") as output:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(job.command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)


def last_lines(log: Path) -> str:
    """The end of what a run said, without the states of its progress bar."""
    lines = [line.split("\r")[-1] for line in log.read_bytes().decode(errors="replace").split("\n")]
    return "\n".join([line for line in lines if line.strip()][-5:])
