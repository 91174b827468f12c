"""Groups of agents, action bounds and feature sizes, read off TorchRL's specs."""

from __future__ import annotations

import torch
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.data import Bounded, Composite, TensorSpec
from torchrl.envs import EnvBase

from torchrl_bicnet.checks import check_key


def action_leaf(action_spec: TensorSpec, key: NestedKey) -> TensorSpec:
    """The action's own spec: the one given or, of a Composite, that at ``key``."""
    if not isinstance(action_spec, Composite):
        return action_spec
    if key not in action_spec.keys(True, True):
        raise KeyError(f"No action spec at {key!r}; the Composite holds {list(action_spec.keys(True, True))}.")
    return action_spec[key]


def action_bounds(spec: TensorSpec) -> tuple[Tensor, Tensor]:
    """The lower and upper bounds, ``(a,)`` if they are equal over the agents, ``(N, a)`` otherwise."""
    if not isinstance(spec, Bounded) or not spec.dtype.is_floating_point:
        raise TypeError(
            f"The actor's actions are continuous and bounded: expected a Bounded spec of a floating type, found "
            f"{type(spec).__name__} of dtype {getattr(spec, 'dtype', None)}."
        )
    if spec.ndim < 2:
        raise ValueError(f"Expected an action spec of shape (*B, N, a), found {tuple(spec.shape)}.")
    n_agents, n_actions = spec.shape[-2:]
    bounds = torch.stack([spec.space.low, spec.space.high]).reshape(2, -1, n_agents, n_actions)
    if not (bounds[1] - bounds[0]).isfinite().all():
        raise ValueError(f"Expected finite action bounds, found low={spec.space.low} and high={spec.space.high}.")
    if not (bounds == bounds[:, :1]).all():
        raise ValueError("Expected the same action bounds in every environment of the batch, found different ones.")
    low, high = bounds[:, 0].clone()
    if (low == low[:1]).all() and (high == high[:1]).all():
        return low[0].clone(), high[0].clone()
    return low.clone(), high.clone()


def find_group(env: EnvBase, group: NestedKey | None) -> NestedKey:
    """The group given or, for ``None``, the only one of the environment."""
    if not isinstance(env, EnvBase):
        raise TypeError(f"env must be a TorchRL environment, found {type(env).__name__}.")
    groups = [key[0] if len(key) == 2 else key[:-1] for key in env.action_keys if isinstance(key, tuple)]
    if not groups:
        raise ValueError(f"The environment has no group of agents; its action keys are {env.action_keys}.")
    if group is None:
        if len(groups) > 1:
            raise ValueError(f"The environment has several groups; choose one with group=, found {groups}.")
        return groups[0]
    check_key("group", group)
    if unravel_key(group) not in groups:
        raise ValueError(f"The environment has no group {group!r}; its groups are {groups}.")
    return unravel_key(group)


def agent_spec(env: EnvBase, key: NestedKey) -> TensorSpec:
    """The spec of an observation or action entry, whose last dimension is the same for every agent."""
    specs = env.full_action_spec if key in env.action_keys else env.full_observation_spec
    if key not in specs.keys(True, True):
        raise KeyError(f"The environment has no entry {key!r}; there are {list(specs.keys(True, True))}.")
    if specs[key].shape[-1] < 0:
        raise ValueError(
            f"The agents that share {key!r} have different sizes; the net they share needs equal ones. Make the "
            f"environment with make_vmas_env(..., pad=True), or put agents of one size into a group (group_map=)."
        )
    return specs[key]


def agent_mask_key(env: EnvBase, group: NestedKey, agents: torch.Size) -> NestedKey | None:
    """Where an environment writes which of the ``agents``, ``(*B, N)``, are present, ``(group, "mask")``, or None."""
    key = unravel_key((group, "mask"))
    spec = env.full_observation_spec.get(key, None)
    return key if spec is not None and spec.dtype == torch.bool and spec.shape == agents else None
