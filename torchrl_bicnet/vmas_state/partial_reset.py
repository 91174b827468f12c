"""Resets of some of the environments of a VMAS batch at once, without a loop over them."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from vmas.simulator.environment import Environment

from torchrl_bicnet.vmas_state.object_graph import walk
from torchrl_bicnet.vmas_state.state_diff import Before, _Changes

# A reset that picks one of two landmarks for all environments changes nothing half of the time.
N_TRIALS = 8


def reset_rows(environment: Environment, mask: Tensor) -> list[Any]:
    """Reset the environments of a batch that a mask picks, and compute what all of them give.

    All are reset, and those outside of the mask are put back: they go on to the bit as if nothing had happened, apart
    from the random numbers that are drawn meanwhile; those inside start as they would in a reset of all from the same
    state of the random stream. Observations that write into the state, of sensors or noise, leave those outside as they
    were too. Nothing waits for the device, unless a reset makes tensors that do not have one row for each environment:
    whether they came out the same is asked once for all of them.

    A scenario that keeps something in common to its environments which a reset changes (a mass, a landmark that is the
    goal of all), or whose environments start differently if others are in another state, is reset as VMAS does it, one
    by one. The first partial reset of an environment finds that out, by some resets whose traces it removes, and warns.

    Args:
        environment (Environment): VMAS's, with a random stream of its own.
        mask (Tensor): ``(num_envs,)``, True for the environments to reset.

    Returns:
        list: observations, dones and infos as from ``get_from_scenario``.
    """
    in_common = environment.reset_in_common
    if in_common is None:
        try:
            in_common = _what_is_in_common(environment)
        except TypeError as error:  # something whose state cannot be seen
            in_common = str(error).rstrip(".")
    if not in_common:
        before = Before(environment)
        environment.reset(return_observations=False)
        in_common = before.keep(mask)
        if in_common:
            before.undo()
    if in_common:
        rows = mask.nonzero().flatten().tolist()
        if len(rows) == environment.num_envs:
            environment.reset(return_observations=False)
        else:
            for index in rows:
                environment.reset_at(index, return_observations=False)
    else:
        before = Before(environment)
    outputs = environment.get_from_scenario(get_observations=True, get_rewards=False, get_infos=True, get_dones=True)
    if not in_common:
        before.keep(mask, strict=False)
    if in_common != environment.reset_in_common:
        _remember(environment, in_common)
    return outputs


def _remember(environment: Environment, in_common: str) -> None:
    environment.reset_in_common = in_common
    if in_common:
        warnings.warn(
            "Environments of this scenario are reset one by one, and a partial reset may change others, as in VMAS, "
            f"since they have something in common: {in_common}.",
            UserWarning,
            stacklevel=2,
        )


def _what_is_in_common(environment: Environment) -> str:
    """What keeps the environments of a batch from being reset independently; empty if nothing does."""
    half = torch.arange(environment.num_envs, device=environment.device) % 2 == 0
    first = Before(environment)
    try:
        for _ in range(N_TRIALS):
            start = Before(environment)
            environment.reset(return_observations=False)
            difference = start.difference()
            if difference:
                return difference
        # What has as many rows as there are environments may be something else, which a reset of one changes whole. The
        # states of entities have rows, though in buzz_wire a reset of one moves a landmark of all.
        start = Before(environment)
        environment.reset_at(0, return_observations=False)
        changes = _Changes(start, walk(environment))
        others = torch.arange(environment.num_envs, device=environment.device) > 0
        kept = [change for change in changes.rows.values() if "._state." not in change[0]]
        difference = changes.differing(kept, others)
        if difference:
            return difference
        # Twice from one state of the stream, the second time with half of the environments in another state: that of
        # the beginning, and what observations and rewards write may not be what resets write.
        environment.get_from_scenario(get_observations=True, get_rewards=True, get_infos=True, get_dones=True)
        start = Before(environment)
        environment.reset(return_observations=False)
        expected = Before(environment)
        first.undo()
        elsewhere = Before(environment)
        start.undo()
        elsewhere.keep(half)
        environment.reset(return_observations=False)
        return expected.difference(half)
    finally:
        first.undo()
