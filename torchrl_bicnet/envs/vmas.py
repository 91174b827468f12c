"""TorchRL environments over VMAS: right time limits, keys for per-agent losses, a random stream of their own."""

from __future__ import annotations

import functools
import inspect
import random
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gym import spaces
from tensordict import LazyStackedTensorDict, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Composite, Stacked, StackedComposite
from torchrl.envs import TransformedEnv, VmasWrapper
from torchrl.envs.utils import MarlGroupMapType
from vmas import debug_scenarios, mpe_scenarios, scenarios
from vmas.scenarios import load
from vmas.simulator.core import Agent
from vmas.simulator.environment import Environment
from vmas.simulator.scenario import BaseScenario

from torchrl_bicnet.checks import check_device, check_integer, check_seed, check_type
from torchrl_bicnet.envs.episode import EpisodeTransform
from torchrl_bicnet.envs.graph import FixedStep, capture, refuse_what_cannot_be_captured
from torchrl_bicnet.envs.padding import Padding
from torchrl_bicnet.envs.reset import reset_rows
from torchrl_bicnet.envs.simulator import install


def make_vmas_env(
    scenario: str | BaseScenario,
    num_envs: int,
    *,
    max_steps: int | None = None,
    device: torch.device | str = "cpu",
    seed: int | None = None,
    group_map: MarlGroupMapType | dict[str, list[str]] | None = None,
    pad: bool = False,
    check_actions: bool = False,
    cuda_graph: bool = False,
    **scenario_kwargs: Any,
) -> TransformedEnv:
    """A vectorised VMAS environment for TorchRL's collectors and losses, with continuous actions.

    - The time limit is *truncated*, never terminated, so that a TD target bootstraps through it; what the scenario
      calls done is *terminated*.
    - Root ``done``, ``terminated`` and ``truncated``, ``(num_envs, 1)``, are the environment's done keys; for each
      group of ``N`` agents ``(group, "done")`` and so on hold copies of the reward's shape, ``(num_envs, N, 1)``.
    - ``(group, "episode_reward")``, ``(num_envs, N, 1)``, is the return of the episode so far.
    - ``step_count`` and ``is_init``, ``(num_envs, 1)``, count the steps of the episode and mark its first one, which
      TorchRL's collectors and exploration modules ask for.
    - The environment has a random stream of its own: building, seeding, resetting or stepping it neither reads nor
      moves the stream of another environment or the global generators of torch, NumPy and Python.

    Args:
        scenario (str or BaseScenario): a scenario of VMAS by name, or one of your own.
        num_envs (int): number of environments simulated in one batch.

    Keyword Args:
        max_steps (int, optional): time limit in steps. ``None``: no limit.
        device (torch.device): where to simulate. Defaults to ``"cpu"``.
        seed (int, optional): seed of the environment's random stream. ``None``: a different one each time.
        group_map (dict or MarlGroupMapType, optional): group name to the names of its agents. Defaults to groups by
            the agents' names, as in :class:`~torchrl.envs.VmasEnv`; with ``pad=True`` to one group ``"agents"``.
        pad (bool): lets agents of different kinds share a group, so that they can talk: observations are padded with
            zeros to the longest of the group and get a one-hot of the agent's kind (its name without the index, and
            its sizes), actions are padded with entries bound to 0. Defaults to ``False``.
        check_actions (bool): for debugging: asks at every step whether actions are numbers within their bounds, as VMAS
            does, and keeps the scenario's assertions about tensors. The host then waits for the device. Defaults to
            ``False``.
        cuda_graph (bool): captures the step in a CUDA graph and replays it: the host launches one graph instead of
            some hundred operations. The first two steps, and again two after a reset that changes more than values of
            tensors, run as usual. Not measured on a GPU yet. Defaults to ``False``.
        **scenario_kwargs: options of the scenario, such as ``n_agents``.

    Returns:
        TransformedEnv: of batch size ``(num_envs,)``.

    Raises:
        ValueError: for an unknown scenario or device, ``num_envs`` or ``max_steps`` below 1, a seed outside of
            ``[0, 2**32)``, a ``group_map`` that does not put each agent into one group, a value that the scenario does
            not take for an option, ``pad=True`` with nothing to pad, or
            ``cuda_graph=True`` without CUDA or where a step waits for the device or draws random numbers.
        TypeError: for an option the scenario does not have, the message lists those it has; for a scenario that is
            neither a name nor an instance, or another argument of another type.

    References: Bettini et al., *VMAS*, 2022, https://arxiv.org/abs/2207.03530; Pardo et al., *Time Limits in
    Reinforcement Learning*, 2018, https://arxiv.org/abs/1712.00378.

    Example:
        >>> env = make_vmas_env("navigation", num_envs=32, max_steps=100, seed=0, n_agents=3)
        >>> td = env.rollout(5)
        >>> td["agents", "observation"].shape, td["next", "agents", "reward"].shape
        (torch.Size([32, 5, 3, 18]), torch.Size([32, 5, 3, 1]))
        >>> td["next", "agents", "terminated"].shape, td["next", "truncated"].shape
        (torch.Size([32, 5, 3, 1]), torch.Size([32, 5, 1]))
        >>> team = make_vmas_env("simple_speaker_listener", num_envs=32, pad=True)
        >>> team.reset()["agents", "observation"].shape  # 3 and 11 features, padded, and a one-hot of 2 kinds
        torch.Size([32, 2, 13])
    """
    check_integer("num_envs", num_envs)
    if max_steps is not None:
        check_integer("max_steps", max_steps)
    check_device(device)
    if seed is not None:
        check_seed(seed)
    check_type("check_actions", check_actions, bool, "a bool")
    check_type("pad", pad, bool, "a bool")
    check_type("cuda_graph", cuda_graph, bool, "a bool")
    if cuda_graph and torch.device(device).type != "cuda":
        raise ValueError(f"cuda_graph=True expects a CUDA device, found device={str(device)!r}.")
    environment = _build(scenario, num_envs, torch.device(device), seed, check_actions, scenario_kwargs)
    if group_map is not None and not isinstance(group_map, MarlGroupMapType):
        _check_groups(group_map, [agent.name for agent in environment.agents])
    if pad:
        group_map = MarlGroupMapType.ALL_IN_ONE_GROUP if group_map is None else group_map
        names = [agent.name for agent in environment.agents]
        groups = group_map.get_group_map(names) if isinstance(group_map, MarlGroupMapType) else group_map
        environment.padding = Padding(environment, groups)
    base_env = _VmasWrapper(environment, group_map=group_map)
    if cuda_graph:
        base_env.capture()
    return TransformedEnv(base_env, EpisodeTransform(list(base_env.group_map), max_steps))


def _check_groups(group_map: dict[str, list[str]], names: list[str]) -> None:
    if not isinstance(group_map, dict) or not all(
        isinstance(group, str) and isinstance(agents, list) for group, agents in group_map.items()
    ):
        raise TypeError(f"group_map must be a dict of group name to a list of its agents, found {group_map!r}.")
    if not all(group_map.values()) or sorted(map(str, chain(*group_map.values()))) != sorted(names):
        raise ValueError(f"group_map must put each of {', '.join(names)} into one group, found {group_map}.")


def _build(
    scenario: str | BaseScenario,
    num_envs: int,
    device: torch.device,
    seed: int | None,
    check_actions: bool,
    options: dict[str, Any],
) -> _Environment:
    name = scenario if isinstance(scenario, str) else type(scenario).__name__
    draws_from_torch_alone = False  # what a scenario of the user draws from cannot be known
    if isinstance(scenario, str):
        shipped = sorted([*scenarios, *mpe_scenarios, *debug_scenarios])
        if scenario not in shipped:
            raise ValueError(f"Unknown VMAS scenario {scenario!r}; VMAS has {', '.join(shipped)}.")
        scenario = load(f"{scenario}.py").Scenario()
        draws_from_torch_alone = not re.search(r"\b(np|numpy)\.random|\b(import|from) random", _source(scenario))
    elif not isinstance(scenario, BaseScenario):
        raise TypeError(f"scenario must be a name or an instance of BaseScenario, found {scenario!r}.")
    ours = sorted(set(options) & set(inspect.signature(Environment.__init__).parameters))
    if ours:
        raise TypeError(f"make_vmas_env sets these arguments of VMAS's Environment itself: {', '.join(ours)}.")
    with warnings.catch_warnings():
        unused = "Scenario kwargs: .* passed but not used"
        warnings.filterwarnings("error", message=unused)
        try:
            environment = _Environment(scenario, num_envs, device, seed=seed, check_actions=check_actions, **options)
            environment.draws_from_torch_alone = draws_from_torch_alone and not any(map(callable, options.values()))
            return environment
        except UserWarning as warning:
            if not re.match(unused, str(warning)):
                raise
            wrong = [option for option in options if repr(option) in str(warning)]
        except Exception as error:
            if not options:
                raise
            raise ValueError(f"Scenario {name!r} does not take {options}: {error!r}.") from error
    known = ", ".join(sorted(_scenario_options(scenario))) or "none that its source names"
    raise TypeError(f"Scenario {name!r} has no option {', '.join(wrong)}; it has {known}.")


def _scenario_options(scenario: BaseScenario) -> set[str]:
    """The names that a scenario takes from its keyword arguments, read off its source file."""
    return set(re.findall(r"kwargs\.(?:pop|get)\(\s*[\"'](\w+)[\"']", _source(scenario)))


def _source(scenario: BaseScenario) -> str:
    """Of the file that a scenario is written in; empty where there is none."""
    file = inspect.getsourcefile(scenario.make_world)
    return Path(file).read_text() if file is not None and Path(file).exists() else ""


class _VmasWrapper(VmasWrapper):
    """TorchRL's wrapper with masked resets and one Bounded spec for agents that differ in their action bounds alone.

    A step reads and writes each group as a whole, where TorchRL makes a tensordict for each agent and stacks them.
    """

    fixed_step: FixedStep | None = None

    def capture(self) -> None:
        """Step in fixed memory from now on, and on CUDA by replaying a graph."""
        actions = {group: self.full_action_spec[group, "action"].zero() for group in self._members}
        refuse_what_cannot_be_captured(self._env, functools.partial(self._simulate, self._env.step), actions)
        self._env.world.skips_far_pairs = False
        step = functools.partial(self._simulate, self._env.step_without_draws)
        record = functools.partial(capture, self.device) if self.device.type == "cuda" else None
        self.fixed_step = FixedStep(self._env, step, record)

    def to(self, device: torch.device | str) -> _VmasWrapper:
        if self.fixed_step is not None and torch.device(device) != self.device:
            raise RuntimeError(f"A captured step stays on {self.device}; make another environment for {device}.")
        return super().to(device)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        actions = {group: tensordict.get((group, "action")) for group in self._members}
        return self._simulate(self._env.step, actions) if self.fixed_step is None else self.fixed_step(actions)

    def _simulate(self, step: Callable[[list[Tensor]], list[Any]], actions: dict[str, Tensor]) -> TensorDictBase:
        apart: list[Any] = [None] * len(self.agent_names)
        for group, members in self._members.items():
            for i, action in zip(members, actions[group].unbind(1)):
                apart[i] = action
        observations, rewards, dones, infos = step(apart)
        return self._read(observations, dones, infos, rewards)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        # A CPU is asked whether it is a reset of all, which is faster; a GPU would have to be waited for.
        if mask is None or (mask.device.type == "cpu" and mask.all()):
            self._env.reset(return_observations=False)
            return self._read(*self._env.get_from_scenario(True, False, True, True))
        return self._read(*reset_rows(self._env, mask.squeeze(-1)))

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
            groups[group] = self._stack(agents) if self._uniform[group] else self._stack_apart(agents, group)
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

    def _stack_apart(self, agents: list[Any], group: str) -> TensorDictBase:
        """As TorchRL does it: a lazy stack, or what the agents have in common."""
        apart = [self._stack([agent])[:, 0] for agent in agents]
        stacked = LazyStackedTensorDict.maybe_dense_stack(apart, dim=1)
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


class RandomStream:
    """A stream of torch's, NumPy's and Python's global generators of its own, swapped in by ``with``."""

    def __init__(self, seed: int | None, device: torch.device) -> None:
        self.device = device
        outside = self._get()
        try:
            self.seed(random.SystemRandom().getrandbits(31) if seed is None else seed)
            self._state = self._get()
        finally:
            self._set(outside)

    def seed(self, seed: int) -> None:
        """Seed the generators that are swapped in now, and no other device's."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)

    def __enter__(self) -> None:
        self._outside = self._get()
        self._set(self._state)

    def __exit__(self, *exception: object) -> None:
        self._state = self._get()
        self._set(self._outside)

    @contextmanager
    def of_torch(self) -> Iterator[None]:
        """Swap torch's generators alone: NumPy's and Python's take 0.3 ms, a tenth of a step."""
        outside = self._get_torch()
        self._set_torch(*self._state[::3])
        try:
            yield
        finally:
            cpu, cuda = self._get_torch()
            self._state = cpu, *self._state[1:3], cuda
            self._set_torch(*outside)

    def _get(self) -> tuple[Any, ...]:
        cpu, cuda = self._get_torch()
        return cpu, np.random.get_state(), random.getstate(), cuda

    def _set(self, state: tuple[Any, ...]) -> None:
        self._set_torch(*state[::3])
        np.random.set_state(state[1])
        random.setstate(state[2])

    def _get_torch(self) -> tuple[Tensor, Tensor | None]:
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return torch.get_rng_state(), cuda

    def _set_torch(self, cpu: Tensor, cuda: Tensor | None) -> None:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, self.device)


def _in_own_stream(method: Callable) -> Callable:
    """VMAS's method without the swap to its one stream per process, in the environment's own stream instead."""
    plain = method.__wrapped__  # type: ignore[attr-defined]

    @functools.wraps(plain)
    def in_own_stream(self: _Environment, *args: Any, **kwargs: Any) -> Any:
        with self.random_stream:
            return plain(self, *args, **kwargs)

    return in_own_stream


class _Environment(Environment):
    """VMAS's environment with a random stream of its own and, if asked for, padded agents."""

    padding: Padding | None = None
    # Whether no step draws from NumPy or Python: VMAS's own scenarios, by their source.
    draws_from_torch_alone = False
    # What hinders resets of some rows at once: empty if nothing does, None before anyone asked.
    reset_in_common: str | None = None

    def __init__(
        self,
        scenario: BaseScenario,
        num_envs: int,
        device: torch.device,
        *,
        seed: int | None,
        check_actions: bool,
        **options: Any,
    ) -> None:
        self.options = dict(options)
        self.random_stream = RandomStream(seed, device)
        with self.random_stream:
            Environment.__init__.__wrapped__(self, scenario, num_envs, device, **options)
        self.check_actions = check_actions
        install(self, checks=check_actions)

    def _seed(self, seed: int | None = None) -> list[int]:
        seed = 0 if seed is None else seed
        self.random_stream.seed(seed)
        return [seed]

    def step(self, actions: list[Tensor]) -> list[Any]:
        with self.random_stream.of_torch() if self.draws_from_torch_alone else self.random_stream:
            return self._step(actions if self.padding is None else self.padding.actions(actions))

    def step_without_draws(self, actions: list[Tensor]) -> list[Any]:
        """A step that leaves the random streams alone, whose states cannot be swapped while a graph is captured."""
        actions = actions if self.padding is None else self.padding.actions(actions)
        return Environment.step.__wrapped__(self, actions)

    def _set_action(self, action: Tensor, agent: Agent) -> None:
        """VMAS's for continuous actions, without asking the device whether they are numbers and in their bounds."""
        if self.check_actions:
            super()._set_action(action, agent)
            return
        action = action.detach().to(self.device)
        agent.action.u = action[:, : agent.action_size].float() * agent.action.u_multiplier_tensor
        if agent.action.u_noise > 0:
            agent.action.u += torch.randn_like(agent.action.u) * agent.u_noise
        if self.world.dim_c > 0 and not agent.silent:
            agent.action.c = action[:, self.world.dim_p :].clone()
            if agent.c_noise > 0:
                agent.action.c += torch.randn_like(agent.action.c) * agent.c_noise

    def _get_from_scenario(self, get_observations: bool, *args: Any, **kwargs: Any) -> list[Any]:
        result = super()._get_from_scenario(get_observations, *args, **kwargs)
        if self.padding is not None and get_observations:
            result[0] = self.padding.observations(result[0])
        return result

    def to(self, device: torch.device | str) -> None:
        device = torch.device(device)
        if device != self.device:
            with self.random_stream:
                seed = random.getrandbits(31)
            self.random_stream = RandomStream(seed, device)
            if self.padding is not None:
                self.padding.to(device)
        super().to(device)

    reset = _in_own_stream(Environment.reset)
    reset_at = _in_own_stream(Environment.reset_at)
    get_from_scenario = _in_own_stream(Environment.get_from_scenario)
    seed = _in_own_stream(Environment.seed)
    done = _in_own_stream(Environment.done)
    _step = Environment.step.__wrapped__
    get_random_action = _in_own_stream(Environment.get_random_action)
    render = _in_own_stream(Environment.render)
