"""The physics of VMAS in fewer and wider operations that never wait for the device, with the same outputs.

One step of :class:`~vmas.simulator.core.World` calls the device once for each entity, pair of entities or lidar, and
reads in between which pairs are close. Here the entities are rows of one tensor. On a CPU outputs equal VMAS's to the
bit, but for one operation: ``torch.logaddexp`` in the contact force rounds the last elements of a tensor, those past a
multiple of twice the CPU's vector width, differently from the rest, and which are last depends on the number of pairs.
With a multiple of 32 environments there are none; else forces may differ by a rounding there.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
import operator
import types
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from vmas.simulator.core import Agent, Box, Entity, Sphere, World
from vmas.simulator.environment import Environment
from vmas.simulator.sensors import Lidar
from vmas.simulator.utils import LINE_MIN_DIST, TorchUtils, X, Y

from torchrl_bicnet.vmas_fast.cached_tensors import column, indices
from torchrl_bicnet.vmas_fast.contacts import SHAPE_ORDER, add_rows, contact_points, physics_functions
from torchrl_bicnet.vmas_fast.distances import Sensing
from torchrl_bicnet.vmas_fast.scenario_parts import part_of
from torchrl_bicnet.vmas_fast.sync_free import class_without_syncs

_Pair = tuple[int, int]
# From this number of substeps on, a CPU leaves out pairs that are far apart. With 10 substeps and all pairs, two boxes
# that seldom meet (kinematic_bicycle) took five times as long as in VMAS.
_MANY_SUBSTEPS = 3
_every_pair = contextvars.ContextVar("every_pair", default=False)


@contextlib.contextmanager
def every_pair() -> Iterator[None]:
    """Compute pairs that are far apart too: which ones are is read on the host."""
    token = _every_pair.set(True)
    try:
        yield
    finally:
        _every_pair.reset(token)


def use_batched_world(environment: Environment, *, never_wait: bool = False, checks: bool = False) -> None:
    """Give the objects of this environment, and of no other, classes whose step does not wait for the device.

    Args:
        environment (Environment): of VMAS.

    Keyword Args:
        never_wait (bool): rewrites functions that are not written in VMAS's own files too, and lets scripted players of
            football draw other random numbers than in VMAS. Defaults to ``False``.
        checks (bool): keeps VMAS's assertions about tensors. Defaults to ``False``.
    """
    world = environment.world
    parts = [environment.scenario, world, *world.entities, *world.joints]
    for agent in world.agents:
        parts += [agent.action, agent.dynamics, *agent.sensors]
        if isinstance(agent.action_script, types.MethodType):
            parts.append(agent.action_script.__self__)
    for part in {id(part): part for part in parts}.values():  # one policy may play several agents
        part.__class__ = _sync_free_class(type(part), never_wait, checks)  # type: ignore[arg-type]


# Bounded, since VMAS makes new classes for every environment it loads.
@functools.lru_cache(maxsize=256)
def _sync_free_class(cls: Any, never_wait: bool, checks: bool) -> type:
    functions = physics_functions(checks)
    sync_free = class_without_syncs(cls, rewrite_foreign=never_wait, checks=checks, **functions)
    if part := part_of(cls, never_wait=never_wait):
        return type(cls.__name__, (part(sync_free),), {"__module__": cls.__module__})
    if cls in _BATCHED:
        return type(cls.__name__, (_BATCHED[cls], sync_free), {"__module__": cls.__module__})
    return sync_free


class BatchedWorld(World):
    """VMAS's world with one operation for all entities or pairs where VMAS has one for each.

    VMAS leaves a pair out that is close in no environment. Here forces are masked by a tensor that says so; it is read
    on a CPU only, which neither waits nor captures a step, and only in worlds of many substeps, whose pairs are mostly
    far apart.
    """

    def step(self) -> None:
        entities = self.entities
        self._fill("entity_index_map", zip(entities, itertools.count()))
        joints, pairs = self._joints_and_pairs(entities)
        zeros = [torch.zeros(self.batch_dim, size, device=self.device) for size in (self.dim_p, 1)]
        for substep in range(self._substeps):
            self._fill("forces_dict", dict.fromkeys(entities, zeros[0]))
            self._fill("torques_dict", dict.fromkeys(entities, zeros[1]))
            for entity in entities:
                if isinstance(entity, Agent):
                    self._apply_action_force(entity)
                    self._apply_action_torque(entity)
                self._apply_friction_force(entity)
                self._apply_gravity(entity)
            self._vectorized_joint_constraints(joints)
            if pairs:
                self._apply_contacts(entities, pairs)
            if all(_has_numbers(entity) for entity in entities):
                self._integrate([e for e in entities if e.movable], "vel", "pos", self.forces_dict, substep)
                self._integrate([e for e in entities if e.rotatable], "ang_vel", "rot", self.torques_dict, substep)
            else:
                for entity in entities:
                    self._integrate_state(entity, substep)
        if self._dim_c > 0:
            for agent in self._agents:
                self._update_comm_state(agent)

    def _fill(self, name: str, items: Any) -> None:
        """Keep the dictionary, so that the objects of a world are the same after a step."""
        kept = self.__dict__.setdefault(name, {})
        kept.clear()
        kept.update(items)

    def weightless(self) -> bool:
        """Whether there is no gravity, which decides what a step does."""
        return _is_zero(self, self._gravity)

    def assume_weightless(self, weightless: bool) -> None:
        """Answer :meth:`weightless` in advance for the present gravity, where it must not be read."""
        _gravity_seen[self] = self._gravity, self._gravity._version, weightless

    def near(self, a: Entity, b: Entity) -> Tensor | None:
        """VMAS's ``collides(a, b)`` as a tensor, not read on the host; ``None`` if they can never collide."""
        return Sensing.of(self).gap(a, b)[1] if self._can_collide(a, b) else None

    def get_distance(self, entity_a: Entity, entity_b: Entity, env_index: int | None = None) -> Tensor:
        if env_index is None and _are_spheres(entity_a, entity_b):
            return Sensing.of(self).gap(entity_a, entity_b)[0].clone()
        a, b, points = self._closest_points(entity_a, entity_b, env_index)
        if points is None or (isinstance(a.shape, Box) and isinstance(b.shape, Sphere)):
            return super().get_distance(entity_a, entity_b, env_index)
        if isinstance(b.shape, Sphere):
            return torch.linalg.vector_norm(b.state.pos - points[0], dim=-1) - LINE_MIN_DIST - b.shape.radius
        return torch.linalg.vector_norm(points[0] - points[1], dim=-1) - LINE_MIN_DIST

    def is_overlapping(self, entity_a: Entity, entity_b: Entity, env_index: int | None = None) -> Tensor:
        if env_index is None and _are_spheres(entity_a, entity_b):
            return Sensing.of(self).gap(entity_a, entity_b)[0] < 0
        a, b, points = self._closest_points(entity_a, entity_b, env_index)
        if points is None or not (isinstance(a.shape, Box) and isinstance(b.shape, Sphere)):
            return super().is_overlapping(entity_a, entity_b, env_index)
        to_surface, to_centre, depth = (
            torch.linalg.vector_norm(apart, dim=-1)
            for apart in (b.state.pos - points[0], b.state.pos - a.state.pos, a.state.pos - points[0])
        )
        return (to_centre < depth) | (to_surface < b.shape.radius + LINE_MIN_DIST)

    def _closest_points(
        self, a: Entity, b: Entity, env_index: int | None
    ) -> tuple[Entity, Entity, tuple[Tensor, ...] | None]:
        """The two in the order of their shapes; and their closest points in all environments, if they are computed."""
        if env_index is not None or not {type(a.shape), type(b.shape)} <= SHAPE_ORDER.keys():  # a shape of the user's
            return a, b, None
        if SHAPE_ORDER[type(b.shape)] > SHAPE_ORDER[type(a.shape)]:
            a, b = b, a
        return a, b, Sensing.of(self).closest_points_of(a, b)

    def _can_collide(self, a: Entity, b: Entity) -> bool:
        return (
            (a.movable or a.rotatable or b.movable or b.rotatable)
            and a is not b
            and a.collides(b)
            and b.collides(a)
            and {a.shape.__class__, b.shape.__class__} in self._collidable_pairs
        )

    def _apply_gravity(self, entity: Entity) -> None:
        if entity.movable:
            if not self.weightless():
                self.forces_dict[entity] = self.forces_dict[entity] + entity.mass * self._gravity
            if entity.gravity is not None:
                self.forces_dict[entity] = self.forces_dict[entity] + entity.mass * entity.gravity

    def _joints_and_pairs(self, entities: list[Entity]) -> tuple[list[Any], dict[_Pair, list[_Pair]]]:
        """The joints; and the pairs of entities that can collide, by the kinds of their shapes."""
        joints: list[Any] = []
        pairs: dict[_Pair, list[_Pair]] = {}
        # Without joints only entities that collide at all matter.
        numbered = [(i, entity) for i, entity in enumerate(entities) if self._joints or entity.collide]
        for (i, a), (j, b) in itertools.combinations(numbered, 2):
            joint = self._joints.get(frozenset({a.name, b.name})) if self._joints else None
            if joint is not None:
                joints.append(joint)
                if joint.dist == 0:
                    continue
            if self._can_collide(a, b):
                kind_a, kind_b = SHAPE_ORDER[type(a.shape)], SHAPE_ORDER[type(b.shape)]
                if kind_b > kind_a:
                    pairs.setdefault((kind_b, kind_a), []).append((j, i))
                else:
                    pairs.setdefault((kind_a, kind_b), []).append((i, j))
        return joints, dict(sorted(pairs.items()))

    def _apply_contacts(self, entities: list[Entity], pairs: dict[_Pair, list[_Pair]]) -> None:
        position = torch.stack([entity.state.pos for entity in entities])  # (E, B, 2)
        members, pos, near = self._select_pairs(entities, position, pairs)
        if self._substeps >= _MANY_SUBSTEPS and self.device.type == "cpu" and not _every_pair.get():
            answers = iter(near.tolist())
            kept = {kinds: [pair for pair in group if next(answers)] for kinds, group in pairs.items()}
            pairs = {kinds: group for kinds, group in kept.items() if group}
            if not pairs:
                return
            members, pos, near = self._select_pairs(entities, position, pairs)
        shapes = [[entities[i].shape for i in side] for side in members]
        far = ~near[:, None, None]  # (P, 1, 1)

        contacts: list[tuple[Tensor, ...]] = []
        arms: tuple[list[Tensor], ...] = ([], [])
        turned: tuple[list[int], ...] = ([], [])
        start = 0
        for kinds, group in pairs.items():
            part = slice(start, start := start + len(group))
            couples = tuple((entities[i], entities[j]) for i, j in group)
            closest = Sensing.of(self).closest_points(kinds, couples) if any(kinds) else ()
            contact = contact_points(kinds, [p[part] for p in pos], closest, [side[part] for side in shapes])
            contacts.append(contact[:3])
            for side in (0, 1):
                if kinds[side]:  # spheres are not turned
                    arms[side].append(contact[3 + side] - pos[side][part])
                    turned[side].extend(range(part.start, part.stop))
        force, opposite = self._get_constraint_forces(
            *(torch.cat(parts) for parts in zip(*contacts)), force_multiplier=self._collision_force
        )
        force = torch.cat([force.masked_fill_(far, 0.0), opposite.masked_fill_(far, 0.0)])  # (2P, B, 2)
        n_pairs = len(members[0])
        targets = (*enumerate(members[0]), *enumerate(members[1]))
        add_rows(self.forces_dict, entities, force, targets, "movable")
        rows = tuple(turned[0]) + tuple(n_pairs + row for row in turned[1])
        if rows:
            torque = TorchUtils.compute_torque(
                force.index_select(0, indices(rows, self.device)), torch.cat([*arms[0], *arms[1]])
            )  # (rows, B, 1)
            far = torch.cat([far, far]).index_select(0, indices(rows, self.device))
            targets = tuple((row % n_pairs, members[row // n_pairs][row % n_pairs]) for row in rows)
            add_rows(self.torques_dict, entities, torque.masked_fill_(far, 0.0), targets, "rotatable")

    def _select_pairs(
        self, entities: list[Entity], position: Tensor, pairs: dict[_Pair, list[_Pair]]
    ) -> tuple[list[tuple[int, ...]], list[Tensor], Tensor]:
        """The members of ``P`` pairs, their positions ``(P, B, 2)``, and whether they are near anywhere ``(P,)``."""
        members = list(zip(*itertools.chain(*pairs.values())))
        pos = [position.index_select(0, indices(side, self.device)) for side in members]
        radii = [[entities[i].shape.circumscribed_radius() for i in side] for side in members]
        distance = torch.linalg.vector_norm(pos[0] - pos[1], dim=-1)  # (P, B)
        reach = column(tuple(map(operator.add, *radii)), self.device)
        return members, pos, (distance <= reach).any(1)

    def _integrate(
        self, entities: list[Entity], velocity: str, position: str, forces: dict[Entity, Tensor], substep: int
    ) -> None:
        """Semi-implicit Euler for the entities that move, or for those that turn."""
        if not entities:
            return
        linear = position == "pos"
        inertia = [entity.mass if linear else entity.moment_of_inertia for entity in entities]
        vel = torch.stack([getattr(entity.state, velocity) for entity in entities])  # (M, B, 2 or 1)
        pos = torch.stack([getattr(entity.state, position) for entity in entities])
        if substep == 0:
            drag = tuple(1 - (self._drag if entity.drag is None else entity.drag) for entity in entities)
            vel = vel * column(drag, self.device).unsqueeze(-1)
        force = torch.stack([forces[entity] for entity in entities])
        vel = vel + force / column(tuple(inertia), self.device).unsqueeze(-1) * self._sub_dt
        if linear:
            vel = _clamp_velocity(vel, entities, self.device)
        pos = pos + vel * self._sub_dt
        if linear and not (self._x_semidim is None and self._y_semidim is None):
            axes = [
                pos[..., axis] if limit is None else pos[..., axis].clamp(-limit, limit)
                for axis, limit in ((X, self._x_semidim), (Y, self._y_semidim))
            ]
            pos = torch.stack(axes, dim=-1)
        for entity, entity_vel, entity_pos in zip(entities, _rows(vel), _rows(pos)):
            setattr(entity.state, velocity, entity_vel)
            setattr(entity.state, position, entity_pos)


class BatchedLidar(Lidar):
    """VMAS's lidar, measured together with those of the other agents."""

    def measure(self, vectorized: bool = True) -> Tensor:
        measured = Sensing.of(self._world).measure(self, self._world) if vectorized else None
        if measured is None:
            return super().measure(vectorized)
        self._last_measurement = measured
        return measured


_BATCHED: dict[type, type] = {World: BatchedWorld, Lidar: BatchedLidar}


def _are_spheres(a: Entity, b: Entity) -> bool:
    return isinstance(a.shape, Sphere) and isinstance(b.shape, Sphere)


def _has_numbers(entity: Entity) -> bool:
    """Whether its mass and limits are the same in every environment."""
    values = (entity.mass, entity.drag, entity.max_speed, entity.v_range)
    return all(value is None or isinstance(value, (int, float)) for value in values)


def _rows(x: Tensor) -> Sequence[Tensor]:
    """``x.unbind()``, but autograd lets nobody write to the results of that, as sampling does."""
    return [x.select(0, i) for i in range(len(x))] if x.requires_grad else x.unbind()


def _clamp_velocity(vel: Tensor, entities: list[Entity], device: torch.device) -> Tensor:
    largest = torch.finfo(vel.dtype).max
    for name in ("max_speed", "v_range"):
        limits = [getattr(entity, name) for entity in entities]
        if any(limit is not None for limit in limits):
            limit = column(tuple(largest if limit is None else limit for limit in limits), device)  # (M, 1)
            if name == "max_speed":
                norm = torch.linalg.vector_norm(vel, dim=-1)  # (M, B)
                too_fast = norm > limit
                # Divided by 0, even where it is not taken, its gradient would be NaN.
                shorter = (vel / norm.masked_fill(~too_fast, 1.0).unsqueeze(-1)) * limit.unsqueeze(-1)
                vel = torch.where(too_fast.unsqueeze(-1), shorter, vel)
            else:
                vel = vel.clamp(-limit.unsqueeze(-1), limit.unsqueeze(-1))
    return vel


_gravity_seen: weakref.WeakKeyDictionary[World, tuple[Tensor, int, bool]] = weakref.WeakKeyDictionary()


def _is_zero(world: World, gravity: Tensor) -> bool:
    """Whether there is no gravity, read from the device once for as long as the tensor stays the same."""
    if gravity.is_inference():  # inference tensors have no version counter, so nothing is cached
        return bool((gravity == 0.0).all())
    seen = _gravity_seen.get(world)
    if seen is None or seen[0] is not gravity or seen[1] != gravity._version:
        seen = _gravity_seen[world] = gravity, gravity._version, bool((gravity == 0.0).all())
    return seen[2]
