"""Looking inside a trained team: what it says, its channel, who influences whom, and what the order of agents does."""

from torchrl_bicnet.analysis.channel_value import ChannelValue, channel_value, example_channels
from torchrl_bicnet.analysis.influence import influence, influence_matrix
from torchrl_bicnet.analysis.intervention import Channel, intervene, reorder
from torchrl_bicnet.analysis.order import OrderSensitivity, order_sensitivity
from torchrl_bicnet.analysis.plots import (
    plot_channel_value,
    plot_influence,
    plot_linear_probe,
    plot_order_sensitivity,
)
from torchrl_bicnet.analysis.probe import LinearProbe, linear_probe
from torchrl_bicnet.analysis.states import visited_states

__all__ = [
    "Channel",
    "ChannelValue",
    "LinearProbe",
    "OrderSensitivity",
    "channel_value",
    "example_channels",
    "influence",
    "influence_matrix",
    "intervene",
    "linear_probe",
    "order_sensitivity",
    "plot_channel_value",
    "plot_influence",
    "plot_linear_probe",
    "plot_order_sensitivity",
    "reorder",
    "visited_states",
]
