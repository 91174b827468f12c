"""First episodes of a vectorised environment: the one rollout of evaluations, films and analyses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_bicnet.checks import check_integer, check_seed, check_type
from torchrl_bicnet.envs.random_stream import RandomStream

# Seeds alike would let a policy draw the numbers that the start states were drawn from.
_POLICY = 0x9E3779B9

Policy: TypeAlias = TensorDictModuleBase | Callable[[TensorDictBase], TensorDictBase]


class Step(NamedTuple):
    """A step of all environments at once; every batch size is ``(num_envs,)``."""

    state: TensorDictBase  # what the policy read
    after: TensorDictBase  # what the environment gave, with rewards
    next_state: TensorDictBase  # what the policy reads next
    running: Tensor  # boolean: whether the step is one of the environment's first episode


@contextmanager
def first_episodes(
    env: EnvBase, policy: Policy, *, max_steps: int, seed: int | None = None
) -> Iterator[tuple[TensorDictBase, Iterator[Step]]]:
    """The start state and the steps of every environment's first episode, until the last has ended.

    In the ``with`` block the policy is in eval mode and does not explore, and the global generators are a random
    stream of the block's own; afterwards, and after an error, modes and generators are as they were. The seed is that
    of the environment; the stream's follows from it. Arguments are checked before anything is changed.
    """
    check_type("env", env, EnvBase, "a TorchRL environment")
    if not callable(policy):
        raise TypeError(f"policy must be a TensorDict module or a callable, found {policy!r}.")
    check_integer("max_steps", max_steps)
    if seed is not None:
        check_seed(seed)
    if len(env.batch_size) != 1:
        raise ValueError(f"The environment must have batch size (num_envs,), found {tuple(env.batch_size)}.")
    if "done" not in env.done_keys:
        raise ValueError(f"The environment must have a root 'done', found done keys {env.done_keys}.")
    device = torch.device("cpu") if env.device is None else env.device
    deterministic = set_exploration_type(ExplorationType.DETERMINISTIC)
    stream = RandomStream(None if seed is None else seed ^ _POLICY, device)
    with in_eval_mode(policy), stream, deterministic:
        if seed is not None:
            env.set_seed(seed)
        with torch.no_grad():
            start = env.reset()
        yield start, _steps(env, policy, start, max_steps)


def _steps(env: EnvBase, policy: Policy, state: TensorDictBase, max_steps: int) -> Iterator[Step]:
    running = torch.ones_like(state["done"]).squeeze(-1)  # (num_envs,)
    for _ in range(max_steps):
        with torch.no_grad():
            td = env.step(_act(env, policy, state.copy()))
        step = Step(state, td["next"], env.step_mdp(td), running)
        yield step
        state, running = step.next_state, running & ~step.after["done"].squeeze(-1)
        if not running.any():
            break


def _act(env: EnvBase, policy: Policy, td: TensorDictBase) -> TensorDictBase:
    """Call the policy; an error for actions that the environment would misread."""
    td = policy(td)
    if not isinstance(td, TensorDictBase):
        raise TypeError(f"The policy must return a tensordict, found {type(td).__name__}.")
    for key in env.action_keys:
        action, spec = td.get(key, None), env.full_action_spec[key]
        if action is None:
            raise KeyError(f"The policy wrote no action at {key!r}; the environment needs {env.action_keys}.")
        if action.shape != spec.shape and -1 not in spec.shape:
            raise ValueError(
                f"Expected an action of shape {tuple(spec.shape)} at {key!r}, found {tuple(action.shape)}."
            )
        if action.is_floating_point() != spec.dtype.is_floating_point or action.is_complex():
            raise TypeError(f"Expected an action of type {spec.dtype} at {key!r}, found {action.dtype}.")
    return td


@contextmanager
def in_eval_mode(policy: object) -> Iterator[None]:
    """Every module of the policy in eval mode for the block, and in its own mode again after it."""
    modes = {module: module.training for module in policy.modules()} if isinstance(policy, nn.Module) else {}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
