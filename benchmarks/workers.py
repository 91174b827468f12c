"""Frames per second of collectors with one and two workers, of TorchRL's processes and of Ray, over those of none.

Collected as in examples/train_with_workers.py, weights sent after each batch, each in turns with TorchRL's Collector in
this process; ratios are of medians. Two workers have twice the environments. It is started from the root of the
repository, as `python -m benchmarks.workers`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torchrl import torchrl_logger
from torchrl.collectors import Collector

from benchmarks import env_throughput
from benchmarks.env_throughput import ROOT, Block, compare
from examples import train_with_workers
from torchrl_bicnet import BiCNetActor, ExplorationNoise
from torchrl_bicnet.runs.provenance import command_line, provenance

NONE, WORKERS = "this process", "workers"


@dataclass
class Options:
    backends: tuple[str, ...] = ("processes", "ray")
    """of examples/train_with_workers.py"""
    workers: tuple[int, ...] = (1, 2)
    """of each backend"""
    num_envs: tuple[int, ...] = (64, 1024)
    """environments of a worker"""
    batches: int = 4
    """of ten steps of each environment, in a turn; twice as many workers collect half of them"""
    repeats: int = 7
    """turns of each"""
    output: Path = ROOT / "benchmarks" / "results" / "workers" / "cpu.json"
    """where the results go"""


def main(options: Options) -> None:
    if uneven := [workers for workers in options.workers if options.batches % workers]:
        raise ValueError(f"--batches must be a multiple of --workers, found {options.batches} and {uneven}.")
    about = {"command": command_line(__file__), **provenance()}
    cells = []
    for num_envs in options.num_envs:
        for backend in options.backends:
            for workers in options.workers:
                chosen = train_with_workers.Options(
                    backend=backend, workers=workers, num_envs=num_envs, total_frames=10**9
                )
                found = measure(chosen, options)
                cells.append({"num_envs": num_envs, "backend": backend, "workers": workers, **found})
                [ratio] = found["ratios"].values()
                print(f"{num_envs} environments a worker, {backend}, {workers}: {ratio:.2f} times without", flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in asdict(options).items() if name != "output"}
    options.output.write_text(json.dumps({"about": about, "options": kept, "cells": cells}, indent=2) + "\n")


def measure(chosen: train_with_workers.Options, options: Options) -> dict[str, Any]:
    alone, together = collect(chosen), train_with_workers.collect(chosen, policy(chosen))
    blocks = {NONE: block(alone, 1), WORKERS: block(together, chosen.workers)}
    frames = chosen.num_envs * chosen.steps_per_batch
    try:
        timing = env_throughput.Options(repeats=options.repeats)
        return compare(blocks, frames, [(WORKERS, NONE)], timing, steps=options.batches)
    finally:
        alone.close()
        together.close()


def block(batches: Iterator[TensorDictBase], workers: int) -> Block:
    """So many batches of one worker."""

    def turn(units: int) -> None:
        for _ in range(units // workers):
            next(batches)

    return turn


def collect(options: train_with_workers.Options) -> Generator[TensorDictBase]:
    env = train_with_workers.make_env(options, options.num_envs, options.seed)
    frames = options.num_envs * options.steps_per_batch
    collector = Collector(env, policy(options), frames_per_batch=frames, total_frames=-1)
    yield from collector


def policy(options: train_with_workers.Options) -> TensorDictModuleBase:
    actor = BiCNetActor.from_env(train_with_workers.make_env(options, 1, 0), **train_with_workers.NET)
    return TensorDictSequential(actor, ExplorationNoise(actor.spec, **train_with_workers.NOISE))


if __name__ == "__main__":
    torchrl_logger.setLevel("WARNING")
    torch.set_num_threads(1)
    try:
        main(tyro.cli(Options, description=__doc__))
    except (TypeError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
