"""Every scenario of VMAS, once: specs, bookkeeping, partial resets, snapshots, and outcomes equal to VMAS's."""

import pytest
import torch
import vmas
from torch import Tensor
from torchrl.envs.utils import check_env_specs

from tests.helpers_vmas import (
    IGNORED_WARNINGS,
    SCENARIOS,
    SEVERAL_GROUPS,
    assert_plays_like_vmas,
    assert_same,
    assert_same_world,
    partly_reset,
    play,
    saved_and_loaded,
    simulator,
    steps,
)
from torchrl_bicnet import make_vmas_env, restore, snapshot
from torchrl_bicnet.vmas_state.object_graph import is_under, traverse

# State that a full reset changes for all environments together.
SHARED_STATE = {
    "ball_passage": r"\.neighbour changes",
    "het_mass": r"_mass changes",
    "road_traffic": r"scenario\.timer\.start changes",
    "simple_adversary": r"_goal changes",
    "simple_push": r"_goal changes",
    "simple_reference": r"goal_b changes",
    "simple_speaker_listener": r"goal_b changes",
}
SLOW = (
    "road_traffic",
    "sampling",
    "pollock",
    "passage",
    "joint_passage",
    "joint_passage_size",
    "waterfall",
    "buzz_wire",
)
# Steps of the scenarios that take 50 ms to a second for each, VMAS's and ours together.
FEWER_STEPS = {**dict.fromkeys(("pollock", "road_traffic"), 6), **dict.fromkeys(("joint_passage", "waterfall"), 40)}
# Of its default 1,600 cells, each written one after the other, a reset takes a second.
OPTIONS = {"sampling": {"grid_spacing": 0.2}}
NUM_ENVS = 32  # a multiple of 32 makes `logaddexp` round as in VMAS
MASK = torch.zeros(NUM_ENVS, dtype=torch.bool).index_fill(0, torch.tensor([1, 3, 4]), True)
pytestmark = IGNORED_WARNINGS


@pytest.mark.parametrize("scenario", [pytest.param(s, marks=pytest.mark.slow if s in SLOW else ()) for s in SCENARIOS])
def test_every_scenario(scenario, tmp_path):
    options = OPTIONS.get(scenario, {})
    env = make_vmas_env(scenario, NUM_ENVS, max_steps=20, seed=0, **options)
    sizes = {group: len(names) for group, names in env.group_map.items()}
    assert sizes == SEVERAL_GROUPS[scenario] if scenario in SEVERAL_GROUPS else len(sizes) == 1
    assert_plays_like_vmas(simulator(env), vmas.make_env(scenario, NUM_ENVS, **options), n_steps=3, reset_every=2)
    td = steps(env, env.reset(), 2)[-1]
    if scenario in SHARED_STATE:
        with pytest.warns(UserWarning, match=SHARED_STATE[scenario]):
            partly_reset(env, MASK)
    else:
        a_partial_reset_leaves_the_others_alone(env, td, scenario)
    a_snapshot_repeats_to_the_bit(env, td, scenario, tmp_path)
    every_agent_has_copies_of_done_and_the_return(env, td)
    check_env_specs(env)


def a_partial_reset_leaves_the_others_alone(env, td, scenario):
    before, world = rows_of(env), snapshot(env)
    at_reset = env.reset()
    start = rows_of(env)
    restore(env, world)
    partial = partly_reset(env, MASK)
    assert simulator(env).shared_state == ""
    now = rows_of(env)
    assert_same({path: rows[MASK] for path, rows in now.items()}, {path: rows[MASK] for path, rows in start.items()})
    assert_same({path: rows[~MASK] for path, rows in now.items()}, {path: rows[~MASK] for path, rows in before.items()})
    for key in at_reset.keys(True, True):
        assert torch.equal(partial[key][MASK], at_reset[key][MASK])
    if scenario == "football":  # how many numbers its scripted players draw depends on all environments
        return
    # The others go on as without the reset, if the same random numbers are drawn.
    drawn = simulator(env).random_stream._state
    first = steps(env, td, 3)
    restore(env, world)
    simulator(env).random_stream._state = drawn
    assert_same([out[~MASK] for out in first], [out[~MASK] for out in steps(env, td, 3)])


def rows_of(env):
    """A copy of every tensor with a row for each environment, by each place that holds it."""
    environment, found = simulator(env), {}

    def add(path, value):
        if isinstance(value, tuple):
            for index, item in enumerate(value):
                add(f"{path}.{index}", item)
        elif isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == environment.num_envs:
            found[path] = value.clone()

    for node in traverse(environment).nodes.values():
        if is_under(node.path, ("environment.start_states",)):
            continue
        named = enumerate(node.contents) if isinstance(node.contents, list) else node.contents.items()
        for index, (name, value) in enumerate(named):
            add(f"{node.path}.{name if isinstance(name, str) else index}", value)
    return found


def a_snapshot_repeats_to_the_bit(env, td, scenario, folder):
    world = snapshot(env)
    _, first = play(env, td, 3, seed=2)
    restore(env, world)
    assert_same_world(snapshot(env), world)
    assert_same(play(env, td, 3, seed=2)[1], first)
    # A new one, of another seed.
    other = make_vmas_env(scenario, NUM_ENVS, max_steps=20, seed=7, **OPTIONS.get(scenario, {}))
    restore(other, saved_and_loaded(world, folder))
    assert_same_world(snapshot(other), world)
    assert_same(play(other, td, 3, seed=2)[1], first)


def every_agent_has_copies_of_done_and_the_return(env, td):
    td = env.step(env.rand_action(td))
    for group in env.group_map:
        shape = td["next", group, "reward"].shape
        assert td["next", group, "episode_reward"].shape == shape
        for name in ("done", "terminated", "truncated"):
            assert td["next", group, name].shape == shape
            assert (td["next", group, name] == td["next", name].unsqueeze(-2)).all()


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_is_that_of_vmas_over_many_steps(scenario):
    as_vmas_over_many_steps(scenario, FEWER_STEPS.get(scenario, 60))


@pytest.mark.long
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_is_that_of_vmas_over_two_hundred_steps(scenario):
    as_vmas_over_many_steps(scenario, 200)


def as_vmas_over_many_steps(scenario, n_steps):
    ours = simulator(make_vmas_env(scenario, NUM_ENVS))
    assert_plays_like_vmas(ours, vmas.make_env(scenario, NUM_ENVS), n_steps, reset_every=n_steps // 2)
