"""Agents of different kinds in one group of a VMAS environment: observations and actions of equal sizes."""

from __future__ import annotations

import re

import numpy as np
import torch
from gym import spaces
from torch import Tensor
from vmas.simulator.environment import Environment


class Padding:
    """Pads the observations and actions of the agents of a group to equal sizes, and tells their kinds apart.

    Agents are of one kind if they share the name, without a last ``_INDEX``, and the sizes of observation and action.
    In a group of ``K > 1`` kinds, every observation is padded with zeros to the longest and gets a one-hot of the ``K``
    kinds, in the order of the group; every action is padded to the longest with entries whose bounds are 0, and cut
    before the scenario sees it.

    Args:
        environment (Environment): VMAS's environment; its spaces are replaced by the padded ones.
        group_map (dict): group name to the names of its agents.

    Raises:
        ValueError: if no group has agents of several kinds.
        TypeError: if a scenario observes dictionaries.
    """

    def __init__(self, environment: Environment, group_map: dict[str, list[str]]) -> None:
        index = {agent.name: i for i, agent in enumerate(environment.agents)}
        seen, acted = list(environment.observation_space), list(environment.action_space)
        self.n_actions = {i: space.shape[0] for i, space in enumerate(acted)}
        self.tails: dict[int, Tensor] = {}
        for names in group_map.values():
            agents = [index[name] for name in names]
            if not all(isinstance(seen[i], spaces.Box) for i in agents):
                raise TypeError(f"Only tensors can be padded, found observations of {[seen[i] for i in agents]}.")
            kind_of = {i: (re.sub(r"_\d+$", "", name), seen[i].shape, acted[i].shape) for i, name in zip(agents, names)}
            kinds = list(dict.fromkeys(kind_of.values()))
            if len(kinds) == 1:
                continue
            n_observed = max(seen[i].shape[0] for i in agents)
            n_acted = max(acted[i].shape[0] for i in agents)
            for i in agents:
                tail = torch.zeros(n_observed - seen[i].shape[0] + len(kinds), device=environment.device)
                tail[kinds.index(kind_of[i]) - len(kinds)] = 1
                self.tails[i] = tail
                seen[i] = spaces.Box(-np.inf, np.inf, (n_observed + len(kinds),), np.float32)
                missing = (0, n_acted - acted[i].shape[0])
                acted[i] = spaces.Box(np.pad(acted[i].low, missing), np.pad(acted[i].high, missing), dtype=np.float32)
        if not self.tails:
            raise ValueError(f"pad=True has nothing to pad: every group has agents of one kind, found {group_map}.")
        environment.observation_space, environment.action_space = spaces.Tuple(seen), spaces.Tuple(acted)

    def to(self, device: torch.device) -> None:
        self.tails = {i: tail.to(device) for i, tail in self.tails.items()}

    def observations(self, observations: list[Tensor]) -> list[Tensor]:
        """``(num_envs, o_i)`` each to the padded ``(num_envs, o)``."""
        return [
            torch.cat([observation, self.tails[i].expand(len(observation), -1)], -1) if i in self.tails else observation
            for i, observation in enumerate(observations)
        ]

    def actions(self, actions: list[Tensor]) -> list[Tensor]:
        """The padded ``(num_envs, a)`` each cut to ``(num_envs, a_i)``."""
        return [action[:, : self.n_actions[i]] for i, action in enumerate(actions)]
