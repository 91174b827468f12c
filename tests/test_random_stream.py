import contextlib
import random

import numpy as np
import pytest
import torch
import vmas

from tests.helpers_vmas import Countdown
from torchrl_bicnet import make_vmas_env


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

    @pytest.mark.parametrize("scenario", ["navigation", Countdown(), "het_mass"])
    def test_a_step_swaps_the_streams_of_numpy_and_python_where_they_may_be_drawn_from(self, scenario):
        environment = make_vmas_env(scenario, 4, seed=0).base_env._env
        before = self.global_states()
        seen = []
        environment.scenario.pre_step = lambda: seen.append(self.global_states())
        environment.reset()
        environment.step(environment.get_random_actions())
        swapped = [now != then for now, then in zip(seen[0], before)]
        assert swapped == ([True, False, False] if scenario == "navigation" else [True, True, True])
        assert self.global_states() == before

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
