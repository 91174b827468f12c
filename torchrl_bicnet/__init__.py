"""BiCNet for TorchRL: actors and critics that communicate by a bidirectional recurrence over the agents.

Here is what one composes with; the rest is by its wing: :mod:`~torchrl_bicnet.analysis` looks inside a trained team,
:mod:`~torchrl_bicnet.rendering` draws it, :mod:`~torchrl_bicnet.export` takes it elsewhere,
:mod:`~torchrl_bicnet.runs` reads, compares and plots runs, :mod:`~torchrl_bicnet.tasks` has tasks of our own.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

__version__ = "0.2.0"

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

# Imported when they are first used: wings take long to import, and runs need a newer TorchRL than the rest does.
_OF_RUNS = ("Checkpoints", "CollectorState", "Run", "load_run")

_WINGS = ("analysis", "export", "rendering", "runs", "tasks")


def __getattr__(name: str) -> Any:
    if name in _WINGS:
        return import_module(f"torchrl_bicnet.{name}")
    if name in _OF_RUNS:
        return getattr(import_module("torchrl_bicnet.runs"), name)
    raise AttributeError(f"module 'torchrl_bicnet' has no attribute {name!r}")
