"""One run of the study of team sizes: trained on some, tested on all, to one JSON file. `team_sizes.py` runs many."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torchrl import torchrl_logger

from benchmarks.learning_run import Value, differing, write
from benchmarks.suite import SUITE, Task
from examples import train_vmas
from torchrl_bicnet import Run, evaluate, load_run
from torchrl_bicnet.evaluation import mean_and_stderr
from torchrl_bicnet.runs import TEST_SEED, validated
from torchrl_bicnet.runs.provenance import command_line, provenance

# Options of examples/train_vmas.py
CONTENDERS: dict[str, dict[str, Any]] = {
    "gru": {"communication": "gru"},
    "gru, shuffled": {"communication": "gru", "shuffle_agents": True},
    "mean": {"communication": "mean"},
    "attention": {"communication": "attention"},
    "none": {"communication": "none"},
}


@dataclass
class Options:
    task: str
    """a name of benchmarks/suite.py; its number of agents is not used"""
    contender: str
    """a name of CONTENDERS"""
    seed: int
    """of the training"""
    sizes: tuple[int, ...]
    """of the teams that it is trained on, in as many environments each"""
    test_sizes: tuple[int, ...]
    """of the teams that it is tested on"""
    output: Path
    """the JSON file to write, once the run is done"""
    frames: int = 102_400
    """of each size"""
    episodes: int = 300
    """of a test, from the same start states for every run"""
    recipe: dict[str, Value] | None = None
    """options of examples/train_vmas.py, names and values separated by spaces"""


def main(options: Options) -> None:
    task = SUITE[options.task]
    chosen = train_options(task, options)
    with tempfile.TemporaryDirectory() as folder, Run(Path(folder, "run"), asdict(chosen)) as run:
        train_vmas.train(chosen, run)
        trained = load_run(run.folder)
        tests = {}
        for n_agents in options.test_sizes:
            env = trained.make_env(options.episodes, n_agents=n_agents)
            found = evaluate(env, trained.policy, max_steps=task.max_steps, seed=TEST_SEED)
            [returns] = found.team_returns().values()
            tests[str(n_agents)] = [round(number, 4) for number in mean_and_stderr(returns)]
    write(
        options.output,
        {
            "task": options.task,
            "contender": options.contender,
            "sizes": list(options.sizes),
            "seed": options.seed,
            "command": command_line(__file__),
            **provenance(),
            "options": differing(chosen),
            "episodes": options.episodes,
            "tests": tests,  # size to mean return per agent and its standard error
        },
    )


def train_options(task: Task, options: Options) -> train_vmas.Options:
    others = {name: value for name, value in task.scenario_options.items() if name != "n_agents"}
    chosen = train_vmas.Options(
        scenario=task.scenario,
        scenario_options=others,
        n_agents=options.sizes,
        max_steps=task.max_steps,
        seed=options.seed,
        total_frames=options.frames * len(options.sizes),
        checkpoint_buffer=False,
        **{"compile": True, **CONTENDERS[options.contender], **(options.recipe or {})},
    )
    values: dict[str, Any] = asdict(chosen)
    # Once, at the end, as short as it goes: the study has tests of its own
    rare = {"checkpoint_interval": chosen.total_frames, "eval_interval": chosen.total_frames, "test_episodes": 20}
    return validated(train_vmas.Options, values | rare)


if __name__ == "__main__":
    torchrl_logger.setLevel("WARNING")
    torch.set_num_threads(1)
    try:
        main(tyro.cli(Options, description=__doc__))
    except (KeyError, ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
