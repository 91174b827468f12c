"""What the agents of trained teams say: how well what one agent alone knows can be read from what another one heard.

Of each task with a team that the learning benchmark kept, linear probes in the first steps of episodes. Run it as
`python -m benchmarks.messages`; it takes some seconds and writes a JSON file and a picture beside it.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from benchmarks.learning_run import write
from benchmarks.report_messages import draw_messages, table
from benchmarks.suite import PRIVATE, SUITE
from torchrl_bicnet import BiCNetActor, load_run
from torchrl_bicnet.analysis import linear_probe, visited_states
from torchrl_bicnet.runs.provenance import command_line, provenance

RESULTS = Path(__file__).resolve().parent / "results" / "learning"
RECEIVER, KNOWER = 1, 0  # of the readouts that are kept and drawn


@dataclass
class Options:
    tasks: tuple[str, ...] = tuple(SUITE)
    """names of benchmarks/suite.py; those without a team are left out"""
    teams: Path = RESULTS / "teams"
    """where the teams are, as run folders by task"""
    episodes: int = 2000
    """half of them to fit readouts on, several times as many as a communication layer has outputs"""
    steps: int = 10
    """of each episode, its first: later the own observation tells what was heard, as who arrives knows the goal"""
    seed: int = 4_000_000
    """of the start states"""
    readouts: int = 100
    """states whose readouts are kept"""
    output: Path = RESULTS / "messages.json"
    """where the results go"""


def main(options: Options) -> None:
    if unknown := [name for name in options.tasks if name not in SUITE]:
        raise ValueError(f"--tasks must be of {', '.join(SUITE)}, found {', '.join(unknown)}.")
    tasks = [name for name in options.tasks if (options.teams / name).exists()]
    if not tasks:
        raise ValueError(f"--teams holds no team of {', '.join(options.tasks)}, found {options.teams}.")
    about = {
        "command": command_line(__file__),
        "episodes": options.episodes,
        "steps": options.steps,
        "seed": options.seed,
        **provenance(),
    }
    results = {"about": about, "tasks": {name: probe_team(name, options) for name in tqdm(tasks, unit="task")}}
    write(options.output, results)
    draw_messages(results).savefig(options.output.with_suffix(".png"), dpi=120)
    print(table(results))


def probe_team(name: str, options: Options) -> dict[str, Any]:
    """The coefficients of determination between all agents of a task's team, and some readouts of one pair."""
    run, private = load_run(options.teams / name), PRIVATE[SUITE[name].scenario]
    [actor] = run.actors.values()
    env = run.make_env(options.episodes)
    states = visited_states(env, run.policy, max_steps=options.steps, seed=options.seed)
    knowledge = states[actor.in_keys[0]][..., private.features]
    probe, random = (linear_probe(each, states, knowledge) for each in (actor, untrained(actor, options.seed)))
    some = torch.linspace(0, len(probe.truth) - 1, min(len(probe.truth), options.readouts)).long()
    return {
        "private": private.what,
        "team": {key: run.options[key] for key in ("communication", "seed", "total_frames")},
        "r2": rounded(probe.r2),
        "own_r2": rounded(probe.own_r2),
        "acted_r2": rounded(probe.acted_r2),
        "untrained_r2": rounded(random.r2),
        "untrained_acted_r2": rounded(random.acted_r2),
        "receiver": RECEIVER,
        "knower": KNOWER,
        "truth": rounded(probe.truth[some, KNOWER]),
        "readout": rounded(probe.readout[RECEIVER, some, KNOWER]),
        "own_readout": rounded(probe.own_readout[RECEIVER, some, KNOWER]),
    }


def untrained(actor: BiCNetActor, seed: int) -> BiCNetActor:
    """A copy with weights as before the training: random layers pass on a lot too."""
    fresh = copy.deepcopy(actor)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in fresh.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return fresh


def rounded(rows: Tensor) -> list[list[float | None]]:
    """Numbers of a matrix for JSON; NaN, where there is nothing to know, is none."""
    return [[round(x, 4) if x == x else None for x in row] for row in rows.tolist()]


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
