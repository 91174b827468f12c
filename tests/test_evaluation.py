import pytest
import torch
from tensordict.nn import TensorDictModule

from tests.test_envs import Countdown
from torchrl_bicnet import BiCNetActor, evaluate, make_vmas_env


def still(env):
    """A policy that does nothing."""
    return TensorDictModule(
        lambda observation: observation.new_zeros(*observation.shape[:-1], 2),
        in_keys=[("agents", "observation")],
        out_keys=[("agents", "action")],
    )


@pytest.mark.parametrize("limit", [None, 3])
def test_the_first_episode_counts_and_no_other(limit):
    env = make_vmas_env(Countdown(), 5, max_steps=limit)
    returns = evaluate(env, still(env), max_steps=4)
    # Environment i pays 1 a step and ends after i + 1 steps.
    expected = torch.arange(1.0, 6).clamp(max=4 if limit is None else limit)
    assert torch.equal(returns, expected.unsqueeze(-1).expand(5, 2))


def test_it_is_the_mean_of_a_stepwise_rollout():
    env = make_vmas_env("navigation", 6, n_agents=3)
    actor = BiCNetActor.from_env(env)
    returns = evaluate(env, actor, max_steps=10, seed=3)
    env.set_seed(3)
    rollout = env.rollout(10, actor, break_when_any_done=False)
    assert not rollout["next", "done"].any()
    torch.testing.assert_close(returns, rollout["next", "agents", "reward"].sum(1).squeeze(-1))


def test_a_seed_gives_the_same_start_states_and_leaves_training_alone():
    env, training = make_vmas_env("navigation", 6), make_vmas_env("navigation", 2, seed=0)
    actor = BiCNetActor.from_env(env)
    first = evaluate(env, actor, max_steps=5, seed=1)
    assert not torch.equal(evaluate(env, actor, max_steps=5), first)
    assert torch.equal(evaluate(env, actor, max_steps=5, seed=1), first)
    undisturbed = make_vmas_env("navigation", 2, seed=0)
    for _ in range(3):
        state = torch.get_rng_state()
        evaluate(env, actor, max_steps=2, seed=1)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(training.reset()["agents", "observation"], undisturbed.reset()["agents", "observation"])


def test_misuse():
    env = make_vmas_env("navigation", 2)
    with pytest.raises(ValueError, match="max_steps must be at least 1, found 0"):
        evaluate(env, BiCNetActor.from_env(env), max_steps=0)
    with pytest.raises(ValueError, match=r"no group 'agent'; its groups are \['agents'\]"):
        evaluate(env, BiCNetActor.from_env(env), max_steps=2, group="agent")
