"""Arrows between agents, for who influences whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from torchrl_bicnet.checks import check_type

if TYPE_CHECKING:
    from torchrl_bicnet.drawing.canvas import Canvas

ARROW_COLOR = (0.8, 0.1, 0.5)
ARROW_WIDTH = 10.0  # of the strongest influence, in pixels of VMAS's window


def arrow_strength(influence: Tensor, num_envs: int, n_agents: int) -> Tensor:
    """Influences off the diagonal, relative to the largest: (num_envs, N, N)."""
    check_type("influence", influence, Tensor, "a tensor")
    shapes = ((n_agents, n_agents), (num_envs, n_agents, n_agents))
    if influence.shape not in shapes:
        raise ValueError(f"influence must be of shape {shapes[0]} or {shapes[1]}, found {tuple(influence.shape)}.")
    if not (influence >= 0).all() or not influence.isfinite().all():
        raise ValueError(f"influence must be finite and not negative, found {influence.tolist()}.")
    others = influence.detach().cpu().double() * (1 - torch.eye(n_agents, dtype=torch.double))
    largest = others.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(torch.double).tiny)
    return (others / largest).expand(shapes[1])


def draw_arrows(canvas: Canvas, positions: np.ndarray, radii: list[float], strength: np.ndarray) -> None:
    """The weakest first, each on the right of the line between two agents, so that both directions are seen."""
    for flat in np.argsort(strength, axis=None, kind="stable"):
        to, source = np.unravel_index(flat, strength.shape)
        way = positions[to] - positions[source]
        length = float(np.hypot(*way)) - radii[to] - radii[source]
        if strength[to, source] == 0 or length <= 0:
            continue
        way /= np.hypot(*way)
        right = np.array([way[1], -way[0]])
        half = ARROW_WIDTH * strength[to, source] / 2
        head = min(3 * half + 4, length)
        start = positions[source] + way * radii[source] + right * (ARROW_WIDTH / 2)
        end = start + way * length
        neck = end - way * head
        side = right * half
        wing = right * (2 * half + 2)
        outline = [start - side, start + side, neck + side, neck + wing, end, neck - wing, neck - side]
        canvas.polygon(outline, (*ARROW_COLOR, 0.1 + 0.7 * float(strength[to, source])))
