"""Rewards in units of their own size, so that one recipe fits tasks whose rewards differ by orders of magnitude."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn

from torchrl_bicnet.checks import check_key, check_number


class RewardScale(nn.Module):
    """Scales the rewards of a replayed batch to a given root mean square, measured over all that was collected.

    The measure is a running one, :meth:`update` after each batch of frames; rewards are scaled when they are replayed,
    so that all of a batch have one scale, whenever they were collected. Nothing is subtracted: a constant added to each
    step's reward would change what is best where episodes can end early.

    Args:
        size (float): root mean square of the scaled rewards. With a discount ``gamma`` returns are of the order of
            ``size / (1 - gamma)``.

    Keyword Args:
        reward_key (NestedKey): where a transition's reward is. Defaults to ``("next", "agents", "reward")``.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> batch = TensorDict({"next": {"agents": {"reward": torch.tensor([[[-3.0]], [[4.0]]])}}}, [2])
        >>> scale = RewardScale(0.2)
        >>> scale.update(batch["next", "agents", "reward"])
        >>> scale(batch)["next", "agents", "reward"].square().mean().sqrt()
        tensor(0.2000)
    """

    sum_of_squares: Tensor
    count: Tensor

    def __init__(
        self,
        size: float,
        *,
        reward_key: NestedKey = ("next", "agents", "reward"),
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_number("size", size)
        check_key("reward_key", reward_key)
        if not size > 0:
            raise ValueError(f"size must be above 0, found {size}.")
        self.size = size
        self.reward_key = unravel_key(reward_key)
        self.register_buffer("sum_of_squares", torch.zeros((), dtype=torch.float64, device=device))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64, device=device))

    @property
    def factor(self) -> Tensor:
        """What rewards are multiplied by, of shape ``()``; 1 as long as all were zero."""
        mean = self.sum_of_squares / self.count.clamp(min=1)
        return torch.where(mean > 0, self.size / mean.sqrt(), 1.0)

    def update(self, rewards: Tensor) -> None:
        """Count the rewards of a collected batch, of any shape."""
        self.sum_of_squares += rewards.square().sum()
        self.count += rewards.numel()

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        reward = tensordict[self.reward_key]
        return tensordict.set(self.reward_key, reward * self.factor.to(reward.dtype))
