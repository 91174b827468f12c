"""Every scenario of VMAS compiled: how long it takes, how fast its step is and how far it is from the uncompiled one.

Each scenario runs in a process of its own, with an empty Inductor cache; what it measured is written at once.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from tensordict import TensorDictBase
from torchrl.envs import EnvBase
from tqdm import tqdm
from vmas import debug_scenarios, mpe_scenarios, scenarios

from torchrl_bicnet import make_vmas_env, restore, snapshot
from torchrl_bicnet.runs.provenance import provenance

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Options:
    scenarios: tuple[str, ...] = tuple(sorted([*scenarios, *mpe_scenarios, *debug_scenarios]))
    """VMAS scenarios"""
    num_envs: int = 64
    """environments simulated in one batch"""
    states: int = 8
    """states of the batch, three steps apart, from which a compiled and an uncompiled step are compared"""
    turns: int = 20
    """turns of both, ten steps each"""
    limit: int = 300
    """seconds for a scenario"""
    output: Path = ROOT / "benchmarks" / "results" / "compiled" / "scenarios.json"
    """where the results go; scenarios that are there already are kept"""
    inside: bool = False
    """measure the one scenario in this process and print its results"""


def main(options: Options) -> None:
    if options.inside:
        print(json.dumps(measure(options.scenarios[0], options)))
        return
    results = json.loads(options.output.read_text()) if options.output.exists() else {"about": {}, "scenarios": {}}
    results["about"] = {**provenance(), "threads": torch.get_num_threads(), "num_envs": options.num_envs}
    bar = tqdm([name for name in options.scenarios if name not in results["scenarios"]], unit="scenario")
    for name in bar:
        bar.set_postfix_str(name)
        results["scenarios"][name] = apart(name, options)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=2) + "\n")


def apart(name: str, options: Options) -> dict[str, Any]:
    flags = ["--num-envs", options.num_envs, "--states", options.states, "--turns", options.turns]
    command = [sys.executable, __file__, "--inside", "--scenarios", name, *map(str, flags)]
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
        try:
            run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=options.limit)
        except subprocess.TimeoutExpired:
            return {"left_out": f"took longer than {options.limit} seconds"}
    if run.returncode:
        return {"left_out": run.stderr.strip().splitlines()[-1]}
    return json.loads(run.stdout.splitlines()[-1])


def measure(name: str, options: Options) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    plain = make_vmas_env(name, options.num_envs, seed=0)
    start = cpu_seconds()
    try:
        compiled = make_vmas_env(name, options.num_envs, seed=0, compile=True)
    except ValueError as error:
        return {"refused": str(error)}
    result: dict[str, Any] = {"cpu_seconds_to_compile": round(cpu_seconds() - start, 1)}
    torch.manual_seed(0)
    difference, dones = 0.0, True
    td = compiled.reset()
    for _ in range(options.states):
        for _ in range(3):
            td = compiled.step(compiled.rand_action(td))["next"]
        restore(plain, snapshot(compiled))
        td = compiled.rand_action(td)
        expected, td = plain.step(td.clone())["next"], compiled.step(td)["next"]
        for key, value in td.items(True, True):
            if value.is_floating_point():
                scale = expected[key].abs().clamp(min=1)
                difference = max(difference, ((value - expected[key]).abs() / scale).max().item())
            else:
                dones = dones and bool((value == expected[key]).all())
    result |= {"largest_difference": difference, "dones_and_counts_equal": dones}
    seconds: dict[str, list[float]] = {"compiled": [], "uncompiled": []}
    tds = {"compiled": td, "uncompiled": td.clone()}
    for _ in range(options.turns):
        for kind, env in (("compiled", compiled), ("uncompiled", plain)):
            start = time.perf_counter()
            tds[kind] = play(env, tds[kind])
            seconds[kind].append((time.perf_counter() - start) / 10)
    milliseconds = {kind: round(1e3 * statistics.median(found), 3) for kind, found in seconds.items()}
    return result | {"milliseconds": milliseconds, "seconds_per_step": seconds}


def cpu_seconds() -> float:
    """Of this process and of the compilers that it has called."""
    return sum(os.times()[:4])


def play(env: EnvBase, td: TensorDictBase) -> TensorDictBase:
    for _ in range(10):
        td = env.step(env.rand_action(td))["next"]
    return td


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
