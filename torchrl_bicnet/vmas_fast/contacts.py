"""Where two bodies of VMAS push each other: the closest points of their surfaces, for many pairs at once."""

from __future__ import annotations

import functools
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vmas.simulator import physics
from vmas.simulator.core import Box, Entity, Line, Shape, Sphere
from vmas.simulator.utils import LINE_MIN_DIST

from torchrl_bicnet.vmas_fast import closest_points as geometry
from torchrl_bicnet.vmas_fast.cached_tensors import column
from torchrl_bicnet.vmas_fast.sync_free import rewritten

# VMAS adds the forces of contacts in this order: by the kind of the first, which has the higher one, then the second.
KINDS = {Sphere: 0, Line: 1, Box: 2}


@functools.cache
def physics_functions(checks: bool = False) -> dict[str, Any]:
    """VMAS's functions of closest points and forces by name, ours where there are any, the others rewritten.

    Args:
        checks (bool): keeps their assertions about tensors. Defaults to ``False``.
    """
    functions = {name: f for name, f in vars(physics).items() if isinstance(f, types.FunctionType)}
    cells: dict[str, Any] = {name: types.CellType() for name in functions}  # they call each other
    for name, function in functions.items():
        ours = geometry.FUNCTIONS.get(name)
        cells[name].cell_contents = ours or rewritten(function, checks=checks, **cells)
    return {name: cell.cell_contents for name, cell in cells.items()}


def facing_points(kinds: tuple[int, int], pairs: Sequence[tuple[Entity, Entity]]) -> tuple[Tensor, ...]:
    """The closest points, ``(P, B, 2)``, of the surfaces of ``P`` pairs of one kind; with a sphere, of the first's."""
    pos, rot = (
        [torch.stack([getattr(entity.state, name) for entity in side]) for side in zip(*pairs)]
        for name in ("pos", "rot")
    )
    device, shape, f = pos[0].device, pos[0].shape[:2], physics_functions()

    def body(side: int) -> tuple[Tensor, ...]:
        names = ("length",) if kinds[side] == 1 else ("width", "length")
        sizes = [tuple(getattr(pair[side].shape, name) for pair in pairs) for name in names]
        return pos[side], rot[side], *(column(size, device).expand(shape) for size in sizes)

    if kinds == (1, 0):
        return (f["_get_closest_point_line"](*body(0), pos[1]),)
    if kinds == (2, 0):
        return (f["_get_closest_point_box"](*body(0), pos[1]),)
    if kinds == (1, 1):
        return f["_get_closest_points_line_line"](*body(0), *body(1))
    if kinds == (2, 1):
        return f["_get_closest_line_box"](*body(0), *body(1))
    return f["_get_closest_box_box"](*body(0), *body(1))


def contact_of(
    kinds: tuple[int, int], pos: list[Tensor], facing: tuple[Tensor, ...], shapes: list[list[Shape]]
) -> tuple[Tensor, ...]:
    """Where the force of each of ``P`` pairs of one kind acts.

    Args:
        kinds (tuple of int): of the first and second of each pair.
        pos (list of Tensor): of the firsts and of the seconds, ``(P, B, 2)``.
        facing (tuple of Tensor): their :func:`facing_points`; of two spheres none.
        shapes (list of list): of the firsts and of the seconds.

    Returns:
        tuple: the two points that are pushed apart, ``(P, B, 2)``, the distance to which, ``(P, B)``, and the points
        of the two surfaces, ``(P, B, 2)``; of none for spheres, the second's left out where it is one.
    """
    device, shape = pos[0].device, pos[0].shape[:2]

    def radius(side: int) -> Tensor:
        return column(tuple(shape.radius for shape in shapes[side]), device).expand(shape)

    def inside(side: int, outside: Tensor, surface: Tensor) -> tuple[Tensor, Tensor]:
        solid = tuple(not shape.hollow for shape in shapes[side])
        if not any(solid):
            return surface, torch.zeros_like(surface[..., 0])
        point, depth = physics_functions()["_get_inner_point_box"](outside, surface, pos[side])
        if all(solid):
            return point, depth
        solid_rows = column(solid, device, torch.bool)  # (P, 1)
        return torch.where(solid_rows.unsqueeze(-1), point, surface), depth.masked_fill(~solid_rows, 0.0)

    if kinds == (0, 0):
        return *pos, radius(0) + radius(1)
    if kinds == (1, 0):
        return facing[0], pos[1], radius(1) + LINE_MIN_DIST, facing[0]
    if kinds == (1, 1):
        return *facing, column((LINE_MIN_DIST,) * len(shapes[0]), device).expand(shape), *facing
    if kinds == (2, 0):
        point, depth = inside(0, pos[1], facing[0])
        return point, pos[1], radius(1) + LINE_MIN_DIST + depth, facing[0]
    surface, other = facing
    point, depth = inside(0, other, surface)
    if kinds == (2, 1):
        return point, other, LINE_MIN_DIST + depth, surface, other
    other_point, other_depth = inside(1, surface, other)
    return point, other_point, depth + other_depth + LINE_MIN_DIST, surface, other
