"""The best scripted policies that we know for the tasks of the suite, without communication and with it.

A policy without communication is a function of each agent's own observation and index, one with it of the observations
of the whole team: what a team could do whose agents tell each other all. Neither has a memory. Numbers that are
defaults of a policy's arguments come from a random search of some hundred trials.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

Policy = Callable[[Tensor], Tensor]  # observations (B, N, F) -> actions (B, N, A)

DT, KEPT = 0.1, 0.75  # VMAS's time step, and the share of its velocity that a body keeps in one: its drag is 0.25
EFFECT = DT**2 / (1 - KEPT)  # how far a unit of force moves a body in all
APART = 0.32  # a little more than two agents of simple_spread are wide
DROPOUT_REACH = 0.05 + 0.03  # the radii of an agent and of the goal
FULL_SPEED = 1.0  # more than any body reaches


def go(way: Tensor, velocity: Tensor, substeps: int = 1) -> Tensor:
    """The force that brings a point mass over ``way`` and to rest there as fast as can be, coordinate by coordinate.

    A step takes velocity ``v`` to ``v' = 0.75 v + 0.1 u`` and moves by ``0.075 v + k u``, where ``k`` is 0.01, or
    0.0075 with two substeps. The force is the largest one after which a full brake still ends before the goal: the
    position is at each step as near as a stop without overshoot allows. The stop is searched by bisection: the way to
    it grows with the force.
    """
    per_force = DT**2 * (substeps + 1) / (2 * substeps)
    sign = torch.where(way < 0, -1.0, 1.0)
    way, velocity = way * sign, velocity * sign

    def stop(force: Tensor) -> Tensor:
        total, v = torch.zeros_like(way), velocity
        for _ in range(5):  # from full speed, 0.4, a brake takes three steps
            total = total + DT * KEPT * v + per_force * force
            v = KEPT * v + DT * force
            force = (-KEPT / DT * v).clamp(-1, 1)
        return total

    low, high = -torch.ones_like(way), torch.ones_like(way)
    for _ in range(14):
        middle = (low + high) / 2
        near = stop(middle) <= way
        low, high = torch.where(near, middle, low), torch.where(near, high, middle)
    # The end that fits, for a full force the very bound.
    return sign * torch.where(stop(torch.ones_like(way)) <= way, 1.0, low)


def geometric_median(points: Tensor) -> Tensor:
    """The place whose mean distance to points (..., K, 2) is smallest, (..., 2), by Weiszfeld's iteration."""
    place = points.mean(-2)
    for _ in range(60):
        weight = 1 / (points - place.unsqueeze(-2)).norm(dim=-1, keepdim=True).clamp(min=1e-6)
        place = (weight * points).sum(-2) / weight.sum(-2)
    return place


def kept_apart(points: Tensor, distance: float) -> Tensor:
    """Points (B, K, 2), those that are nearer than ``distance`` moved away from each other."""
    others = ~torch.eye(points.shape[1], dtype=torch.bool)
    for _ in range(30):
        apart = points.unsqueeze(2) - points.unsqueeze(1)  # (B, K, K, 2), from the second to the first
        length = apart.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        short = (distance - length).clamp(min=0) * others.unsqueeze(-1)
        points = points + (apart / length * short).sum(2) / 3
    return points


def wait_in_the_middle(seen: Tensor) -> Tensor:
    return go(-seen[..., :2], seen[..., 2:4])


def tell_goals(seen: Tensor) -> Tensor:
    goals, whose = seen[..., 4:6], seen[..., 6:]  # whose: (B, seer, owner), or nothing
    own = whose.mT @ goals if whose.shape[-1] else goals.roll(1, -2)
    return go(own - seen[..., :2], seen[..., 2:4])


def own_landmark(seen: Tensor, slow: float = 0.32, far: float = 0.22, angle: float = 0.48) -> Tensor:
    """Each agent to the landmark of its index, and apart where two would touch there.

    Who is slow and still far may be in another's way, which it cannot see: it veers to the left, as all do, and they
    pass each other.
    """
    ways = kept_apart(seen[..., 4:10].unflatten(-1, (3, 2)).flatten(0, 1), APART).view(-1, 3, 3, 2)
    way, velocity = ways.diagonal(dim1=1, dim2=2).mT, seen[..., 2:4]  # of agent i to landmark i
    held_up = (velocity.norm(dim=-1) < slow) & (way.norm(dim=-1) > far)
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return go(torch.where(held_up.unsqueeze(-1), 3 * way @ turn, way), velocity)  # 3: too far to brake for


def best_assignment(seen: Tensor) -> Tensor:
    """The assignment of the smallest sum of squares, as time goes with the distance and cost with distance and time."""
    landmarks = kept_apart(seen[:, 0, :2].unsqueeze(1) + seen[:, 0, 4:10].unflatten(-1, (3, 2)), APART)
    assigned = landmarks[:, list(itertools.permutations(range(3)))]  # (B, 6, 3, 2)
    total = (assigned - seen[..., :2].unsqueeze(1)).square().sum((-2, -1))  # (B, 6)
    way = assigned[torch.arange(len(seen)), total.argmin(-1)] - seen[..., :2]
    return go(way, seen[..., 2:4])


def own_food(seen: Tensor) -> Tensor:
    """Each agent to the food of its index, then to the nearest one that is left."""
    foods = seen[..., 4:].unflatten(-1, (-1, 3))  # (B, N, K, [way, way, eaten])
    cost = foods[..., :2].norm(dim=-1) - 10 * torch.eye(seen.shape[1]) + 100 * foods[..., 2]
    index = cost.argmin(-1)[..., None, None].expand(-1, -1, 1, 2)
    return go(foods[..., :2].gather(2, index).squeeze(2), seen[..., 2:4])


def wait_at_the_median(seen: Tensor) -> Tensor:
    landmarks = seen[..., 2:8].unflatten(-1, (3, 2))
    return go(geometric_median(landmarks), seen[..., :2])


def name_the_landmark(seen: Tensor) -> Tensor:
    landmarks, goal = seen[..., 2:8].unflatten(-1, (3, 2)), seen[:, :1, 8:11].unsqueeze(-1)
    return go((goal * landmarks).sum(-2), seen[..., :2])


def avoid_what_the_lidar_sees(seen: Tensor, away: float = 12.0, aside: float = 4.0) -> Tensor:
    """To the own goal; what is near pushes away and to the right."""
    angles = torch.arange(seen.shape[-1] - 6) * (2 * math.pi / (seen.shape[-1] - 6))
    near = seen[..., 6:, None] * torch.stack([angles.cos(), angles.sin()], -1)  # range minus distance, (B, N, rays, 2)
    return go(-seen[..., 4:6] + sidestep(-near.sum(-2), away, aside), seen[..., 2:4], substeps=2)


def avoid_all(seen: Tensor, away: float = 9.0, aside: float = 6.0, reach: float = 0.33, ahead: float = 0.18) -> Tensor:
    """To the own goal; all that will be near in ``ahead`` seconds push away and to the right."""
    places = seen[..., :2] + ahead * seen[..., 2:4]
    apart = places.unsqueeze(2) - places.unsqueeze(1)
    length = apart.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    push = (apart / length * (reach - length).clamp(min=0)).sum(2)
    return go(-seen[..., 4:6] + sidestep(push, away, aside), seen[..., 2:4], substeps=2)


def sidestep(push: Tensor, away: float, aside: float) -> Tensor:
    return away * push + aside * torch.stack([-push[..., 1], push[..., 0]], -1)


def nearest_goes(seen: Tensor) -> Tensor:
    distance = seen[..., 4:6].norm(dim=-1, keepdim=True)
    return saunter(seen, FULL_SPEED * (distance == distance.amin(1, keepdim=True)))


def near_ones_hurry(seen: Tensor, near: float = 0.37, amble: float = 0.26) -> Tensor:
    """Whoever is near goes at once; agent 0 goes from afar too, but slowly, so that a nearer one comes first."""
    distance = seen[..., 4:6].norm(dim=-1, keepdim=True)
    first = torch.arange(seen.shape[1]).view(-1, 1) == 0
    return saunter(seen, torch.where(distance < near, FULL_SPEED, torch.where(first, amble, 0.0)))


def saunter(seen: Tensor, speed: Tensor) -> Tensor:
    """The force that brings an agent up to a speed straight to dropout's goal, whose edge it reaches coasting.

    Effort costs there and time does not. A unit of force moves a body by 0.04 in all, and a velocity ``v`` still
    carries it over ``0.3 v``, however long it takes.
    """
    way, velocity = seen[..., 4:6], seen[..., 2:4]
    ahead = way / way.norm(dim=-1, keepdim=True).clamp(min=1e-9)
    coasting = (way - DT * KEPT / (1 - KEPT) * velocity).mul(ahead).sum(-1, keepdim=True)
    most = 1 / ahead.abs().amax(-1, keepdim=True).clamp(min=1e-9)  # force in this direction within [-1, 1]^2
    to_speed = (speed - KEPT * velocity.mul(ahead).sum(-1, keepdim=True)) / DT
    needed = (coasting - DROPOUT_REACH + 0.001) / EFFECT
    return ahead * torch.minimum(torch.minimum(to_speed, needed).clamp(min=0), most)


SCRIPTS: dict[str, tuple[Policy, Policy]] = {
    "guess_the_sum": (lambda seen: seen, lambda seen: seen.sum(-2, keepdim=True).expand_as(seen)),
    "hidden_goals": (wait_in_the_middle, tell_goals),
    "simple_spread": (own_landmark, best_assignment),
    "dispersion": (own_food, own_food),
    "navigation": (avoid_what_the_lidar_sees, avoid_all),
    "speaker_listener": (wait_at_the_median, name_the_landmark),
    "dropout": (near_ones_hurry, nearest_goes),
}
