"""Pictures of VMAS worlds, without a display."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.envs import EnvBase
from vmas.simulator.core import Agent
from vmas.simulator.environment import Environment

from torchrl_bicnet.checks import check_integer
from torchrl_bicnet.drawing.world import draw_world
from torchrl_bicnet.envs.presence import absent_agents
from torchrl_bicnet.envs.random_stream import RandomStream
from torchrl_bicnet.rendering.arrows import arrow_strength, draw_arrows
from torchrl_bicnet.specs import find_group
from torchrl_bicnet.vmas_state.unwrap import find_vmas

MAX_WIDTH = 10_000
GAP = 2  # pixels between the pictures of a mosaic


@torch.no_grad()
def render(
    env: Any,
    env_index: int | Sequence[int] = 0,
    *,
    width: int | None = None,
    columns: int | None = None,
    agent_index_focus: int | None = None,
    influence: Tensor | None = None,
    group: NestedKey | None = None,
) -> np.ndarray:
    """Draw VMAS worlds, in a process without a display.

    VMAS's own drawing code decides what is drawn and where the camera is, for any scenario, yours too; only its calls
    of OpenGL end in a picture in memory. The simulation is left as it is, its random stream and the global ones too.

    Args:
        env: an environment of :func:`~torchrl_bicnet.make_vmas_env`, or anything with a VMAS ``Environment`` inside.
        env_index (int or sequence of int): which of the vectorised environments; several make a mosaic.

    Keyword Args:
        width (int, optional): of one environment's picture, in pixels; the height follows from the scenario's
            ``viewer_size``. ``None``: the width of ``viewer_size``, 700 in most scenarios.
        columns (int, optional): of the mosaic. ``None``: as near to a square as can be.
        agent_index_focus (int, optional): the camera stays on this agent. ``None``: it shows all agents.
        influence (Tensor, optional): who influences whom, not negative, ``(N, N)`` or ``(num_envs, N, N)``: row i is
            agent i's action, column j agent j's observation. An arrow from j to i is as wide and as opaque as the
            entry is large, compared to the largest entry off the diagonal of this environment's matrix. How much an
            agent is moved by what it sees itself is not drawn.
        group (NestedKey, optional): whose ``N`` agents ``influence`` is about. ``None``: the only group.

    Returns:
        ndarray: ``(H, W, 3)`` uint8.

    Example:
        >>> from torchrl_bicnet import make_vmas_env
        >>> env = make_vmas_env("navigation", num_envs=6, n_agents=3)
        >>> render(env, 4).shape
        (700, 700, 3)
        >>> render(env, range(6), width=100, influence=torch.rand(3, 3)).shape  # two rows of three
        (202, 304, 3)
    """
    environment = vmas_environment(env)
    indices = check_drawing(environment, env_index, width, columns, agent_index_focus)
    if influence is None:
        if group is not None:
            agents_of(env, environment, group)
        return mosaic([_draw(environment, index, width, agent_index_focus) for index in indices], columns)
    agents = agents_of(env, environment, group)
    strength = arrow_strength(influence, environment.num_envs, len(agents))
    pictures = [_draw(environment, index, width, agent_index_focus, agents, strength[index]) for index in indices]
    return mosaic(pictures, columns)


def mosaic(pictures: Sequence[np.ndarray], columns: int | None) -> np.ndarray:
    """Pictures of one size, row by row, on grey; places left over are white."""
    columns = min(len(pictures), columns or int(np.ceil(len(pictures) ** 0.5)))
    rows = -(-len(pictures) // columns)
    height, width, _ = pictures[0].shape
    size = (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3)
    result = np.full(size, 128, dtype=np.uint8)
    for place in range(rows * columns):
        top, left = place // columns * (height + GAP), place % columns * (width + GAP)
        result[top : top + height, left : left + width] = pictures[place] if place < len(pictures) else 255
    return result


def vmas_environment(env: Any) -> Environment:
    """The VMAS environment inside TorchRL's transforms and wrappers, or VMAS's own."""
    environments = find_vmas(env)
    if not environments:
        raise TypeError(f"There is no VMAS environment inside {type(env).__name__}; make one with make_vmas_env.")
    if len(environments) > 1:
        raise ValueError("Teams of one size can be drawn: make an environment with one n_agents for it.")
    return environments[0]


def check_drawing(
    environment: Environment,
    env_index: int | Sequence[int],
    width: int | None,
    columns: int | None,
    agent_index_focus: int | None,
) -> list[int]:
    """The environments to draw; an error for what cannot be drawn."""
    indices = list(env_index) if isinstance(env_index, Sequence) else [env_index]
    if not indices:
        raise ValueError(f"env_index must name at least one environment, found none: {env_index!r}.")
    for index in indices:
        check_integer("env_index", index, 0, environment.num_envs - 1)
    for name, value, least, most in (
        ("width", width, 1, MAX_WIDTH),
        ("columns", columns, 1, math.inf),
        ("agent_index_focus", agent_index_focus, 0, environment.n_agents - 1),
    ):
        if value is not None:
            check_integer(name, value, least, most)
    return indices


def agents_of(env: Any, environment: Environment, group: NestedKey | None) -> list[Agent]:
    """Agents that a matrix of influences is about; an error for a group that is not there."""
    if isinstance(env, EnvBase):
        names = env.group_map[find_group(env, group)]
        return [agent for name in names for agent in environment.agents if agent.name == name]
    if group is not None:
        raise ValueError(f"{type(env).__name__} has no groups of agents, found group={group!r}.")
    return environment.agents


def _draw(
    environment: Environment,
    index: int,
    width: int | None,
    agent_index_focus: int | None,
    agents: Sequence[Agent] = (),
    strength: Tensor | None = None,
) -> np.ndarray:
    absent = absent_agents(environment, index)
    with RandomStream(0, environment.device):
        canvas, camera = draw_world(environment, index, width=width, agent_index_focus=agent_index_focus, absent=absent)
    if strength is not None:
        here = torch.tensor([agent not in absent for agent in agents])
        strength = strength * here * here.unsqueeze(-1)
        positions = torch.stack([agent.state.pos[index] for agent in agents]).double().cpu().numpy()
        radii = [agent.shape.circumscribed_radius() * camera.scale[0] for agent in agents]
        draw_arrows(canvas, positions * camera.scale + camera.translation, radii, strength.numpy())
    return canvas.array()
