"""BiCNet for TorchRL: actors and critics that communicate by a bidirectional recurrence over the agents.

Here is what one composes with; the rest is by its wing: :mod:`~torchrl_bicnet.analysis` looks inside a trained team,
:mod:`~torchrl_bicnet.rendering` draws it, :mod:`~torchrl_bicnet.runs` reads, compares and plots runs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any
from warnings import warn

from torchrl_bicnet.communication import (
    AttentionCommunication,
    MeanCommunication,
    NoCommunication,
    RecurrentAttentionCommunication,
    RecurrentCommunication,
)
from torchrl_bicnet.envs import detach, make_vmas_env, restore, snapshot
from torchrl_bicnet.evaluation import Evaluation, evaluate, paired_difference
from torchrl_bicnet.exploration import ExplorationNoise
from torchrl_bicnet.memory import AgentMemory
from torchrl_bicnet.modules import BiCNetActor, BiCNetCritic
from torchrl_bicnet.net import BiCNet
from torchrl_bicnet.objectives import make_ddpg_loss
from torchrl_bicnet.plain import load_plain_bicnet
from torchrl_bicnet.rewards import RewardScale
from torchrl_bicnet.shuffle import shuffle_agents
from torchrl_bicnet.update import UpdateStep

if TYPE_CHECKING:
    from torchrl_bicnet.runs import Checkpoints, CollectorState, Run, load_run

__version__ = "0.1.0"

__all__ = [
    "AgentMemory",
    "AttentionCommunication",
    "BiCNet",
    "BiCNetActor",
    "BiCNetCritic",
    "Checkpoints",
    "CollectorState",
    "Evaluation",
    "ExplorationNoise",
    "MeanCommunication",
    "NoCommunication",
    "RecurrentAttentionCommunication",
    "RecurrentCommunication",
    "RewardScale",
    "Run",
    "UpdateStep",
    "detach",
    "evaluate",
    "load_plain_bicnet",
    "load_run",
    "make_ddpg_loss",
    "make_vmas_env",
    "paired_difference",
    "restore",
    "shuffle_agents",
    "snapshot",
]

# Found when they are asked for: runs need a newer TorchRL than the rest, which BenchMARL's takes too.
_OF_RUNS = ("Checkpoints", "CollectorState", "Run", "load_run")

# Names that moved to a wing, by their wing; importing them from here goes with 0.2.
_MOVED = {
    "analysis": (
        "Channel",
        "ChannelValue",
        "OrderSensitivity",
        "channel_value",
        "example_channels",
        "influence",
        "influence_matrix",
        "intervene",
        "order_sensitivity",
        "plot_channel_value",
        "plot_influence",
        "plot_order_sensitivity",
        "reorder",
        "visited_states",
    ),
    "rendering": ("record", "render", "save_film"),
    "runs": ("interquartile_mean", "learning_curves", "plot_learning_curves", "read_options", "verify_checkpoint"),
}


def __getattr__(name: str) -> Any:
    if name in (*_MOVED, "tasks"):
        return import_module(f"torchrl_bicnet.{name}")
    if name in _OF_RUNS:
        return getattr(import_module("torchrl_bicnet.runs"), name)
    for wing, names in _MOVED.items():
        if name in names:
            warn(
                f"torchrl_bicnet.{name} is now torchrl_bicnet.{wing}.{name}; the old name goes with 0.2.",
                DeprecationWarning,
                stacklevel=2,
            )
            return getattr(import_module(f"torchrl_bicnet.{wing}"), name)
    raise AttributeError(f"module 'torchrl_bicnet' has no attribute {name!r}")
