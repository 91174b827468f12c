"""Distances and lidars of a VMAS world, asked for one by one, computed together: once for each state of the world."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor
from vmas.simulator.core import Entity, Sphere, World
from vmas.simulator.sensors import Lidar

from torchrl_bicnet.envs.constants import column, indices


class Sensing:
    """What has been computed of the present state of a world, for as long as no position or rotation is written to.

    Pairs are learned as they are asked for, and from then on computed together when the first of them is asked for.
    """

    def __init__(self) -> None:
        self._state: list[tuple[Entity, Tensor, int]] = []
        self._pairs: dict[tuple[Entity, Entity], int] = {}
        self._distances: tuple[Tensor, ...] | None = None
        self._near: tuple[Tensor, ...] = ()
        self._measured: dict[Lidar, Tensor] = {}

    @classmethod
    def of(cls, world: World) -> Sensing:
        sensing = _sensing.get(world)
        if sensing is None:
            sensing = _sensing[world] = cls()
        if not sensing._holds(world.entities):
            sensing._state = [
                (entity, tensor, tensor._version)
                for entity in world.entities
                for tensor in (entity.state.pos, entity.state.rot)
            ]
            sensing._distances, sensing._measured = None, {}
        return sensing

    def _holds(self, entities: list[Entity]) -> bool:
        if 2 * len(entities) != len(self._state):
            return False
        found = iter(self._state)
        for entity in entities:
            state = entity._state
            for tensor in (state._pos, state._rot):
                of, old, version = next(found)
                if of is not entity or tensor is not old or tensor._version != version:
                    return False
        return True

    def distance(self, a: Entity, b: Entity) -> tuple[Tensor, Tensor]:
        """Between the centres, ``(B,)``, and whether it is anywhere at most the sum of the circumscribed radii."""
        row = self._pairs.get((a, b))
        if row is None:
            row = self._pairs[a, b] = len(self._pairs)
            self._distances = None
        if self._distances is None:
            firsts, seconds = zip(*self._pairs)
            entities = dict.fromkeys([*firsts, *seconds])
            rows = {entity: i for i, entity in enumerate(entities)}
            pos = torch.stack([entity.state.pos for entity in entities])  # (E, B, 2)
            first, second = (
                pos.index_select(0, indices(tuple(rows[entity] for entity in side), pos.device))
                for side in (firsts, seconds)
            )
            distances = torch.linalg.vector_norm(first - second, dim=-1)  # (P, B)
            reach = tuple(a.shape.circumscribed_radius() + b.shape.circumscribed_radius() for a, b in self._pairs)
            self._distances = distances.unbind()
            self._near = (distances <= column(reach, pos.device)).any(1).unbind()
        return self._distances[row], self._near[row]

    def measure(self, lidar: Lidar, world: World) -> Tensor | None:
        """What a lidar measures, ``(B, n_rays)``; ``None`` where it meets anything but spheres."""
        if lidar not in self._measured:
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
            self._measured.update(zip(group, _cast(group, world)))
        return self._measured[lidar]


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


_sensing: weakref.WeakKeyDictionary[World, Sensing] = weakref.WeakKeyDictionary()
