import contextlib
import random

import numpy as np
import pytest
import torch
import vmas
from torchrl.envs.utils import MarlGroupMapType, check_env_specs
from vmas.simulator.core import Agent, World
from vmas.simulator.scenario import BaseScenario
from vmas.simulator.utils import ScenarioUtils

from torchrl_bicnet import BiCNetActor, make_vmas_env

# By default; tests/test_examples.py trains each of them.
SEVERAL_GROUPS = {
    "diff_drive": {"diff_drive": 1, "holo_rot": 1},
    "kinematic_bicycle": {"bicycle": 1, "holo_rot": 1},
    "simple_adversary": {"adversary": 1, "agent": 2},
    "simple_crypto": {"eve": 1, "bob": 1, "alice": 1},
    "simple_push": {"adversary": 1, "agent": 1},
    "simple_speaker_listener": {"speaker": 1, "listener": 1},
    "simple_tag": {"adversary": 3, "agent": 1},
    "simple_world_comm": {"lead_adversary": 1, "adversary": 3, "agent": 2},
}
SCENARIOS = sorted([*vmas.scenarios, *vmas.mpe_scenarios, *vmas.debug_scenarios])


class Countdown(BaseScenario):
    """An agent that goes nowhere; environment i terminates after i + 1 steps. The reward is 1."""

    def make_world(self, batch_dim, device, **kwargs):
        ScenarioUtils.check_kwargs_consumed(kwargs)
        world = World(batch_dim, device)
        world.add_agent(Agent("agent_0"))
        world.add_agent(Agent("agent_1"))
        self.left = torch.zeros(batch_dim, device=device)
        return world

    def reset_world_at(self, env_index=None):
        limits = torch.arange(1, self.world.batch_dim + 1, device=self.world.device).float()
        if env_index is None:
            self.left = limits
        else:
            self.left[env_index] = limits[env_index]

    def post_step(self):
        self.left = self.left - 1

    def observation(self, agent):
        return self.left.unsqueeze(-1)

    def reward(self, agent):
        return torch.ones_like(self.left)

    def done(self):
        return self.left <= 0


class Gambler(Countdown):
    """Draws from torch, NumPy and Python in everything that VMAS asks of it."""

    @staticmethod
    def draw(like):
        return torch.rand_like(like) + np.random.rand() + random.random()

    def reset_world_at(self, env_index=None):
        self.left = 3 + self.draw(self.left)

    def observation(self, agent):
        return self.draw(self.left).unsqueeze(-1)

    def reward(self, agent):
        return self.draw(self.left)

    def done(self):
        return self.draw(self.left) < 0.5


@pytest.mark.filterwarnings("ignore:Environments of this scenario are reset one by one:UserWarning")
@pytest.mark.filterwarnings("ignore:Force limits not specified:UserWarning")  # VMAS's, of vel_control
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_passes_torchrls_checks(scenario):
    env = make_vmas_env(scenario, 2, max_steps=3, seed=0)
    check_env_specs(env)
    assert (len(env.group_map) > 1) == (scenario in SEVERAL_GROUPS)
    td = env.rollout(4, break_when_any_done=False)
    for group in env.group_map:
        shape = td["next", group, "reward"].shape
        for name in ("done", "terminated", "truncated", "episode_reward"):
            assert td["next", group, name].shape == shape
            assert td[group, name].shape == shape
            if name != "episode_reward":
                assert (td["next", group, name] == td["next", name].unsqueeze(-2)).all()


@pytest.mark.parametrize("max_steps", [3, None])
def test_time_limits_are_truncated_and_terminations_terminated(max_steps):
    env = make_vmas_env(Countdown(), 5, max_steps=max_steps)
    td = env.rollout(6, break_when_any_done=False)["next"]
    done, terminated, truncated = (td[name].squeeze(-1) for name in ("done", "terminated", "truncated"))
    # Environment i terminates at every (i + 1)-th step, unless the limit comes first.
    for i in range(5):
        for t in range(1, 7):
            period = i + 1 if max_steps is None else min(i + 1, max_steps)
            ends = t % period == 0
            assert done[i, t - 1] == ends
            assert terminated[i, t - 1] == (ends and period == i + 1)
            assert truncated[i, t - 1] == (ends and period == max_steps)


def test_the_episode_return_restarts_with_the_episode():
    td = make_vmas_env(Countdown(), 3, max_steps=2).rollout(4, break_when_any_done=False)["next"]
    returns = td["agents", "episode_reward"][..., 0]  # (num_envs, T, N)
    assert returns[0, :, 0].tolist() == [1, 1, 1, 1]
    assert returns[2, :, 1].tolist() == [1, 2, 1, 2]


def step_and_partly_reset(env, td):
    """A step with actions that are drawn from nowhere, then a reset of the first and the third environment."""
    td = env.step(td.set(("agents", "action"), env.full_action_spec["agents", "action"].zero()))["next"]
    reset = torch.tensor([[True], [False], [True], [False]])
    return env.reset(td.select("agents", "step_count").set("_reset", reset))


class TestRandomStreams:
    @staticmethod
    def global_states():
        return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()

    @staticmethod
    def play(env, steps=3):
        """Observations after a full reset and some partial ones."""
        td = env.reset()
        observations = [td["agents", "observation"]]
        for _ in range(steps):
            td = step_and_partly_reset(env, td)
            observations.append(td["agents", "observation"])
        return torch.stack(observations)

    def test_building_seeding_resetting_and_stepping_leave_the_global_generators_alone(self):
        torch.manual_seed(5)
        np.random.seed(6)
        random.seed(7)
        before = self.global_states()
        env = make_vmas_env("navigation", 4, seed=0)
        env.set_seed(1)
        self.play(env)
        assert self.global_states() == before

    def test_the_global_generators_do_not_matter(self):
        plays = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            plays.append(self.play(make_vmas_env("navigation", 4, seed=3)))
        assert torch.equal(*plays)
        assert not torch.equal(plays[0], self.play(make_vmas_env("navigation", 4, seed=4)))

    def test_another_environment_does_not_matter(self):
        alone = self.play(make_vmas_env("navigation", 4, seed=3), steps=6)
        env = make_vmas_env("navigation", 4, seed=3)
        first = env.reset()["agents", "observation"]
        assert torch.equal(first, alone[0])
        env = make_vmas_env("navigation", 4, seed=3)
        other = make_vmas_env("navigation", 4, seed=3)
        stock = vmas.make_env("navigation", 4)
        td = env.reset()
        for step in range(6):
            other.set_seed(step)
            other.rollout(2)
            stock.reset()
            td = step_and_partly_reset(env, td)
            assert torch.equal(td["agents", "observation"], alone[step + 1])

    def test_vmas_shared_stream_is_left_alone(self):
        def stock_start():
            stock = vmas.make_env("navigation", 4, seed=11)
            yield stock.reset()
            yield stock.reset()

        expected = list(stock_start())
        interrupted = stock_start()
        found = [next(interrupted)]
        self.play(make_vmas_env("navigation", 4, seed=11))
        found.append(next(interrupted))
        for a, b in zip(expected, found):
            assert all(torch.equal(x, y) for x, y in zip(a, b))

    def test_seeding_replays(self):
        env = make_vmas_env("navigation", 4, seed=3)
        first = self.play(env)
        assert not torch.equal(self.play(env), first)
        env.set_seed(3)
        again = self.play(env)
        env.set_seed(3)
        assert torch.equal(self.play(env), again)

    def test_everything_a_scenario_draws_comes_from_the_stream(self):
        def play(disturb):
            env = make_vmas_env(Gambler(), 3, seed=5)
            td, drawn = env.reset(), []
            for _ in range(4):
                if disturb:
                    vmas.make_env("navigation", 2).reset()
                    torch.rand(1), np.random.rand(), random.random()
                before = self.global_states()
                td = env.step(td.set(("agents", "action"), env.full_action_spec["agents", "action"].zero()))["next"]
                vmas_env = env.base_env._env
                drawn += [td["agents", "observation"], td["agents", "reward"], td["done"], vmas_env.done()]
                drawn += vmas_env.get_random_actions()
                with contextlib.suppress(Exception):  # without a display
                    vmas_env.render(mode="rgb_array")
                assert self.global_states() == before
            return drawn

        for quiet, disturbed in zip(play(False), play(True)):
            assert torch.equal(quiet, disturbed)

    def test_moving_to_another_device_moves_the_stream(self):
        vmas_env = make_vmas_env("simple_speaker_listener", 2, seed=3, pad=True).base_env._env
        before = self.global_states()
        vmas_env.to("meta")
        assert {tail.device.type for tail in vmas_env.padding.tails.values()} == {"meta"}
        assert vmas_env.random_stream.device.type == "meta"
        assert self.global_states() == before

    def test_without_a_seed_environments_differ(self):
        assert not torch.equal(self.play(make_vmas_env("navigation", 4)), self.play(make_vmas_env("navigation", 4)))

    def test_an_error_inside_vmas_leaves_the_global_generators_alone(self):
        env = make_vmas_env("navigation", 4, seed=3, check_actions=True)
        td = env.reset()
        before = self.global_states()
        td["agents", "action"] = torch.full((4, 4, 2), 99.0)  # out of bounds
        with pytest.raises(AssertionError, match="out of its range"):
            env.step(td)
        assert self.global_states() == before

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_the_cuda_generator_is_left_alone(self):
        torch.cuda.manual_seed(5)
        before = torch.cuda.get_rng_state()
        plays = []
        for _ in range(2):
            env = make_vmas_env("navigation", 4, seed=3, device="cuda")
            td = env.reset()
            plays.append(td["agents", "observation"])
            torch.rand(3, device="cuda")
            torch.cuda.set_rng_state(before)
        env.rollout(3)
        env.set_seed(0)
        assert torch.equal(torch.cuda.get_rng_state(), before)
        assert torch.equal(*plays)


def test_outputs_are_those_of_vmas():
    """Same seed, same actions: VMAS's own observations and rewards, to the bit."""
    env = make_vmas_env("navigation", 4, seed=3, n_agents=3)
    stock = vmas.make_env("navigation", 4, seed=3, n_agents=3)
    env.set_seed(8)
    stock.seed(8)
    td, observations = env.reset(), stock.reset()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        assert torch.equal(td["agents", "observation"], torch.stack(observations, 1))
        action = torch.rand(4, 3, 2, generator=generator) * 2 - 1
        td = env.step(td.set(("agents", "action"), action))["next"]
        observations, rewards, dones, _ = stock.step(list(action.unbind(1)))
        assert torch.equal(td["agents", "reward"].squeeze(-1), torch.stack(rewards, 1))
        assert torch.equal(td["terminated"].squeeze(-1), dones)


def test_group_map():
    env = make_vmas_env("navigation", 2, n_agents=3, group_map={"two": ["agent_0", "agent_2"], "one": ["agent_1"]})
    td = env.rollout(2)
    assert td["two", "observation"].shape == (2, 2, 2, 18)
    assert td["next", "one", "truncated"].shape == (2, 2, 1, 1)


class TestPadding:
    def test_observations_are_padded_and_kinds_told_apart(self):
        plain = make_vmas_env("simple_speaker_listener", 4, seed=0)
        padded = make_vmas_env("simple_speaker_listener", 4, seed=0, pad=True)
        check_env_specs(padded)
        plain.set_seed(1), padded.set_seed(1)
        apart, together = plain.reset(), padded.reset()
        for _ in range(3):
            team = together["agents", "observation"]
            assert team.shape == (4, 2, 13)
            assert torch.equal(team[:, 0, :3], apart["speaker", "observation"][:, 0])
            assert torch.equal(team[:, 1, :11], apart["listener", "observation"][:, 0])
            assert (team[:, 0, 3:11] == 0).all()
            assert torch.equal(team[..., 11:], torch.eye(2).expand(4, 2, 2))
            # The padded actions do what the plain ones do.
            action = padded.full_action_spec["agents", "action"].rand()
            apart["speaker", "action"], apart["listener", "action"] = action[:, :1], action[:, 1:, :2]
            apart = plain.step(apart)["next"]
            together = padded.step(together.set(("agents", "action"), action))["next"]
            assert torch.equal(together["agents", "reward"][:, 1], apart["listener", "reward"][:, 0])

    def test_padded_action_entries_are_zero(self):
        env = make_vmas_env("simple_speaker_listener", 4, pad=True)
        space = env.full_action_spec["agents", "action"].space
        assert (space.low[:, 1, 2:] == 0).all()
        assert (space.high[:, 1, 2:] == 0).all()
        td = env.rollout(3, BiCNetActor.from_env(env))
        assert (td["agents", "action"][:, :, 1, 2:] == 0).all()
        assert (td["agents", "action"][:, :, 0] != 0).all()

    def test_the_listener_acts_on_what_the_speaker_sees(self):
        env = make_vmas_env("simple_speaker_listener", 4, pad=True, seed=0)
        actor = BiCNetActor.from_env(env)
        td = env.reset()
        silent = actor(td.clone())["agents", "action"][:, 1, :2]
        td["agents", "observation"] = td["agents", "observation"].clone()
        td["agents", "observation"][:, 0, :3] += 1
        assert (actor(td)["agents", "action"][:, 1, :2] != silent).all()

    def test_two_roles_of_one_size_and_groups_of_ones_own(self):
        group_map = {"pair": ["adversary_0", "agent_0"], "rest": ["adversary_1", "adversary_2"]}
        env = make_vmas_env("simple_tag", 2, group_map=group_map, pad=True)
        td = env.reset()
        assert td["pair", "observation"].shape == (2, 2, 16 + 2)
        assert td["rest", "observation"].shape == (2, 2, 16)  # of one kind: left as it is
        check_env_specs(env)

    def test_agents_without_an_index_are_of_the_kind_of_their_name(self):
        class Duo(Countdown):
            def make_world(self, batch_dim, device, **kwargs):
                world = super().make_world(batch_dim, device, **kwargs)
                for agent, name in zip(world.agents, ("red_robot", "red_drone")):
                    agent._name = name
                return world

        env = make_vmas_env(Duo(), 2, pad=True, group_map={"team": ["red_robot", "red_drone"]})
        assert torch.equal(env.reset()["team", "observation"][..., 1:], torch.eye(2).expand(2, 2, 2))

    @pytest.mark.filterwarnings("ignore:Environments of this scenario are reset one by one:UserWarning")
    def test_partial_resets_keep_the_padding(self):
        env = make_vmas_env("simple_speaker_listener", 4, pad=True, seed=0)
        td = step_and_partly_reset(env, env.reset())
        assert torch.equal(td["agents", "observation"][..., 11:], torch.eye(2).expand(4, 2, 2))

    def test_nothing_to_pad(self):
        with pytest.raises(ValueError, match="nothing to pad: every group has agents of one kind"):
            make_vmas_env("navigation", 2, pad=True)

    def test_without_padding_the_error_says_what_to_do(self):
        env = make_vmas_env("simple_speaker_listener", 2, group_map=MarlGroupMapType.ALL_IN_ONE_GROUP)
        with pytest.raises(ValueError, match=r"have different sizes.*pad=True"):
            BiCNetActor.from_env(env)

    def test_agents_of_one_size_with_different_bounds_need_no_padding(self):
        env = make_vmas_env("simple_push", 2, group_map={"all": ["adversary_0", "agent_0"]})
        assert env.full_action_spec["all", "action"].shape == (2, 2, 2)


def test_misuse_names_what_was_found_and_expected():
    with pytest.raises(ValueError, match=r"Unknown VMAS scenario 'navigatoin'; VMAS has .*navigation"):
        make_vmas_env("navigatoin", 2)
    with pytest.raises(TypeError, match=r"'navigation' has no option n_agent; it has .*n_agents"):
        make_vmas_env("navigation", 2, n_agent=3)
    with pytest.raises(TypeError, match=r"sets these arguments .* itself: continuous_actions, dict_spaces"):
        make_vmas_env("navigation", 2, dict_spaces=True, continuous_actions=False)
    with pytest.raises(TypeError, match=r"'football' has no option n_red_agent; it has .*n_blue_agents"):
        make_vmas_env("football", 2, n_blue_agents=3, n_red_agent=2)
    with pytest.raises(TypeError, match=r"a name or an instance of BaseScenario, found <class .*Countdown"):
        make_vmas_env(Countdown, 2)
    with pytest.raises(TypeError, match="'Countdown' has no option n_agents; it has"):
        make_vmas_env(Countdown(), 2, n_agents=3)
    with pytest.raises(ValueError, match="num_envs must be at least 1, found 0"):
        make_vmas_env("navigation", 0)
    with pytest.raises(ValueError, match="max_steps must be at least 1, found 0"):
        make_vmas_env("navigation", 2, max_steps=0)
