"""Parts of VMAS's scenarios that read tensors in a step where no rewriting helps, written otherwise."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchrl_bicnet.vmas_state.unwrap import is_shipped


def _fixed_passages(base: Any) -> type:
    class FixedPassages(base):
        """joint_passage's scenario: whether a wall has a passage beside it is a constant of the map, not a tensor."""

        def spawn_passage_map(self, env_index: int | None) -> None:
            super().spawn_passage_map(env_index)
            self._read()

        def pre_step(self) -> None:
            self._read()  # the map was made before this class was given
            super().pre_step()

        def _read(self) -> None:
            if self.fixed_passage:
                for passage in self.collide_passages:
                    passage.neighbour = bool(passage.neighbour)

    return FixedPassages


def _forgetful_policy(base: Any) -> type:
    class ForgetfulPolicy(base):
        """A team of football's scripted players that holds the same things after a reset as after a step."""

        def get_separations(self, *args: Any, **kwargs: Any) -> Tensor:
            separations = super().get_separations(*args, **kwargs)
            self.team_disps.clear()
            return separations

    return ForgetfulPolicy


def _masked_policy(base: Any) -> type:
    class MaskedPolicy(_forgetful_policy(base)):  # type: ignore[misc]
        """A team of football's scripted players that computes for all environments what VMAS does for rows of a mask.

        It samples places for all environments too, so its random numbers are not those of VMAS; given the same ones,
        the actions are equal.
        """

        def dribble_policy(self, agent: Any) -> None:
            if any(self.world.traj_points[self.team_name].values()):  # for the screen, and set one by one
                super().dribble_policy(agent)
                return
            has_ball, objectives, n_envs = self.agent_possession[agent], self.objectives[agent], self.world.batch_dim
            before = dict(objectives)
            # In VMAS all that move choose among the places sampled in the first environment of those.
            order = (torch.arange(n_envs, device=has_ball.device) + has_ball.int().argmin()) % n_envs
            objectives.update({name: tensor.clone() for name, tensor in before.items()})
            self.dribble_to_goal(agent, env_index=order)
            dribbling = dict(objectives)
            objectives.update({name: tensor.clone() for name, tensor in before.items()})
            place = self.check_better_positions(agent, env_index=order)
            self.go_to(agent, pos=place, aggression=1.0, env_index=order)
            for name, moving in objectives.items():
                mask = has_ball.reshape(-1, *(1,) * (moving.ndim - 1))
                objectives[name] = torch.where(mask, dribbling[name], moving)

    return MaskedPolicy


def part_of(cls: type, *, never_wait: bool) -> Callable[[Any], type] | None:
    """What makes the subclass to take for a class of VMAS's scenarios or a subclass of one; ``None`` for others.

    Args:
        cls (type): VMAS loads scenarios anew for each environment, so it is known by its name and file alone.

    Keyword Args:
        never_wait (bool): allows random numbers other than VMAS's.
    """
    parts = {
        ("joint_passage", "Scenario"): _fixed_passages,
        ("football", "AgentPolicy"): _masked_policy if never_wait else _forgetful_policy,
    }
    for owner in cls.__mro__:
        function = next((value for value in vars(owner).values() if isinstance(value, types.FunctionType)), None)
        if function is None or not is_shipped(function):
            continue
        part = parts.get((Path(inspect.getfile(function)).stem, owner.__name__))
        if part is not None:
            return part
    return None
