import copy
import gc
import itertools
import os
import weakref
from collections import Counter

import pytest
import torch
import vmas
from torch.utils._python_dispatch import TorchDispatchMode
from torchrl.envs import Compose, ExpandAs, InitTracker, RewardSum, StepCounter, TransformedEnv
from vmas.scenarios.navigation import Scenario as Navigation
from vmas.simulator import core, physics, sensors
from vmas.simulator.environment import Environment

from tests.guess_the_sum import GuessTheSum
from torchrl_bicnet import make_vmas_env
from torchrl_bicnet.vmas_fast import closest_points as geometry

SCENARIOS = sorted([*vmas.scenarios, *vmas.mpe_scenarios, *vmas.debug_scenarios])
# The scenarios whose step never waits, with the options that it takes.
NAMED = {
    "navigation": {},
    "simple_spread": {},
    "balance": {},
    "dispersion": {},
    "transport": {},
    "discovery": {"targets_respawn": False},  # else places are drawn until they are free
}


# Steps of the scenarios that take 50 ms to a second for each, VMAS's and ours together, instead of 200, unless
# FULL_LENGTH=1 is set in the environment (eight minutes more).
FEWER_STEPS = {
    **dict.fromkeys(("pollock", "road_traffic"), 6),
    **dict.fromkeys(("joint_passage", "waterfall"), 40),
    **dict.fromkeys(("ball_trajectory", "buzz_wire", "passage", "sampling"), 60),
}


def leaves(data):
    if isinstance(data, torch.Tensor):
        yield data
    else:
        for part in data.values() if isinstance(data, dict) else data:
            yield from leaves(part)


def assert_same_bits(found, expected):
    for a, b in itertools.zip_longest(leaves(found), leaves(expected)):
        assert a.dtype == b.dtype
        assert torch.equal(a.isnan(), b.isnan())
        assert torch.equal(a.nan_to_num(), b.nan_to_num())
        if a.is_floating_point():
            assert torch.equal(a.signbit(), b.signbit())


def assert_plays_like_vmas(scenario, steps, reset_every, num_envs=32, **options):
    """Observations, rewards, dones and infos of VMAS from the same stream state, with resets in between."""
    ours = make_vmas_env(scenario, num_envs, **options).base_env._env
    stock = vmas.make_env(scenario, num_envs, **options)
    ours.seed(5), stock.seed(5)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        if step % reset_every == 0:
            assert_same_bits(ours.reset(), stock.reset())
        actions = []
        for agent in stock.agents:
            u = torch.rand(num_envs, agent.action_size, generator=generator) * 2 - 1
            c = torch.rand(num_envs, 0 if agent.silent else stock.world.dim_c, generator=generator)
            actions.append(torch.cat([u * agent.action.u_range_tensor, c], dim=-1))
        assert_same_bits(ours.step([a.clone() for a in actions]), stock.step([a.clone() for a in actions]))


@pytest.mark.parametrize(
    ("scenario", "options"),
    [
        *NAMED.items(),
        ("discovery", {"use_agent_lidar": True}),
        *((name, {}) for name in ("flocking", "goal", "joint_passage_size", "kinematic_bicycle")),
    ],
)
def test_a_step_is_that_of_vmas_to_the_bit(scenario, options):
    assert_plays_like_vmas(scenario, steps=20, reset_every=12, **options)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # VMAS's, of vel_control and of crowded resets
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_is_that_of_vmas_to_the_bit(scenario):
    steps = 200 if os.environ.get("FULL_LENGTH") else FEWER_STEPS.get(scenario, 200)
    assert_plays_like_vmas(scenario, steps=steps, reset_every=steps // 2)


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
        assert_same_bits([found], [expected])
    scalar = geometry.FUNCTIONS["_get_closest_point_box"](pos[0], rot[0], 0.3, 1, other[0])
    assert_same_bits([scalar], [physics._get_closest_point_box(pos[0], rot[0], 0.3, 1, other[0])])


class Waits(TorchDispatchMode):
    """Counts what reads a tensor on the host, counts the rows of a mask, or copies a number to the device."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        masked = name in ("aten::index.Tensor", "aten::index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        waiting = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "scalar_tensor")
        if masked or name.removeprefix("aten::") in waiting:
            self.found[name] += 1
        return function(*args, **(kwargs or {}))


def count_waits(scenario, **options):
    env = make_vmas_env(scenario, 8, max_steps=10, seed=0, **options)
    td = env.rand_step(env.reset())["next"]  # makes the constants
    td = env.rand_action(td)
    with Waits() as waits:
        env.step(td)
    return waits.found


@pytest.mark.parametrize(("scenario", "options"), NAMED.items())
def test_a_step_never_waits(scenario, options):
    assert not count_waits(scenario, **options)


def test_checked_actions_wait():
    assert count_waits("navigation", check_actions=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("scenario", "options"), NAMED.items())
def test_a_step_never_waits_for_the_gpu(scenario, options):
    env = make_vmas_env(scenario, 8, max_steps=10, seed=0, device="cuda", **options)
    td = env.rand_action(env.rand_step(env.reset())["next"])
    torch.cuda.set_sync_debug_mode("error")
    try:
        env.step(td)
    finally:
        torch.cuda.set_sync_debug_mode("default")


class TestActions:
    @staticmethod
    def step(value, **options):
        env = make_vmas_env("navigation", 4, seed=0, **options)
        td = env.reset()
        td["agents", "action"] = torch.full((4, 4, 2), value)
        return env.step(td)["next"]

    @pytest.mark.parametrize("value", [torch.nan, 1.5])
    def test_are_checked_on_demand(self, value):
        with pytest.raises(AssertionError):
            self.step(value, check_actions=True)
        self.step(value)

    def test_the_callers_tensor_is_left_alone(self):
        env = make_vmas_env("balance", 4, seed=0)  # multiplies actions by 0.7
        td = env.rand_action(env.reset())
        before = td["agents", "action"].clone()
        env.step(td)
        assert torch.equal(td["agents", "action"], before)


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
    with Waits() as waits:
        stock.step(stock.get_random_actions())
    assert waits.found["aten::_local_scalar_dense"] > 0


def test_gravity_may_change():
    env, stock = make_vmas_env("simple_spread", 32).base_env._env, vmas.make_env("simple_spread", 32)
    env.seed(0), stock.seed(0)
    env.reset(), stock.reset()
    for gravity in (0.0, 0.3, 0.0):
        actions = stock.get_random_actions()
        for world in (env.world, stock.world):
            world._gravity.fill_(gravity)
        assert_same_bits(env.step([a.clone() for a in actions]), stock.step(actions))


def test_each_environment_may_have_masses_of_its_own():
    env, stock = make_vmas_env("simple_spread", 32).base_env._env, vmas.make_env("simple_spread", 32)
    env.seed(0), stock.seed(0)
    env.reset(), stock.reset()
    for world in (env.world, stock.world):
        world.agents[0].mass = torch.linspace(1, 2, 32).unsqueeze(-1)
    actions = stock.get_random_actions()
    assert_same_bits(env.step([a.clone() for a in actions]), stock.step(actions))


def test_sensing_follows_what_is_written_to_a_position():
    env = make_vmas_env("navigation", 4, seed=0).base_env._env
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
    env = make_vmas_env("navigation", 4, seed=0).base_env._env
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
    env, stock = make_vmas_env("balance", 32).base_env._env, vmas.make_env("balance", 32)
    env.seed(0), stock.seed(0)
    assert_same_bits(env.reset(), stock.reset())
    for width in (10.0, 0.5, 2.0):
        for simulator in (env, stock):
            simulator.scenario.line.shape._length = width / 10
            simulator.scenario.floor.shape._width = width
        for _ in range(3):
            actions = stock.get_random_actions()
            assert_same_bits(env.step([a.clone() for a in actions]), stock.step(actions))


def test_a_world_that_nobody_holds_is_freed():
    env = make_vmas_env("navigation", 2, seed=0)
    env.rollout(2)
    world = weakref.ref(env.base_env._env.world)
    del env
    gc.collect()
    assert world() is None


def test_a_done_of_one_column():
    class Column(Navigation):
        def done(self):
            return super().done().unsqueeze(-1)

    td = make_vmas_env(Column(), 4, seed=0).rollout(3)
    assert td["next", "done"].shape == (4, 3, 1)
    assert td["next", "agents", "terminated"].shape == (4, 3, 4, 1)


def test_closest_points_follow_what_is_written_to_a_position():
    """Of a line and a box, and of a sphere and a box: computed for the rewards, and again for the next step."""
    env, stock = make_vmas_env("balance", 32).base_env._env, vmas.make_env("balance", 32)
    env.seed(0), stock.seed(0)
    env.reset(), stock.reset()
    for write in (
        lambda scenario: None,
        lambda scenario: scenario.line.state.pos.sub_(0.3),  # in place
        lambda scenario: scenario.package.set_pos(scenario.package.state.pos - 0.2, None),  # a new tensor
        lambda scenario: scenario.floor.set_rot(torch.full((32, 1), 0.1), None),
    ):
        for _ in range(2):
            actions = stock.get_random_actions()
            assert_same_bits(env.step([a.clone() for a in actions]), stock.step(actions))
        for simulator in (env, stock):
            write(simulator.scenario)
            simulator.scenario.compute_on_the_ground()
        assert_same_bits([env.scenario.on_the_ground], [stock.scenario.on_the_ground])
        for a, b in itertools.combinations(["floor", "line", "package"], 2):
            distances = [s.world.get_distance(getattr(s, a), getattr(s, b)) for s in (env.scenario, stock.scenario)]
            assert_same_bits(*([d] for d in distances))


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


@pytest.mark.parametrize("kind", ["of VMAS", "of the user"])
def test_a_deep_copy_goes_its_own_way(kind):
    scenario = "balance" if kind == "of VMAS" else GuessTheSum()
    env = make_vmas_env(scenario, 4, seed=0)
    td = env.rollout(3)[:, -1].exclude("next")
    twin = copy.deepcopy(env)
    twin.rollout(2)  # moves neither the world nor the stream of the first
    twin = copy.deepcopy(env)
    steps = [e.step(td.clone())["next"] for e in (env, twin)]
    assert (steps[0] == steps[1]).all()
    assert (env.reset() == twin.reset()).all()
    assert type(twin.base_env._env.world) is type(env.base_env._env.world)


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


class TestEpisode:
    @pytest.mark.parametrize("options", [{}, {"group_map": {"two": ["agent_0", "agent_1"], "one": ["agent_2"]}}])
    def test_the_transforms_written_as_one_are_torchrls(self, options):
        def play(env):
            env.set_seed(0), torch.manual_seed(0)
            return env.rollout(8, break_when_any_done=False)

        ours = make_vmas_env("balance", 4, max_steps=3, seed=0, **options)
        base = make_vmas_env("balance", 4, seed=0, **options).base_env
        copies = [
            ExpandAs(name, (group, "reward"), (group, name))
            for group in base.group_map
            for name in ("done", "terminated", "truncated")
        ]
        theirs = TransformedEnv(base, Compose(StepCounter(3), *copies, RewardSum(), InitTracker()))
        found, expected = play(ours), play(theirs)
        assert set(found.keys(True, True)) == set(expected.keys(True, True))
        assert (found == expected).all()

    @pytest.mark.parametrize("index", [None, 0])
    def test_other_transforms_can_join(self, index):
        env = make_vmas_env("balance", 4, max_steps=3, seed=0)
        extra = StepCounter(step_count_key="other_count", truncated_key="other")
        env.append_transform(extra) if index is None else env.insert_transform(index, extra)
        td = env.rollout(2)
        assert torch.equal(td["next", "other_count"], td["next", "step_count"])
        assert ("next", "agents", "episode_reward") in td.keys(True)
