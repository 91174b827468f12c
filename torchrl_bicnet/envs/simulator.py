"""The physics of VMAS in fewer and wider operations that never wait for the device, with the same outputs.

One step of :class:`~vmas.simulator.core.World` calls the device once for each entity, pair of entities or lidar, and
asks it in between which pairs are close. Here the entities are rows of one tensor. Outputs equal VMAS's to the bit,
but for one operation: ``torch.logaddexp`` in the contact force rounds the last elements of a tensor, those past a
multiple of twice the CPU's vector width, otherwise than the rest, and which elements are last depends on how many pairs
there are. With a multiple of 32 environments there are none; else forces may differ by a rounding there.
"""

from __future__ import annotations

import functools
import itertools
import types
import weakref
from typing import Any

import torch
from torch import Tensor
from vmas.simulator import physics
from vmas.simulator.core import Agent, Box, Entity, Line, Shape, Sphere, World
from vmas.simulator.environment import Environment
from vmas.simulator.sensors import Lidar
from vmas.simulator.utils import LINE_MIN_DIST, TorchUtils, X, Y

from torchrl_bicnet.envs import geometry
from torchrl_bicnet.envs.constants import column, indices
from torchrl_bicnet.envs.rewriting import rewritten, rewritten_class
from torchrl_bicnet.envs.sensing import Sensing

# VMAS adds the forces of contacts in this order: by the kind of the first, which has the higher one, then the second.
_KINDS = {Sphere: 0, Line: 1, Box: 2}
_Pair = tuple[int, int]


def install(environment: Environment, *, checks: bool = False) -> None:
    """Give the objects of this environment, and of no other, classes whose step does not wait.

    Args:
        environment (Environment): of VMAS.

    Keyword Args:
        checks (bool): keeps the assertions of VMAS and of the scenario about tensors. Defaults to ``False``.
    """
    world = environment.world
    parts = [environment.scenario, world, *world.entities, *world.joints]
    for agent in world.agents:
        parts += [agent.action, agent.dynamics, *agent.sensors]
    for part in parts:
        part.__class__ = _steady_class(type(part), checks)  # type: ignore[arg-type]


@functools.cache
def _steady_class(cls: Any, checks: bool) -> type:
    steady = rewritten_class(cls, checks=checks, **_physics(checks))
    return type(cls.__name__, (_OURS[cls], steady), {"__module__": cls.__module__}) if cls in _OURS else steady


@functools.cache
def _physics(checks: bool = False) -> dict[str, Any]:
    functions = {name: f for name, f in vars(physics).items() if isinstance(f, types.FunctionType)}
    cells: dict[str, Any] = {name: types.CellType() for name in functions}  # they call each other
    for name, function in functions.items():
        ours = geometry.FUNCTIONS.get(name)
        cells[name].cell_contents = ours or rewritten(function, checks=checks, **cells)
    return {name: cell.cell_contents for name, cell in cells.items()}


class BatchedWorld(World):
    """VMAS's world with one operation for all entities or pairs where VMAS has one for each.

    Whether a pair is close in any environment, without which VMAS leaves it out, is a tensor here that masks forces.
    """

    def step(self) -> None:
        entities = self.entities
        self.entity_index_map = {entity: i for i, entity in enumerate(entities)}
        joints, pairs = self._joints_and_pairs(entities)
        zeros = [torch.zeros(self.batch_dim, size, device=self.device) for size in (self.dim_p, 1)]
        for substep in range(self._substeps):
            self.forces_dict = dict.fromkeys(entities, zeros[0])
            self.torques_dict = dict.fromkeys(entities, zeros[1])
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

    def near(self, a: Entity, b: Entity) -> Tensor | None:
        """What VMAS's ``collides`` says of two entities, as a tensor; ``None`` if they never can."""
        if not self._can_collide(a, b):
            return None
        return Sensing.of(self).distance(a, b)[1]

    def get_distance(self, entity_a: Entity, entity_b: Entity, env_index: int | None = None) -> Tensor:
        if env_index is None and isinstance(entity_a.shape, Sphere) and isinstance(entity_b.shape, Sphere):
            return Sensing.of(self).distance(entity_a, entity_b)[0] - entity_a.shape.radius - entity_b.shape.radius
        return super().get_distance(entity_a, entity_b, env_index)

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
            if not _is_zero(self, self._gravity):
                self.forces_dict[entity] = self.forces_dict[entity] + entity.mass * self._gravity
            if entity.gravity is not None:
                self.forces_dict[entity] = self.forces_dict[entity] + entity.mass * entity.gravity

    def _joints_and_pairs(self, entities: list[Entity]) -> tuple[list[Any], dict[_Pair, list[_Pair]]]:
        """The joints; and, by the kinds of their shapes, the entities that can collide."""
        joints: list[Any] = []
        pairs: dict[_Pair, list[_Pair]] = {}
        for (i, a), (j, b) in itertools.combinations(enumerate(entities), 2):
            joint = self._joints.get(frozenset({a.name, b.name})) if self._joints else None
            if joint is not None:
                joints.append(joint)
                if joint.dist == 0:
                    continue
            if self._can_collide(a, b):
                kind_a, kind_b = _KINDS[type(a.shape)], _KINDS[type(b.shape)]
                if kind_b > kind_a:
                    pairs.setdefault((kind_b, kind_a), []).append((j, i))
                else:
                    pairs.setdefault((kind_a, kind_b), []).append((i, j))
        return joints, dict(sorted(pairs.items()))

    def _apply_contacts(self, entities: list[Entity], pairs: dict[_Pair, list[_Pair]]) -> None:
        members = list(zip(*itertools.chain(*pairs.values())))  # the first of each pair, and the second
        shapes = [[entities[i].shape for i in side] for side in members]
        position = torch.stack([entity.state.pos for entity in entities])  # (E, B, 2)
        pos = [position.index_select(0, indices(side, self.device)) for side in members]  # (P, B, 2) each
        reach = tuple(a.circumscribed_radius() + b.circumscribed_radius() for a, b in zip(*shapes))
        distance = torch.linalg.vector_norm(pos[0] - pos[1], dim=-1)  # (P, B)
        far = ~(distance <= column(reach, self.device)).any(1)[:, None, None]  # (P, 1, 1)

        contacts: list[tuple[Tensor, ...]] = []
        arms: tuple[list[Tensor], ...] = ([], [])
        turned: tuple[list[int], ...] = ([], [])
        start = 0
        for kinds, group in pairs.items():
            part = slice(start, start := start + len(group))
            rot = [torch.stack([entities[i].state.rot for i in side]) for side in zip(*group)] if any(kinds) else []
            contact = _contact(kinds, [p[part] for p in pos], rot, [side[part] for side in shapes])
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
        _add(self.forces_dict, entities, force, tuple(enumerate(members[0])) + tuple(enumerate(members[1])), "movable")
        rows = tuple(turned[0]) + tuple(n_pairs + row for row in turned[1])
        if rows:
            torque = TorchUtils.compute_torque(
                force.index_select(0, indices(rows, self.device)), torch.cat([*arms[0], *arms[1]])
            )  # (rows, B, 1)
            far = torch.cat([far, far]).index_select(0, indices(rows, self.device))
            targets = tuple((row % n_pairs, members[row // n_pairs][row % n_pairs]) for row in rows)
            _add(self.torques_dict, entities, torque.masked_fill_(far, 0.0), targets, "rotatable")

    def _integrate(
        self, entities: list[Entity], velocity: str, position: str, forces: dict[Entity, Tensor], substep: int
    ) -> None:
        """Semi-implicit Euler for the entities that move, or for those that turn."""
        linear = position == "pos"
        inertia = [entity.mass if linear else entity.moment_of_inertia for entity in entities]
        if not entities:
            return
        vel = torch.stack([getattr(entity.state, velocity) for entity in entities])  # (M, B, 2 or 1)
        pos = torch.stack([getattr(entity.state, position) for entity in entities])
        if substep == 0:
            drag = tuple(1 - (self._drag if entity.drag is None else entity.drag) for entity in entities)
            vel = vel * column(drag, self.device).unsqueeze(-1)
        force = torch.stack([forces[entity] for entity in entities])
        vel = vel + force / column(tuple(inertia), self.device).unsqueeze(-1) * self._sub_dt
        if linear:
            vel = _limited(vel, entities, self.device)
        pos = pos + vel * self._sub_dt
        if linear and not (self._x_semidim is None and self._y_semidim is None):
            axes = [
                pos[..., axis] if limit is None else pos[..., axis].clamp(-limit, limit)
                for axis, limit in ((X, self._x_semidim), (Y, self._y_semidim))
            ]
            pos = torch.stack(axes, dim=-1)
        for entity, entity_vel, entity_pos in zip(entities, vel.unbind(), pos.unbind()):
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


_OURS: dict[type, type] = {World: BatchedWorld, Lidar: BatchedLidar}


def _has_numbers(entity: Entity) -> bool:
    """Whether what moves it is the same in every environment."""
    values = (entity.mass, entity.drag, entity.max_speed, entity.v_range)
    return all(value is None or isinstance(value, (int, float)) for value in values)


def _contact(kinds: _Pair, pos: list[Tensor], rot: list[Tensor], shapes: list[list[Shape]]) -> tuple[Tensor, ...]:
    """Where the force of each of ``P`` pairs of one kind acts.

    Returns:
        tuple: the two points that are pushed apart, ``(P, B, 2)``, the distance to which, ``(P, B)``, and the points
        of the two surfaces, ``(P, B, 2)``; of none for spheres, the second's left out where it is one.
    """
    device, shape, f = pos[0].device, pos[0].shape[:2], _physics()

    def sizes(side: int, name: str) -> Tensor:
        return column(tuple(getattr(shape, name) for shape in shapes[side]), device).expand(shape)

    def inside(side: int, outside: Tensor, surface: Tensor) -> tuple[Tensor, Tensor]:
        solid = tuple(not shape.hollow for shape in shapes[side])
        depth = torch.zeros_like(surface[..., 0])
        if not any(solid):
            return surface, depth
        point, found = f["_get_inner_point_box"](outside, surface, pos[side])
        if all(solid):
            return point, found
        solid_rows = column(solid, device)  # (P, 1)
        return torch.where(solid_rows.unsqueeze(-1), point, surface), torch.where(solid_rows, found, depth)

    if kinds == (0, 0):
        return *pos, sizes(0, "radius") + sizes(1, "radius")
    if kinds == (1, 0):
        surface = f["_get_closest_point_line"](pos[0], rot[0], sizes(0, "length"), pos[1])
        return surface, pos[1], sizes(1, "radius") + LINE_MIN_DIST, surface
    if kinds == (1, 1):
        line = f["_get_closest_points_line_line"](
            pos[0], rot[0], sizes(0, "length"), pos[1], rot[1], sizes(1, "length")
        )
        return *line, column((LINE_MIN_DIST,) * len(shapes[0]), device).expand(shape), *line
    box = pos[0], rot[0], sizes(0, "width"), sizes(0, "length")
    if kinds == (2, 0):
        surface = f["_get_closest_point_box"](*box, pos[1])
        point, depth = inside(0, pos[1], surface)
        return point, pos[1], sizes(1, "radius") + LINE_MIN_DIST + depth, surface
    if kinds == (2, 1):
        surface, other = f["_get_closest_line_box"](*box, pos[1], rot[1], sizes(1, "length"))
        point, depth = inside(0, other, surface)
        return point, other, LINE_MIN_DIST + depth, surface, other
    surface, other = f["_get_closest_box_box"](*box, pos[1], rot[1], sizes(1, "width"), sizes(1, "length"))
    point, depth = inside(0, other, surface)
    other_point, other_depth = inside(1, surface, other)
    return point, other_point, depth + other_depth + LINE_MIN_DIST, surface, other


def _limited(vel: Tensor, entities: list[Entity], device: torch.device) -> Tensor:
    for name in ("max_speed", "v_range"):
        limits = [getattr(entity, name) for entity in entities]
        if any(limit is not None for limit in limits):
            limit = column(tuple(torch.inf if limit is None else limit for limit in limits), device)  # (M, 1)
            if name == "max_speed":
                norm = torch.linalg.vector_norm(vel, dim=-1)  # (M, B)
                shorter = (vel / norm.unsqueeze(-1)) * limit.unsqueeze(-1)
                vel = torch.where((norm > limit).unsqueeze(-1), shorter, vel)
            else:
                vel = vel.clamp(-limit.unsqueeze(-1), limit.unsqueeze(-1))
    return vel


def _add(
    totals: dict[Entity, Tensor],
    entities: list[Entity],
    contributions: Tensor,
    targets: tuple[_Pair, ...],
    moves: str,
) -> None:
    """Add row after row to the totals of the entities that move, each entity's in the order of its pairs.

    Args:
        totals (dict): entity to its sum so far, ``(B, size)``.
        entities (list): of the world.
        contributions (Tensor): ``(rows, B, size)``.
        targets (tuple): for each row the number of its pair and of the entity it is added to.
        moves (str): the attribute of an entity that says whether it counts at all.
    """
    receivers = tuple(i for i, entity in enumerate(entities) if getattr(entity, moves))
    indices = _rounds(targets, receivers, contributions.device)
    if indices is None:
        return
    rows = torch.cat([contributions, torch.zeros_like(contributions[:1])]).index_select(0, indices.flatten())
    total = torch.stack([totals[entities[i]] for i in receivers])  # (receivers, B, size)
    for part in rows.unflatten(0, indices.shape).unbind():
        total = total + part
    totals.update(zip([entities[i] for i in receivers], total.unbind()))


@functools.lru_cache(maxsize=1024)
def _rounds(targets: tuple[_Pair, ...], receivers: tuple[int, ...], device: torch.device) -> Tensor | None:
    """``(rounds, receivers)``: the row that each receiver gets in each round; the row past the last holds zeros."""
    given: dict[int, list[_Pair]] = {entity: [] for entity in receivers}
    for row, (pair, entity) in enumerate(targets):
        if entity in given:
            given[entity].append((pair, row))
    columns = [[row for _, row in sorted(rows)] for rows in given.values()]
    rounds = list(itertools.zip_longest(*columns, fillvalue=len(targets)))
    return torch.tensor(rounds, device=device) if rounds else None


_gravity_seen: weakref.WeakKeyDictionary[World, tuple[Tensor, int, bool]] = weakref.WeakKeyDictionary()


def _is_zero(world: World, gravity: Tensor) -> bool:
    """Whether there is no gravity, asked of the device once for as long as the tensor stays what it is."""
    seen = _gravity_seen.get(world)
    if seen is None or seen[0] is not gravity or seen[1] != gravity._version:
        seen = _gravity_seen[world] = gravity, gravity._version, bool((gravity == 0.0).all())
    return seen[2]
