"""Rewards in units of their own size, so that one recipe fits tasks whose rewards differ by orders of magnitude."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn

from torchrl_bicnet.checks import check_key, check_number


class RewardScale(nn.Module):
    """Scales the rewards of a replayed batch so that those of single steps have a given root mean square.

    It is measured over all that was collected, by :meth:`update` after each batch of frames; rewards are scaled when
    they are replayed, so that all of a batch have one scale, whenever they were collected. Nothing is subtracted: a
    constant added to each step's reward would change what is best where episodes can end early.

    Args:
        rms (float): root mean square of the scaled rewards. With a discount ``gamma`` returns are of the order of
            ``rms / (1 - gamma)``.

    Keyword Args:
        reward_key (NestedKey): where a transition's reward is. Defaults to ``("next", "agents", "reward")``.
        device (torch.device, optional): where to keep the measure.

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
        rms: float,
        *,
        reward_key: NestedKey = ("next", "agents", "reward"),
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_number("rms", rms)
        check_key("reward_key", reward_key)
        if not rms > 0:
            raise ValueError(f"rms must be above 0, found {rms}.")
        self.rms = rms
        self.reward_key = unravel_key(reward_key)
        self.register_buffer("sum_of_squares", torch.zeros((), dtype=torch.float64, device=device))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64, device=device))

    @property
    def factor(self) -> Tensor:
        """What rewards are multiplied by, of shape ``()``; 1 as long as all were zero."""
        mean = self.sum_of_squares / self.count.clamp(min=1)
        return torch.where(mean == 0, 1.0, self.rms / mean.sqrt())

    def update(self, rewards: Tensor, mask: Tensor | None = None) -> None:
        """Count the rewards of a collected batch.

        Args:
            rewards (Tensor): of any shape, ``(*B, N, 1)`` with a mask.
            mask (Tensor, optional): boolean, ``(*B, N)``, True where the agent is present: others are not counted.
        """
        present = rewards if mask is None else rewards[mask]
        self.sum_of_squares += present.square().sum()
        self.count += present.numel()

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        reward = tensordict[self.reward_key]
        return tensordict.set(self.reward_key, reward * self.factor.to(reward.dtype))
