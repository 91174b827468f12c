"""Contacts of the bodies of VMAS, for many pairs at once: where they are pushed, and the sums of forces on each."""

from __future__ import annotations

import functools
import itertools
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vmas.simulator import physics
from vmas.simulator.core import Box, Entity, Line, Shape, Sphere
from vmas.simulator.utils import LINE_MIN_DIST

from torchrl_bicnet.vmas_fast.cached_tensors import column
from torchrl_bicnet.vmas_fast.closest_points import FUNCTIONS
from torchrl_bicnet.vmas_fast.sync_free import without_syncs

# VMAS adds the forces of contacts in this order: by the shape of the first, which comes later here, then the second's.
SHAPE_ORDER = {Sphere: 0, Line: 1, Box: 2}
_CLOSEST_POINTS = {
    (1, 0): "_get_closest_point_line",
    (1, 1): "_get_closest_points_line_line",
    (2, 0): "_get_closest_point_box",
    (2, 1): "_get_closest_line_box",
    (2, 2): "_get_closest_box_box",
}


@functools.cache
def physics_functions(checks: bool = False) -> dict[str, Any]:
    """VMAS's functions of closest points and forces by name, ours where there are any, the others without syncs.

    Args:
        checks (bool): keeps their assertions about tensors. Defaults to ``False``.
    """
    functions = {name: f for name, f in vars(physics).items() if isinstance(f, types.FunctionType)}
    cells: dict[str, Any] = {name: types.CellType() for name in functions}  # they call each other
    for name, function in functions.items():
        ours = FUNCTIONS.get(name)
        cells[name].cell_contents = ours or without_syncs(function, checks=checks, **cells)
    return {name: cell.cell_contents for name, cell in cells.items()}


def closest_points(kinds: tuple[int, int], pairs: Sequence[tuple[Entity, Entity]]) -> tuple[Tensor, ...]:
    """The closest points, ``(P, B, 2)``, of the surfaces of ``P`` pairs; with a sphere, the first's alone.

    Args:
        kinds (tuple of int): the shapes of the first and second of every pair, by their place in ``SHAPE_ORDER``.
        pairs (sequence): the entities.
    """
    pos, rot = (
        [torch.stack([getattr(entity.state, name) for entity in side]) for side in zip(*pairs)]
        for name in ("pos", "rot")
    )
    device, size = pos[0].device, pos[0].shape[:2]

    def body(side: int) -> tuple[Tensor, ...]:
        if kinds[side] == 0:
            return (pos[side],)
        names = ("length",) if kinds[side] == 1 else ("width", "length")
        sizes = [tuple(getattr(pair[side].shape, name) for pair in pairs) for name in names]
        return pos[side], rot[side], *(column(values, device).expand(size) for values in sizes)

    points = physics_functions()[_CLOSEST_POINTS[kinds]](*body(0), *body(1))
    return points if isinstance(points, tuple) else (points,)


def contact_points(
    kinds: tuple[int, int], pos: list[Tensor], closest: tuple[Tensor, ...], shapes: list[list[Shape]]
) -> tuple[Tensor, ...]:
    """The points between which the force of each of ``P`` pairs acts.

    Args:
        kinds (tuple of int): the shapes of the first and second of every pair, by their place in ``SHAPE_ORDER``.
        pos (list of Tensor): of the firsts and of the seconds, ``(P, B, 2)``.
        closest (tuple of Tensor): their :func:`closest_points`; of two spheres none.
        shapes (list of list): of the firsts and of the seconds.

    Returns:
        tuple: the two points that are pushed apart, ``(P, B, 2)``; the distance to which, ``(P, B)``; and, but for
        spheres, the points of the surfaces where the force acts, ``(P, B, 2)``.
    """
    device, size = pos[0].device, pos[0].shape[:2]

    def radius(side: int) -> Tensor:
        return column(tuple(shape.radius for shape in shapes[side]), device).expand(size)

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
        return closest[0], pos[1], radius(1) + LINE_MIN_DIST, closest[0]
    if kinds == (1, 1):
        return *closest, column((LINE_MIN_DIST,) * len(shapes[0]), device).expand(size), *closest
    if kinds == (2, 0):
        point, depth = inside(0, pos[1], closest[0])
        return point, pos[1], radius(1) + LINE_MIN_DIST + depth, closest[0]
    surface, other = closest
    point, depth = inside(0, other, surface)
    if kinds == (2, 1):
        return point, other, LINE_MIN_DIST + depth, surface, other
    other_point, other_depth = inside(1, surface, other)
    return point, other_point, depth + other_depth + LINE_MIN_DIST, surface, other


def add_rows(
    totals: dict[Entity, Tensor],
    entities: list[Entity],
    contributions: Tensor,
    targets: tuple[tuple[int, int], ...],
    moves: str,
) -> None:
    """Add forces or torques, row after row, to the totals of the entities that move, in the order of their pairs.

    Args:
        totals (dict): entity to its sum so far, ``(B, size)``.
        entities (list): of the world.
        contributions (Tensor): ``(rows, B, size)``.
        targets (tuple): for each row the number of its pair and of the entity it is added to.
        moves (str): the attribute of an entity that says whether it moves.
    """
    receivers = tuple(i for i, entity in enumerate(entities) if getattr(entity, moves))
    order = _rounds(targets, receivers, contributions.device)
    if order is None:
        return
    rows = torch.cat([contributions, torch.zeros_like(contributions[:1])]).index_select(0, order.flatten())
    total = torch.stack([totals[entities[i]] for i in receivers])  # (receivers, B, size)
    for part in rows.unflatten(0, order.shape).unbind():
        total = total + part
    totals.update(zip([entities[i] for i in receivers], total.unbind()))


@functools.lru_cache(maxsize=1024)
def _rounds(targets: tuple[tuple[int, int], ...], receivers: tuple[int, ...], device: torch.device) -> Tensor | None:
    """``(rounds, receivers)``: the row that each receiver gets in each round; the row past the last holds zeros."""
    given: dict[int, list[tuple[int, int]]] = {entity: [] for entity in receivers}
    for row, (pair, entity) in enumerate(targets):
        if entity in given:
            given[entity].append((pair, row))
    columns = [[row for _, row in sorted(rows)] for rows in given.values()]
    rounds = list(itertools.zip_longest(*columns, fillvalue=len(targets)))
    return torch.tensor(rounds, device=device) if rounds else None
