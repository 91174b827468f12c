"""Guessing the sum: each agent sees one number, and all must say the sum of the team's numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vmas.simulator.core import Agent, World
from vmas.simulator.dynamics.common import Dynamics
from vmas.simulator.scenario import BaseScenario
from vmas.simulator.utils import ScenarioUtils


class GuessTheSum(BaseScenario):
    """A task that cannot be solved without communication; episodes last one step.

    Agent ``i`` of ``N`` sees ``x_i``, uniform in [-1, 1], acts ``a_i`` in [-N, N], and gets the reward
    ``-(a_i - sum_j x_j)^2``. The best possible return is 0. Without communication the best guess is ``x_i``, the
    expectation of the sum given ``x_i``, at a cost of the variance of the others' sum, ``(N - 1) / 3``.

    It takes the option ``n_agents``, 3 by default.

    Example:
        >>> from torchrl_bicnet import make_vmas_env
        >>> env = make_vmas_env(GuessTheSum(), num_envs=1000, seed=0, n_agents=4)
        >>> td = env.reset()
        >>> td["agents", "action"] = td["agents", "observation"]  # the best guess without communication
        >>> round(env.step(td)["next", "agents", "reward"].mean().item(), 1)  # -(4 - 1) / 3
        -1.0
        >>> td["agents", "action"] = td["agents", "observation"].sum(-2, keepdim=True).expand(1000, 4, 1)
        >>> env.step(td)["next", "agents", "reward"].abs().max().item()
        0.0
    """

    def make_world(self, batch_dim: int, device: torch.device, **kwargs: Any) -> World:
        self.n_agents = kwargs.pop("n_agents", 3)
        ScenarioUtils.check_kwargs_consumed(kwargs)
        world = World(batch_dim, device)
        for i in range(self.n_agents):
            world.add_agent(Agent(f"agent_{i}", u_range=float(self.n_agents), action_size=1, dynamics=_Word()))
        self.x = torch.zeros(batch_dim, self.n_agents, device=device)
        return world

    def reset_world_at(self, env_index: int | None = None) -> None:
        x = torch.rand_like(self.x) * 2 - 1
        if env_index is None:
            self.x = x
        else:
            self.x[env_index] = x[env_index]

    def observation(self, agent: Agent) -> Tensor:
        return self.x[:, self.world.agents.index(agent), None]

    def reward(self, agent: Agent) -> Tensor:
        return -(agent.action.u[:, 0] - self.x.sum(-1)).square()

    def done(self) -> Tensor:
        return torch.ones(self.world.batch_dim, dtype=torch.bool, device=self.world.device)


class _Word(Dynamics):
    """An action that moves nothing."""

    @property
    def needed_action_size(self) -> int:
        return 1

    def process_action(self) -> None:
        pass
