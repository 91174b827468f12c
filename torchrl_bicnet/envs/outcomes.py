"""Success and collisions as a scenario reports them, step by step, beside its reward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.envs import EnvBase

from torchrl_bicnet.vmas_state.unwrap import find_vmas, is_shipped

# From the entries before a step, which tell who was present, and those after it to (num_envs,) boolean.
Outcome = Callable[[TensorDictBase, TensorDictBase], Tensor]

# Scenarios of VMAS 1.5.2 whose done() is true when the task is solved, and never otherwise but for `_FAILURES`, read in
# their sources.
_ENDS_IN_SUCCESS = (
    *("asym_joint", "balance", "discovery", "dispersion", "dropout", "give_way", "joint_passage"),
    *("joint_passage_size", "navigation", "passage", "reverse_transport", "transport"),
)
# The entry of the info that is non-zero where done() is true for a failure.
_FAILURES = {"balance": "ground_rew"}
# The option without which done() is never true.
_ENDS_WITH = {"discovery": ("targets_respawn", False), "give_way": ("done_on_completion", True)}


def reported_success(env: EnvBase) -> Outcome | None:
    """Whether the task is solved after a step, if the scenario reports it.

    It does in two ways: by an entry ``success`` of its ``info``, true for every agent that has it, or by ending, in
    those scenarios of VMAS that end when the task is solved: asym_joint, balance (without a fall), discovery (with
    ``targets_respawn=False``), dispersion, dropout, give_way (with ``done_on_completion=True``), joint_passage,
    joint_passage_size, navigation, passage, reverse_transport and transport. The other scenarios of VMAS never end,
    end for other reasons, or end in success and in failure without saying in which.

    Args:
        env (EnvBase): the environment.

    Returns:
        callable or None: a transition of batch size ``(num_envs,)``, given as the state before it and its
        ``("next", ...)``, to booleans ``(num_envs,)``; ``None`` if the scenario does not report success.

    Example:
        >>> from torchrl_bicnet import make_vmas_env
        >>> solved = reported_success(make_vmas_env("navigation", num_envs=3))
        >>> reported_success(make_vmas_env("simple_spread", num_envs=3)) is None
        True
    """
    entries = [key for key in _info_entries(env) if key[-1] == "success"]
    if entries:
        return lambda before, after: _nonzero(before, after, entries, absent=True).all(-1)
    environments = find_vmas(env)
    # VMAS's own time limit ends an episode as its success does.
    if not environments or environments[0].max_steps is not None:
        return None
    scenario = environments[0].scenario
    # The file of the done() in force: a subclass that has its own reports nothing.
    done = scenario.done
    file = Path(done.__code__.co_filename)
    if not is_shipped(done) or file.stem not in _ENDS_IN_SUCCESS:
        return None
    option, needed = _ENDS_WITH.get(file.stem, ("", ""))
    if getattr(scenario, option, "") != needed:
        return None
    failures = [key for key in _info_entries(env) if key[-1] == _FAILURES.get(file.stem)]
    if not failures:
        return lambda before, after: after["terminated"].squeeze(-1)
    return lambda before, after: after["terminated"].squeeze(-1) & ~_nonzero(before, after, failures).any(-1)


def reported_collision(env: EnvBase) -> Outcome | None:
    """Whether any agent collides in a step, if the scenario reports it.

    It does by entries of its ``info`` whose name holds ``collision``, as in ball_passage, buzz_wire, discovery,
    flocking, give_way, joint_passage, joint_passage_size, multi_give_way, navigation and road_traffic: any of them
    that is not zero is a collision. Most are penalties, so they tell of the collisions that the scenario punishes
    and, where all its penalties are set to zero or its agents do not collide, of none: then nothing is reported.

    Args:
        env (EnvBase): the environment.

    Returns:
        callable or None: a transition of batch size ``(num_envs,)``, given as the state before it and its
        ``("next", ...)``, to booleans ``(num_envs,)``; ``None`` if the scenario does not report collisions.

    Example:
        >>> from torchrl_bicnet import make_vmas_env
        >>> collided = reported_collision(make_vmas_env("navigation", num_envs=3))
        >>> reported_collision(make_vmas_env("navigation", num_envs=3, collisions=False)) is None
        True
    """
    entries = [key for key in _info_entries(env) if "collision" in key[-1]]
    environments = find_vmas(env)
    if environments:
        options = vars(environments[0].scenario)
        penalties = [
            value
            for name, value in options.items()
            if "collision" in name and name.endswith(("penalty", "reward")) and isinstance(value, int | float)
        ]
        if (penalties and not any(penalties)) or options.get("collisions") is False:
            return None
    return (lambda before, after: _nonzero(before, after, entries).any(-1)) if entries else None


def _info_entries(env: EnvBase) -> list[NestedKey]:
    keys = env.full_observation_spec.keys(True, True)
    return [key for key in keys if isinstance(key, tuple) and len(key) > 1 and key[-2] == "info"]


def _nonzero(before: TensorDictBase, after: TensorDictBase, entries: list[NestedKey], absent: bool = False) -> Tensor:
    """``(num_envs, M)``, of all agents of all entries; ``absent`` stands for agents that were not there."""
    found = []
    for key in entries:
        nonzero, mask = (after[key] != 0).flatten(1), before.get((*key[:-2], "mask"), None)
        if mask is not None:
            per_agent = nonzero.unflatten(1, (mask.shape[1], -1))
            nonzero = torch.where(mask.unsqueeze(-1), per_agent, absent).flatten(1)
        found.append(nonzero)
    return torch.cat(found, -1)
