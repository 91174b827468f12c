"""States visited by a policy."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

from torchrl_bicnet.checks import check_seed
from torchrl_bicnet.evaluation import Evaluation, evaluate, in_eval_mode


def visited_states(env: EnvBase, policy: TensorDictModuleBase, *, max_steps: int, seed: int) -> TensorDict:
    """What the policy read in the first episodes of every environment, as :func:`~torchrl_bicnet.evaluate` plays them.

    Args:
        env (EnvBase): as for :func:`~torchrl_bicnet.evaluate`.
        policy (TensorDictModuleBase): acts for every group.

    Keyword Args:
        max_steps (int): time limit, in steps.
        seed (int): of the start states.

    Returns:
        TensorDict: the policy's ``in_keys``, ``(S,)``: every state from which an action was taken, by time.

    Raises:
        TypeError: for a policy that is no TensorDict module, or no seed.
        ValueError, KeyError: as :func:`~torchrl_bicnet.evaluate`.

    Example:
        >>> from torchrl_bicnet import BiCNetActor, make_vmas_env
        >>> env = make_vmas_env("navigation", num_envs=8, n_agents=3)
        >>> visited_states(env, BiCNetActor.from_env(env), max_steps=5, seed=0)["agents", "observation"].shape
        torch.Size([40, 3, 18])
    """
    return _evaluate_and_keep_states(env, policy, max_steps, seed)[1]


def _evaluate_and_keep_states(
    env: EnvBase, policy: TensorDictModuleBase, max_steps: int, seed: int
) -> tuple[Evaluation, TensorDict]:
    if not isinstance(policy, TensorDictModuleBase):
        raise TypeError(f"policy must be a TensorDict module, found {type(policy).__name__}.")
    check_seed(seed)
    states = []

    def keep(td: TensorDictBase) -> TensorDictBase:
        states.append(td.select(*policy.in_keys, strict=False).clone())
        return policy(td)

    with in_eval_mode(policy):
        evaluation = evaluate(env, keep, max_steps=max_steps, seed=seed)
    visited = torch.stack(states)  # (T, num_envs)
    steps = torch.arange(len(states), device=evaluation.lengths.device).unsqueeze(-1)
    return evaluation, visited[steps < evaluation.lengths]
