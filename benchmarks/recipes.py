"""What the recipes of docs/recipes.md return when they are trained for longer, with nothing else changed.

Each is run as it is written but for more frames, more updates after a batch and room for all of them in the buffer.
Started from the root of the repository, as `python -m benchmarks.recipes`; with `--recipes` the results of others stay.
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from torch import Tensor
from torchrl import torchrl_logger

from benchmarks.learning_run import write
from torchrl_bicnet import evaluate
from torchrl_bicnet.runs.provenance import command_line, provenance

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "recipes.md").read_text()
RECIPES = {
    title: re.search(r"```python\n(.*?)```", section, re.S).group(1)
    for title, section in (section.split("\n", 1) for section in TEXT.split("\n## ")[1:])
}
# As the text of PPO says
RECIPES["PPO by MAPPOLoss"] = (
    RECIPES["PPO"].replace("objectives import Clip", "objectives.multiagent import MA").replace("ClipPPO", "MAPPO")
)
FIRST_TEST = 1_000_000  # seed of start states that no training sees


class Longer(NamedTuple):
    """How long a recipe is trained."""

    frames: int = 64_000
    updates: int = 8
    """after a batch of collected frames; of PPO, passes over it"""


LONGER = {
    "TD3": Longer(32_000),
    "SAC": Longer(),
    "SAC with discrete actions": Longer(),
    "DDPG with discrete actions": Longer(32_000),
    "PPO": Longer(),
    "PPO by MAPPOLoss": Longer(),
    "PPO with discrete actions": Longer(),
    "PPO with memory": Longer(),
    "DDPGTrainer": Longer(32_000),
}


@dataclass
class Options:
    recipes: tuple[str, ...] = tuple(LONGER)
    """titles of docs/recipes.md"""
    seed: int = 0
    """of weights, noise, start states and minibatches"""
    episodes: int = 320
    """at least, of the tests before and after training, with start states of their own"""
    output: Path = ROOT / "benchmarks" / "results" / "recipes.json"
    """where the results go"""


def main(options: Options) -> None:
    if unknown := [title for title in options.recipes if title not in LONGER]:
        raise ValueError(f"--recipes must be of {'; '.join(LONGER)}, found {'; '.join(unknown)}.")
    results = json.loads(options.output.read_text()) if options.output.exists() else {}
    about = {"command": command_line(__file__), **provenance()}
    for title in options.recipes:
        found = train(title, options.seed, options.episodes)
        print("{}: {before:.2f} before, {after:.2f} after {seconds:.0f} seconds".format(title, **found), flush=True)
        results[title] = {**found, "about": about}
    write(options.output, {title: results[title] for title in LONGER if title in results})


def train(title: str, seed: int, episodes: int) -> dict[str, Any]:
    """A recipe's mean test returns before and after, with standard errors, and how long its training took."""
    build, loop = halves(lengthened(title))
    namespace: dict[str, Any] = {}
    torch.manual_seed(seed)
    exec(compile(build, title, "exec"), namespace)
    before = returns_of(namespace, episodes)
    namespace["env"].set_seed(seed)
    began = time.process_time()
    exec(compile(loop, title, "exec"), namespace)
    seconds = time.process_time() - began
    after = returns_of(namespace, episodes)
    return {
        **LONGER[title]._asdict(),
        "seconds": round(seconds, 1),
        "before": round(before.mean().item(), 3),
        "after": round(after.mean().item(), 3),
        "stderr": round(after.std().item() / len(after) ** 0.5, 3),
    }


def lengthened(title: str) -> str:
    longer = LONGER[title]
    code, lengths = re.subn(r"total_frames=[\d_]+", f"total_frames={longer.frames}", RECIPES[title])
    code, loops = re.subn(r"(?<=range\()\d+(?=\):)|(?<=optim_steps_per_batch=)\d+", str(longer.updates), code)
    if not lengths or loops != 1:
        raise ValueError(f"Of {title} it is not clear how it is trained for longer.")
    return re.sub(r"(?<=LazyTensorStorage\()[\d_]+", str(longer.frames), code)


def halves(code: str) -> tuple[str, str]:
    """What builds the loss of a recipe, and what trains it."""
    start = re.search("^(for batch in|trainer.train)", code, re.M).start()
    return code[:start], code[start:]


def returns_of(namespace: dict[str, Any], episodes: int) -> Tensor:
    """Returns of the recipe's policy without exploration, in as many episodes at a time as it has environments."""
    env, policy = namespace["env"], namespace.get("evaluated", namespace["actor"])
    seeds = range(FIRST_TEST, FIRST_TEST + math.ceil(episodes / env.batch_size[0]))
    return torch.cat([evaluate(env, policy, max_steps=100, seed=each).team_returns()["agents"] for each in seeds])


if __name__ == "__main__":
    torchrl_logger.setLevel("WARNING")
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.set_num_threads(1)
    try:
        main(tyro.cli(Options, description=__doc__))
    except (TypeError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
