"""What scripted policies reach on the tasks of the suite, with and without communication, and what none can exceed.

The scripts are strong, not proven best; the limits are proven, and their derivations are in the docstrings. Over the
start states that trained teams are tested from the scripts are run too: a ratio to them has then no error from start
states that happen to be hard.
Run it as `python -m benchmarks.references`.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from tensordict.nn import TensorDictModule
from torch import Tensor
from tqdm import tqdm

from benchmarks.navigation_return import upper_bound
from benchmarks.scripted_policies import DROPOUT_REACH, DT, EFFECT, KEPT, SCRIPTS, Policy, geometric_median
from benchmarks.suite import SUITE, Task
from examples.train_vmas import Options as Training
from torchrl_bicnet import evaluate
from torchrl_bicnet.runs import TEST_SEED
from torchrl_bicnet.runs.provenance import command_line, provenance

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("without_communication", "with_communication")


@dataclass
class Options:
    tasks: tuple[str, ...] = tuple(SUITE)
    """tasks of the suite"""
    episodes: int = 10_000
    """episodes per policy, the same start states for all policies of a task"""
    seed: int = 3_000_000
    """of the start states"""
    output: Path = ROOT / "benchmarks" / "results" / "learning" / "references.json"
    """where the results go"""
    table: bool = False
    """print the table of the results that are there already"""


def main(options: Options) -> None:
    if options.table:
        print(table(json.loads(options.output.read_text())))
        return
    if unknown := [name for name in options.tasks if name not in SUITE]:
        raise ValueError(f"--tasks must be of {', '.join(SUITE)}, found {', '.join(unknown)}.")
    there = json.loads(options.output.read_text())["tasks"] if options.output.exists() else {}
    if lost := [name for name in there if name not in options.tasks]:
        raise ValueError(f"--output would lose the results of {', '.join(lost)}: give another file.")
    about = {"command": command_line(__file__), "seed": options.seed, **provenance()}
    results: dict[str, Any] = {"about": about, "tasks": {}}
    for name in tqdm(options.tasks, unit="task"):
        task = SUITE[name]
        policies: dict[str, dict[str, float | int]] = {}
        for kind, policy in policies_of(task, options.seed).items():
            policies[kind] = score(task, policy, options.episodes, options.seed)
            policies[kind]["test_mean"] = score(task, policy, Training.test_episodes, TEST_SEED)["mean"]
        results["tasks"][name] = {
            "scenario": task.scenario,
            "scenario_options": task.scenario_options,
            "max_steps": task.max_steps,
            "reported": task.reported,
            "policies": policies,
            "limits": limits(task, options),
        }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))


def score(task: Task, policy: Policy, episodes: int, seed: int) -> dict[str, float | int]:
    env = task.make_env(episodes, seed=seed)
    module = TensorDictModule(policy, in_keys=[("agents", "observation")], out_keys=[("agents", "action")])
    scores = task.score(evaluate(env, module, max_steps=task.max_steps, seed=seed).returns["agents"]).double()
    error = scores.std().item() / len(scores) ** 0.5
    return {"mean": scores.mean().item(), "standard_error": error, "episodes": len(scores)}


def policies_of(task: Task, seed: int) -> dict[str, Policy]:
    """Floors, and the best scripts that do without communication and with it."""
    env = task.make_env(1)
    # Its own: that of the evaluation starts as the environment's does, so that actions would depend on start states.
    draws = torch.Generator().manual_seed(seed + 1)
    space = env.full_action_spec["agents", "action"].space
    low, high = space.low[0], space.high[0]  # (N, A)
    silent, talking = SCRIPTS[task.scenario]
    return {
        "random": lambda seen: low + (high - low) * torch.rand(len(seen), *low.shape, generator=draws),
        "zero": lambda seen: torch.zeros(len(seen), *low.shape),
        KINDS[0]: silent,
        KINDS[1]: talking,
    }


def limits(task: Task, options: Options) -> dict[str, float]:
    """What no policy exceeds on average, where it can be derived; for start states that matter, those of the seed."""
    if task.scenario == "guess_the_sum":
        return {"without_communication": -(task.scenario_options["n_agents"] - 1) / 3, "with_communication": 0.0}
    if task.scenario == "hidden_goals":
        return {"without_communication": -silence(task.max_steps), "with_communication": -haste(task.max_steps)}
    if task.scenario == "dispersion":
        return {"with_communication": float(task.scenario_options["n_agents"])}
    if task.scenario == "navigation":
        return {"with_communication": upper_bound(options.episodes, options.seed)}
    env = task.make_env(options.episodes)
    env.set_seed(options.seed)
    start = env.reset()["agents", "observation"]
    if task.scenario == "dropout":
        nearest = start[..., 4:6].norm(dim=-1).amin(-1)  # a force of 1 costs 0.02 / sqrt(2)
        best = 1 - 0.02 / math.sqrt(2) / EFFECT * (nearest - DROPOUT_REACH)
        return {"with_communication": best.clamp(min=0).mean().item()}
    if task.scenario == "speaker_listener":
        landmarks = start[:, 1, 2:8].unflatten(-1, (3, 2))
        silent = -doubt(landmarks, task.max_steps).mean().item()
        return {"without_communication": silent, "with_communication": -haste(task.max_steps)}
    return {}


def reach(steps: int) -> Tensor:
    """How far full force has moved a body in each coordinate, from rest, after 1, 2, ... steps."""
    velocity = DT * (1 - KEPT ** torch.arange(1, steps + 1, dtype=torch.double)) / (1 - KEPT)
    return (DT * velocity).cumsum(0)


def mean_distance(x: Tensor, y: Tensor) -> Tensor:
    """From a place in [-1, 1]^2 to one uniform in it.

    The place cuts the square into four rectangles of sides ``a`` and ``b`` and diagonal ``d``. The integral of the
    distance to their common corner is ``a b d / 3 + a^3 log((b + d) / a) / 6 + b^3 log((a + d) / b) / 6``; the area of
    the square is 4.
    """
    total = torch.zeros_like(x)
    for a, b in itertools.product((1 + x, 1 - x), (1 + y, 1 - y)):
        d = torch.hypot(a, b)
        total += a * b * d / 3 + a**3 * ((b + d) / a).log() / 6 + b**3 * ((a + d) / b).log() / 6
    return total / 4


def silence(steps: int, points: int = 200) -> float:
    """The least expected cost of an episode of hidden goals for an agent that is told nothing of its goal.

    It knows of its goal only that it is uniform, so at a place ``x`` its expected distance is ``h(x)``,
    :func:`mean_distance`. ``h`` is even and convex in each coordinate, so over the places that it can have reached
    after ``t`` steps, a box of half width ``reach(t)`` around the start, it is smallest where each coordinate is as
    near to 0 as can be. The sum over the steps of that minimum, averaged over starts uniform in the square (here a
    grid), is below the cost of every silent policy: it does not ask for one policy that attains all minima.
    """
    starts = (torch.arange(points, dtype=torch.double) + 0.5) / points  # of the absolute value of a coordinate
    near = [(starts - reached).clamp(min=0) for reached in reach(steps)]
    return sum(mean_distance(*torch.meshgrid(left, left, indexing="ij")).mean().item() for left in near)


def haste(steps: int, points: int = 200) -> float:
    """The least expected cost of going from a place to a goal, both uniform in the square, whatever is known.

    After ``t`` steps no coordinate can be nearer to the goal's than its distance at the start minus ``reach(t)``, which
    has density ``1 - s / 2`` for a distance ``s`` at the start in [0, 2].
    """
    starts = (torch.arange(points, dtype=torch.double) + 0.5) * 2 / points
    weight = (1 - starts / 2) / (1 - starts / 2).sum()
    weights = weight.unsqueeze(1) * weight
    near = [(starts - reached).clamp(min=0) for reached in reach(steps)]
    return sum((torch.hypot(left.unsqueeze(1), left) * weights).sum().item() for left in near)


def doubt(landmarks: Tensor, steps: int) -> Tensor:
    """Below the cost of every listener that is told nothing, for landmarks (B, K, 2) relative to its start: (B,).

    Every landmark is as likely to be the goal, so the expected distance is the mean over them: at least that of their
    geometric median, and at least the mean of what :func:`haste` says for each alone.
    """
    median = geometric_median(landmarks).unsqueeze(1)
    at_median = (landmarks - median).norm(dim=-1).mean(-1)
    near = [(landmarks.abs() - reached).clamp(min=0).norm(dim=-1).mean(-1) for reached in reach(steps)]
    return sum(torch.maximum(each, at_median) for each in near)


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = ["| task | steps | random | zero | silent script | silence at best | talking script | limit |"]
    lines.append("|---|" + "--:|" * 7)
    for name, task in results["tasks"].items():
        cells = {kind: f"{one['mean']:.3f} ± {one['standard_error']:.3f}" for kind, one in task["policies"].items()}
        bounds = [f"{task['limits'][kind]:.3f}" if kind in task["limits"] else "" for kind in KINDS]
        row = (cells["random"], cells["zero"], cells[KINDS[0]], bounds[0], cells[KINDS[1]], bounds[1])
        lines.append(f"| {name}, {task['reported']} | {task['max_steps']} | " + " | ".join(row) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
