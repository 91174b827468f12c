"""Guessing the sum: each agent sees one number, and all must say the sum of the team's numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from vmas.simulator.core import Agent, World
from vmas.simulator.dynamics.common import Dynamics
from vmas.simulator.scenario import BaseScenario
from vmas.simulator.utils import ScenarioUtils

from torchrl_bicnet.checks import check_integer, check_type
from torchrl_bicnet.tasks.drawing import distinct_colors, line

if TYPE_CHECKING:
    from vmas.simulator.rendering import Geom


class GuessTheSum(BaseScenario):
    """A task that cannot be solved without communication; episodes last one step, unless numbers are to be remembered.

    Agent ``i`` of ``N`` sees ``x_i``, uniform in [-1, 1], acts ``a_i`` in [-N, N], and gets the reward
    ``-(a_i - sum_j x_j)^2``. The best possible return is 0. Without communication the best guess is ``x_i``, the
    expectation of the sum given ``x_i``, at a cost of the variance of the others' sum, ``(N - 1) / 3``.

    With ``seen_once`` it cannot be solved without memory either: the number is shown at the first step alone, 0 stands
    there afterwards, and the answers of the first step do not count. Each later one costs ``N / 3`` for who remembers
    nothing, ``(N - 1) / 3`` for who remembers but does not communicate. The time limit ends an episode.

    In a picture agent ``i`` stands at ``x_i`` in a row of its own; a line leads from
    there to its answer, and the vertical line is the sum.

    Options:
        - ``n_agents`` (int): number of agents, at least 2. Defaults to ``3``.
        - ``seen_once`` (bool): whether numbers are shown at the first step alone, and asked for in those after it.
          Defaults to ``False``.

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
        self.seen_once = kwargs.pop("seen_once", False)
        ScenarioUtils.check_kwargs_consumed(kwargs)
        check_integer("n_agents", self.n_agents, least=2)
        check_type("seen_once", self.seen_once, bool, "a bool")
        self.viewer_size = (700, 350)
        world = World(batch_dim, device)
        options = {"u_range": float(self.n_agents), "action_size": 1, "collide": False}
        for i, color in enumerate(distinct_colors(self.n_agents)):
            agent = Agent(f"agent_{i}", color=color, dynamics=_Word(), **options)
            world.add_agent(agent)
            agent.action.u = torch.zeros(batch_dim, 1, device=device)  # rewards are asked for before any step
        self.x = torch.zeros(batch_dim, self.n_agents, device=device)
        self.steps = torch.zeros(batch_dim, device=device)  # since the reset
        return world

    def reset_world_at(self, env_index: int | None = None) -> None:
        x = torch.rand_like(self.x) * 2 - 1
        if env_index is None:
            self.x, self.steps = x, torch.zeros_like(self.steps)
        else:
            self.x[env_index], self.steps[env_index] = x[env_index], 0
        drawn = self.x if env_index is None else self.x[env_index, None]
        for i, agent in enumerate(self.world.agents):  # placed for pictures alone
            agent.set_pos(self._place(drawn[:, i], i), env_index)

    def post_step(self) -> None:
        self.steps = self.steps + 1

    def observation(self, agent: Agent) -> Tensor:
        x = self.x[:, self.world.agents.index(agent), None]
        return torch.where(self.steps[:, None] == 0, x, 0) if self.seen_once else x

    def reward(self, agent: Agent) -> Tensor:
        cost = (agent.action.u[:, 0] - self.x.sum(-1)).square()
        return -torch.where(self.steps > 1, cost, 0) if self.seen_once else -cost

    def done(self) -> Tensor:
        return torch.full((self.world.batch_dim,), not self.seen_once, device=self.world.device)

    def extra_render(self, env_index: int = 0) -> list[Geom]:
        """A line from each agent to its answer, and a vertical one at the sum."""
        agents, total = self.world.agents, self.x[env_index].sum()
        ends = self._place(total, -0.5), self._place(total, len(agents) - 0.5)
        answers = [self._place(agent.action.u[env_index, 0], i) for i, agent in enumerate(agents)]
        lines = [line(a.state.pos[env_index], answer, a.color, width=3) for a, answer in zip(agents, answers)]
        return [line(*ends, (0.0, 0.0, 0.0)), *lines]

    def _place(self, number: Tensor, row: float) -> Tensor:
        """Where numbers of any shape are drawn in a row, with two coordinates more."""
        height = torch.full_like(number, 0.9 - 1.8 * (row + 0.5) / self.n_agents)
        return torch.stack([number / self.n_agents * 2, height], -1)


class _Word(Dynamics):
    """An action that moves nothing."""

    @property
    def needed_action_size(self) -> int:
        return 1

    def process_action(self) -> None:
        pass
