"""A team trained on :class:`~torchrl_bicnet.tasks.GuessTheSum`, once for all tests that need one."""

import functools

import torch
from tensordict import TensorDict
from torchrl.data import Bounded
from torchrl.objectives import SoftUpdate

from torchrl_bicnet import BiCNetActor, BiCNetCritic, make_ddpg_loss

N_AGENTS = 3
BLIND_COST = (N_AGENTS - 1) / 3


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
