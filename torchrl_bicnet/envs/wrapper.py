"""TorchRL's wrapper of VMAS: masked resets, whole groups read and written at once, compiled steps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gym import spaces
from tensordict import LazyStackedTensorDict, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Composite, Stacked, StackedComposite
from torchrl.envs import VmasWrapper

from torchrl_bicnet.envs.environment import StreamedEnvironment
from torchrl_bicnet.vmas_graph.compiled_step import Actions, CompiledStep


class VmasBatchWrapper(VmasWrapper):
    """TorchRL's wrapper with masked resets and one Bounded spec for agents that differ in their action bounds alone.

    A step reads and writes each group as a whole, where TorchRL makes a tensordict for each agent and stacks them.
    """

    compiled_step: CompiledStep | None = None

    @property
    def _env(self) -> StreamedEnvironment:
        """VMAS's environment, which whoever asks for it may change."""
        if self.compiled_step is not None:
            self.compiled_step.look_again()
        return self._environment

    @_env.setter
    def _env(self, environment: StreamedEnvironment) -> None:
        self._environment = environment

    def compile_step(self) -> None:
        """Step by one compiled function from now on."""
        actions = {group: self.full_action_spec[group, "action"].zero() for group in self._members}
        step = functools.partial(self._simulate, self._env.step)
        without_draws = functools.partial(self._simulate, self._env.step_without_draws)
        self.compiled_step = CompiledStep(self._env, step, without_draws, actions)

    def to(self, device: torch.device | str) -> VmasBatchWrapper:
        if self.compiled_step is not None and torch.device(device) != self.device:
            raise RuntimeError(f"A compiled step stays on {self.device}; make another environment for {device}.")
        return super().to(device)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        actions = {group: tensordict.get((group, "action")) for group in self._members}
        return self._simulate(self._env.step, actions) if self.compiled_step is None else self.compiled_step(actions)

    def _simulate(self, step: Callable[[list[Tensor]], list[Any]], actions: Actions) -> TensorDictBase:
        by_agent: list[Any] = [None] * len(self.agent_names)
        for group, members in self._members.items():
            for i, action in zip(members, actions[group].unbind(1)):
                by_agent[i] = action
        observations, rewards, dones, infos = step(by_agent)
        return self._read(observations, dones, infos, rewards)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        # A reset of all is faster, but whether the mask picks all is read on a CPU only: a GPU would have to be waited
        # for.
        if mask is None or (mask.device.type == "cpu" and mask.all()):
            self._env.reset(return_observations=False)
            return self._read(*self._env.get_from_scenario(True, False, True, True))
        return self._read(*self._env.reset_rows(mask.squeeze(-1)))

    def _read(self, observations: Any, dones: Any, infos: Any, rewards: Any = None) -> TensorDictBase:
        done = self.read_done(dones)  # (num_envs, 1)
        groups: dict[str, Any] = {"done": done, "terminated": done.clone()}
        for group, members in self._members.items():
            agents = []
            for i in members:
                agents.append({"observation": observations[i]})
                if rewards is not None:
                    agents[-1]["reward"] = rewards[i]
                if infos[i]:
                    agents[-1]["info"] = {key: value.to(torch.float32) for key, value in infos[i].items()}
            groups[group] = self._stack(agents) if self._uniform[group] else self._stack_lazily(agents, group)
        return TensorDict(groups, batch_size=self.batch_size, device=self.device)

    @functools.cached_property
    def _members(self) -> dict[str, list[int]]:
        """The indices of the agents of each group."""
        indices = self.agent_names_to_indices_map
        return {group: [indices[name] for name in names] for group, names in self.group_map.items()}

    @functools.cached_property
    def _uniform(self) -> dict[str, bool]:
        """Whether the agents of a group have the same entries of the same shapes."""
        specs = self.full_observation_spec_unbatched
        return {
            group: not any(
                isinstance(spec, (Stacked, StackedComposite)) for spec in (specs[group], *specs[group].values(True))
            )
            for group in self.group_map
        }

    def _stack(self, agents: list[Any]) -> Tensor | TensorDictBase:
        """``N`` tensors ``(num_envs, ...)``, or dictionaries of them, as one, ``(num_envs, N, ...)``."""
        if isinstance(agents[0], Tensor):
            stacked = torch.stack(agents, dim=1)
            return stacked.unsqueeze(-1) if stacked.ndim == 2 else stacked
        entries = {key: self._stack([agent[key] for agent in agents]) for key in agents[0]}
        return TensorDict(entries, batch_size=(*self.batch_size, len(agents)), device=self.device)

    def _stack_lazily(self, agents: list[Any], group: str) -> TensorDictBase:
        """Agents of different entries or shapes as TorchRL stacks them: lazily, or what all of them have."""
        by_agent = [self._stack([agent])[:, 0] for agent in agents]
        stacked = LazyStackedTensorDict.maybe_dense_stack(by_agent, dim=1)
        return stacked if self.het_specs_map[group] else stacked.to_tensordict()

    def _make_unbatched_group_specs(self, group: str) -> tuple[Composite | None, ...]:
        observation, action, reward, info = super()._make_unbatched_group_specs(group)
        bounds = [self.action_space[self.agent_names_to_indices_map[name]] for name in self.group_map[group]]
        if len({space.shape for space in bounds}) == 1 and isinstance(bounds[0], spaces.Box):
            low, high = (
                torch.as_tensor(np.stack([getattr(space, end) for space in bounds])) for end in ("low", "high")
            )
            action = Composite(action=Bounded(low, high, device=self.device), shape=low.shape[:1], device=self.device)
        return observation, action, reward, info
