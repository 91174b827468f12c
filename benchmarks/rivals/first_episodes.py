"""The evaluation return of `torchrl_bicnet.evaluate` for environments without this package: an older TorchRL's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from torchrl.envs import VmasEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type, step_mdp
from vmas.simulator.environment import Environment


def first_episode_return(
    env: VmasEnv, policy: Callable[[TensorDictBase], TensorDictBase], *, max_steps: int, seed: int
) -> tuple[float, float]:
    """Mean over agents and environments of the undiscounted return of each environment's first episode.

    And its standard error, of the environments' means over agents.

    The policy acts without exploration. VMAS's one random stream, which training shares, and torch's generator are
    afterwards as they were. The environment must have one group, ``"agents"``.
    """
    vmas_streams = list(Environment.vmas_random_state)
    deterministic = set_exploration_type(ExplorationType.DETERMINISTIC)
    try:
        with torch.random.fork_rng(), torch.no_grad(), deterministic:
            env.set_seed(seed)
            td = env.reset()
            running = torch.ones_like(td["done"])  # (num_envs, 1)
            returns = torch.zeros(())
            for _ in range(max_steps):
                td = env.step(policy(td))
                reward = td["next", "agents", "reward"].squeeze(-1)  # (num_envs, N)
                returns = returns + torch.where(running, reward, 0.0)
                running = running & ~td["next", "done"]
                td = step_mdp(td)
    finally:
        Environment.vmas_random_state[:] = vmas_streams
    of_episodes = returns.mean(-1)
    return of_episodes.mean().item(), of_episodes.std().item() / len(of_episodes) ** 0.5
