"""VMAS's environment with a random stream of its own, resets of some rows and padded agents."""

from __future__ import annotations

import functools
import random
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
from tensordict.utils import expand_right
from torch import Tensor
from vmas.simulator.core import Agent
from vmas.simulator.environment import Environment
from vmas.simulator.scenario import BaseScenario

from torchrl_bicnet.envs.padding import Padding
from torchrl_bicnet.envs.presence import park, presence
from torchrl_bicnet.envs.random_stream import RandomStream
from torchrl_bicnet.vmas_fast.batched_world import use_batched_world
from torchrl_bicnet.vmas_state.start_states import SharedStateError, StartStates, reset_one_by_one, reset_rows
from torchrl_bicnet.vmas_state.tensor_places import TensorPlaces
from torchrl_bicnet.vmas_state.unwrap import is_shipped


def _functions(cls: type) -> list[Callable]:
    return [x for owner in cls.__mro__[:-1] for x in vars(owner).values() if isinstance(x, types.FunctionType)]


def _in_own_stream(method: Callable) -> Callable:
    """VMAS's method in the environment's own random stream, instead of the one that VMAS has for a process."""
    plain = method.__wrapped__  # type: ignore[attr-defined]

    @functools.wraps(plain)
    def in_own_stream(self: StreamedEnvironment, *args: Any, **kwargs: Any) -> Any:
        with self.random_stream:
            return plain(self, *args, **kwargs)

    return in_own_stream


class StreamedEnvironment(Environment):
    """VMAS's environment with a random stream of its own and, after :meth:`pad`, padded agents.

    With ``check_actions`` every step asks whether actions are numbers within their bounds, as in VMAS. Where no step
    draws from NumPy's or Python's generator (``draws_from_torch_alone``), their states are not swapped. Functions that
    are not VMAS's own run as their author wrote them, resets one by one, unless ``never_wait`` is set.
    """

    padding: Padding | None = None
    start_states: StartStates | None = None
    _present_before: list[Tensor] | None = None  # a step, while it goes on
    # State that a reset changes for all environments of the batch: empty if there is none, None if not known yet.
    shared_state: str | None = None

    def __init__(
        self,
        scenario: BaseScenario,
        num_envs: int,
        device: torch.device,
        *,
        seed: int | None,
        check_actions: bool,
        draws_from_torch_alone: bool,
        never_wait: bool,
        **options: Any,
    ) -> None:
        self.options = dict(options)
        self.random_stream = RandomStream(seed, device)
        with self.random_stream:
            Environment.__init__.__wrapped__(self, scenario, num_envs, device, **options)
        self.start_states = StartStates()
        # A scenario that is not VMAS's own is reset one by one, as its author expects, unless more is asked for.
        self.hands_out_start_states = never_wait or all(map(is_shipped, _functions(type(scenario))))
        self.check_actions = check_actions
        self.draws_from_torch_alone = draws_from_torch_alone
        use_batched_world(self, never_wait=never_wait, checks=check_actions)

    def pad(self, group_map: dict[str, list[str]]) -> None:
        """Pad observations and actions to equal sizes within each group of agents from now on."""
        self.padding = Padding(self, group_map)

    def step(self, actions: list[Tensor]) -> list[Any]:
        with self.random_stream.of_torch() if self.draws_from_torch_alone else self.random_stream:
            return self.step_without_draws(actions)

    def step_without_draws(self, actions: list[Tensor]) -> list[Any]:
        """A step that leaves the random streams alone, whose states cannot be swapped while a graph is traced."""
        if self.padding is not None:
            actions = self.padding.actions(actions)
        if (present := presence(self)) is not None:
            park(self, present)
        self._present_before = present
        try:
            return Environment.step.__wrapped__(self, actions)
        finally:
            self._present_before = None

    def reset_rows(
        self, mask: Tensor, observe: Callable[[], Any], observed: Any = None, places: TensorPlaces | None = None
    ) -> Any:
        """Reset the environments that a mask ``(num_envs,)`` picks; what all observe, see :func:`reset_rows`."""
        known = self.shared_state
        if self.hands_out_start_states:
            try:
                return reset_rows(self, mask, observe, observed, places)
            except SharedStateError as error:
                self.shared_state = str(error)
        if self.shared_state != known:
            warnings.warn(
                "Environments of this scenario are reset one by one, and a partial reset may change others, as in "
                f"VMAS, since they share state that a reset changes: {self.shared_state}.",
                UserWarning,
                stacklevel=2,
            )
        reset_one_by_one(self, mask)
        return observe()

    def to(self, device: torch.device | str) -> None:
        device = torch.device(device)
        if device != self.device:
            with self.random_stream:
                seed = random.getrandbits(31)
            self.random_stream = RandomStream(seed, device)
            self.start_states = StartStates()
            if self.padding is not None:
                self.padding.to(device)
        super().to(device)

    def _seed(self, seed: int | None = None) -> list[int]:
        seed = 0 if seed is None else seed
        self.random_stream.seed(seed)
        self.start_states = StartStates()
        return [seed]

    def _set_action(self, action: Tensor, agent: Agent) -> None:
        """VMAS's, without asking the device whether actions are numbers and in their bounds."""
        here = None if self._present_before is None else self._present_before[self.agents.index(agent)]
        if here is not None:  # absent agents do not act, whatever their actions hold
            action = torch.where(expand_right(here, action.shape), action, 0)
        talks = self.world.dim_c > 0 and not agent.silent
        if self.check_actions:
            super()._set_action(action, agent)
        else:
            self._set_action_without_asking(action, agent, talks)
        if here is not None:  # of discrete actions 0 may be one, and there may be noise
            agent.action.u = torch.where(here.unsqueeze(-1), agent.action.u, 0)
            if talks:
                agent.action.c = torch.where(here.unsqueeze(-1), agent.action.c, 0)

    def _set_action_without_asking(self, action: Tensor, agent: Agent, talks: bool) -> None:
        action = (action if self.grad_enabled else action.detach()).to(self.device)
        if self.continuous_actions:
            agent.action.u = action[:, : agent.action_size].float() * agent.action.u_multiplier_tensor
            if talks:
                agent.action.c = action[:, self.world.dim_p :].clone()
        else:
            numbers = self._discrete_actions(action, agent, talks)
            agent.action.u = torch.stack(self._forces(numbers, agent), -1) * agent.action.u_multiplier_tensor
            if talks:
                words = torch.arange(self.world.dim_c, device=self.device)
                agent.action.c = (numbers[-1].unsqueeze(-1) == words).float()
        if agent.action.u_noise > 0:
            agent.action.u += torch.randn_like(agent.action.u) * agent.u_noise
        if talks and agent.c_noise > 0:
            agent.action.c += torch.randn_like(agent.action.c) * agent.c_noise

    def _discrete_actions(self, action: Tensor, agent: Agent, talks: bool) -> list[Tensor]:
        """The number of each of an agent's discrete actions, ``(num_envs,)``, what it says last."""
        if self.multidiscrete_actions:
            return list(action.unbind(-1))
        numbers = []
        rest = action.squeeze(-1)
        for n in reversed([*agent.discrete_action_nvec, *([self.world.dim_c] if talks else ())]):
            numbers.append(rest % n)  # the last one changes fastest
            rest = rest // n
        return numbers[::-1]

    def _forces(self, numbers: list[Tensor], agent: Agent) -> list[Tensor]:
        """Of ``n`` evenly spaced from the lowest to the highest; if ``n`` is odd number 0 is the middle, to stay."""
        forces = []
        for number, n, most in zip(numbers, agent.discrete_action_nvec, agent.action.u_range_tensor.unbind()):
            if n % 2:
                moved = torch.where(number <= n // 2, number - 1, number)
                number = torch.where(number == 0, n // 2, moved)
            forces.append(number / (n - 1) * (2 * most) - most)
        return forces

    def _get_from_scenario(self, get_observations: bool, *args: Any, **kwargs: Any) -> list[Any]:
        if (present := presence(self)) is not None:
            # Who leaves with this step is rewarded for where it is, and parked before the next one.
            before = self._present_before
            park(self, present if before is None else [now | was for now, was in zip(present, before)])
        outputs = super()._get_from_scenario(get_observations, *args, **kwargs)
        if self.padding is not None and get_observations:
            outputs[0] = self.padding.observations(outputs[0])
        return outputs

    reset = _in_own_stream(Environment.reset)
    reset_at = _in_own_stream(Environment.reset_at)
    get_from_scenario = _in_own_stream(Environment.get_from_scenario)
    seed = _in_own_stream(Environment.seed)
    done = _in_own_stream(Environment.done)
    get_random_action = _in_own_stream(Environment.get_random_action)
    render = _in_own_stream(Environment.render)
