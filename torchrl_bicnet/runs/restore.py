"""A trained team and its environment, loaded from a run folder."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tensordict.nn import TensorDictSequential
from torch import nn
from torchrl.checkpoint import CheckpointError
from torchrl.envs import EnvBase

from torchrl_bicnet.envs import make_vmas_env
from torchrl_bicnet.modules import BiCNetActor
from torchrl_bicnet.net import BiCNet
from torchrl_bicnet.runs.checkpoints import Checkpoints
from torchrl_bicnet.runs.files import read_options

# Start states of the evaluations during training, and of the test before and after it: used for nothing else.
EVAL_SEED, TEST_SEED = 1_000_001, 1_000_002

# Options of a run that shape its actors and its environment; one that a run predates has the library's default.
_NET_OPTIONS = frozenset(inspect.signature(BiCNet.__init__).parameters) - {"self", "n_agents", "device"}
_ENV_OPTIONS = frozenset({"scenario", "scenario_options", "n_agents", "max_steps", "pad"})
# Options of examples/train_vmas.py that shape neither.
_TRAINING_OPTIONS = frozenset(
    [
        "num_envs",
        "seed",
        "device",
        "cuda_graph",  # of earlier versions
        "compile",
        "total_frames",
        "frames_per_batch",
        "updates_per_batch",
        "batch_size",
        "buffer_size",
        "gamma",
        "tau",
        "actor_lr",
        "critic_lr",
        "max_grad_norm",
        "actor_warmup",
        "critic_num_cells",
        "n_steps",
        "saturation_penalty",
        "shuffle_agents",
        "reward_rms",
        "reward_size",  # of earlier versions
        "sigma",
        "correlation",
        "sigma_end",  # of earlier versions
        "sigma_start",  # of earlier versions
        "sigma_fraction",  # of earlier versions
        "eval_interval",
        "eval_episodes",
        "film_interval",
        "test_episodes",
        "logger",
        "progress",
        "checkpoint_interval",
        "checkpoint_buffer",
        "config",
        "run_folder",
        "resume",
    ]
)


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """A run of ``examples/train_vmas.py``: its options, its trained actors and its environment.

    Args:
        options (dict): name to value, as ``run.json`` has it.
        actors (dict): group to :class:`~torchrl_bicnet.BiCNetActor`.
        device (torch.device): where the actors are, and where environments are made.

    Example:
        >>> from torchrl_bicnet import make_vmas_env
        >>> actors = {"agents": BiCNetActor.from_env(make_vmas_env("navigation", num_envs=1))}
        >>> run = TrainedRun({"scenario": "navigation"}, actors, "cpu")
        >>> run.policy(run.make_env(num_envs=3).reset())["agents", "action"].shape
        torch.Size([3, 4, 2])
    """

    options: dict[str, Any]
    actors: dict[str, BiCNetActor]
    device: torch.device | str

    @property
    def policy(self) -> TensorDictSequential:
        """The actors one after the other, which act for every group."""
        return TensorDictSequential(*self.actors.values())

    def make_env(self, num_envs: int, *, seed: int | None = None, n_agents: int | None = None) -> EnvBase:
        """The run's environment, with another number of copies and its own random stream.

        Args:
            num_envs (int): number of environments.

        Keyword Args:
            seed (int, optional): of its random stream.
            n_agents (int, optional): agents of a team, also another number than in the training. ``None``: as there.
        """
        return _make_env(self.options, num_envs, self.device, seed, n_agents)


def load_run(
    folder: Path | str, *, checkpoint: Literal["last", "best"] = "last", device: torch.device | str = "cpu"
) -> TrainedRun:
    """The trained actors of a run folder, and what their environment is made from.

    Folders of earlier versions load too: an option that did not exist then has its default. An option that this version
    does not know is named in a warning.

    Args:
        folder (Path or str): a run folder of ``examples/train_vmas.py``.

    Keyword Args:
        checkpoint (str): ``"last"``, or ``"best"`` by evaluation return during training. Defaults to ``"last"``.
        device (torch.device): where the actors and the environments go, wherever they were trained.

    Raises:
        FileNotFoundError: without a run.
        CheckpointError: if there is no such checkpoint, or a damaged one.

    Example:
        >>> from torchrl_bicnet import evaluate
        >>> run = load_run("benchmarks/results/navigation/seed0")
        >>> run.options["scenario"], list(run.actors)
        ('navigation', ['agents'])
        >>> evaluation = evaluate(run.make_env(num_envs=8), run.policy, max_steps=run.options["max_steps"], seed=1)
        >>> evaluation.summary()["evaluation_return"] > 3
        True
    """
    if checkpoint not in ("last", "best"):
        raise ValueError(f"checkpoint must be 'last' or 'best', found {checkpoint!r}.")
    options = read_options(folder)
    unknown = sorted(options.keys() - _NET_OPTIONS - _ENV_OPTIONS - _TRAINING_OPTIONS)
    if unknown:
        warnings.warn(f"{folder}: options that this version does not know: {', '.join(unknown)}.", stacklevel=2)
    env = _make_env(options, max(len(options.get("n_agents", ())), 1), device, seed=0)
    net_options = {name: value for name, value in options.items() if name in _NET_OPTIONS}
    if "activation_class" in net_options:
        net_options["activation_class"] = getattr(nn, net_options["activation_class"])
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are overwritten
        actors = {group: BiCNetActor.from_env(env, group=group, **net_options) for group in env.group_map}
    checkpoints = Checkpoints(Path(folder) / "checkpoints", {f"{group}.actor": actors[group] for group in actors})
    path = checkpoints.best() if checkpoint == "best" else checkpoints.latest()
    if path is None:
        raise CheckpointError(f"The run in {folder} has no {checkpoint} checkpoint yet, or a damaged one.")
    checkpoints.load(path, map_location=device)
    return TrainedRun(options, actors, device)


def _make_env(
    options: dict[str, Any], num_envs: int, device: torch.device | str, seed: int | None, n_agents: int | None = None
) -> EnvBase:
    same = {name: options[name] for name in ("max_steps", "pad") if name in options}
    if not isinstance(options.get("scenario"), str):
        raise ValueError(f"run.json names no scenario, found {options.get('scenario')!r}.")
    scenario_options = dict(options.get("scenario_options", {}))
    if sizes := options.get("n_agents"):  # actors of mixed teams read a mask
        scenario_options["n_agents"] = sizes if n_agents is None else [n_agents]
    elif n_agents is not None:
        scenario_options["n_agents"] = n_agents
    return make_vmas_env(options["scenario"], num_envs, device=device, seed=seed, **same, **scenario_options)
