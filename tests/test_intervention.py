import pytest
import torch
from tensordict.nn import TensorDictSequential
from torch import nn

from torchrl_bicnet import BiCNet, BiCNetActor, make_vmas_env
from torchrl_bicnet.analysis import Channel, intervene, reorder

COMMUNICATIONS = ["lstm", "gru", "rnn", "mean", "attention"]
CHANGES_NOTHING = [
    Channel(),
    Channel(drop=0.0),
    Channel(noise=0.0),
    Channel(bits=None),
    Channel(window=3),
    Channel(radius=100.0, positions=(0, 1)),
]


def make_net(communication, **options):
    torch.manual_seed(0)
    return BiCNet(3, 2, communication=communication, hidden_size=8, num_cells=(12,), **options)


def alone(net, x):
    return torch.cat([net(agent) for agent in x.split(1, -2)], -2)


@pytest.mark.parametrize("channel", CHANGES_NOTHING, ids=repr)
@pytest.mark.parametrize("communication", [*COMMUNICATIONS, "none"])
def test_what_changes_nothing_changes_nothing_to_the_bit(communication, channel):
    net, x = make_net(communication), torch.randn(6, 4, 3)
    mask = torch.rand(6, 4) < 0.7
    expected, masked = net(x), net(x, mask=mask)
    with intervene(net, channel):
        assert torch.equal(net(x), expected)
        assert torch.equal(net(x, mask=mask), masked)
        assert torch.equal(net(x[0]), net(x[0]))


@pytest.mark.parametrize("channel", [Channel(drop=1.0), Channel(window=0)], ids=repr)
@pytest.mark.parametrize("communication", [*COMMUNICATIONS, "none"])
def test_who_hears_nobody_acts_as_alone(communication, channel):
    net, x = make_net(communication), torch.randn(6, 4, 3)
    with intervene(net, channel):
        heard_nobody = net(x)
    torch.testing.assert_close(heard_nobody, alone(net, x))
    assert torch.allclose(heard_nobody, net(x)) == (communication == "none")


@pytest.mark.parametrize("communication", COMMUNICATIONS)
def test_limits_leave_the_team_that_is_heard(communication):
    net, x = make_net(communication), torch.randn(6, 4, 3)
    x[..., 0] = torch.tensor([0.0, 1.0, 1.5, 9.0])
    cases = {
        Channel(direction="forward"): [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]],
        Channel(direction="backward"): [[0, 1, 2, 3], [1, 2, 3], [2, 3], [3]],
        Channel(window=1): [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3]],
        Channel(window=1, direction="forward"): [[0], [0, 1], [1, 2], [2, 3]],
        Channel(radius=1.0, positions=(0,)): [[0, 1], [0, 1, 2], [1, 2], [3]],
    }
    for channel, teams in cases.items():
        with intervene(net, channel):
            out = net(x)
        for agent, team in enumerate(teams):
            torch.testing.assert_close(out[:, agent], net(x[:, team])[:, team.index(agent)])


def test_absent_agents_are_not_heard_and_hear_nobody():
    net, x = make_net("lstm"), torch.randn(5, 4, 3)
    mask = torch.tensor([True, False, True, True]).expand(5, 4)
    x[:, 1] = torch.nan
    for channel in (Channel(window=2, bits=3), Channel(direction="forward", noise=0.0)):
        with intervene(net, channel):
            out = net(x, mask=mask)
        assert (out[:, 1] == 0).all()
        assert out.isfinite().all()
    with intervene(net, Channel(direction="forward")):
        torch.testing.assert_close(net(x, mask=mask)[:, 2], net(x[:, [0, 2]])[:, 1])


def test_losses_are_independent_with_the_given_probability():
    torch.manual_seed(0)
    links = Channel(drop=0.3).links(torch.zeros(20_000, 3, 1), torch.zeros(20_000, 3, 1)).float()
    assert (links.diagonal(dim1=-2, dim2=-1) == 1).all()
    others = links[:, ~torch.eye(3, dtype=torch.bool)]  # (20000, 6)
    # Standard error of each mean .0032, of each correlation .0071.
    torch.testing.assert_close(others.mean(0), torch.full((6,), 0.7), atol=0.015, rtol=0)
    torch.testing.assert_close(torch.corrcoef(others.T), torch.eye(6), atol=0.035, rtol=0)


def test_noise_is_in_units_of_the_message_and_anew_for_each_receiver():
    torch.manual_seed(0)
    x = torch.tensor([[1.0, -1.0], [30.0, 40.0]]).expand(20_000, 2, 2)
    received = Channel(noise=0.5).received(x)
    assert torch.equal(received.diagonal(dim1=-3, dim2=-2).mT, x)
    to_first, to_second = received[:, 0, 1] - x[:, 1], received[:, 1, 0] - x[:, 0]
    # Root mean squares: 1 and 50 / sqrt(2).
    torch.testing.assert_close(to_second.std(0), torch.full((2,), 0.5), rtol=0.03, atol=0)
    torch.testing.assert_close(to_first.std(0), torch.full((2,), 25 / 2**0.5), rtol=0.03, atol=0)
    three = Channel(noise=0.5).received(torch.ones(1, 3, 2))[0]
    assert not torch.equal(three[0, 2], three[1, 2])


def test_rounding_by_hand():
    x = torch.tensor([[0.0, 0.9, 2.1, 3.0], [5.0, 5.0, 5.0, 5.0], [-1.0, 0.4, 0.0, 1.0]])
    received = Channel(bits=1).received(x)
    assert torch.equal(received[1], torch.tensor([[0.0, 0.0, 3.0, 3.0], [5.0] * 4, [-1.0, 1.0, -1.0, 1.0]]))
    assert torch.equal(received[0, 0], x[0])
    torch.testing.assert_close(Channel(bits=2).received(x)[1, 0], torch.tensor([0.0, 1.0, 2.0, 3.0]))
    x = torch.randn(50, 2, 8)
    span = (x.amax(-1) - x.amin(-1)).unsqueeze(-1)
    for bits in (3, 8, 16):
        error = (Channel(bits=bits).received(x)[:, 0, 1] - x[:, 1]).abs()
        assert (error <= span[:, 1] / (2**bits - 1) / 2 + 1e-6).all()
        assert error.max() > 0


def test_weaker_channels_come_nearer():
    net, x = make_net("attention"), torch.randn(200, 4, 3)

    def change(**options):
        with intervene(net, Channel(**options)):
            return (net(x) - plain).square().mean().item()

    plain = net(x)
    assert change(bits=12) < change(bits=4) < change(bits=1)
    assert change(noise=0.01) < change(noise=0.1) < change(noise=1.0)
    assert change(drop=0.1) < change(drop=0.5) < change(drop=1.0)


def test_everything_is_restored_also_by_an_error():
    net, x = make_net("gru"), torch.randn(2, 4, 3)
    plain, state = net(x), net.state_dict()
    with pytest.raises(RuntimeError, match="in the block"), intervene(net, Channel(drop=1.0)):
        raise RuntimeError("in the block")
    with pytest.raises(RuntimeError, match="in the block"), reorder(net, torch.tensor([3, 2, 1, 0])):
        raise RuntimeError("in the block")
    assert torch.equal(net(x), plain)
    assert net.state_dict().keys() == state.keys()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_every_net_of_a_policy_is_concerned():
    env = make_vmas_env("simple_tag", 3, seed=0)
    policy = TensorDictSequential(*(BiCNetActor.from_env(env, group=group) for group in env.group_map))
    td = env.reset()
    plain = policy(td.clone())
    with intervene(policy, Channel(window=0)):
        cut = policy(td.clone())
    assert not torch.allclose(plain["adversary", "action"], cut["adversary", "action"])
    # An agent alone has nobody to hear.
    assert torch.equal(plain["agent", "action"], cut["agent", "action"])


@pytest.mark.parametrize("communication", [*COMMUNICATIONS, "none"])
def test_another_order_is_the_other_team(communication):
    net, x, order = make_net(communication), torch.randn(6, 4, 3), torch.tensor([2, 0, 3, 1])
    mask = torch.rand(6, 4) < 0.7
    with reorder(net, order):
        moved, masked = net(x), net(x, mask=mask)
    torch.testing.assert_close(moved[:, order], net(x[:, order]))
    torch.testing.assert_close(masked[:, order], net(x[:, order], mask=mask[:, order]))
    assert torch.allclose(moved, net(x), atol=1e-5) == (communication in ("mean", "attention", "none"))
    with reorder(net, torch.arange(4)):
        assert torch.equal(net(x), net(x.clone()))


def test_agents_keep_their_own_networks_in_another_order():
    net = make_net("none", share_params=False, n_agents=4)
    x = torch.randn(6, 4, 3)
    plain = net(x)
    with reorder(net, torch.tensor([2, 0, 3, 1])):
        torch.testing.assert_close(net(x), plain)


def test_what_does_not_fit_the_team_is_refused():
    net, x = make_net("mean"), torch.randn(4, 3)
    with pytest.raises(ValueError, match="holds a BiCNet, found Linear"), intervene(nn.Linear(2, 2), Channel()):
        pass
    far = Channel(radius=1.0, positions=(2, 3))
    with intervene(net, far), pytest.raises(ValueError, match=r"positions=\(2, 3\) are beyond an observation of 3"):
        net(x)
    with reorder(net, torch.arange(3)), pytest.raises(ValueError, match="order is one of 3 agents, found 4"):
        net(x)
    nested = pytest.raises(ValueError, match="One intervene or reorder at a time")
    with intervene(net, Channel()), nested, reorder(net, torch.arange(4)):
        pass
