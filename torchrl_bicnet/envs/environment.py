"""VMAS's environment with a random stream of its own and padded agents."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from vmas.simulator.core import Agent
from vmas.simulator.environment import Environment
from vmas.simulator.scenario import BaseScenario

from torchrl_bicnet.envs.padding import Padding
from torchrl_bicnet.envs.random_stream import RandomStream
from torchrl_bicnet.vmas_fast.batched_world import install


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
