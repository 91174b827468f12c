"""TorchRL's wrapper of VMAS: whole groups at once, the episode's bookkeeping, partial resets and compiled steps."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gym import spaces
from tensordict import LazyStackedTensorDict, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, Stacked, StackedComposite, Unbounded
from torchrl.envs import VmasWrapper
from torchrl.envs.utils import MarlGroupMapType

from torchrl_bicnet.checks import check_integer
from torchrl_bicnet.drawing.world import draw_world
from torchrl_bicnet.envs.environment import StreamedEnvironment
from torchrl_bicnet.envs.pickling import MadeFromArguments
from torchrl_bicnet.envs.presence import absent_agents, presence
from torchrl_bicnet.envs.random_stream import RandomStream
from torchrl_bicnet.vmas_graph.compiled_step import CompiledStep, Inputs

_DONE = ("done", "terminated", "truncated")
_NO_LIMIT = torch.iinfo(torch.int64).max


class VmasBatchWrapper(MadeFromArguments, VmasWrapper):
    """TorchRL's wrapper with an episode's bookkeeping, partial resets and one spec for agents of different bounds.

    Its entries are those of TorchRL's ``StepCounter``, ``ExpandAs``, ``RewardSum`` and ``InitTracker`` around its own
    wrapper, so that a compiled step computes all of them. A step reads and writes each group as a whole, where TorchRL
    makes a tensordict for each agent and stacks them.

    Args:
        environment (StreamedEnvironment): VMAS's.
        group_map (dict or MarlGroupMapType, optional): as in :class:`~torchrl.envs.VmasWrapper`.

    Keyword Args:
        max_steps (int, optional): time limit in steps. ``None``: no limit.
    """

    compiled_step: CompiledStep | None = None
    # What was observed last; None if whoever was given the simulator may have changed it since.
    _observed: Any = None

    def __init__(
        self,
        environment: StreamedEnvironment,
        group_map: MarlGroupMapType | dict[str, list[str]] | None = None,
        *,
        max_steps: int | None = None,
    ) -> None:
        self.max_steps = _NO_LIMIT if max_steps is None else max_steps
        super().__init__(environment, group_map=group_map)

    @property
    def _env(self) -> StreamedEnvironment:
        """VMAS's environment, which whoever asks for it may change."""
        self._observed = None
        if self.compiled_step is not None:
            self.compiled_step.look_again()
        return self._environment

    @_env.setter
    def _env(self, environment: StreamedEnvironment) -> None:
        self._environment = environment

    def compile_step(self) -> None:
        """Step by one compiled function from now on."""
        step = functools.partial(self._simulate, self._environment.step)
        without_draws = functools.partial(self._simulate, self._environment.step_without_draws)
        inputs = self._inputs(self.full_action_spec.zero().update(self.full_state_spec.zero()))
        self.compiled_step = CompiledStep(self._environment, step, without_draws, inputs)

    def to(self, device: torch.device | str) -> VmasBatchWrapper:
        if self.compiled_step is not None and torch.device(device) != self.device:
            raise RuntimeError(f"A compiled step stays on {self.device}; make another environment for {device}.")
        return super().to(device)

    @torch.no_grad()
    def render(
        self,
        mode: str = "rgb_array",
        env_index: int | None = 0,
        agent_index_focus: int | None = None,
        *,
        width: int | None = None,
        **options: Any,
    ) -> Any:
        """A picture of an environment without a display, for TorchRL's ``PixelRenderTransform`` and ``VideoRecorder``.

        :func:`torchrl_bicnet.rendering.render` draws mosaics, and who influences whom.

        Args:
            mode (str): ``"rgb_array"``; in another one VMAS draws, on a display.
            env_index (int, optional): which environment; ``None``: all.
            agent_index_focus (int, optional): the camera stays on this agent. ``None``: it shows all agents.

        Keyword Args:
            width (int, optional): in pixels. ``None``: that of the scenario's ``viewer_size``, mostly 700.
            **options: of VMAS's own ``render``.

        Returns:
            ndarray: ``(H, W, 3)`` uint8, of all environments ``(num_envs, H, W, 3)``.
        """
        environment = self._env
        if mode != "rgb_array":
            return environment.render(mode, env_index, agent_index_focus, **options)
        for name, value, least, most in (
            ("env_index", env_index, 0, environment.num_envs - 1),
            ("agent_index_focus", agent_index_focus, 0, environment.n_agents - 1),
            ("width", width, 1, math.inf),
        ):
            if value is not None:
                check_integer(name, value, least, most)

        def picture(index: int) -> np.ndarray:
            absent = absent_agents(environment, index)
            look = {"width": width, "agent_index_focus": agent_index_focus, **options}
            return draw_world(environment, index, absent=absent, **look)[0].array()

        with RandomStream(0, environment.device):
            if env_index is not None:
                return picture(env_index)
            return np.stack([picture(index) for index in range(environment.num_envs)])

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        inputs = self._inputs(tensordict)
        if self.compiled_step is None:
            observed, added = self._simulate(self._environment.step, inputs)
        else:
            observed, added = self.compiled_step(inputs)
        self._observed = observed
        return self._tensordict(observed, added)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        # A reset of all or none is faster, but how many the mask picks is read on a CPU only: a GPU would have to be
        # waited for.
        picked = int(mask.sum()) if mask is not None and mask.device.type == "cpu" else None
        if picked == 0:
            observed = self._observe() if self._observed is None else self._observed
        elif mask is None or picked == mask.numel():
            self._environment.reset(return_observations=False)
            observed = self._observe()
            if self.compiled_step is not None:
                self.compiled_step.look_again()
        else:
            observed = self._reset_rows(mask.squeeze(-1))
        self._observed = observed
        return self._tensordict(observed, self._first(observed))

    def _reset_rows(self, mask: Tensor) -> Any:
        step = self.compiled_step
        if step is None:
            return self._environment.reset_rows(mask, self._observe, self._observed)
        grad = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(grad):
            places = step.current_places()
            observed = None if places is None else self._observed
            observed = self._environment.reset_rows(mask, self._observe, observed, places)
            if places is None or self._environment.shared_state:
                step.look_again()
            else:
                step.take_over()
        return observed

    def _inputs(self, tensordict: TensorDictBase) -> Inputs:
        """What a step needs, by key."""
        keys = [(group, name) for group in self._members for name in ("action", "episode_reward")]
        return {key: tensordict[key] for key in (*keys, "step_count")}

    def _simulate(self, step: Callable[[list[Tensor]], list[Any]], inputs: Inputs) -> tuple[Any, Any]:
        """What is observed after a step, and the entries beside it, by group and at the root."""
        before = presence(self._environment)
        by_agent: list[Any] = [None] * len(self.agent_names)
        for group, members in self._members.items():
            for i, action in zip(members, inputs[group, "action"].unbind(1)):
                by_agent[i] = action
        observations, rewards, dones, infos = step(by_agent)
        observed = self._read(observations, dones, infos)
        step_count = inputs["step_count"] + 1  # (num_envs, 1)
        truncated = step_count >= self.max_steps
        added: dict[str, Any] = self._ends(observed["done"], truncated)
        added |= {"step_count": step_count, "is_init": torch.zeros_like(truncated)}
        for group, members in self._members.items():
            # diff_drive makes its rewards on the CPU.
            reward = self._stack([rewards[i] for i in members]).to(self.device)  # (num_envs, N, 1)
            if before is not None:
                acted = torch.stack([before[i] for i in members], 1).unsqueeze(-1)
                reward = torch.where(acted, reward, 0.0)
                left = acted & ~observed[group]["mask"].unsqueeze(-1)
                for name in ("done", "terminated"):
                    added[group][name] = added[group][name] | left
            added[group] |= {"reward": reward, "episode_reward": inputs[group, "episode_reward"] + reward}
        return observed, added

    def _observe(self) -> Any:
        return self._read(*self._environment.get_from_scenario(True, False, True, True))

    def _first(self, observed: Any) -> Any:
        """The entries beside what is observed of a start state; TorchRL keeps those of environments that go on."""
        step_count = torch.zeros(*self.batch_size, 1, dtype=torch.int64, device=self.device)
        added = self._ends(observed["done"], step_count >= self.max_steps)
        added |= {"step_count": step_count, "is_init": torch.ones_like(observed["done"])}
        for group, members in self._members.items():
            added[group]["episode_reward"] = torch.zeros(*self.batch_size, len(members), 1, device=self.device)
        return added

    def _ends(self, terminated: Tensor, truncated: Tensor) -> dict[str, Any]:
        """Whether episodes end, ``(num_envs, 1)``, and a copy for each agent, ``(num_envs, N, 1)``."""
        ends = dict(zip(_DONE, (truncated | terminated, terminated, truncated)))
        copies = {
            group: {name: end.unsqueeze(-2).repeat(1, len(members), 1) for name, end in ends.items()}
            for group, members in self._members.items()
        }
        return ends | copies

    def _read(self, observations: Any, dones: Any, infos: Any) -> dict[str, Any]:
        """Observations and infos by group, stacked; those of agents that have different entries one by one."""
        observed: dict[str, Any] = {"done": self.read_done(dones)}  # (num_envs, 1)
        for group, members in self._members.items():
            agents = []
            for i in members:
                agents.append({"observation": observations[i]})
                if infos[i]:
                    agents[-1]["info"] = {key: value.to(torch.float32) for key, value in infos[i].items()}
            observed[group] = self._stack(agents) if self._uniform[group] else agents
        for group, mask in self._masks().items():
            observed[group] = {**_zero_absent(observed[group], mask), "mask": mask}
        return observed

    def _masks(self) -> dict[str, Tensor]:
        """Of each group who is present, ``(num_envs, N)``; empty if the scenario does not say."""
        present = presence(self._environment)
        if present is None:
            return {}
        return {group: torch.stack([present[i] for i in members], 1) for group, members in self._members.items()}

    def _tensordict(self, observed: dict[str, Any], added: dict[str, Any]) -> TensorDictBase:
        entries = {**added}
        for group, members in self._members.items():
            agents = observed[group]
            if isinstance(agents, list):
                entries[group] = self._stack_lazily(agents, group)
                entries[group].update(added[group])
                continue
            batch_size = torch.Size((*self.batch_size, len(members)))
            entries[group] = self._nested({**agents, **added[group]}, batch_size)
        return TensorDict(entries, batch_size=self.batch_size, device=self.device)

    def _nested(self, entries: dict[str, Any], batch_size: torch.Size) -> TensorDict:
        nested = {key: self._nested(v, batch_size) if isinstance(v, dict) else v for key, v in entries.items()}
        return TensorDict(nested, batch_size=batch_size, device=self.device)

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

    def _stack(self, agents: list[Any]) -> Any:
        """``N`` tensors ``(num_envs, ...)``, or dictionaries of them, as one, ``(num_envs, N, ...)``."""
        if isinstance(agents[0], Tensor):
            stacked = torch.stack(agents, dim=1)
            return stacked.unsqueeze(-1) if stacked.ndim == 2 else stacked
        return {key: self._stack([agent[key] for agent in agents]) for key in agents[0]}

    def _stack_lazily(self, agents: list[Any], group: str) -> TensorDictBase:
        """Agents of different entries or shapes as TorchRL stacks them: lazily, or what all of them have."""
        by_agent = [self._nested(self._stack([agent]), torch.Size((*self.batch_size, 1)))[:, 0] for agent in agents]
        stacked = LazyStackedTensorDict.maybe_dense_stack(by_agent, dim=1)
        return stacked if self.het_specs_map[group] else stacked.to_tensordict()

    def _make_specs(self, env: StreamedEnvironment) -> None:
        super()._make_specs(env)
        self.full_done_spec_unbatched = Composite({name: self._flag() for name in _DONE}, device=self.device)
        observation: Composite = self.full_observation_spec_unbatched  # type: ignore[has-type]
        state = Composite(device=self.device)
        masked = presence(env) is not None
        for group, names in self.group_map.items():
            if masked:
                observation[group, "mask"] = self._flag(len(names))[..., 0]
            total = Unbounded((len(names), 1), device=self.device)
            state[group] = Composite(episode_reward=total, shape=(len(names),), device=self.device)
        count = Bounded(0, _NO_LIMIT, shape=(1,), dtype=torch.int64, device=self.device)
        observation["step_count"], observation["is_init"], state["step_count"] = count, self._flag(), count.clone()
        self.full_observation_spec_unbatched, self.full_state_spec_unbatched = observation, state

    def _flag(self, *size: int) -> Categorical:
        return Categorical(2, shape=(*size, 1), dtype=torch.bool, device=self.device)

    def _make_unbatched_group_specs(self, group: str) -> tuple[Composite | None, ...]:
        observation, action, reward, info = super()._make_unbatched_group_specs(group)
        n_agents = len(self.group_map[group])
        for name in _DONE:
            observation[name] = self._flag(n_agents)
        observation["episode_reward"] = Unbounded((n_agents, 1), device=self.device)
        bounds = [self.action_space[self.agent_names_to_indices_map[name]] for name in self.group_map[group]]
        if len({space.shape for space in bounds}) == 1 and isinstance(bounds[0], spaces.Box):
            low, high = (
                torch.as_tensor(np.stack([getattr(space, end) for space in bounds])) for end in ("low", "high")
            )
            action = Composite(action=Bounded(low, high, device=self.device), shape=low.shape[:1], device=self.device)
        return observation, action, reward, info


def _zero_absent(entries: Any, mask: Tensor) -> Any:
    """Tensors ``(num_envs, N, ...)``, or dictionaries of them, which are zero for absent agents."""
    if isinstance(entries, Tensor):
        return torch.where(mask.reshape(*mask.shape, *[1] * (entries.ndim - 2)), entries, 0)
    return {key: _zero_absent(entry, mask) for key, entry in entries.items()}
