import gc
import itertools
import weakref

import pytest
import torch
import vmas
from vmas.simulator import core, physics, sensors
from vmas.simulator.environment import Environment

from tests.helpers_vmas import (
    SYNC_FREE,
    assert_plays_like_vmas,
    assert_same,
    assert_same_step,
    ours_and_stock,
    simulator,
    waits,
)
from torchrl_bicnet import make_vmas_env
from torchrl_bicnet.vmas_fast import closest_points as geometry


@pytest.mark.parametrize(
    ("scenario", "options"),
    [
        *SYNC_FREE.items(),
        ("discovery", {"use_agent_lidar": True}),
        *((name, {}) for name in ("flocking", "goal", "joint_passage_size", "kinematic_bicycle")),
    ],
)
def test_a_step_is_that_of_vmas_to_the_bit(scenario, options):
    ours, stock = simulator(make_vmas_env(scenario, 32, **options)), vmas.make_env(scenario, 32, **options)
    assert_plays_like_vmas(ours, stock, n_steps=20, reset_every=12)


def test_geometry_is_that_of_vmas():
    torch.manual_seed(0)
    shape = (3, 32)
    pos, other = torch.randn(2, *shape, 2)
    rot, other_rot = torch.randn(2, *shape, 1) * 3
    width, length, other_length = torch.rand(3, *shape) + 0.1
    # Lines of equal rotation do not cross, and lines through one point do.
    other[0], other_rot[1] = pos[0], rot[1]
    arguments = {
        "_get_closest_point_box": (pos, rot, width, length, other),
        "_get_closest_points_line_line": (pos, rot, length, other, other_rot, other_length),
        "_get_closest_line_box": (pos, rot, width, length, other, other_rot, other_length),
    }
    for name, given in arguments.items():
        found, expected = geometry.FUNCTIONS[name](*given), getattr(physics, name)(*given)
        assert_same([found], [expected])
    scalar = geometry.FUNCTIONS["_get_closest_point_box"](pos[0], rot[0], 0.3, 1, other[0])
    assert_same([scalar], [physics._get_closest_point_box(pos[0], rot[0], 0.3, 1, other[0])])


def test_vmas_stays_as_it_is():
    """For others in the process: its classes, modules and objects."""
    watched = [core.World, core.Agent, core.Landmark, core.EntityState, sensors.Lidar, Environment, physics, core]
    before = [dict(vars(owner)) for owner in watched]
    stock = vmas.make_env("navigation", 2)
    make_vmas_env("navigation", 2).rollout(2)
    make_vmas_env("balance", 2).rollout(2)
    assert [dict(vars(owner)) for owner in watched] == before
    assert type(stock.world) is core.World
    assert {type(agent) for agent in stock.agents} == {core.Agent}
    assert waits(stock.step, stock.get_random_actions())


def test_gravity_may_change():
    ours, stock = ours_and_stock("simple_spread")
    for gravity in (0.0, 0.3, 0.0):
        for world in (ours.world, stock.world):
            world._gravity.fill_(gravity)
        assert_same_step(ours, stock)


def test_each_environment_may_have_masses_of_its_own():
    ours, stock = ours_and_stock("simple_spread")
    for world in (ours.world, stock.world):
        world.agents[0].mass = torch.linspace(1, 2, 32).unsqueeze(-1)
    assert_same_step(ours, stock)


def test_sensing_follows_what_is_written_to_a_position():
    env = simulator(make_vmas_env("navigation", 4, seed=0))
    env.reset()
    a, b = env.agents[:2]
    lidar = a.sensors[0]
    for write in (
        lambda: a.set_pos(torch.zeros(2), 1),  # in place
        lambda: b.set_pos(torch.full((4, 2), 0.25), None),  # a new tensor
        lambda: b.state.pos.add_(0.1),
    ):
        env.world.get_distance(a, b), lidar.measure()
        write()
        expected = torch.linalg.vector_norm(a.state.pos - b.state.pos, dim=-1) - a.shape.radius - b.shape.radius
        assert torch.equal(env.world.get_distance(a, b), expected)
        together = lidar.measure()
        assert torch.equal(together, super(type(env.world), env.world).cast_rays(
            a, lidar._angles + a.state.rot, lidar._max_range, lidar.entity_filter
        ))  # fmt: skip


def test_a_distance_is_the_callers_and_follows_the_size():
    world = make_vmas_env("simple_spread", 4, seed=0).base_env._env.world
    a, b = world.agents[:2]
    a.set_pos(torch.zeros(2), None), b.set_pos(torch.tensor([0.6, 0.8]), None)
    assert torch.equal(world.get_distance(a, b), torch.ones(4) - a.shape.radius - b.shape.radius)
    world.get_distance(a, b).fill_(-7.0)
    assert not world.is_overlapping(a, b).any()
    b.shape._radius = 0.9
    torch.testing.assert_close(world.get_distance(b, a), torch.full((4,), 1 - 0.9 - a.shape.radius))
    assert world.is_overlapping(a, b).all()


def test_a_measurement_is_the_callers_and_follows_the_lidar():
    env = simulator(make_vmas_env("navigation", 4, seed=0))
    env.reset()
    agent, lidar = env.agents[0], env.agents[0].sensors[0]
    agent.set_pos(env.agents[1].state.pos + 0.25, None)
    measured = lidar.measure().clone()
    lidar.measure().fill_(-7.0)
    assert torch.equal(lidar.measure(), measured)
    lidar.entity_filter = lambda entity: False
    assert (lidar.measure() == lidar._max_range).all()
    assert not (measured == lidar._max_range).all()


def test_the_next_step_follows_the_size_of_a_box():
    ours, stock = ours_and_stock("balance")
    for width in (10.0, 0.5, 2.0):
        for environment in (ours, stock):
            environment.scenario.line.shape._length = width / 10
            environment.scenario.floor.shape._width = width
        for _ in range(3):
            assert_same_step(ours, stock)


def test_a_world_that_nobody_holds_is_freed():
    env = make_vmas_env("navigation", 2, seed=0)
    env.rollout(2)
    world = weakref.ref(env.base_env._env.world)
    del env
    gc.collect()
    assert world() is None


def test_closest_points_follow_what_is_written_to_a_position():
    """Of a line and a box, and of a sphere and a box: computed for the rewards, and again for the next step."""
    ours, stock = ours_and_stock("balance")
    for write in (
        lambda scenario: None,
        lambda scenario: scenario.line.state.pos.sub_(0.3),  # in place
        lambda scenario: scenario.package.set_pos(scenario.package.state.pos - 0.2, None),  # a new tensor
        lambda scenario: scenario.floor.set_rot(torch.full((32, 1), 0.1), None),
    ):
        for _ in range(2):
            assert_same_step(ours, stock)
        for environment in (ours, stock):
            write(environment.scenario)
            environment.scenario.compute_on_the_ground()
        assert_same([ours.scenario.on_the_ground], [stock.scenario.on_the_ground])
        for a, b in itertools.combinations(["floor", "line", "package"], 2):
            distances = [s.world.get_distance(getattr(s, a), getattr(s, b)) for s in (ours.scenario, stock.scenario)]
            assert_same(*([d] for d in distances))


@pytest.mark.parametrize("scenario", ["navigation", "balance"])
def test_inference_mode_changes_nothing(scenario):
    def play(mode):
        with mode:
            env = make_vmas_env(scenario, 4, max_steps=3, seed=0)
            env.set_seed(0), torch.manual_seed(0)
            return env.rollout(6, break_when_any_done=False)

    assert (play(torch.inference_mode()) == play(torch.no_grad())).all()
    env = make_vmas_env(scenario, 4, seed=0)
    with torch.inference_mode():
        env.rollout(3)


def test_what_is_computed_without_gradients_is_computed_again_with_them():
    env = make_vmas_env("balance", 4)
    env.rollout(2)
    world = env.base_env._env.world
    line, floor = (entity for entity in world.landmarks if entity.name in ("line", "floor"))
    line.state.pos = line.state.pos.clone().requires_grad_()
    with torch.no_grad():
        without = world.get_distance(line, floor)
    distance = world.get_distance(line, floor)
    assert torch.equal(distance, without)
    assert distance.requires_grad
