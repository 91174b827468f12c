"""BiCNet for TorchRL: actors and critics that communicate by a bidirectional recurrence over the agents."""

from torchrl_bicnet.analysis import (
    ChannelValue,
    OrderSensitivity,
    channel_value,
    example_channels,
    order_sensitivity,
    visited_states,
)
from torchrl_bicnet.analysis.influence import influence, influence_matrix
from torchrl_bicnet.analysis.intervention import Channel, intervene, reorder
from torchrl_bicnet.analysis.plots import plot_channel_value, plot_influence, plot_order_sensitivity
from torchrl_bicnet.communication import (
    AttentionCommunication,
    MeanCommunication,
    NoCommunication,
    RecurrentCommunication,
)
from torchrl_bicnet.envs import make_vmas_env, restore, snapshot
from torchrl_bicnet.evaluation import Evaluation, evaluate, paired_difference
from torchrl_bicnet.exploration import ExplorationNoise
from torchrl_bicnet.modules import BiCNetActor, BiCNetCritic
from torchrl_bicnet.net import BiCNet
from torchrl_bicnet.objectives import make_ddpg_loss
from torchrl_bicnet.plain import load_plain_bicnet
from torchrl_bicnet.rendering import record, render, save_film
from torchrl_bicnet.runs import (
    Checkpoints,
    CollectorState,
    Run,
    interquartile_mean,
    learning_curves,
    plot_learning_curves,
    read_options,
    verify_checkpoint,
)

__version__ = "0.1.0"

__all__ = [
    "AttentionCommunication",
    "BiCNet",
    "BiCNetActor",
    "BiCNetCritic",
    "Channel",
    "ChannelValue",
    "Checkpoints",
    "CollectorState",
    "Evaluation",
    "ExplorationNoise",
    "MeanCommunication",
    "NoCommunication",
    "OrderSensitivity",
    "RecurrentCommunication",
    "Run",
    "channel_value",
    "evaluate",
    "example_channels",
    "influence",
    "influence_matrix",
    "interquartile_mean",
    "intervene",
    "learning_curves",
    "load_plain_bicnet",
    "make_ddpg_loss",
    "make_vmas_env",
    "order_sensitivity",
    "paired_difference",
    "plot_channel_value",
    "plot_influence",
    "plot_learning_curves",
    "plot_order_sensitivity",
    "read_options",
    "record",
    "render",
    "reorder",
    "restore",
    "save_film",
    "snapshot",
    "verify_checkpoint",
    "visited_states",
]
