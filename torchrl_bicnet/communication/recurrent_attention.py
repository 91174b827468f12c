"""A recurrence over the agents, then attention over what they see and what the recurrence told them."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from torchrl_bicnet.checks import check_integer
from torchrl_bicnet.communication.baselines import AttentionCommunication
from torchrl_bicnet.communication.recurrent import RecurrentCommunication


class RecurrentAttentionCommunication(nn.Module):
    """BiCNet's recurrence over the agents, and attention over its outputs beside the agents' inputs.

    ``h = recurrence(x)``, ``y_i = [h_i, attention([x, h])_i]``. The recurrence tells agents with equal inputs apart by
    their place in the order; attention lets an agent choose whom to listen to, however far away in that order. Each
    gives half of the output.

    Args:
        in_features (int): size of each agent's input.
        out_features (int): size of each agent's output, a multiple of 4 and of twice ``num_heads``.

    Keyword Args:
        cell (str): of the recurrence, ``"lstm"``, ``"gru"`` or ``"rnn"``. Defaults to ``"gru"``.
        num_heads (int): number of attention heads. Defaults to ``4``.
        device (torch.device, optional): where to create the parameters.
        dtype (torch.dtype, optional): their type.

    Shape:
        - x: ``(*B, N, in_features)``
        - mask: boolean ``(*B, N)``, True where the agent is present, or ``None``
        - output: ``(*B, N, out_features)``, zero for absent agents.

    Reference: the parts are :class:`~torchrl_bicnet.RecurrentCommunication` (Peng et al., 2017) and
    :class:`~torchrl_bicnet.AttentionCommunication` (Vaswani et al., 2017); how they are joined is ours.

    Example:
        >>> import torch
        >>> layer = RecurrentAttentionCommunication(8, 32)
        >>> layer(torch.randn(10, 5, 8)).shape
        torch.Size([10, 5, 32])
        >>> same = layer(torch.ones(3, 8))  # equal inputs, but not the same place in the order
        >>> torch.allclose(same[0], same[1])
        False
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        cell: Literal["lstm", "gru", "rnn"] = "gru",
        num_heads: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_integer("out_features", out_features)
        check_integer("num_heads", num_heads)
        if out_features % math.lcm(4, 2 * num_heads):
            raise ValueError(
                f"out_features must be a multiple of 4 and of twice num_heads, found {out_features} and {num_heads}."
            )
        self.recurrence = RecurrentCommunication(in_features, out_features // 4, cell=cell, device=device, dtype=dtype)
        inputs = in_features + self.recurrence.out_features
        self.attention = AttentionCommunication(
            inputs, out_features // 2, num_heads=num_heads, device=device, dtype=dtype
        )
        self.in_features = in_features
        self.out_features = out_features

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        heard = self.recurrence(x, mask)
        return torch.cat([heard, self.attention(torch.cat([x, heard], -1), mask)], -1)
