import pytest
import torch
from torchrl.envs import Compose, ExpandAs, InitTracker, RewardSum, StepCounter, TransformedEnv, VmasWrapper

from tests.helpers_vmas import Countdown
from torchrl_bicnet import make_vmas_env


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


class TestEpisode:
    @pytest.mark.parametrize("options", [{}, {"group_map": {"two": ["agent_0", "agent_1"], "one": ["agent_2"]}}])
    def test_the_entries_and_specs_are_those_of_torchrls_transforms(self, options):
        def play(env):
            env.set_seed(0), torch.manual_seed(0)
            return env.rollout(8, break_when_any_done=False)

        ours = make_vmas_env("balance", 4, max_steps=3, seed=0, **options)
        base = VmasWrapper(make_vmas_env("balance", 4, seed=0).base_env._env, **options)
        copies = [
            ExpandAs(name, (group, "reward"), (group, name))
            for group in base.group_map
            for name in ("done", "terminated", "truncated")
        ]
        theirs = TransformedEnv(base, Compose(StepCounter(3), *copies, RewardSum(), InitTracker()))
        assert ours.specs == theirs.specs
        found, expected = play(ours), play(theirs)
        assert set(found.keys(True, True)) == set(expected.keys(True, True))
        assert (found == expected).all()

    def test_transforms_can_be_appended(self):
        env = make_vmas_env("balance", 4, max_steps=3, seed=0)
        env.append_transform(StepCounter(step_count_key="other_count", truncated_key="other"))
        td = env.rollout(2)
        assert torch.equal(td["next", "other_count"], td["next", "step_count"])
        assert ("next", "agents", "episode_reward") in td.keys(True)
