"""Hidden goals: each agent must reach a goal that only another agent sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from vmas.simulator.core import Agent, Landmark, World
from vmas.simulator.scenario import BaseScenario
from vmas.simulator.utils import ScenarioUtils

from torchrl_bicnet.checks import check_integer, check_type
from torchrl_bicnet.tasks.drawing import distinct_colors, line

if TYPE_CHECKING:
    from vmas.simulator.rendering import Geom


class HiddenGoals(BaseScenario):
    """A navigation task in which every agent knows another agent's goal and not its own.

    ``N`` point masses start at rest, they and their goals uniform in [-1, 1]^2, drawn for each environment at each
    reset. All get the same reward, minus the mean over agents of the distance to the own goal. Agents neither collide
    nor see each other, so without communication nobody can do better than to wait where the goals are near on average,
    in the middle: a goal is there 0.765 away, ``(sqrt(2) + log(1 + sqrt(2))) / 3``.

    With two agents it is what MPE's *simple_reference* was made for, with goals of each environment's own.

    An agent observes its position, its velocity and the position of the goal that it sees, 6 numbers. With
    ``random_seers`` it is told as a one-hot whose goal that is, ``6 + N`` numbers.

    Options:
        - ``n_agents`` (int): number of agents, at least 2. Defaults to ``4``.
        - ``random_seers`` (bool): ``False``: agent ``i`` sees the goal of agent ``i + 1``, the last one that of the
          first. ``True``: who sees whose is drawn for each episode, uniformly among the closed chains of all agents.
          Defaults to ``False``.

    Reference: for two agents, Lowe et al., *Multi-Agent Actor-Critic for Mixed Cooperative-Competitive Environments*,
    2017, https://arxiv.org/abs/1706.02275, section 5.1.

    Example:
        >>> from torchrl_bicnet import make_vmas_env
        >>> env = make_vmas_env("hidden_goals", num_envs=32, max_steps=50, seed=0, n_agents=3)
        >>> td = env.rollout(5)
        >>> td["agents", "observation"].shape, td["next", "agents", "reward"].shape
        (torch.Size([32, 5, 3, 6]), torch.Size([32, 5, 3, 1]))
    """

    def make_world(self, batch_dim: int, device: torch.device, **kwargs: Any) -> World:
        n_agents = kwargs.pop("n_agents", 4)
        self.random_seers = kwargs.pop("random_seers", False)
        ScenarioUtils.check_kwargs_consumed(kwargs)
        check_integer("n_agents", n_agents, least=2)  # nobody would see the goal of one agent
        check_type("random_seers", self.random_seers, bool, "a bool")
        self.viewer_zoom = 1.2
        world = World(batch_dim, device)
        for i, color in enumerate(distinct_colors(n_agents)):
            agent = Agent(f"agent_{i}", collide=False, color=color)
            agent.goal = Landmark(f"goal_{i}", collide=False, color=color)
            world.add_agent(agent)
            world.add_landmark(agent.goal)
        # Whose goal each agent sees, as a one-hot: (batch_dim, seer, owner).
        self.sees = torch.eye(n_agents, device=device).roll(1, 1).repeat(batch_dim, 1, 1)
        return world

    def reset_world_at(self, env_index: int | None = None) -> None:
        n_rows, n_agents = (self.world.batch_dim if env_index is None else 1), len(self.world.agents)
        for entity in self.world.entities:
            position = torch.rand(n_rows, 2, device=self.world.device) * 2 - 1
            entity.set_pos(position, batch_index=env_index)
        if self.random_seers:
            chain = torch.rand(n_rows, n_agents, device=self.world.device).argsort(-1)
            owner = torch.zeros_like(chain).scatter(-1, chain, chain.roll(-1, -1))  # of the goal: the next in the chain
            sees = torch.eye(n_agents, device=self.world.device)[owner]
            if env_index is None:
                self.sees = sees
            else:
                self.sees[env_index] = sees[0]

    def observation(self, agent: Agent) -> Tensor:
        whose = self.sees[:, self.world.agents.index(agent)]  # (batch_dim, n_agents)
        goals = torch.stack([other.goal.state.pos for other in self.world.agents], 1)  # (batch_dim, n_agents, 2)
        parts = [agent.state.pos, agent.state.vel, (whose.unsqueeze(-1) * goals).sum(1)]
        return torch.cat([*parts, whose] if self.random_seers else parts, -1)

    def reward(self, agent: Agent) -> Tensor:
        distances = [(a.state.pos - a.goal.state.pos).norm(dim=-1) for a in self.world.agents]
        return -torch.stack(distances).mean(0)

    def extra_render(self, env_index: int = 0) -> list[Geom]:
        """A line from each agent to its own goal, in their colour."""
        agents = self.world.agents
        return [line(a.state.pos[env_index], a.goal.state.pos[env_index], a.color) for a in agents]
