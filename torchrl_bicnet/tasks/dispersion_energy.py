"""Dispersion with agents that run out of energy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vmas.scenarios.dispersion import Scenario as Dispersion
from vmas.simulator.core import Agent, World

from torchrl_bicnet.checks import check_number


class DispersionEnergy(Dispersion):
    """VMAS's dispersion with agents whose energy is spent by their actions, and who are gone once it is.

    All start in the middle and eat food that lies around. Each has an energy of its own, drawn for each environment at
    each reset, uniform between a quarter of ``energy`` and all of it, in steps at full force. It sees its own alone, so
    who should go for the food that is far away must be told. An agent without energy is absent from then on
    (:func:`~torchrl_bicnet.make_vmas_env` writes the mask). An episode ends when all food is eaten or nobody is left.

    An agent observes what it does in dispersion, and its energy divided by ``energy``: its position and velocity and
    for each food where it is, relative to the agent, and whether it was eaten, ``5 + 3 n_food`` numbers.

    Options:
        - ``energy`` (float): the most that an agent starts with, in steps at full force. Defaults to ``40``.
        - those of dispersion: ``n_agents`` (``4``), ``n_food`` (as many), ``share_reward``, ``food_radius`` and so on.

    Reference: VMAS's dispersion, https://github.com/proroklab/VectorizedMultiAgentSimulator.

    Example:
        >>> from torchrl_bicnet import make_vmas_env
        >>> env = make_vmas_env("dispersion_energy", num_envs=32, max_steps=50, seed=0, n_agents=3, energy=10)
        >>> td = env.rollout(20)
        >>> td["agents", "mask"].sum(-1)[:, 0].float().mean(), bool(td["agents", "mask"].all())  # later some are gone
        (tensor(3.), False)
    """

    def make_world(self, batch_dim: int, device: torch.device, **kwargs: Any) -> World:
        self.energy = kwargs.pop("energy", 40)
        check_number("energy", self.energy)
        if not self.energy > 0:
            raise ValueError(f"energy must be above 0, found {self.energy}.")
        world = super().make_world(batch_dim, device, **kwargs)
        for agent in world.agents:
            agent.energy = torch.zeros(batch_dim, device=device)
        return world

    def reset_world_at(self, env_index: int | None = None) -> None:
        super().reset_world_at(env_index)
        n_rows = self.world.batch_dim if env_index is None else 1
        for agent in self.world.agents:
            energy = self.energy * (0.25 + 0.75 * torch.rand(n_rows, device=self.world.device))
            if env_index is None:
                agent.energy = energy
            else:
                agent.energy[env_index] = energy[0]

    def post_step(self) -> None:
        for agent in self.world.agents:
            spent = agent.action.u.norm(dim=-1) / (agent.u_range * agent.u_multiplier)
            agent.energy = (agent.energy - spent).clamp(min=0)

    def is_present(self, agent: Agent) -> Tensor:
        return agent.energy > 0

    def observation(self, agent: Agent) -> Tensor:
        return torch.cat([super().observation(agent), agent.energy.unsqueeze(-1) / self.energy], -1)

    def done(self) -> Tensor:
        return super().done() | ~torch.stack([self.is_present(agent) for agent in self.world.agents]).any(0)
