"""Changes to the communication of a trained policy, for the time of a ``with`` block and without retraining."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from torchrl_bicnet.checks import check_integer, check_number, check_type
from torchrl_bicnet.net import BiCNet

Direction = Literal["both", "forward", "backward"]


@dataclass(frozen=True)
class Channel:
    """Channel that messages go through on their way from one agent to another.

    A message is what an agent puts into the communication layer, its encoding: agent ``j`` sends it to every other
    agent, and agent ``i`` runs the layer on its own encoding and on what it received. A message that is cut or lost is
    an agent that is absent for this receiver, as with a mask. So one channel means the same for every kind of layer:
    the mean is taken over what was received, the attention looks at it, a layer of your own gets it with a mask, and a
    recurrence computes from it, for each receiver, the hidden states that BiCNet as it is written passes from agent to
    agent (there a loss on the way would be a loss for all that come after).

    Where several are asked for they apply in the order below. The defaults change nothing.

    Keyword Args:
        direction (str): ``"forward"``: messages travel only from an agent to those after it, ``"backward"``: to those
            before it, in the order of the agents. Defaults to ``"both"``.
        window (int, optional): messages reach agents at most so many places away in the order of the agents, which is
            what near means to a recurrence over them. ``0`` cuts all.
        radius (float, optional): messages reach agents at most so far away, in the units of the positions: the range
            of a radio. Needs ``positions``.
        positions (tuple of int, optional): which features of an agent's observation are its position, ``(0, 1)`` in
            most of VMAS's scenarios. Used by ``radius``.
        drop (float): probability that a message does not arrive, independently for each sender, receiver and step.
            ``1.0`` cuts all. Defaults to ``0.0``.
        bits (int, optional): each number of a message is rounded to one of ``2 ** bits`` levels, evenly spaced from
            the smallest to the largest number of that message; these two are sent as they are. From 1 to 16;
            ``None``: not rounded.
        noise (float): standard deviation of Gaussian noise on each number of a message, independent for each receiver,
            in units of the root mean square of that message: the signal-to-noise ratio is ``noise ** -2``.
            Defaults to ``0.0``.

    Reference: cutting and limiting what a trained team hears, as Lowe et al., *On the Pitfalls of Measuring Emergent
    Communication*, 2019, https://arxiv.org/abs/1903.05168, ask for beside looking at what is said.

    Example:
        >>> Channel(drop=0.5)
        Channel(drop=0.5)
        >>> Channel(bits=0)
        Traceback (most recent call last):
        ...
        ValueError: bits must be between 1 and 16, found 0.
    """

    direction: Direction = "both"
    window: int | None = None
    radius: float | None = None
    positions: tuple[int, ...] | None = None
    drop: float = 0.0
    bits: int | None = None
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.direction not in get_args(Direction):
            raise ValueError(f"direction must be one of {get_args(Direction)}, found {self.direction!r}.")
        if self.window is not None:
            check_integer("window", self.window, least=0)
        if self.bits is not None:
            check_integer("bits", self.bits, most=16)
        for name in ("drop", "noise", "radius"):
            if getattr(self, name) is not None or name != "radius":
                check_number(name, getattr(self, name))
        if not 0 <= self.drop <= 1:
            raise ValueError(f"drop must be between 0 and 1, found {self.drop}.")
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"noise must be finite and not negative, found {self.noise}.")
        if self.radius is not None and (not self.positions or not self.radius >= 0):
            raise ValueError(f"radius must not be negative and needs positions, found {self.radius}, {self.positions}.")
        if self.positions is not None:
            check_type("positions", self.positions, tuple, "a tuple of indices of features")
            for feature in self.positions:
                check_integer("positions", feature, least=0)

    def __repr__(self) -> str:
        changed = {name: value for name, value in vars(self).items() if value != getattr(type(self), name)}
        return f"Channel({', '.join(f'{name}={value!r}' for name, value in changed.items())})"

    def links(self, x: Tensor, observation: Tensor) -> Tensor:
        """Links of who hears whom, boolean ``(*B, N, N)``: row i receives, column j sends; x: ``(*B, N, F)``."""
        n_agents = x.shape[-2]
        place = torch.arange(n_agents, device=x.device)
        distance = place.unsqueeze(-1) - place  # (N, N), of the receiver behind the sender
        links = torch.ones(n_agents, n_agents, dtype=torch.bool, device=x.device)
        if self.direction != "both":
            links &= distance >= 0 if self.direction == "forward" else distance <= 0
        if self.window is not None:
            links &= distance.abs() <= self.window
        links = links.expand(*x.shape[:-1], n_agents)
        if self.radius is not None:
            assert self.positions is not None  # __post_init__
            if max(self.positions) >= observation.shape[-1]:
                raise ValueError(f"positions={self.positions} are beyond an observation of {observation.shape[-1]}.")
            position = observation[..., list(self.positions)]
            links = links & (torch.cdist(position, position) <= self.radius)
        if self.drop > 0:
            links = links & (torch.rand(links.shape, device=x.device) >= self.drop)
        return links | (distance == 0)

    def received(self, x: Tensor) -> Tensor:
        """Messages received, ``(*B, N, F) -> (*B, N, N, F)``: row i receives, column j sends; the own as is."""
        n_agents = x.shape[-2]
        messages = x
        if self.bits is not None:
            low, high = x.aminmax(dim=-1, keepdim=True)
            step = (high - low) / (2**self.bits - 1)
            messages = low + ((x - low) / step).nan_to_num().round() * step
        messages = messages.unsqueeze(-3).expand(*x.shape[:-2], n_agents, *x.shape[-2:])
        if self.noise > 0:
            rms = messages.square().mean(-1, keepdim=True).sqrt()
            messages = messages + self.noise * rms * torch.randn(messages.shape, dtype=x.dtype, device=x.device)
        itself = torch.eye(n_agents, dtype=torch.bool, device=x.device).unsqueeze(-1)
        return torch.where(itself, x.unsqueeze(-3), messages)


@contextmanager
def intervene(policy: nn.Module, channel: Channel) -> Iterator[None]:
    """Put a channel between the agents of a policy for the time of a ``with`` block, without retraining.

    Every :class:`~torchrl_bicnet.BiCNet` in the policy is concerned. The modules are left as they are, also by an
    error in the block. An agent that received what was sent to it acts as it does without the channel, to the bit.

    Args:
        policy (nn.Module): an actor, several in a sequence, or a net.
        channel (Channel): what the messages go through.

    Example:
        >>> import torch
        >>> from torchrl_bicnet import BiCNet
        >>> net, x = BiCNet(18, 2), torch.randn(4, 18)
        >>> alone = torch.cat([net(agent) for agent in x.split(1)])
        >>> with intervene(net, Channel(drop=1.0)):
        ...     torch.allclose(net(x), alone, atol=1e-5)
        True
    """
    check_type("channel", channel, Channel, "a Channel")
    with ExitStack() as hooks:
        for net in _nets(policy):
            for handle in _listen(net, channel):
                hooks.callback(handle.remove)
        yield


def _listen(net: BiCNet, channel: Channel) -> Sequence[torch.utils.hooks.RemovableHandle]:
    observations: list[Tensor] = []

    def keep_observation(net: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        observations[:] = inputs[:1]

    def hear_through_channel(layer: nn.Module, inputs: tuple[Tensor, Tensor | None], sent: Tensor) -> Tensor:
        x, mask = inputs
        present = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device) if mask is None else mask
        present = present.unsqueeze(-2).expand(*x.shape[:-1], -1)  # (*B, N, N)
        links = channel.links(x, observations[0]) & present
        received = channel.received(x)
        # Each receiver's own row of the team that it hears.
        heard = layer.forward(received, links).diagonal(dim1=-3, dim2=-2).mT  # (*B, N, out_features)
        intact = (received == x.unsqueeze(-3)).all(-1)
        undisturbed = ((links & intact) | ~present).all(-1)  # (*B, N)
        return torch.where(undisturbed.unsqueeze(-1), sent, heard)

    return (
        net.register_forward_pre_hook(keep_observation),
        net.communication.register_forward_hook(hear_through_channel),
    )


@contextmanager
def reorder(policy: nn.Module, order: Tensor) -> Iterator[None]:
    """Let the communication layers of a policy take the agents in another order, for the time of a ``with`` block.

    Observations and actions stay with their agents, and so do encoder and decoder with ``share_params=False``.

    Args:
        policy (nn.Module): an actor, several in a sequence, or a net.
        order (Tensor): a permutation of the ``N`` agents, ``(N,)``: entry k is the agent at place k.

    Example:
        >>> import torch
        >>> from torchrl_bicnet import BiCNet
        >>> net, x, order = BiCNet(18, 2), torch.randn(4, 18), torch.tensor([2, 0, 3, 1])
        >>> with reorder(net, order):
        ...     moved = net(x)
        >>> torch.equal(moved[order], net(x[order]))
        True
    """
    check_type("order", order, Tensor, "a tensor of integers")
    if order.ndim != 1 or not torch.equal(order.sort().values, torch.arange(len(order), device=order.device)):
        raise ValueError(f"order must be a permutation of 0 to N - 1, found {order.tolist()}.")

    def permute(layer: nn.Module, inputs: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
        x, mask = inputs
        if x.shape[-2] != len(order):
            raise ValueError(f"The order is one of {len(order)} agents, found {x.shape[-2]}.")
        at = order.to(x.device)
        return x.index_select(-2, at), None if mask is None else mask.index_select(-1, at)

    def restore(layer: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return output.index_select(-2, order.argsort().to(output.device))

    with ExitStack() as hooks:
        for net in _nets(policy):
            hooks.callback(net.communication.register_forward_pre_hook(permute).remove)
            hooks.callback(net.communication.register_forward_hook(restore).remove)
        yield


def _nets(policy: nn.Module) -> list[BiCNet]:
    check_type("policy", policy, nn.Module, "a module")
    nets = [module for module in policy.modules() if isinstance(module, BiCNet)]
    if not nets:
        raise ValueError(f"Expected a policy that holds a BiCNet, found {type(policy).__name__} without any.")
    for net in nets:
        # One would see what the other has moved or put back.
        if any(hook.__module__ == __name__ for hook in net.communication._forward_hooks.values()):
            raise ValueError("One intervene or reorder at a time, found another one around this one.")
    return nets
