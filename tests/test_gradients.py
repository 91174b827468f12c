"""Gradients through the simulator, uncompiled and compiled."""

from copy import deepcopy

import pytest
import torch
import vmas
from torch.utils._pytree import tree_leaves
from vmas.simulator.core import Agent, Box, Line, Sphere, World
from vmas.simulator.scenario import BaseScenario
from vmas.simulator.utils import ScenarioUtils

from tests.helpers_vmas import (
    IGNORED_WARNINGS,
    SCENARIOS,
    assert_same,
    assert_same_world,
    leaves,
    simulator,
)
from torchrl_bicnet import BiCNetActor, detach, make_vmas_env, restore, snapshot
from torchrl_bicnet.vmas_state.tensor_places import TensorPlaces

pytestmark = IGNORED_WARNINGS
B = 32  # a multiple of which makes `logaddexp` round alike
# With contacts, lidars and joints.
SHOWN = ["navigation", "balance", "discovery", "asym_joint", "simple_spread", "transport"]
WITHOUT = {
    "football": "VMAS's own step writes to what autograd needs",
    "pollock": "rewards and observations have no gradient",
    "road_traffic": "takes minutes",
}


def actions_for(environment, n_steps):
    generator = torch.Generator().manual_seed(1)
    actions = []
    for agent in environment.agents:
        u = torch.rand(n_steps, environment.num_envs, agent.action_size, generator=generator) * 2 - 1
        n_symbols = 0 if agent.silent else environment.world.dim_c
        c = torch.rand(n_steps, environment.num_envs, n_symbols, generator=generator)
        actions.append(torch.cat([u * agent.action.u_range_tensor, c], -1).requires_grad_())
    return actions


def gradients(environment, actions):
    """Of the sum of observations and rewards over steps, agents and environments, as one tensor."""
    total = torch.zeros((), requires_grad=True)
    for step in zip(*actions):
        observations, rewards, *_ = environment.step(list(step))
        total = total + sum(part.sum() for part in tree_leaves([observations, rewards]))
    parts = torch.autograd.grad(total, actions, allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


def assert_close(found, expected, tolerance=1e-4):
    """Up to rounding, relative to the largest."""
    scale = expected.nan_to_num().abs().max()
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize(
    "scenario", [*SHOWN, *(pytest.param(name, marks=pytest.mark.slow) for name in SCENARIOS if name not in SHOWN)]
)
def test_gradients_equal_those_of_vmas(scenario):
    if scenario in WITHOUT:
        pytest.skip(WITHOUT[scenario])
    ours = simulator(make_vmas_env(scenario, B, seed=0, grad_enabled=True))
    stock = vmas.make_env(scenario, B, grad_enabled=True)
    found = []
    for environment in (ours, stock):
        environment.seed(0), environment.reset()
        found.append(gradients(environment, actions_for(environment, 20)))
    assert found[1].nan_to_num().abs().max() > 0
    assert_close(*found)


class Bodies(BaseScenario):
    """Two agents at rest, side by side."""

    def __init__(self, *shapes, apart=3.0, max_speed=(None, None)):
        super().__init__()
        self.shapes, self.apart, self.max_speed = shapes, apart, max_speed

    def make_world(self, batch_dim, device, **kwargs):
        ScenarioUtils.check_kwargs_consumed(kwargs)
        world = World(batch_dim, device)
        for i, (shape, max_speed) in enumerate(zip(self.shapes, self.max_speed)):
            world.add_agent(Agent(f"agent_{i}", shape=shape, rotatable=True, max_speed=max_speed))
        self.height = self.again = torch.zeros(batch_dim, device=device)
        return world

    def reset_world_at(self, env_index=None):
        for i, agent in enumerate(self.world.agents):
            agent.set_pos(torch.tensor([self.apart * i, 0.01 * i]), env_index)

    def observation(self, agent):
        return torch.cat([agent.state.pos, agent.state.vel, agent.state.rot], -1)

    def reward(self, agent):
        return agent.state.pos.square().sum(-1)


class Writing(Bodies):
    """Writes to the state in place."""

    def post_step(self):
        self.world.agents[0].state.pos[:, 0].clamp_(-0.01, 0.01)
        self.height += self.world.agents[1].state.pos[:, 1]

    def reward(self, agent):
        return super().reward(agent) + self.again


class Detaching(Bodies):
    def reward(self, agent):
        return super().reward(agent) * agent.state.vel[:, 0].detach()


class SwitchingOff(Bodies):
    def reward(self, agent):
        with torch.no_grad():
            return super().reward(agent)


def gradients_of_vmas_too(scenario, first_moves=True):
    found = []
    stock = vmas.make_env(deepcopy(scenario), B, grad_enabled=True)
    for environment in (simulator(make_vmas_env(scenario, B, seed=0, grad_enabled=True)), stock):
        environment.seed(0), environment.reset()
        actions = actions_for(environment, 3)
        actions[0].data *= first_moves
        found.append(gradients(environment, actions))
    return found


@pytest.mark.parametrize("shapes", [(Box, Box), (Box, Line), (Line, Line), (Line, Sphere)])
def test_pairs_that_vmas_leaves_out_add_no_nan(shapes):
    """Parallel sides, of which VMAS's own gradient is NaN when they are close."""
    assert_close(*gradients_of_vmas_too(Bodies(*(shape() for shape in shapes))))


def test_an_agent_at_rest_without_the_limit_of_another():
    assert_close(*gradients_of_vmas_too(Bodies(Sphere(), Sphere(), max_speed=(None, 0.1)), first_moves=False))


def test_finite_where_that_of_vmas_is_not():
    for scenario in (
        Bodies(Sphere(), Sphere(), max_speed=(0.1, 0.1)),  # at rest
        Bodies(Line(), Line(), apart=0.2),  # parallel
    ):
        found, expected = gradients_of_vmas_too(scenario, first_moves=False)
        assert expected.isnan().any()
        known = ~expected.isnan()
        assert found.isfinite().all()
        torch.testing.assert_close(found[known], expected[known])


@pytest.mark.parametrize("scenario", [Writing, Detaching, SwitchingOff])
def test_scenarios_of_users(scenario):
    assert_close(*gradients_of_vmas_too(scenario(Sphere(), Sphere())))


def rollout(env, td, actions):
    """The sum of rewards and what a policy would see at the end."""
    total = 0
    for action in actions:
        td = env.step(td.set(("agents", "action"), action))["next"]
        total = total + td["agents", "reward"].sum()
    return total, td


def random_actions(env, n_steps):
    shape = env.full_action_spec["agents", "action"].shape
    return torch.rand(n_steps, *shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_they_stop_at_the_action_by_default():
    env = make_vmas_env("navigation", 4, seed=0)
    total, _ = rollout(env, env.reset(), random_actions(env, 2).requires_grad_())
    assert not total.requires_grad
    assert not any(tensor.requires_grad for tensor in TensorPlaces(simulator(env)).tensors)


def test_through_a_policy_and_the_returns():
    env = make_vmas_env("navigation", 4, seed=0, grad_enabled=True)
    actor, td, total = BiCNetActor.from_env(env), env.reset(), 0
    for _ in range(3):
        td = env.step(actor(td))["next"]
        total = total + td["agents", "reward"].sum()
    by_rewards = torch.autograd.grad(total, actor.parameters(), retain_graph=True)
    by_return = torch.autograd.grad(td["agents", "episode_reward"].sum(), actor.parameters())
    assert all(gradient.abs().max() > 0 for gradient in by_rewards)
    for found, expected in zip(by_return, by_rewards):
        torch.testing.assert_close(found, expected)


def test_detach_cuts_the_graph_and_changes_nothing_else():
    env = make_vmas_env(Writing(Sphere(), Sphere()), B, seed=0, grad_enabled=True)
    actions = random_actions(env, 6).requires_grad_()
    before, td = rollout(env, env.reset(), actions[:3])
    world, scenario = snapshot(env), simulator(env).scenario
    detach(env)
    assert_same_world(snapshot(env), world)
    assert scenario.height is scenario.again
    assert not any(tensor.requires_grad for tensor in TensorPlaces(simulator(env)).tensors)
    after, _ = rollout(env, td.detach(), actions[3:])
    (first,) = torch.autograd.grad(before, actions)
    assert (first[:3].abs().amax((1, 2, 3)) > 0).all()
    assert (first[3:] == 0).all()
    (second,) = torch.autograd.grad(after, actions)  # though the graph of the first window is gone
    assert (second[:3] == 0).all()
    assert (second[3:].abs().amax((1, 2, 3)) > 0).all()
    with pytest.raises(TypeError, match="Expected an environment made by make_vmas_env, found str"):
        detach("navigation")


def test_a_snapshot_of_a_state_with_gradients():
    env, plain = (make_vmas_env("navigation", 4, seed=0, grad_enabled=on) for on in (True, False))
    actions = random_actions(env, 4).requires_grad_()
    total, td = rollout(env, env.reset(), actions[:2])
    world = snapshot(env)
    assert not any(tensor.requires_grad for tensor in world.tensors.values())
    total.backward()
    _, first = rollout(env, td.detach(), actions[2:])
    restore(env, world)
    again, second = rollout(env, td.detach(), actions[2:])
    assert_same(second.detach(), first.detach())
    again.backward()  # though the graph before the snapshot is gone
    with pytest.raises(ValueError, match="option grad_enabled is True in the snapshot and 'not given' here"):
        restore(plain, world)


def test_a_partial_reset_within_a_window():
    """Cuts the graph of the environments that are reset, and leaves the others alone."""
    mask = torch.arange(4) % 2 == 0
    found = []
    for resets in (False, True):
        env = make_vmas_env("navigation", 4, seed=0, grad_enabled=True)
        actions = random_actions(env, 4).requires_grad_()
        _, td = rollout(env, env.reset(), actions[:2])
        if resets:
            td = env.reset(td.set("_reset", mask.unsqueeze(-1)))
        total, _ = rollout(env, td, actions[2:])
        found.append(torch.autograd.grad(total, actions)[0])
    assert (found[1][:2, mask] == 0).all()
    assert (found[1][2:, mask].abs().amax((1, 2, 3)) > 0).all()
    torch.testing.assert_close(found[1][:, ~mask], found[0][:, ~mask])


DETACHING = Detaching(Sphere(), Sphere(), apart=0.08)


def both(scenario, n_envs=8):
    return (make_vmas_env(scenario, n_envs, seed=0, grad_enabled=True, compile=compile) for compile in (False, True))


@pytest.mark.parametrize(
    "scenario",
    [
        DETACHING,
        *(pytest.param(name, marks=pytest.mark.long) for name in ("balance", "simple_spread", "navigation")),
    ],
)
def test_compiled_gradients_equal_uncompiled_ones(scenario):
    found = []
    for env in both(scenario):
        actions = random_actions(env, 12).requires_grad_()
        total, td = rollout(env, env.reset(), actions[:10])
        value = total + td["agents", "observation"].sin().sum()
        (first,) = torch.autograd.grad(value, actions)
        detach(env)
        more, td = rollout(env, td.detach(), actions[10:])
        (second,) = torch.autograd.grad(more + td["agents", "observation"].sum(), actions)
        found.append([total.detach(), td.detach(), first, second])
    assert_close(*(parts[2] for parts in reversed(found)))
    assert_close(*(parts[3] for parts in reversed(found)))
    for one, other in zip(*(dict(leaves(parts[:2])).values() for parts in found)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_compiled_with_and_without_gradients_in_turn():
    plain, compiled = both(DETACHING)
    actions = random_actions(plain, 8).requires_grad_()
    found = []
    for env in (plain, compiled):
        total, td = rollout(env, env.reset(), actions[:4])
        with torch.no_grad():
            _, td = rollout(env, td, actions[4:5])
        assert not td["agents", "reward"].requires_grad
        with torch.inference_mode():
            _, td = rollout(env, td, actions[5:6])
        more, td = rollout(env, td.clone(), actions[6:])
        (gradient,) = torch.autograd.grad(total + more, actions)
        assert (gradient[4:6] == 0).all()
        found.append(gradient)
    assert_close(*reversed(found))


def test_compiled_a_scenario_that_switches_gradients_off_is_refused():
    with pytest.raises(ValueError, match=r"SwitchingOff cannot be compiled: .* runs without gradients, in test_gra"):
        make_vmas_env(SwitchingOff(Sphere(), Sphere()), 8, compile=True, grad_enabled=True)
