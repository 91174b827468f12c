"""Returns of a policy, one episode per environment."""

from __future__ import annotations

import torch
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_bicnet.modules import find_group


@torch.no_grad()
def evaluate(
    env: EnvBase,
    policy: TensorDictModuleBase,
    *,
    max_steps: int,
    seed: int | None = None,
    group: NestedKey | None = None,
) -> Tensor:
    """The return of every agent in the first episode of every environment, without exploration.

    No environment starts a second episode, so a scenario that can end early does not add up several returns, as a
    rollout of fixed length with automatic resets would. The environments of
    :func:`~torchrl_bicnet.make_vmas_env` have random streams of their own: evaluating one does not disturb another.

    Args:
        env (EnvBase): a vectorised environment of batch size ``(num_envs,)`` that writes ``(group, "reward")``.
        policy (TensorDictModuleBase): acts for every group; called under
            :attr:`ExplorationType.DETERMINISTIC`, in the mode it is in: call ``policy.eval()`` before if it holds
            a batch norm, as the nets of :func:`~torchrl_bicnet.load_plain_bicnet` do.

    Keyword Args:
        max_steps (int): episodes that have not ended by then are cut off, in steps.
        seed (int, optional): seeds the environment first: the same start states for every evaluation with this seed.
        group (NestedKey, optional): the group of agents. ``None``: the only one.

    Returns:
        Tensor: undiscounted returns, ``(num_envs, N)``.

    Raises:
        ValueError: if ``max_steps`` is below 1; if the group does not exist or, for ``None``, if there are several.

    Example:
        >>> from torchrl_bicnet import BiCNetActor, make_vmas_env
        >>> env = make_vmas_env("navigation", num_envs=16, n_agents=3)
        >>> evaluate(env, BiCNetActor.from_env(env), max_steps=20, seed=0).shape
        torch.Size([16, 3])
    """
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, found {max_steps}.")
    reward_key = unravel_key((find_group(env, group), "reward"))
    if seed is not None:
        env.set_seed(seed)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        td = env.reset()
        running = torch.ones_like(td["done"])  # (num_envs, 1)
        returns = torch.zeros((), device=env.device)
        for _ in range(max_steps):
            td = env.step(policy(td))
            reward = td["next"].get(reward_key).squeeze(-1)  # (num_envs, N)
            returns = returns + torch.where(running, reward, 0.0)
            td = env.step_mdp(td)
            running = running & ~td["done"]
            if not running.any():
                break
    return returns
