"""Colours and lines that the pictures of our own tasks share."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from vmas.simulator.rendering import Geom

RGB = tuple[float, float, float]


def distinct_colors(n: int) -> list[RGB]:
    """Colours evenly spaced around the colour wheel, red first.

    Example:
        >>> distinct_colors(2)[0] == colorsys.hsv_to_rgb(0.0, 0.8, 0.85)
        True
    """
    return [colorsys.hsv_to_rgb(i / n, 0.8, 0.85) for i in range(n)]


def line(start: Tensor, end: Tensor, color: RGB, width: float = 1.0) -> Geom:
    """A line between two points, ``(2,)`` each, for ``extra_render``."""
    from vmas.simulator import rendering  # needs a display, or what torchrl_bicnet.rendering puts in its place

    drawn = rendering.Line(tuple(start.tolist()), tuple(end.tolist()), width=width)
    drawn.set_color(*color)
    return drawn


def disc(center: Tensor, radius: float, color: RGB) -> Geom:
    """A filled circle around a point, ``(2,)``, for ``extra_render``."""
    from vmas.simulator import rendering

    drawn = rendering.make_circle(radius)
    drawn.add_attr(rendering.Transform(translation=tuple(center.tolist())))
    drawn.set_color(*color)
    return drawn
