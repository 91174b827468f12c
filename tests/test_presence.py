"""Agents that come and go within an episode: what the environment makes of a scenario's `is_present`."""

import pytest
import torch
from torchrl.data import Bounded
from torchrl.data.postprocs import MultiStep
from torchrl.envs.utils import check_env_specs
from torchrl.objectives import SoftUpdate
from vmas.simulator.core import Agent, Box, Sphere, World
from vmas.simulator.scenario import BaseScenario
from vmas.simulator.utils import ScenarioUtils

from examples import train_vmas
from tests.helpers_vmas import IGNORED_WARNINGS, assert_close, play
from tests.quick import run
from tests.test_objectives import TeamSum, Weighted
from torchrl_bicnet import BiCNetActor, BiCNetCritic, evaluate, make_ddpg_loss, make_vmas_env
from torchrl_bicnet.envs.outcomes import reported_collision
from torchrl_bicnet.rendering import render

pytestmark = IGNORED_WARNINGS
MASK, ACTION = ("agents", "mask"), ("agents", "action")


class Shifts(BaseScenario):
    """Three agents: the first stays, the second is there before step 2, the third from then on.

    All start at one place, where those present push each other away; the third arrives there. Agent i sees 0.1 (i + 1)
    and gets i + 1 at each step.
    """

    shape = Sphere(0.1)

    def make_world(self, batch_dim, device, **kwargs):
        ScenarioUtils.check_kwargs_consumed(kwargs)
        world = World(batch_dim, device)
        for i in range(3):
            world.add_agent(Agent(f"agent_{i}", shape=self.shape))
        self.time = torch.zeros(batch_dim, dtype=torch.long, device=device)
        return world

    def reset_world_at(self, env_index=None):
        for i, agent in enumerate(self.world.agents):
            agent.set_pos(torch.tensor([0.05 * i, 0.0], device=self.world.device), batch_index=env_index)
        if env_index is None:
            self.time = torch.zeros_like(self.time)
        else:
            self.time[env_index] = 0

    def post_step(self):
        self.time = self.time + 1
        arrives = (self.time == 2).unsqueeze(-1)
        last = self.world.agents[2]
        last.state.pos = torch.where(arrives, 0.05, last.state.pos)

    def is_present(self, agent):
        i = self.world.agents.index(agent)
        return torch.stack([self.time >= 0, self.time < 2, self.time >= 2])[i]

    def observation(self, agent):
        return torch.full_like(agent.state.pos[:, :1], 0.1 * (self.world.agents.index(agent) + 1))

    def reward(self, agent):
        return torch.full_like(agent.state.pos[:, 0], self.world.agents.index(agent) + 1.0)


class Alone(Shifts):
    """The first of these agents, without the others."""

    def make_world(self, batch_dim, device, **kwargs):
        world = super().make_world(batch_dim, device, **kwargs)
        del world._agents[1:]
        return world

    def post_step(self):
        self.time = self.time + 1


def positions(env):
    return torch.stack([agent.state.pos for agent in env.base_env._env.agents], 1)


def rollout(env, n_steps=4, action=0.0):
    return env.rollout(n_steps, lambda td: td.set(ACTION, torch.full((*td[MASK].shape, 2), action)))


class TestEnvironment:
    def test_masks_rewards_and_ends_by_hand(self):
        env = make_vmas_env(Shifts(), 2, max_steps=4)
        check_env_specs(env)
        td = rollout(env)[0]
        assert td[MASK].int().tolist() == [[1, 1, 0], [1, 1, 0], [1, 0, 1], [1, 0, 1]]
        after = td["next"]
        assert after[MASK].int().tolist() == [[1, 1, 0], [1, 0, 1], [1, 0, 1], [1, 0, 1]]
        agents = after["agents"]
        assert agents["reward"].squeeze(-1).tolist() == [[1, 2, 0], [1, 2, 0], [1, 0, 3], [1, 0, 3]]
        assert agents["episode_reward"].squeeze(-1)[-1].tolist() == [4, 4, 6]
        assert agents["terminated"].squeeze(-1).int().tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]]
        assert agents["truncated"].squeeze(-1).int().tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 1, 1]]
        assert agents["done"].squeeze(-1).int().tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0], [1, 1, 1]]
        assert not after["terminated"].any()
        assert not td["agents", "observation"][~td[MASK]].any()

    def test_absent_agents_neither_act_nor_collide(self):
        """The first two push each other; once the second is gone and the third far away, the first is as if alone."""
        env, alone = make_vmas_env(Shifts(), 2), make_vmas_env(Alone(), 2)
        td = env.step(env.reset().set(ACTION, torch.zeros(2, 3, 2)))["next"]
        pushed = positions(env)
        assert pushed[0, 0, 0] < 0 < 0.05 < pushed[0, 1, 0]
        torch.testing.assert_close(pushed[:, 0, 0], 0.05 - pushed[:, 1, 0])  # nobody else did
        td = env.step(td.set(ACTION, torch.zeros(2, 3, 2)))["next"]
        (first, _, third), [single] = (each.base_env._env.world.agents for each in (env, alone))
        third.state.pos = torch.full((2, 2), 5.0)
        alone.reset()
        single.state.pos, single.state.vel = first.state.pos.clone(), first.state.vel.clone()
        for _ in range(3):
            action = torch.rand(2, 3, 2)
            action[:, 1] = torch.nan
            td = env.step(td.set(ACTION, action))["next"]
            alone.base_env._env.step([action[:, 0]])
            torch.testing.assert_close(positions(env)[:, 0], positions(alone)[:, 0])
        assert all(tensor.isfinite().all() for tensor in td.values(True, True))

    def test_who_leaves_is_rewarded_for_where_it_is(self):
        """The second agent, 0.05 away from the middle, moves on for two steps, is gone, and parked with the third."""
        scenario = Shifts()
        scenario.reward = lambda agent: -agent.state.pos.norm(dim=-1)
        env = make_vmas_env(scenario, 2)
        td, seen = env.reset(), []
        for _ in range(3):
            td = env.step(td.set(ACTION, torch.zeros(2, 3, 2)))
            seen.append((td["next", "agents", "reward"][0, 1].item(), positions(env)[0, 1].norm().item()))
            td = td["next"]
        assert all(reward == pytest.approx(-place) for reward, place in seen[:2])
        assert -1 < seen[1][0] < seen[0][0] < -0.05
        assert seen[2][0] == 0
        assert seen[2][1] > 1000

    def test_food_that_is_reached_with_the_last_energy_counts(self):
        env = make_vmas_env("dispersion_energy", 2, seed=0, n_agents=1, n_food=1, energy=4)
        td, scenario = env.reset(), env.base_env._env.scenario
        scenario.world.landmarks[0].state.pos = torch.full((2, 2), 0.01)
        scenario.world.agents[0].energy = torch.tensor([0.5, 5.0])
        after = env.step(td.set(ACTION, torch.ones(2, 1, 2)))["next"]
        assert after["agents", "reward"].flatten().tolist() == [1, 1]
        assert after[MASK].flatten().tolist() == [False, True]

    def test_a_scenario_sees_absent_agents_do_nothing_and_touch_nobody(self):
        scenario = Shifts()
        scenario.shape = Box(0.2, 0.1)
        scenario.is_present = lambda agent: torch.full((2,), agent is scenario.world.agents[0])
        env = make_vmas_env(scenario, 2)
        env.step(env.reset().set(ACTION, torch.full((2, 3, 2), torch.nan)))
        first, *absent = scenario.world.agents
        assert first.action.u.isnan().all()
        for agent in absent:
            assert not agent.action.u.any()
            assert not agent.state.force.any()  # neither of its own nor of a contact, with another absent one either

    @pytest.mark.slow
    def test_compiled_it_is_the_same(self):
        eager, compiled = (
            make_vmas_env("dispersion_energy", 32, seed=0, energy=6, compile=compile) for compile in (False, True)
        )
        for first, second in zip(play(eager, eager.reset(), 12, 1)[1], play(compiled, compiled.reset(), 12, 1)[1]):
            assert_close(first, second)

    def test_teams_of_several_sizes_keep_their_masks(self):
        env = make_vmas_env("dispersion_energy", 6, n_agents=(2, 3), n_food=3, energy=8, seed=0)
        td = env.rollout(9)
        present = td[MASK].sum(-1)
        assert present[:, 0].tolist() == [2, 3, 2, 3, 2, 3]
        assert (present[:, -1] < present[:, 0]).any()
        assert not td[MASK][::2, :, 2].any()

    def test_an_absent_agent_is_not_drawn(self):
        def blue(env):
            picture = render(env, 0, width=150).astype(int)
            return (picture[..., 2] - picture[..., 0] > 60).sum()

        env = make_vmas_env("dispersion_energy", 2, seed=0, energy=6, n_food=1)
        td, seen = env.reset(), []
        for _ in range(7):
            td = env.step(td.set(ACTION, torch.ones(2, 4, 2)))["next"]
            seen.append((int(td[MASK][0].sum()), blue(env)))
        assert seen[-1] == (0, 0)
        assert all(pixels > 0 for n, pixels in seen if n)

    @pytest.mark.parametrize("wrong", [True, torch.ones(2), torch.ones(3, dtype=torch.bool)])
    def test_anything_but_booleans_is_refused(self, wrong):
        scenario = Shifts()
        scenario.is_present = lambda agent: wrong
        scenario.make_world, made = lambda *args, **kwargs: made(*args), scenario.make_world
        for options in ({}, {"n_agents": 3}):
            with pytest.raises(TypeError, match=r"^is_present\(agent_0\) must give booleans \(2,\), found"):
                make_vmas_env(scenario, 2, **options)


class TestLearning:
    @pytest.mark.parametrize(
        ("n_steps", "expected"),
        [
            # Q'(s') is 1.5 times the sum of what those present see: 0.45 of the first two, 0.6 of the first and third.
            (1, [[1 + 0.225, 2 + 0.225], [1 + 0.3, 2], [1 + 0.3, 3 + 0.3], [1 + 0.3, 3 + 0.3]]),
            # The second gets its rewards and no value after them; the last transition has one step.
            (2, [[1.5 + 0.15, 2 + 1], [1.5 + 0.15, 2], [1.5 + 0.15, 4.5 + 0.15], [1 + 0.3, 3 + 0.3]]),
        ],
    )
    def test_targets_by_hand(self, n_steps, expected):
        """Three agents and four steps: the second dies with the second step, all others go on beyond the time limit."""
        env = make_vmas_env(Shifts(), 1, max_steps=4)
        actor = BiCNetActor(1, Bounded(-1.0, 1.0, (3, 1)), net=Weighted(), mask_key=MASK)
        critic = BiCNetCritic(1, 1, net=TeamSum(), mask_key=MASK)
        loss = make_ddpg_loss(actor, critic, gamma=0.5)
        SoftUpdate(loss, tau=0.1)  # it would be missed
        multi_step = MultiStep(0.5, n_steps)
        multi_step.reward_keys = (("agents", "reward"),)
        batch = multi_step(rollout(env)).reshape(-1)
        batch[ACTION] = batch[ACTION][..., :1]
        out = loss(batch)
        expected, mask = torch.tensor(expected).flatten(), batch[MASK]
        torch.testing.assert_close(out["target_value"][mask], expected)
        value = (batch["agents", "observation"].squeeze(-1) * mask).sum(-1, keepdim=True).expand(4, 3)[mask]
        torch.testing.assert_close(out["loss_value"], (value - expected).square().mean())

    def test_evaluations_count_an_agent_while_it_is_there(self):
        env = make_vmas_env(Shifts(), 2)
        policy = BiCNetActor.from_env(env, communication="none")
        assert policy.mask_key == MASK
        assert evaluate(env, policy, max_steps=5).returns["agents"].tolist() == [[5, 4, 9], [5, 4, 9]]
        short = evaluate(env, policy, max_steps=2)
        assert short.present["agents"].tolist() == 2 * [[True, True, False]]
        assert short.team_returns()["agents"].tolist() == [3, 3]  # (2 + 4) / 2
        assert "evaluation_return_agent_2" not in short.summary()

    def test_who_leaves_by_a_collision_has_collided(self):
        env = make_vmas_env("navigation", 2, n_agents=(2,))
        before, after = env.reset(), env.fake_tensordict()["next"]
        after["agents", "info", "agent_collisions"][:] = torch.tensor([[0.0, -1.0], [0.0, 0.0]]).unsqueeze(-1)
        after[MASK] = torch.tensor([[True, False], [True, True]])
        collided = reported_collision(env)
        assert collided(before, after).tolist() == [True, False]
        before[MASK] = after[MASK].clone()
        assert collided(before, after).tolist() == [False, False]

    def test_the_script_trains_and_goes_on_to_the_bit(self, tmp_path):
        options = {"scenario": "dispersion_energy", "scenario_options": {"energy": 6}, "checkpoint_interval": 40}
        result = run(tmp_path, **options, n_steps=2)
        tests, losses = result.tests(), result.values("loss_value")
        older = sorted((result.folder / "checkpoints").glob("*.torchrl"))[0]
        train_vmas.main(train_vmas.Options(resume=older))
        assert (result.tests(), result.values("loss_value")) == (tests, losses)
