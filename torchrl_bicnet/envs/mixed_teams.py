"""Teams of several sizes in one batch of environments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, is_tensor_collection
from torch import Tensor
from torchrl.data import Categorical, Composite
from torchrl.envs import EnvBase

from torchrl_bicnet.envs.environment import StreamedEnvironment
from torchrl_bicnet.envs.pickling import MadeFromArguments
from torchrl_bicnet.envs.wrapper import VmasBatchWrapper


class MixedTeams(MadeFromArguments, EnvBase):
    """Environments of one scenario with teams of several sizes as one batch, with a mask of the agents that there are.

    Of ``K`` sizes the environments ``k``, ``k + K``, ``k + 2 K``, ... of the batch have the ``k``-th. Groups have as
    many slots as in the largest team: ``(group, "mask")``, ``(*B, N)`` boolean, is True for the agents that there are,
    in the first slots. Everything of the others is zero, and their actions are not read.

    Args:
        envs (sequence of VmasBatchWrapper): one per size, whose batch sizes sum up to ``B`` and differ by one at most,
            the larger ones first.

    Raises:
        ValueError: if agents of different teams do not have the same entries of the same sizes, or bounds.
    """

    def __init__(self, envs: Sequence[VmasBatchWrapper]) -> None:
        first = envs[0]
        num_envs = sum(env.batch_size[0] for env in envs)
        super().__init__(device=first.device, batch_size=[num_envs], allow_done_after_reset=True)
        self.envs = list(envs)
        self.group_map = {group: max((env.group_map[group] for env in envs), key=len) for group in first.group_map}
        for env in envs:
            if env.group_map.keys() != self.group_map.keys() or not all(env._uniform.values()):
                raise ValueError(
                    "Teams of several sizes need the same groups of agents, each of agents of one kind, found "
                    f"{[env.group_map for env in envs]}: choose others with group_map=, or pad=True."
                )
        for name in ("action", "observation", "reward", "done", "state"):
            attribute = f"full_{name}_spec_unbatched"
            setattr(self, attribute, _of_largest([getattr(env, attribute) for env in envs], self.group_map))
        self._masks = {}  # of groups whose scenario does not write them
        observation: Composite = self.full_observation_spec_unbatched  # type: ignore[has-type]
        for group, names in self.group_map.items():
            if observation[group].get("mask", None) is not None:
                continue
            slots = torch.arange(len(names), device=self.device)
            mask = torch.empty(num_envs, len(names), dtype=torch.bool, device=self.device)
            for k, env in enumerate(envs):
                mask[k :: len(envs)] = slots < len(env.group_map[group])
            self._masks[group] = mask
            observation[group, "mask"] = Categorical(2, shape=slots.shape, dtype=torch.bool, device=self.device)
        self.full_observation_spec_unbatched = observation

    @property
    def vmas_environments(self) -> list[StreamedEnvironment]:
        """The simulator's environments, which whoever asks for them may change."""
        return [env._env for env in self.envs]

    def render(self, *args: Any, **options: Any) -> Any:
        """A picture, as of an environment of one size; of several sizes there is none."""
        if len(self.envs) > 1:
            raise ValueError("Teams of one size can be drawn: make an environment with one n_agents for it.")
        return self.envs[0].render(*args, **options)

    def to(self, device: torch.device | str) -> MixedTeams:
        for env in self.envs:
            env.to(device)
        self._masks = {group: mask.to(device) for group, mask in self._masks.items()}
        return super().to(device)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        return self._together([env._step(self._of_team(tensordict, k)) for k, env in enumerate(self.envs)])

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDictBase:
        picked = None if tensordict is None else tensordict.get("_reset", None)
        parts = []
        for k, env in enumerate(self.envs):
            mask = None if picked is None else TensorDict({"_reset": self._rows(picked, k)}, env.batch_size)
            parts.append(env._reset(mask))
        return self._together(parts)

    def _set_seed(self, seed: int | None) -> None:
        for env in self.envs:
            env._set_seed(seed)

    def _rows(self, tensor: Tensor, k: int) -> Tensor:
        return tensor[k :: len(self.envs)]

    def _of_team(self, tensordict: TensorDictBase, k: int) -> TensorDictBase:
        """What a step of the environments of the ``k``-th size reads."""
        read = TensorDict({"step_count": self._rows(tensordict["step_count"], k)}, self.envs[k].batch_size)
        for group, names in self.envs[k].group_map.items():
            for name in ("action", "episode_reward"):
                read[group, name] = self._rows(tensordict[group, name], k)[:, : len(names)]
        return read

    def _together(self, parts: list[TensorDictBase]) -> TensorDictBase:
        joined = _join(parts, self.batch_size)
        for group, mask in self._masks.items():
            joined[group, "mask"] = mask.clone()
        return joined


def _join(parts: list[TensorDictBase], batch_size: torch.Size) -> TensorDict:
    """Environments of all sizes in turn; agents, on the second batch dimension, padded with zeros."""
    joined = TensorDict({}, batch_size, device=parts[0].device)
    for key, first in parts[0].items():
        values = [part.get(key) for part in parts]
        if is_tensor_collection(first):
            n_agents = max(value.batch_size[1] for value in values)
            joined[key] = _join(values, torch.Size((batch_size[0], n_agents)))
            continue
        whole = first.new_zeros((*batch_size, *first.shape[len(batch_size) :]))
        for k, value in enumerate(values):
            rows = whole[k :: len(values)]
            (rows if len(batch_size) == 1 else rows[:, : value.shape[1]]).copy_(value)
        joined[key] = whole
    return joined


def _of_largest(specs: list[Composite], group_map: dict[str, list[str]]) -> Composite:
    """The spec with each group's entries of the largest team; the others' must be the first of them."""
    whole = specs[0].clone()
    for group in group_map:
        if whole.get(group, None) is None:
            continue
        largest = max((spec[group] for spec in specs), key=lambda spec: spec.shape[0])
        for spec in specs:
            n_agents = spec[group].shape[0]
            for key in {*largest.keys(True, True), *spec[group].keys(True, True)}:
                _check_alike(group, key, n_agents, spec[group], largest)
        whole[group] = largest.clone()
    return whole


def _check_alike(group: str, key: object, n_agents: int, small: Composite, large: Composite) -> None:
    shapes = [tuple(spec[key].shape[1:]) if key in spec.keys(True, True) else None for spec in (small, large)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{key!r} of an agent of {group!r} is of shape {shapes[0]} in a team of {n_agents} and {shapes[1]} in one "
            f"of {large.shape[0]}: nets for teams of any size need what an agent observes to be of one size."
        )
    if hasattr(large[key], "space") and hasattr(large[key].space, "low"):
        ends = [(spec[key].space.low[:n_agents], spec[key].space.high[:n_agents]) for spec in (small, large)]
        if not all(torch.equal(*pair) for pair in zip(*ends)):
            raise ValueError(f"{key!r} of {group!r} has other bounds in a team of {n_agents} than in the largest one.")
