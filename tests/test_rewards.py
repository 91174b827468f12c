import pytest
import torch
from tensordict import TensorDict

from torchrl_bicnet import RewardScale

KEY = ("next", "agents", "reward")


def batch(*rewards):
    return TensorDict({"next": {"agents": {"reward": torch.tensor(rewards).view(-1, 1, 1)}}}, [len(rewards)])


def test_rewards_get_the_root_mean_square_asked_for_over_all_that_was_collected():
    scale = RewardScale(0.5)
    for collected in (torch.tensor([3.0, 4.0]), torch.tensor([[0.0, 5.0]])):
        scale.update(collected)
    # (9 + 16 + 0 + 25) / 4 = 12.5
    assert scale.factor.item() == pytest.approx(0.5 / 12.5**0.5)
    scaled = scale(batch(3.0, 4.0, 0.0, -5.0))[KEY].flatten()
    torch.testing.assert_close(scaled, torch.tensor([3.0, 4.0, 0.0, -5.0]) * 0.5 / 12.5**0.5)
    assert scaled.square().mean().sqrt().item() == pytest.approx(0.5)


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_the_unit_of_rewards_does_not_matter(unit):
    torch.manual_seed(0)
    rewards, scale = torch.randn(50), RewardScale(0.2)
    scale.update(rewards * unit)
    plain = RewardScale(0.2)
    plain.update(rewards)
    torch.testing.assert_close(scale(batch(3.0 * unit))[KEY], plain(batch(3.0))[KEY])


def test_before_any_reward_nothing_is_scaled():
    scale = RewardScale(0.2)
    scale.update(torch.zeros(7))
    torch.testing.assert_close(scale(batch(3.0))[KEY].item(), 3.0)


def test_the_measure_is_in_the_state_dict():
    scale, other = RewardScale(0.2), RewardScale(0.2)
    scale.update(torch.tensor([3.0, 4.0]))
    other.load_state_dict(scale.state_dict())
    assert other.factor == scale.factor != 1


def test_absent_agents_are_not_counted_whatever_their_rewards_hold():
    scale = RewardScale(0.5)
    scale.update(
        torch.tensor([[3.0, float("nan")], [0.0, 5.0]]).unsqueeze(-1), torch.tensor([[True, False], [False, True]])
    )
    assert scale.factor.item() == pytest.approx(0.5 / 17**0.5)


def test_a_reward_that_is_no_number_is_not_hidden():
    scale = RewardScale(0.5)
    scale.update(torch.tensor([3.0, float("nan")]))
    assert scale.factor.isnan()


@pytest.mark.parametrize("rms", [0.0, -1.0])
def test_a_root_mean_square_that_is_none_is_refused(rms):
    with pytest.raises(ValueError, match=f"rms must be above 0, found {rms}"):
        RewardScale(rms)
