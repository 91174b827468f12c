"""The algorithms that `learning.py` compares: what each changes in `examples/train_vmas.py`'s defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmarks.rivals import mappo
from benchmarks.rivals.maddpg import MADDPGLearner
from benchmarks.rivals.silent_actors import SilentActorsLearner
from examples import train_vmas
from torchrl_bicnet import Run


@dataclass(frozen=True)
class Algorithm:
    """A contender.

    Args:
        what (str): it in a line, for the report.
        options (dict): options of `examples/train_vmas.py` that differ from its defaults.
        train (callable): takes the options and the run.
        budget (float): updates that it may take, as a multiple of the defaults': so many that one whose updates are
            cheaper reaches about the same seconds.
        communicates (bool): whether its trained agents hear each other.
    """

    what: str
    options: dict[str, Any] = field(default_factory=dict)
    train: Callable[[train_vmas.Options, Run], None] = train_vmas.train
    budget: float = 1.0
    communicates: bool = True


OURS = "bicnet"

ALGORITHMS = {
    OURS: Algorithm("BiCNet, a recurrence (GRU) over the agents: the defaults of `examples/train_vmas.py`"),
    "recurrent_attention": Algorithm(
        "the recurrence and attention over what it tells, joined", {"communication": "recurrent_attention"}
    ),
    "none": Algorithm(
        "no communication, in actor and critic",
        {"communication": "none"},
        budget=2.0,
        communicates=False,
    ),
    "none_id": Algorithm(
        "no communication, in actor and critic, and a one-hot id beside each agent's observation",
        {"communication": "none", "agent_id": True},
        budget=2.0,
        communicates=False,
    ),
    "silent_actors": Algorithm(
        "actors that do not communicate, with an id, trained by BiCNet's critic",
        train=partial(train_vmas.train, learner_class=SilentActorsLearner),
        budget=1.2,
        communicates=False,
    ),
    "mean_id": Algorithm(
        "CommNet, the mean of the others' messages, and an id", {"communication": "mean", "agent_id": True}, budget=1.3
    ),
    "attention_id": Algorithm(
        "attention over the others' messages, and an id", {"communication": "attention", "agent_id": True}, budget=1.1
    ),
    "maddpg": Algorithm(
        "MADDPG, an actor and a centralised critic per agent from `MultiAgentMLP`, in the same loop",
        train=partial(train_vmas.train, learner_class=MADDPGLearner),
        budget=3.0,
        communicates=False,
    ),
    "mappo": Algorithm(
        "MAPPO with the nets of the defaults; its update is not compiled", mappo.OPTIONS, train=mappo.train
    ),
}
