"""Speaker and listener: one agent knows which landmark is the goal, the other one can go there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from vmas.simulator.core import Agent, Landmark, Sphere, World
from vmas.simulator.scenario import BaseScenario
from vmas.simulator.utils import ScenarioUtils

from torchrl_bicnet.checks import check_integer
from torchrl_bicnet.tasks.drawing import disc, distinct_colors, line

if TYPE_CHECKING:
    from vmas.simulator.rendering import Geom

SPEAKER, LISTENER = 0, 1


class SpeakerListener(BaseScenario):
    """MPE's *simple_speaker_listener* with a goal of each environment's own, for one team.

    The speaker, ``agent_0``, sees which of the landmarks is the goal, and its actions move nothing. The listener,
    ``agent_1``, a point mass, sees where the landmarks are, and starts at rest. The goal is drawn for each environment
    at each reset, landmarks and listener uniform in [-1, 1]^2. Both agents get the same reward, minus the listener's
    distance to the goal. Without communication the listener can do no better than to wait where the landmarks are near
    on average, at their geometric median.

    VMAS's scenario of that name draws one goal for its whole batch, which agents can memorise, and gives its two agents
    observations and actions of different sizes. Here they are of one size and one group, so that the communication
    layer is the channel: an agent observes its velocity, the landmarks' positions relative to its own, a one-hot of
    the goal and a one-hot of its role, ``2 + 2 K + K + 2`` numbers for ``K`` landmarks. What it does not see is zero:
    of the speaker the first two, of the listener the goal.

    Options:
        - ``n_landmarks`` (int): number of landmarks, at least 2. Defaults to ``3``.

    References: Lowe et al., *Multi-Agent Actor-Critic for Mixed Cooperative-Competitive Environments*, 2017,
    https://arxiv.org/abs/1706.02275, section 5.1; for the goal of the whole batch
    https://github.com/proroklab/VectorizedMultiAgentSimulator/issues/62.

    Example:
        >>> from torchrl_bicnet import make_vmas_env
        >>> env = make_vmas_env("speaker_listener", num_envs=32, max_steps=50, seed=0)
        >>> td = env.rollout(5)
        >>> td["agents", "observation"].shape, td["agents", "action"].shape
        (torch.Size([32, 5, 2, 13]), torch.Size([32, 5, 2, 2]))
    """

    def make_world(self, batch_dim: int, device: torch.device, **kwargs: Any) -> World:
        n_landmarks = kwargs.pop("n_landmarks", 3)
        ScenarioUtils.check_kwargs_consumed(kwargs)
        check_integer("n_landmarks", n_landmarks, least=2)
        self.viewer_zoom = 1.3
        world = World(batch_dim, device)
        for i, movable in ((SPEAKER, False), (LISTENER, True)):
            grey = (0.3, 0.3, 0.3)
            world.add_agent(Agent(f"agent_{i}", movable=movable, collide=False, color=grey, shape=Sphere(radius=0.075)))
        self.colors = distinct_colors(n_landmarks)
        for i, color in enumerate(self.colors):
            world.add_landmark(Landmark(f"landmark_{i}", collide=False, color=color))
        self.roles = torch.eye(2, device=device)
        self.goal = torch.zeros(batch_dim, n_landmarks, device=device)  # a one-hot
        return world

    def reset_world_at(self, env_index: int | None = None) -> None:
        n_rows, device = (self.world.batch_dim if env_index is None else 1), self.world.device
        for entity in (*self.world.landmarks, self.world.agents[LISTENER]):
            entity.set_pos(torch.rand(n_rows, 2, device=device) * 2 - 1, batch_index=env_index)
        beside = torch.tensor([0.0, 1.2], device=device).expand(n_rows, 2)  # of the square, for pictures alone
        self.world.agents[SPEAKER].set_pos(beside, batch_index=env_index)
        n_landmarks = len(self.world.landmarks)
        goal = torch.eye(n_landmarks, device=device)[torch.randint(n_landmarks, (n_rows,), device=device)]
        if env_index is None:
            self.goal = goal
        else:
            self.goal[env_index] = goal[0]

    def observation(self, agent: Agent) -> Tensor:
        speaks = agent is self.world.agents[SPEAKER]
        to_landmarks = torch.cat([landmark.state.pos - agent.state.pos for landmark in self.world.landmarks], -1)
        role = self.roles[SPEAKER if speaks else LISTENER].expand(self.world.batch_dim, 2)
        if speaks:
            seen = [torch.zeros_like(agent.state.vel), torch.zeros_like(to_landmarks), self.goal]
        else:
            seen = [agent.state.vel, to_landmarks, torch.zeros_like(self.goal)]
        return torch.cat([*seen, role], -1)

    def reward(self, agent: Agent) -> Tensor:
        landmarks = torch.stack([landmark.state.pos for landmark in self.world.landmarks], 1)  # (batch_dim, K, 2)
        goal = (self.goal.unsqueeze(-1) * landmarks).sum(1)
        return -(self.world.agents[LISTENER].state.pos - goal).norm(dim=-1)

    def extra_render(self, env_index: int = 0) -> list[Geom]:
        """The speaker in the goal's colour, and a line from the listener to the goal."""
        goal = int(self.goal[env_index].argmax())
        speaker, listener, end = (
            entity.state.pos[env_index] for entity in (*self.world.agents, self.world.landmarks[goal])
        )
        return [disc(speaker, 0.11, self.colors[goal]), line(listener, end, self.colors[goal])]
