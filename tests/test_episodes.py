import itertools

import pytest
import torch
from tensordict.nn import TensorDictModule

from tests.helpers_vmas import Countdown
from torchrl_bicnet import BiCNetActor, make_vmas_env
from torchrl_bicnet.episodes import first_episodes


def still():
    """A policy that does nothing."""
    return TensorDictModule(
        lambda observation: observation.new_zeros(*observation.shape[:-1], 2),
        in_keys=[("agents", "observation")],
        out_keys=[("agents", "action")],
    )


@pytest.mark.parametrize("max_steps", [2, 50])
def test_steps_are_those_of_first_episodes_until_the_last_has_ended(max_steps):
    env = make_vmas_env(Countdown(), 3)
    with first_episodes(env, still(), max_steps=max_steps) as (start, steps):
        found = list(steps)
    # Environment i counts down from i + 1.
    running = [[True, True, True], [False, True, True], [False, False, True]]
    assert [step.running.tolist() for step in found] == running[:max_steps]
    assert found[0].state is start
    assert ("agents", "action") not in start.keys(True)
    for step, following in itertools.pairwise(found):
        assert following.state is step.next_state
        assert torch.equal(step.after["agents", "observation"], following.state["agents", "observation"])
        assert (step.after["agents", "reward"] == 1).all()
    for number, step in enumerate(found):
        left = torch.tensor([1, 2, 3]) - number
        assert torch.equal(step.state["agents", "observation"][step.running, 0, 0], left[step.running].float())


def test_an_error_or_an_early_end_leaves_policy_and_random_streams_as_they_were():
    env = make_vmas_env("navigation", 2)
    actor = BiCNetActor.from_env(env)
    actor.module.net.decoder.eval()
    modes, state = [module.training for module in actor.modules()], torch.get_rng_state()

    def play_one_step(fails):
        with first_episodes(env, actor, max_steps=5, seed=0) as (_, steps):
            for _ in steps:
                assert not any(module.training for module in actor.modules())
                torch.rand(1)
                if fails:
                    raise RuntimeError("in the block")
                break

    with pytest.raises(RuntimeError, match="in the block") as error:
        play_one_step(fails=True)
    assert error.tb is not None  # holds the frame, and with it the unfinished iterator
    assert torch.equal(torch.get_rng_state(), state)
    play_one_step(fails=False)
    assert [module.training for module in actor.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
