"""States visited by a policy."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

from torchrl_bicnet.checks import check_seed
from torchrl_bicnet.episodes import first_episodes


def visited_states(env: EnvBase, policy: TensorDictModuleBase, *, max_steps: int, seed: int) -> TensorDict:
    """States in the first episode of every environment, as :func:`~torchrl_bicnet.evaluate` plays them.

    Args:
        env (EnvBase): as for :func:`~torchrl_bicnet.evaluate`.
        policy (TensorDictModuleBase): acts for every group.

    Keyword Args:
        max_steps (int): time limit, in steps.
        seed (int): of the start states.

    Returns:
        TensorDict: the policy's ``in_keys``, as far as the environment gives them, ``(S,)``: every state from which an
        action was taken, by time. ``"episode"``, ``(S,)``, is the index of the environment that it was in.

    Example:
        >>> from torchrl_bicnet import BiCNetActor, make_vmas_env
        >>> env = make_vmas_env("navigation", num_envs=8, n_agents=3)
        >>> visited_states(env, BiCNetActor.from_env(env), max_steps=5, seed=0)["agents", "observation"].shape
        torch.Size([40, 3, 18])
    """
    check_seed(seed)
    with first_episodes(env, policy, max_steps=max_steps, seed=seed) as (start, steps):
        keys = list(start.select(*policy.in_keys, strict=False).keys(True, True))
        return torch.cat(
            [step.state.select(*keys)[step.running].set("episode", step.running.nonzero()[:, 0]) for step in steps]
        )
