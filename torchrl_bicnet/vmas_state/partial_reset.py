"""Resets of some of the environments of a VMAS batch at once, without a loop over them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vmas.simulator.environment import Environment

from torchrl_bicnet.vmas_state.state_diff import SavedState, StateDiff

# A reset that picks one of two landmarks for all environments changes nothing half of the time.
N_TRIALS = 8


def reset_rows(environment: Environment, mask: Tensor, shared_state: str | None = None) -> tuple[list[Any], str]:
    """Reset the environments of a batch that a mask picks, and compute the outputs of all of them.

    All are reset, and those outside of the mask are restored: they go on to the bit as if nothing had happened, apart
    from the random numbers drawn meanwhile; those inside start as they would in a reset of all from the same state of
    the random stream. Observations that write into the state, of sensors or noise, leave those outside as they were
    too. Nothing waits for the device, unless a reset makes tensors that do not have one row for each environment:
    whether their values are the same is read once for all of them.

    A scenario with state shared by all environments of the batch that a reset changes (a mass, a landmark that is the
    goal of all), or whose start states depend on the state of other environments, is reset as VMAS does it, one by one.

    Args:
        environment (Environment): VMAS's, with a random stream of its own.
        mask (Tensor): ``(num_envs,)``, True for the environments to reset.
        shared_state (str, optional): the second result of the call before: the shared state that a reset changes, empty
            if there is none. ``None``: found out by some resets, which leave no trace.

    Returns:
        tuple: observations, dones and infos as from ``get_from_scenario``; and the shared state that a reset changes.
    """
    if shared_state is None:
        try:
            shared_state = _find_shared_state(environment)
        except TypeError as error:  # an object whose state cannot be seen
            shared_state = str(error).rstrip(".")
    if not shared_state:
        saved = SavedState(environment)
        environment.reset(return_observations=False)
        diff = StateDiff(saved)
        shared_state = diff.difference()
        if shared_state:
            saved.restore()
        else:
            diff.restore_unmasked_rows(mask)
    if shared_state:
        _reset_one_by_one(environment, mask)
        return _compute_outputs(environment), shared_state
    saved = SavedState(environment)
    outputs = _compute_outputs(environment)
    StateDiff(saved).restore_unmasked_rows(mask)
    return outputs, ""


def _compute_outputs(environment: Environment) -> list[Any]:
    return environment.get_from_scenario(get_observations=True, get_rewards=False, get_infos=True, get_dones=True)


def _reset_one_by_one(environment: Environment, mask: Tensor) -> None:
    rows = mask.nonzero().flatten().tolist()
    if len(rows) == environment.num_envs:
        environment.reset(return_observations=False)
        return
    for index in rows:
        environment.reset_at(index, return_observations=False)


def _find_shared_state(environment: Environment) -> str:
    """The state that keeps the environments of a batch from being reset independently; empty if there is none."""
    index = torch.arange(environment.num_envs, device=environment.device)
    half = index % 2 == 0
    first = SavedState(environment)
    try:
        for _ in range(N_TRIALS):
            before = SavedState(environment)
            environment.reset(return_observations=False)
            if difference := StateDiff(before).difference():
                return difference
        # A tensor with as many rows as there are environments may hold something else, which a reset of one environment
        # changes as a whole. The states of entities do have rows, though in buzz_wire a reset of one moves a landmark
        # of all.
        before = SavedState(environment)
        environment.reset_at(0, return_observations=False)
        if difference := StateDiff(before).difference(index > 0, shared=False, skip="._state."):
            return difference
        # Twice from one state of the stream, the second time with half of the environments in another state: that of
        # the beginning, since what observations and rewards write may not be what resets write.
        environment.get_from_scenario(get_observations=True, get_rewards=True, get_infos=True, get_dones=True)
        before = SavedState(environment)
        environment.reset(return_observations=False)
        expected = SavedState(environment)
        first.restore()
        elsewhere = SavedState(environment)
        before.restore()
        StateDiff(elsewhere).restore_unmasked_rows(half)
        environment.reset(return_observations=False)
        return StateDiff(expected).difference(half)
    finally:
        first.restore()
