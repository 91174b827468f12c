import copy

import pytest
import torch
import vmas
from torchrl.envs.utils import MarlGroupMapType, check_env_specs
from vmas.scenarios.navigation import Scenario as Navigation

from tests.helpers_vmas import IGNORED_WARNINGS, Countdown, with_random_actions
from torchrl_bicnet import BiCNetActor, make_vmas_env
from torchrl_bicnet.tasks import GuessTheSum

pytestmark = IGNORED_WARNINGS


def test_outputs_are_those_of_vmas():
    """Same seed, same actions: VMAS's own observations and rewards, to the bit."""
    env, stock = (make("navigation", 4, seed=3, n_agents=3) for make in (make_vmas_env, vmas.make_env))
    env.set_seed(8), stock.seed(8)
    td, observations = env.reset(), stock.reset()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        assert torch.equal(td["agents", "observation"], torch.stack(observations, 1))
        td = env.step(with_random_actions(env, td, generator))
        observations, rewards, dones, _ = stock.step(list(td["agents", "action"].unbind(1)))
        td = td["next"]
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

    def test_partial_resets_keep_the_padding(self):
        env = make_vmas_env("simple_speaker_listener", 4, pad=True, seed=0)
        td = env.reset(env.reset().set("_reset", torch.tensor([[True], [False], [True], [False]])))
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


def test_a_done_of_one_column():
    class Column(Navigation):
        def done(self):
            return super().done().unsqueeze(-1)

    td = make_vmas_env(Column(), 4, seed=0).rollout(3)
    assert td["next", "done"].shape == (4, 3, 1)
    assert td["next", "agents", "terminated"].shape == (4, 3, 4, 1)


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


def test_the_message_lists_the_names_that_are_known():
    with pytest.raises(
        ValueError, match=r"Unknown scenario 'navigatoin'; this package has .*guess.*, VMAS has .*navigation"
    ):
        make_vmas_env("navigatoin", 2)
    with pytest.raises(TypeError, match=r"'football' has no option n_red_agent; it has .*n_blue_agents"):
        make_vmas_env("football", 2, n_blue_agents=3, n_red_agent=2)
    with pytest.raises(TypeError, match="'Countdown' has no option n_agents; it has none that its source names"):
        make_vmas_env(Countdown(), 2, n_agents=3)
