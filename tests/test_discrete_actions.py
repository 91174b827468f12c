"""Discrete actions: equal to VMAS's, with TorchRL's specs, compiled and with agents that come and go."""

from types import SimpleNamespace

import pytest
import torch
import vmas
from torchrl.envs import VmasEnv
from torchrl.envs.utils import check_env_specs

from tests.helpers_vmas import IGNORED_WARNINGS, assert_close, simulator
from tests.test_presence import Shifts
from torchrl_bicnet import BiCNetActor, BiCNetCritic, make_vmas_env

pytestmark = IGNORED_WARNINGS

# Odd and even numbers of actions, agents that talk, several groups.
SCENARIOS = ["navigation", "simple_reference", "simple_speaker_listener", "simple_tag", "waterfall"]
KINDS = {"discrete": {}, "multi-discrete": {"multidiscrete_actions": True}}


def random_actions(env, seed):
    torch.manual_seed(seed)
    return env.full_action_spec.rand()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_step_is_that_of_vmas(scenario, kind):
    env = make_vmas_env(scenario, 40, seed=0, continuous_actions=False, **KINDS[kind])
    check_env_specs(env)
    td = env.reset()
    plain = vmas.make_env(scenario, 40, continuous_actions=False, seed=0, **KINDS[kind])
    for own, other in zip(simulator(env).world.entities, plain.world.entities):
        other.state.pos, other.state.vel = own.state.pos.clone(), own.state.vel.clone()
        other.state.rot, other.state.ang_vel = own.state.rot.clone(), own.state.ang_vel.clone()
    for step in range(3):
        actions = random_actions(env, step)
        td.update(actions)
        td = env.step(td)["next"]
        by_name = {
            name: actions[group, "action"][:, i]
            for group, names in env.group_map.items()
            for i, name in enumerate(names)
        }
        plain.step([by_name[agent.name].reshape(40, -1) for agent in plain.agents])
        for own, other in zip(simulator(env).agents, plain.agents):
            assert torch.equal(own.action.u, other.action.u)
            assert (own.action.c is None) == (other.action.c is None)
            assert own.action.c is None or torch.equal(own.action.c, other.action.c)
            torch.testing.assert_close(own.state.pos, other.state.pos)


@pytest.mark.parametrize("kind", KINDS)
def test_specs_are_those_of_torchrl(kind):
    env = make_vmas_env("simple_reference", 4, continuous_actions=False, **KINDS[kind])
    plain = VmasEnv("simple_reference", num_envs=4, continuous_actions=False, **KINDS[kind])
    (own, other) = (each.full_action_spec["agents", "action"] for each in (env, plain))
    assert own == other


def test_numbers_and_forces_by_hand():
    """Four forces on one axis and three on the other, up to 0.5 and 2; of three, number 0 is to stay."""
    env = make_vmas_env("simple_reference", 1, continuous_actions=False)
    agent = SimpleNamespace(
        discrete_action_nvec=[4, 3], action=SimpleNamespace(u_range_tensor=torch.tensor([0.5, 2.0]))
    )
    numbers = simulator(env)._discrete_actions(torch.tensor([[0], [4], [8], [9]]), agent, False)
    assert [number.tolist() for number in numbers] == [[0, 1, 2, 3], [0, 1, 2, 0]]
    forces = simulator(env)._forces(numbers, agent)
    torch.testing.assert_close(forces[0], torch.tensor([-0.5, -1 / 6, 1 / 6, 0.5]))
    torch.testing.assert_close(forces[1], torch.tensor([0.0, -2.0, 2.0, 0.0]))


@pytest.mark.slow
def test_compiled_it_gives_the_same():
    outputs = []
    for compiled in (False, True):
        env = make_vmas_env("navigation", 8, seed=0, max_steps=5, continuous_actions=False, compile=compiled)
        td, steps = env.reset(), []
        for step in range(12):
            td.update(random_actions(env, step))
            td, following = env.step_and_maybe_reset(td)
            steps.append(td["next"].clone())
            td = following
        outputs.append(torch.stack(steps))
    assert_close(*outputs)


def test_absent_agents_do_not_act():
    env = make_vmas_env(Shifts(), 3, continuous_actions=False)
    check_env_specs(env)
    td = env.reset()
    for step in range(4):
        td.update(random_actions(env, step))
        here = td["agents", "mask"]
        td = env.step(td)["next"]
        actions = torch.stack([agent.action.u for agent in simulator(env).agents], 1)
        assert actions[~here].eq(0).all()
        assert here.all() or actions[here].ne(0).any()


class Talking(Shifts):
    """These agents, with four forces on each axis, none of which is to stay, and three words."""

    def make_world(self, batch_dim, device, **kwargs):
        world = super().make_world(batch_dim, device, **kwargs)
        world._dim_c = 3
        for agent in world.agents:
            agent._silent, agent.discrete_action_nvec = False, [4, 4]
            agent.state._c = torch.zeros(batch_dim, 3, device=device)
        return world


def test_absent_agents_do_not_talk_or_act_where_every_action_does_something():
    for check_actions in (False, True):
        env = make_vmas_env(Talking(), 3, continuous_actions=False, check_actions=check_actions)
        td = env.reset()
        here = td["agents", "mask"]
        assert not here.all()
        env.step(td.update(random_actions(env, 0)))
        for agent, present in zip(simulator(env).agents, here.unbind(1)):
            assert agent.action.u[~present].eq(0).all()
            assert agent.action.c[~present].eq(0).all()
            assert agent.action.u[present].ne(0).all()
            assert agent.action.c[present].sum(-1).eq(1).all()


def test_teams_of_several_sizes():
    env = make_vmas_env("navigation", 6, n_agents=(2, 3), continuous_actions=False, seed=0)
    check_env_specs(env)
    assert env.full_action_spec["agents", "action"].shape == (6, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_actors_and_critics_of_continuous_actions_refuse_them(kind):
    env = make_vmas_env("navigation", 2, continuous_actions=False, **KINDS[kind])
    with pytest.raises(TypeError, match="actions are continuous and bounded"):
        BiCNetActor.from_env(env)
    with pytest.raises(TypeError, match=r"reads continuous actions, found .*Categorical of dtype torch.int64"):
        BiCNetCritic.from_env(env)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multidiscrete_actions": True}, "multidiscrete_actions=True needs continuous_actions=False"),
        ({"continuous_actions": False, "pad": True}, "pad=True needs continuous_actions=True"),
        ({"continuous_actions": False, "grad_enabled": True}, "grad_enabled=True needs continuous_actions=True"),
    ],
)
def test_what_does_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        make_vmas_env("simple_reference", 2, **options)
