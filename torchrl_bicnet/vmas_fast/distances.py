"""Distances and lidars of a VMAS world: asked for one by one, computed together, once for each state of the world."""

from __future__ import annotations

import itertools
import operator
from typing import Any

import torch
from torch import Tensor
from vmas.simulator.core import Entity, Sphere, World
from vmas.simulator.sensors import Lidar

from torchrl_bicnet.vmas_fast.cached_tensors import column, indices
from torchrl_bicnet.vmas_fast.contacts import SHAPE_ORDER, closest_points
from torchrl_bicnet.vmas_state.object_graph import SENSING

_Pair = tuple[Entity, Entity]


class Sensing:
    """Distances, closest points and measurements of the present state of a world, until a position or rotation changes.

    Caches compare ``_version``; replays and raw copies do not bump it. Pairs are learned as they are asked for, and
    from then on computed together when the first of them is asked for.
    """

    def __init__(self) -> None:
        # Entity, position, rotation, the versions of both, and the sizes of the shape.
        self._state: list[tuple[Any, ...]] = []
        self._mode: tuple[bool, bool] | None = None
        self._pairs: dict[_Pair, None] = {}
        self._gaps: dict[_Pair, tuple[Tensor, Tensor]] = {}
        self._measured: dict[Lidar, tuple[tuple[Any, ...], Tensor, Tensor]] = {}  # settings, angles, distances
        self._pairs_by_kinds: dict[tuple[int, int], tuple[_Pair, ...]] = {}
        self._closest_points: dict[tuple[int, int], tuple[Tensor, ...]] = {}

    @classmethod
    def of(cls, world: World) -> Sensing:
        sensing = vars(world).get(SENSING)
        if sensing is None:
            sensing = vars(world)[SENSING] = cls()
        mode = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        if sensing._mode != mode or not sensing._is_current(world.entities):
            sensing._mode = mode
            states = [(entity, entity.state.pos, entity.state.rot) for entity in world.entities]
            # Inference tensors have no version counter, so nothing is cached.
            cached = not any(tensor.is_inference() for state in states for tensor in state[1:])
            sensing._state = [
                (entity, pos, rot, pos._version, rot._version, dict(vars(entity.shape)))
                for entity, pos, rot in (states if cached else [])
            ]
            sensing._gaps, sensing._measured, sensing._closest_points = {}, {}, {}
        return sensing

    def forget(self) -> None:
        """Compute everything again, whatever the state."""
        self._state = []

    def _is_current(self, entities: list[Entity]) -> bool:
        return len(entities) == len(self._state) and all(
            entity is of
            and (state := entity._state)._pos is pos
            and state._rot is rot
            and pos._version == pos_version
            and rot._version == rot_version
            and vars(entity._shape) == sizes
            for entity, (of, pos, rot, pos_version, rot_version, sizes) in zip(entities, self._state)
        )

    def gap(self, a: Entity, b: Entity) -> tuple[Tensor, Tensor]:
        """The distance of the circumscribed circles, ``(B,)``, not to be written to, and whether they meet anywhere."""
        if (a, b) not in self._gaps:
            self._pairs[a, b] = None
            sides = list(zip(*self._pairs))
            entities = dict.fromkeys(itertools.chain(*sides))
            rows = {entity: i for i, entity in enumerate(entities)}
            pos = torch.stack([entity.state.pos for entity in entities])  # (E, B, 2)
            first, second = (
                pos.index_select(0, indices(tuple(rows[entity] for entity in side), pos.device)) for side in sides
            )
            distances = torch.linalg.vector_norm(first - second, dim=-1)  # (P, B)
            radii = [tuple(entity.shape.circumscribed_radius() for entity in side) for side in sides]
            near = distances <= column(tuple(map(operator.add, *radii)), pos.device)
            gaps = distances - column(radii[0], pos.device) - column(radii[1], pos.device)
            self._gaps = dict(zip(self._pairs, zip(gaps.unbind(), near.any(1).unbind())))
        return self._gaps[a, b]

    def closest_points(self, kinds: tuple[int, int], pairs: tuple[_Pair, ...]) -> tuple[Tensor, ...]:
        """Of all pairs, asked for by a reward and, in the same state of the world, by the next step."""
        if kinds not in self._closest_points or self._pairs_by_kinds[kinds] != pairs:
            self._pairs_by_kinds[kinds] = pairs
            self._closest_points[kinds] = closest_points(kinds, pairs)
        return self._closest_points[kinds]

    def closest_points_of(self, a: Entity, b: Entity) -> tuple[Tensor, ...] | None:
        """Of one pair, ``(B, 2)``; ``None`` if it was not among those that were asked for last."""
        kinds = SHAPE_ORDER[type(a.shape)], SHAPE_ORDER[type(b.shape)]
        pairs = self._pairs_by_kinds.get(kinds, ())
        if (a, b) not in pairs:
            return None
        return tuple(points[pairs.index((a, b))] for points in self.closest_points(kinds, pairs))

    def measure(self, lidar: Lidar, world: World) -> Tensor | None:
        """The measurement of a lidar, ``(B, n_rays)``; ``None`` if it meets anything but spheres."""
        if lidar not in self._measured or self._measured[lidar][0] != _settings(lidar):
            group = {
                other: targets
                for agent in world.agents
                for other in agent.sensors
                if type(other) is type(lidar)
                and (other._angles.shape, other._max_range) == (lidar._angles.shape, lidar._max_range)
                and (targets := _spheres_met(other, world))
            }
            if lidar not in group:
                return None
            group = {other: targets for other, targets in group.items() if len(targets) == len(group[lidar])}
            for other, measured in zip(group, _cast(group, world)):
                self._measured[other] = _settings(other), other._angles, measured
        return self._measured[lidar][2].clone()


def _settings(lidar: Lidar) -> tuple[Any, ...]:
    angles = lidar._angles
    return lidar.entity_filter, lidar._max_range, id(angles), None if angles.is_inference() else angles._version


def _spheres_met(lidar: Lidar, world: World) -> list[Entity]:
    agent = lidar.agent
    met = [entity for entity in world.entities if entity is not agent and lidar.entity_filter(entity)]
    plain = all(isinstance(e.shape, Sphere) and e.collides(agent) and agent.collides(e) for e in met)
    return met if plain else []


def _cast(group: dict[Lidar, list[Entity]], world: World) -> tuple[Tensor, ...]:
    """``World._cast_rays_to_sphere`` for ``L`` lidars of ``A`` rays with ``S`` spheres each."""
    lidars, device = list(group), world.device
    max_range = lidars[0]._max_range
    entities = dict.fromkeys([lidar.agent for lidar in lidars] + [e for met in group.values() for e in met])
    rows = {entity: i for i, entity in enumerate(entities)}
    # Coordinates come first, so that an operation runs over rays and not over two numbers at a time.
    pos = torch.stack([entity.state.pos for entity in entities]).movedim(-1, 0).contiguous()  # (2, E, B)
    origin = pos.index_select(1, indices(tuple(rows[lidar.agent] for lidar in lidars), device))[:, :, None, :, None]
    met = tuple(rows[entity] for entities in group.values() for entity in entities)
    sphere = pos.index_select(1, indices(met, device)).unflatten(1, (len(lidars), -1)).unsqueeze(-1)  # (2, L, S, B, 1)
    radius = column(tuple(e.shape.radius for entities in group.values() for e in entities), device)
    radius = radius.view(len(lidars), -1, 1, 1)  # (L, S, 1, 1)

    angle = torch.stack([lidar._angles for lidar in lidars])
    angle = angle + torch.stack([lidar.agent.state.rot for lidar in lidars])
    ray = torch.stack([angle.cos(), angle.sin()]).unsqueeze(2)  # (2, L, 1, B, A)
    middle = origin + ray * (max_range / 2)
    along = torch.add(*((middle - sphere) * ray).unbind())  # (L, S, B, A)
    closest = middle - along * ray  # (2, L, S, B, A)
    off_ray = _norm(sphere - closest)
    chord = radius**2 - off_ray**2
    chord = chord.masked_fill(~(chord > 0), 1e-8).sqrt()
    in_front = torch.add(*((sphere - origin) * ray).unbind()) > 0.0
    distance = _norm(closest - origin) - chord
    distance = distance.masked_fill_(~((off_ray < radius) & in_front), max_range)
    return distance.amin(1).clamp(max=max_range).unbind()  # (B, A) each


def _norm(vector: Tensor) -> Tensor:
    """Of ``(2, ...)``, rounded as VMAS's norms of ``(..., 2)`` are."""
    return torch.linalg.vector_norm(vector.movedim(0, -1).contiguous(), dim=-1)
