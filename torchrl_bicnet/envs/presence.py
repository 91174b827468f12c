"""Agents that come and go within an episode, as a scenario says."""

from __future__ import annotations

import torch
from torch import Tensor
from vmas.simulator.core import Agent
from vmas.simulator.environment import Environment

PARKING = 1000.0  # where absent agents are, far from everything


class PresenceError(TypeError):
    """A scenario's ``is_present`` gives something else than booleans of its environments."""


def presence(environment: Environment) -> list[Tensor] | None:
    """Which environments each agent is present in, booleans ``(num_envs,)``; ``None`` if the scenario does not say.

    A scenario says so by a method ``is_present(agent)``, beside its ``observation(agent)`` and ``reward(agent)``.

    Raises:
        PresenceError: if that gives anything else.
    """
    is_present = getattr(environment.scenario, "is_present", None)
    if is_present is None:
        return None
    found = []
    for agent in environment.agents:
        present = is_present(agent)
        if not isinstance(present, Tensor) or present.dtype != torch.bool or present.shape != (environment.num_envs,):
            what = f"{present.dtype} {tuple(present.shape)}" if isinstance(present, Tensor) else repr(present)
            raise PresenceError(f"is_present({agent.name}) must give booleans ({environment.num_envs},), found {what}.")
        found.append(present)
    return found


def absent_agents(environment: Environment, index: int) -> list[Agent]:
    """The agents that are not there in one of the environments."""
    return [agent for agent, here in zip(environment.agents, presence(environment) or ()) if not here[index]]


def park(environment: Environment, present: list[Tensor]) -> None:
    """Put absent agents where they touch nobody and no sensor sees them, at rest; in one place there is no contact."""
    for agent, here in zip(environment.agents, present):
        state, here = agent.state, here.unsqueeze(-1)
        state.pos = torch.where(here, state.pos, PARKING)
        state.vel = torch.where(here, state.vel, 0)
        state.ang_vel = torch.where(here, state.ang_vel, 0)
