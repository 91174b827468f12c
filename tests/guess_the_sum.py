"""A task that cannot be solved without communication, and a team trained on it once for all tests that need one.

Each agent sees x_i, uniform in [-1, 1]; all must put out the sum of the team's x. Reward -(a_i - sum)^2. Without
communication the best guess is E[sum | x_i] = x_i, at a cost of Var(sum of the others) = (N - 1) / 3.
"""

import functools

import torch
from tensordict import TensorDict
from torchrl.data import Bounded
from torchrl.objectives import SoftUpdate
from vmas.simulator.core import Agent, World
from vmas.simulator.dynamics.common import Dynamics
from vmas.simulator.scenario import BaseScenario
from vmas.simulator.utils import ScenarioUtils

from torchrl_bicnet import BiCNetActor, BiCNetCritic, make_ddpg_loss

N_AGENTS = 3
BLIND_COST = (N_AGENTS - 1) / 3


class Word(Dynamics):
    """An action that moves nothing."""

    needed_action_size = 1

    def process_action(self):
        pass


class GuessTheSum(BaseScenario):
    """The task as a scenario of VMAS; episodes last one step."""

    def make_world(self, batch_dim, device, **kwargs):
        ScenarioUtils.check_kwargs_consumed(kwargs)
        world = World(batch_dim, device)
        for i in range(N_AGENTS):
            world.add_agent(Agent(f"agent_{i}", u_range=3.0, action_size=1, dynamics=Word()))
        self.x = torch.zeros(batch_dim, N_AGENTS, device=device)
        return world

    def reset_world_at(self, env_index=None):
        x = torch.rand_like(self.x) * 2 - 1
        if env_index is None:
            self.x = x
        else:
            self.x[env_index] = x[env_index]

    def observation(self, agent):
        return self.x[:, self.world.agents.index(agent), None]

    def reward(self, agent):
        return -(agent.action.u[:, 0] - self.x.sum(-1)).square()

    def done(self):
        return torch.ones(self.world.batch_dim, dtype=torch.bool, device=self.world.device)


def play(actor, batch, noise):
    """A step of each of ``batch`` games, as a tensordict for the loss."""
    x = torch.rand(batch, N_AGENTS, 1) * 2 - 1
    td = TensorDict({"agents": {"observation": x}}, [batch])
    with torch.no_grad():
        actor(td)
    action = (td["agents", "action"] + noise * torch.randn(batch, N_AGENTS, 1)).clamp(-3, 3)
    td["agents", "action"] = action
    ended = torch.ones(batch, N_AGENTS, 1, dtype=torch.bool)
    reward = -(action - x.sum(-2, keepdim=True)).square()
    td["next", "agents"] = TensorDict({"observation": x, "reward": reward, "done": ended, "terminated": ended}, [batch])
    return td


@functools.cache
def trained_actor(communication, seed, steps):
    """Trained through make_ddpg_loss alone. Shared by the tests: leave it as it is."""
    torch.manual_seed(seed)
    spec = Bounded(-3.0, 3.0, (N_AGENTS, 1))
    options = {"communication": communication, "hidden_size": 24, "num_cells": (32,)}
    actor, critic = BiCNetActor(1, spec, **options), BiCNetCritic(1, 1, **options)
    loss = make_ddpg_loss(actor, critic, gamma=0.0)
    target_update = SoftUpdate(loss, tau=0.05)
    optimiser = torch.optim.Adam(loss.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, steps)
    for _ in range(steps):
        losses = loss(play(actor, 128, noise=1.0))
        (losses["loss_actor"] + losses["loss_value"]).backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        target_update.step()
    return actor.requires_grad_(False)


def score(actor):
    """1 - cost / (best cost without communication)."""
    torch.manual_seed(0)
    reward = play(actor, 20_000, noise=0.0)["next", "agents", "reward"]
    return 1 + reward.mean().item() / BLIND_COST
