"""Linear probes: what was heard of what another agent knows, by layers made for it, and the pictures of it."""

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded

from torchrl_bicnet import BiCNet, BiCNetActor, make_vmas_env
from torchrl_bicnet.analysis import LinearProbe, linear_probe, plot_linear_probe, visited_states


@pytest.fixture(autouse=True)
def _same_numbers():
    torch.manual_seed(0)


class Whisper(nn.Module):
    """Agent 1 hears agent 0, and nobody else hears anything."""

    in_features = out_features = 3

    def forward(self, x, mask=None):
        heard = torch.zeros_like(x)
        heard[..., 1, :] = x[..., 0, :]
        return heard


def make_actor(communication, n_agents=3, **options):
    """Each agent does the sum of the first two features that it heard."""
    encoder, decoder = nn.Identity(), nn.Linear(6, 2, bias=False)
    encoder.out_features = 3
    with torch.no_grad():
        decoder.weight.copy_(torch.tensor([[1.0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]))
    net = BiCNet(3, 2, encoder=encoder, communication=communication, decoder=decoder)
    return BiCNetActor(3, Bounded(-1.0, 1.0, (n_agents, 2)), net=net, **options)


def make_states(n_states=4000, n_agents=3, episode=None):
    observation = torch.randn(n_states, n_agents, 3)
    episode = torch.arange(n_states) if episode is None else episode
    return TensorDict({"agents": {"observation": observation}, "episode": episode}, [n_states])


def knowledge_of(states):
    return states["agents", "observation"][..., :2]


def test_who_hears_whom_by_hand():
    states = make_states()
    probe = linear_probe(make_actor(Whisper()), states, knowledge_of(states))
    one_link = torch.zeros(3, 3).double()
    one_link[1, 0] = 1
    torch.testing.assert_close(probe.r2, one_link, atol=0.02, rtol=0)
    torch.testing.assert_close(probe.own_r2, torch.eye(3).double(), atol=0.02, rtol=0)
    # The sum of two independent features of equal variance tells half of the variance of each.
    torch.testing.assert_close(probe.acted_r2, torch.eye(3).double() + one_link / 2, atol=0.03, rtol=0)
    torch.testing.assert_close(probe.readout[1, :, 0], probe.truth[:, 0])
    torch.testing.assert_close(probe.own_readout[2, :, 2], probe.truth[:, 2])


def test_without_communication_an_agent_hears_itself_alone():
    actor = BiCNetActor(3, Bounded(-1.0, 1.0, (3, 2)), communication="none", num_cells=(64,))
    states = make_states()
    r2 = linear_probe(actor, states, knowledge_of(states)).r2
    assert r2.diagonal().min() > 0.9
    assert r2[~torch.eye(3, dtype=torch.bool)].abs().max() < 0.1


@pytest.mark.parametrize("communication", ["gru", "mean", "attention", "recurrent_attention"])
def test_every_layer_that_talks_is_heard(communication):
    actor = BiCNetActor(3, Bounded(-1.0, 1.0, (3, 2)), communication=communication, num_cells=(64,), hidden_size=32)
    states = make_states()
    probe = linear_probe(actor, states, knowledge_of(states))
    assert probe.r2.min() > 0.1
    assert probe.own_r2[~torch.eye(3, dtype=torch.bool)].abs().max() < 0.05


def test_what_correlates_with_the_own_observation_is_told_apart():
    """Of x and x + e, both of variance 1 and independent, the correlation is 1 / sqrt(2), so that R^2 is 1 / 2."""
    states = make_states(40_000)
    states["agents", "observation"][:, 2, 0] += states["agents", "observation"][:, 1, 0]
    probe = linear_probe(make_actor(Whisper()), states, states["agents", "observation"][..., :1])
    assert probe.own_r2[2, 1].item() == pytest.approx(0.5, abs=0.02)
    assert probe.own_r2[1, 2].item() == pytest.approx(0.5, abs=0.02)
    assert probe.r2[1, 2].abs() < 0.01


def test_the_coefficient_of_determination_by_hand():
    """Of 1, 2, 6 the squares around the mean, 3, are 4 + 1 + 9; errors of 0, 1, 2 leave 1 - 5 / 14."""
    truth = torch.tensor([1.0, 2.0, 6.0]).view(3, 1, 1)
    off = truth + torch.tensor([0.0, 1.0, 2.0]).view(3, 1, 1)
    probe = LinearProbe(truth, off[None], truth.mean().expand(1, 3, 1, 1), truth[None])
    assert probe.r2.item() == pytest.approx(1 - 5 / 14)
    assert probe.own_r2.item() == 0
    assert probe.acted_r2.item() == 1


def test_what_is_the_same_in_all_states_cannot_be_known():
    states = make_states(100)
    states["agents", "observation"][:, 2, 0] = 0.3
    probe = linear_probe(make_actor(Whisper()), states, states["agents", "observation"][..., :1])
    assert probe.r2[:, 2].isnan().all()
    assert not probe.r2[:, :2].isnan().any()
    assert plot_linear_probe(probe).axes[0].texts[2].get_text() == "nan"


def test_features_that_never_change_do_not_disturb():
    """Columns of zeros; LAPACK's gelsy as PyTorch calls it gives up on them."""
    states = make_states(1000)
    states["agents", "observation"][..., :2] = 0
    probe = linear_probe(make_actor(Whisper()), states, states["agents", "observation"][..., 2:])
    torch.testing.assert_close(probe.own_r2.diagonal(), torch.ones(3).double())


def test_readouts_are_judged_in_episodes_that_they_were_not_fit_on():
    episode = torch.randint(10, 50, (400,))
    states = make_states(400, episode=episode)
    probe = linear_probe(make_actor(Whisper()), states, knowledge_of(states))
    of_second_half = torch.isin(episode, episode.unique()[1::2])
    assert torch.equal(probe.truth, knowledge_of(states)[of_second_half].double())
    # What is said in an episode's states all alike, and means something else in the next one, is not learned by heart.
    code, meaning = torch.randn(2, 8, 3, 3)
    states = make_states(800, episode=torch.arange(8).repeat(100))
    states["agents", "observation"] = code[states["episode"]]
    probe = linear_probe(make_actor(Whisper()), states, meaning[states["episode"]])
    assert probe.r2[1, 0] < 0.5


def test_any_batch_shape():
    states = make_states(600)
    actor = make_actor(Whisper())
    flat = linear_probe(actor, states, knowledge_of(states))
    square = linear_probe(actor, states.reshape(20, 30), knowledge_of(states).reshape(20, 30, 3, 2))
    assert torch.equal(square.readout, flat.readout)
    assert torch.equal(square.truth, flat.truth)


def test_with_a_mask_the_states_count_in_which_all_are_present():
    states = make_states(600)
    mask = torch.ones(600, 3, dtype=torch.bool)
    mask[::3, 1] = False
    states["agents", "observation"][~mask] = torch.nan
    states["agents", "mask"] = mask
    actor = make_actor(Whisper(), mask_key=("agents", "mask"))
    masked = linear_probe(actor, states, knowledge_of(states))
    complete = linear_probe(actor, states[mask.all(-1)], knowledge_of(states)[mask.all(-1)])
    assert torch.equal(masked.readout, complete.readout)
    assert torch.equal(masked.own_r2, complete.own_r2)
    assert masked.r2[1, 0].item() == pytest.approx(1)


def test_it_leaves_the_actor_and_the_states_as_they_were():
    actor, states = make_actor(Whisper()), make_states(40)
    keys = set(states.keys(True, True))
    linear_probe(actor, states, knowledge_of(states))
    assert set(states.keys(True, True)) == keys
    assert actor.training
    assert not actor.module.net.communication._forward_hooks


def test_misuse():
    actor, states = make_actor(Whisper()), make_states(40)
    with pytest.raises(ValueError, match=r"knowledge must be of shape \(40, 3, K\), found \(40, 3\)"):
        linear_probe(actor, states, knowledge_of(states)[..., 0])
    with pytest.raises(ValueError, match="states must be of two episodes or more, found 1"):
        linear_probe(actor, states[:1], knowledge_of(states)[:1])
    with pytest.raises(KeyError, match="episode"):
        linear_probe(actor, states.exclude("episode"), knowledge_of(states))
    with pytest.raises(TypeError, match="actor must be one BiCNetActor, such as run"):
        linear_probe(actor.module.net, states, knowledge_of(states))
    probe = linear_probe(actor, states, knowledge_of(states))
    with pytest.raises(ValueError, match="receiver must be between 0 and 2, found 3"):
        plot_linear_probe(probe, receiver=3)


def test_the_plot_shows_the_matrices_and_the_readouts_of_a_pair(tmp_path):
    truth = torch.randn(3000, 2, 2)
    nothing = torch.zeros(2, 3000, 2, 2)
    probe = LinearProbe(truth, truth + torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), nothing, nothing + truth)
    figure = plot_linear_probe(probe, receiver=0, knower=1)
    *matrices, pair = figure.axes[:4]
    for axes, r2 in zip(matrices, (probe.r2, probe.own_r2, probe.acted_r2)):
        assert torch.equal(torch.from_numpy(axes.images[0].get_array().data), r2)
    assert [text.get_text() for text in matrices[1].texts] == ["0.00"] * 4  # not -0.00
    readouts = {points.get_label(): points.get_offsets().data for points in pair.collections}
    assert readouts["heard"].shape == (1000, 2)  # 500 states, two features each
    assert (readouts["heard"][:, 0] == readouts["heard"][:, 1]).all()
    assert (readouts["own observation"][:, 1] == 0).all()
    assert (pair.get_xlabel(), pair.get_ylabel()) == ("what agent 1 knows", "readout by agent 0")
    figure.savefig(tmp_path / "probe.png")


def test_a_goal_is_read_from_the_observation_of_who_sees_it():
    env = make_vmas_env("hidden_goals", 1000, n_agents=2)
    actor = BiCNetActor.from_env(env)
    states = visited_states(env, actor, max_steps=1, seed=0)
    probe = linear_probe(actor, states, states["agents", "observation"][..., 4:6])
    torch.testing.assert_close(probe.own_r2, torch.eye(2).double(), atol=0.05, rtol=0)
