"""What collecting teams of several sizes as one batch costs, beside the same environments size by size.

Frames are collected by TorchRL's Collector with BiCNet and noise, in turns in one process; the ratio is of medians.
It is started from the root of the repository, as `python -m benchmarks.mixed_collection`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from tensordict import TensorDictBase
from tensordict.nn import TensorDictSequential
from torchrl import torchrl_logger
from torchrl.collectors import Collector

from benchmarks import env_throughput
from benchmarks.env_throughput import ROOT, Block, compare
from torchrl_bicnet import BiCNetActor, ExplorationNoise, make_vmas_env
from torchrl_bicnet.runs.provenance import command_line, provenance

MAX_STEPS = 100
TOGETHER, APART = "together", "apart"


@dataclass
class Options:
    scenario: str = "navigation"
    """VMAS scenario whose observation does not depend on the number of agents"""
    sizes: tuple[int, ...] = (2, 3, 4, 6)
    """of the teams"""
    num_envs: tuple[int, ...] = (64, 512)
    """environments of all sizes together"""
    compile: tuple[bool, ...] = (False, True)
    """the step of the environments"""
    steps: int = 100
    """of a turn, a multiple of 10"""
    repeats: int = 7
    """turns of each"""
    output: Path = ROOT / "benchmarks" / "results" / "mixed_collection" / "cpu.json"
    """where the results go"""


def main(options: Options) -> None:
    about = {"command": command_line(__file__), **provenance()}
    cells = []
    for num_envs in options.num_envs:
        for compile in options.compile:
            torch.manual_seed(0)
            blocks = {
                TOGETHER: collection(options, [(options.sizes, num_envs)], compile),
                APART: collection(options, [(n, num_envs // len(options.sizes)) for n in options.sizes], compile),
            }
            timing = env_throughput.Options(repeats=options.repeats)
            found = compare(blocks, num_envs, [(APART, TOGETHER)], timing, steps=options.steps)
            cells.append({"scenario": options.scenario, "num_envs": num_envs, "compile": compile, **found})
            cost = found["per_second"][APART] / found["per_second"][TOGETHER]
            print(f"{num_envs} environments{', compiled' if compile else ''}: {cost:.2f} times the sum of the sizes")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    chosen = {name: value for name, value in asdict(options).items() if name != "output"}
    options.output.write_text(json.dumps({"about": about, "options": chosen, "cells": cells}, indent=2) + "\n")


def collection(options: Options, batches: Sequence[tuple[int | tuple[int, ...], int]], compile: bool) -> Block:
    """So many steps of each of some batches of environments, given by their sizes of teams and their number."""
    collectors = [iter(collect(options.scenario, *batch, compile)) for batch in batches]

    def block(steps: int) -> None:
        for collector in collectors:
            for _ in range(steps // 10):
                next(collector)

    return block


def collect(scenario: str, n_agents: int | tuple[int, ...], num_envs: int, compile: bool) -> Iterator[TensorDictBase]:
    env = make_vmas_env(scenario, num_envs, n_agents=n_agents, max_steps=MAX_STEPS, seed=0, compile=compile)
    actor = BiCNetActor.from_env(env, communication="gru")
    noise = ExplorationNoise(actor.spec, sigma=(0.05, 1.2), correlation=0.9, mask_key=actor.mask_key)
    return Collector(
        env,
        TensorDictSequential(actor, noise),
        frames_per_batch=10 * num_envs,
        total_frames=-1,
        track_traj_ids=False,
        return_same_td=True,
    )


if __name__ == "__main__":
    torchrl_logger.setLevel("WARNING")
    try:
        main(tyro.cli(Options, description=__doc__))
    except (TypeError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
