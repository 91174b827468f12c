import random
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.envs import VmasEnv
from torchrl.modules.tensordict_module.exploration import RandomPolicy

from tests.helpers_vmas import SEVERAL_GROUPS, Countdown
from torchrl_bicnet import BiCNetActor, Evaluation, ExplorationNoise, evaluate, make_vmas_env, paired_difference
from torchrl_bicnet.envs.outcomes import reported_collision, reported_success


def still(env):
    """A policy that does nothing."""
    return TensorDictModule(
        lambda observation: observation.new_zeros(*observation.shape[:-1], 2),
        in_keys=[("agents", "observation")],
        out_keys=[("agents", "action")],
    )


def constant(env, action_key):
    """A policy that writes the same random actions in each step."""
    action = env.full_action_spec[action_key].rand()
    return TensorDictModule(lambda done: action, in_keys=["done"], out_keys=[action_key])


class Reporting(Countdown):
    """Environment i is solved for agent 0 after two steps and for agent 1 after three; agents collide in step 2."""

    def info(self, agent):
        left = torch.arange(1, self.world.batch_dim + 1) - self.left
        return {
            "success": left >= (2 if agent.name == "agent_0" else 3),
            "wall_collision": -1.0 * (left == 2),
        }


@pytest.mark.parametrize("limit", [None, 3])
def test_the_first_episode_counts_and_no_other(limit):
    env = make_vmas_env(Countdown(), 5, max_steps=limit)
    evaluation = evaluate(env, still(env), max_steps=4)
    # Environment i pays 1 a step and ends after i + 1 steps.
    expected = torch.arange(1.0, 6).clamp(max=4 if limit is None else limit)
    assert torch.equal(evaluation.returns["agents"], expected.unsqueeze(-1).expand(5, 2))
    assert torch.equal(evaluation.lengths, expected.long())
    # It says neither why it ends nor who collides.
    assert evaluation.success is None
    assert evaluation.collisions is None
    assert not any("rate" in name for name in evaluation.summary())


def test_it_is_the_sum_of_a_stepwise_rollout():
    env = make_vmas_env("navigation", 6, n_agents=3)
    actor = BiCNetActor.from_env(env)
    evaluation = evaluate(env, actor, max_steps=10, seed=3)
    env.set_seed(3)
    rollout = env.rollout(10, actor, break_when_any_done=False)
    assert not rollout["next", "done"].any()
    torch.testing.assert_close(evaluation.returns["agents"], rollout["next", "agents", "reward"].sum(1).squeeze(-1))


@pytest.mark.parametrize("scenario", ["simple_tag", "simple_world_comm"])
def test_one_rollout_serves_every_group(scenario):
    env = make_vmas_env(scenario, 3)
    policy = TensorDictSequential(*(BiCNetActor.from_env(env, group=group) for group in env.group_map))
    evaluation = evaluate(env, policy, max_steps=5, seed=0)
    sizes = {group: returns.shape for group, returns in evaluation.returns.items()}
    assert sizes == {group: (3, n_agents) for group, n_agents in SEVERAL_GROUPS[scenario].items()}
    env.set_seed(0)
    rollout = env.rollout(5, policy)
    for group, returns in evaluation.returns.items():
        torch.testing.assert_close(returns, rollout["next", group, "reward"].sum(1).squeeze(-1))
        assert evaluation.summary()[f"{group}/evaluation_return"] == pytest.approx(returns.mean().item())


def test_summary_by_hand():
    returns = torch.tensor([[1.0, 3.0], [3.0, 9.0], [2.0, 6.0]])
    evaluation = Evaluation(
        {"agents": returns},
        lengths=torch.tensor([3, 4, 5]),
        success=torch.tensor([True, True, False]),
        collisions=torch.tensor([0, 7, 0]),
    )
    assert evaluation.summary() == pytest.approx(
        {
            "evaluation_return": 4.0,
            # Of 2, 6 and 4: variance 4.
            "evaluation_return_stderr": 2 / 3**0.5,
            "evaluation_return_agent_0": 2.0,
            "evaluation_return_agent_0_stderr": 1 / 3**0.5,
            "evaluation_return_agent_1": 6.0,
            "evaluation_return_agent_1_stderr": 3 / 3**0.5,
            "episode_length": 4.0,
            "success_rate": 2 / 3,
            "collision_rate": 1 / 3,
        }
    )
    single = Evaluation({"agents": returns[:1]}, lengths=torch.tensor([3])).summary()
    assert single["evaluation_return"] == 2.0
    assert "evaluation_return_stderr" not in single  # of one episode there is none
    with pytest.raises(FrozenInstanceError):
        evaluation.seed = 1


def test_an_own_scenario_reports_by_its_info():
    env = make_vmas_env(Reporting(), 5)
    evaluation = evaluate(env, still(env), max_steps=4)
    # Solved when agent 1 says so too, in step 3, which environments 0 and 1 do not reach.
    assert evaluation.success.tolist() == [False, False, True, True, True]
    # One step each, whoever collides; environment 0 ends before.
    assert evaluation.collisions.tolist() == [0, 1, 1, 1, 1]
    assert evaluation.summary()["success_rate"] == 0.6


class TestScenariosOfVmas:
    def test_navigation_succeeds_where_it_ends_and_counts_the_steps_with_a_penalty(self):
        env = make_vmas_env("navigation", 200, n_agents=2, seed=0)
        towards = TensorDictModule(
            lambda observation: -3.0 * observation[..., 4:6].clamp(-0.3, 0.3),
            in_keys=[("agents", "observation")],
            out_keys=[("agents", "action")],
        )
        evaluation = evaluate(env, towards, max_steps=60, seed=0)
        env.set_seed(0)
        after = env.rollout(60, towards, break_when_any_done=False, break_when_all_done=False)["next"]
        first = torch.cummax(torch.cat([torch.zeros(200, 1), after["done"][..., 0]], 1), 1)[0][:, :-1] == 0
        assert torch.equal(evaluation.success, after["terminated"][..., 0].any(1))
        penalties = after["agents", "info", "agent_collisions"].flatten(2)
        assert torch.equal(evaluation.collisions, ((penalties < 0).any(-1) & first).sum(1))
        assert torch.equal(evaluation.lengths, first.sum(1))
        assert 0 < evaluation.summary()["success_rate"] < 1
        assert 0 < evaluation.summary()["collision_rate"] < 1

    def test_a_fall_ends_balance_in_failure(self):
        env = make_vmas_env("balance", 10)
        evaluation = evaluate(env, RandomPolicy(env.full_action_spec), max_steps=100, seed=0)
        assert (evaluation.lengths < 100).any()
        assert not evaluation.success.any()
        # The same ends without a fall are the goal.
        after = env.fake_tensordict()["next"]
        after["terminated"][:] = True
        assert reported_success(env)(after, after).all()
        after["agents", "info", "ground_rew"][3] = -10.0
        assert reported_success(env)(after, after).tolist() == [True] * 3 + [False] + [True] * 6

    @pytest.mark.parametrize(
        ("scenario", "options", "success", "collisions"),
        [
            ("navigation", {}, True, True),
            ("navigation", {"collisions": False}, True, False),
            ("navigation", {"agent_collision_penalty": 0}, True, False),
            ("transport", {}, True, False),
            ("discovery", {}, False, False),
            ("discovery", {"targets_respawn": False, "agent_collision_penalty": -1}, True, True),
            ("give_way", {}, False, False),
            ("give_way", {"done_on_completion": True, "obstacle_collision_penalty": -0.1}, True, True),
            ("buzz_wire", {}, False, True),  # ends at the goal and on contact
            ("football", {}, False, False),  # ends when either team scores
            ("simple_spread", {}, False, False),  # never ends
        ],
    )
    def test_what_is_reported_depends_on_the_options(self, scenario, options, success, collisions):
        env = make_vmas_env(scenario, 2, **options)
        assert (reported_success(env) is not None) == success
        assert (reported_collision(env) is not None) == collisions

    def test_the_time_limit_of_a_plain_vmas_env_is_no_success(self):
        env = VmasEnv("navigation", num_envs=3, max_steps=4, seed=0)
        evaluation = evaluate(env, still(env), max_steps=10, seed=0)
        assert evaluation.lengths.tolist() == [4, 4, 4]
        assert evaluation.success is None
        assert evaluate(VmasEnv("navigation", num_envs=3, seed=0), still(env), max_steps=2).success is not None


def random_states():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


class TestItDisturbsNothing:
    def test_a_seed_gives_the_same_start_states_and_leaves_training_alone(self):
        env, training = make_vmas_env("navigation", 6), make_vmas_env("navigation", 2, seed=0)
        actor = BiCNetActor.from_env(env)
        first = evaluate(env, actor, max_steps=5, seed=1).returns["agents"]
        assert not torch.equal(evaluate(env, actor, max_steps=5).returns["agents"], first)
        assert torch.equal(evaluate(env, actor, max_steps=5, seed=1).returns["agents"], first)
        undisturbed = make_vmas_env("navigation", 2, seed=0)
        for _ in range(3):
            state = random_states()
            evaluate(env, actor, max_steps=2, seed=1)
            assert random_states() == state
            assert torch.equal(training.reset()["agents", "observation"], undisturbed.reset()["agents", "observation"])

    def test_what_a_policy_draws_comes_from_the_evaluations_own_stream(self):
        env = make_vmas_env("navigation", 4, seed=0)
        policy = RandomPolicy(env.full_action_spec)
        first = evaluate(env, policy, max_steps=3, seed=1).returns["agents"]
        state = random_states()
        torch.manual_seed(5)
        assert torch.equal(evaluate(env, policy, max_steps=3, seed=1).returns["agents"], first)
        torch.manual_seed(5)
        other = torch.get_rng_state()
        assert not torch.equal(evaluate(env, policy, max_steps=3).returns["agents"], first)
        assert torch.equal(torch.get_rng_state(), other)
        assert random_states() != state

    def test_what_a_policy_draws_does_not_follow_from_the_start_states(self):
        env = make_vmas_env("guess_the_sum", 2000)
        drawn, seen = [], []

        def guess(td):
            seen.append(td["agents", "observation"])
            drawn.append(torch.rand_like(seen[0]) * 2 - 1)
            return td.set(("agents", "action"), drawn[0])

        evaluate(env, guess, max_steps=1, seed=1)
        correlation = torch.corrcoef(torch.stack([seen[0].flatten(), drawn[0].flatten()]))[0, 1]
        assert abs(correlation) < 0.06  # five standard errors

    def test_the_policy_is_left_as_it_was(self):
        env = make_vmas_env("navigation", 4)
        encoder = nn.Sequential(nn.Linear(18, 8), nn.Dropout(0.5), nn.Flatten(0, 1), nn.BatchNorm1d(8))
        encoder.append(nn.Unflatten(0, (4, 4)))
        encoder.out_features = 8
        actor = BiCNetActor.from_env(env, encoder=encoder, hidden_size=4)
        actor.module.net.decoder.eval()  # a mixture of modes is a mixture afterwards
        modes = [module.training for module in actor.modules()]
        policy = TensorDictSequential(actor, ExplorationNoise(actor.spec, sigma=(0.5, 0.5)))
        before = {name: value.clone() for name, value in policy.state_dict().items()}
        returns = evaluate(env, policy, max_steps=4, seed=0).returns["agents"]
        assert [module.training for module in actor.modules()] == modes
        assert sum(modes) not in (0, len(modes))
        for name, value in policy.state_dict().items():
            assert torch.equal(value, before[name]), name
        # No dropout, no noise, whatever the mode.
        assert torch.equal(evaluate(env, actor.eval(), max_steps=4, seed=0).returns["agents"], returns)

    def test_the_policy_is_left_as_it_was_by_an_error_too(self):
        env = make_vmas_env("navigation", 4)
        actor = BiCNetActor(17, env.full_action_spec)
        state = random_states()
        with pytest.raises(ValueError, match="17 features"):
            evaluate(env, actor, max_steps=2, seed=0)
        assert all(module.training for module in actor.modules())
        assert random_states() == state


class TestPairedDifference:
    def test_by_hand(self):
        first = Evaluation({"agents": torch.tensor([[10.0], [20.0], [33.0]])}, lengths=torch.ones(3), seed=4)
        second = Evaluation({"agents": torch.tensor([[9.0], [18.0], [30.0]])}, lengths=torch.ones(3), seed=4)
        difference = paired_difference(first, second)
        assert difference["evaluation_return_difference"] == pytest.approx(2.0)
        assert difference["evaluation_return_difference_stderr"] == pytest.approx(1 / 3**0.5)
        assert difference["evaluation_return_difference_agent_0"] == pytest.approx(2.0)

    def test_only_the_same_start_states(self):
        env = make_vmas_env("navigation", 3)
        first = evaluate(env, still(env), max_steps=2, seed=1)
        for seed in (2, None):
            with pytest.raises(ValueError, match=f"expected one seed, found 1 and {seed}"):
                paired_difference(first, evaluate(env, still(env), max_steps=2, seed=seed))
        without = evaluate(env, still(env), max_steps=2)
        with pytest.raises(ValueError, match="expected one seed, found None and None"):
            paired_difference(without, without)
        other = evaluate(make_vmas_env("navigation", 2), still(env), max_steps=2, seed=1)
        with pytest.raises(ValueError, match=r"found \{'agents': \(3, 4\)\} and \{'agents': \(2, 4\)\}"):
            paired_difference(first, other)


@pytest.mark.parametrize(
    ("action", "error", "match"),
    [
        (None, KeyError, r"wrote no action at \('agents', 'action'\)"),
        (torch.zeros(2, 4, 3), ValueError, r"action of shape \(2, 4, 2\) at \('agents', 'action'\), found \(2, 4, 3\)"),
        (torch.zeros(2, 4, 2, dtype=torch.long), TypeError, r"of type torch.float32 at .*, found torch.int64"),
    ],
)
def test_actions_that_vmas_would_misread(action, error, match):
    env = make_vmas_env("navigation", 2)
    with pytest.raises(error, match=match):
        evaluate(env, lambda td: td if action is None else td.set(("agents", "action"), action), max_steps=2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_streams_of_its_own_on_cuda():
    env = make_vmas_env("navigation", 4, device="cuda", seed=0)
    policy = RandomPolicy(env.full_action_spec)
    state = torch.cuda.get_rng_state()
    first = evaluate(env, policy, max_steps=3, seed=1)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert torch.equal(evaluate(env, policy, max_steps=3, seed=1).returns["agents"], first.returns["agents"])
    assert first.lengths.is_cuda
    assert first.success.is_cuda
