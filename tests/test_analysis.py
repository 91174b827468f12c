import itertools
import json

import pytest
import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn

from tests.guess_the_sum import BLIND_COST, trained_actor
from tests.helpers_vmas import Countdown
from torchrl_bicnet import BiCNetActor, ExplorationNoise, evaluate, make_vmas_env, paired_difference
from torchrl_bicnet.analysis import (
    Channel,
    channel_value,
    example_channels,
    influence_matrix,
    linear_probe,
    order_sensitivity,
    plot_channel_value,
    plot_influence,
    plot_order_sensitivity,
    visited_states,
)
from torchrl_bicnet.tasks import GuessTheSum

SHORT = {"max_steps": 3, "seed": 0}
NEAR = Channel(radius=0.5, positions=(0, 1))


@pytest.fixture(scope="module")
def actor():
    return trained_actor("lstm", seed=0, steps=1200)


@pytest.fixture(scope="module")
def env():
    return make_vmas_env(GuessTheSum(), 2000, seed=0)


@pytest.fixture(scope="module")
def value(env, actor):
    return channel_value(env, actor, example_channels(3), max_steps=1, seed=0)


class TestATrainedTeam:
    """A team that guesses the sum of what its agents see, which nobody can alone."""

    def test_without_its_messages_it_is_no_better_than_a_blind_one(self, value):
        returns = {label: e.summary()["evaluation_return"] for label, e in value.changed.items()}
        assert value.intact.summary()["evaluation_return"] > -0.05 * BLIND_COST
        assert returns["cut"] < -BLIND_COST
        loss = value.differences()["cut"]
        assert loss["evaluation_return_difference"] < -20 * loss["evaluation_return_difference_stderr"]
        numbers = value.summary()
        assert list(numbers) == ["intact", *value.changed]
        assert numbers["intact"] == value.intact.summary()
        assert numbers["cut"] == value.changed["cut"].summary() | loss
        # Half of the links lost, half of the bits gone, half of the team unheard: in between, and in order.
        assert returns["drop 10%"] > returns["drop 25%"] > returns["drop 50%"]
        assert returns["noise 0.1"] > returns["noise 0.3"] > returns["noise 1.0"]
        assert returns["8 bits"] > returns["4 bits"] > returns["2 bits"] > returns["1 bit"]
        assert returns["8 bits"] > -0.06 * BLIND_COST
        assert returns["window 1"] < -BLIND_COST / 10

    def test_the_plot_shows_it(self, value):
        axes = plot_channel_value(value).axes[0]
        means = axes.containers[0].lines[0].get_xdata()
        rows = [label.get_text() for label in axes.get_yticklabels()]
        assert rows[:2] == ["intact", "cut"]
        assert means[0] == value.intact.summary()["evaluation_return"]
        assert means[rows.index("cut")] == value.changed["cut"].summary()["evaluation_return"]
        low, high = axes.get_xlim()
        assert means[0] - means[1] > (high - low) / 5

    def test_everybody_listens_to_everybody(self, env, actor):
        matrix = influence_matrix(actor, visited_states(env, actor, max_steps=1, seed=0))
        # The gradient of the sum by any of its terms is 1.
        torch.testing.assert_close(matrix, torch.ones(3, 3), atol=0.25, rtol=0)

    def test_everybody_can_tell_the_others_numbers_from_what_it_heard(self, env, actor):
        states = visited_states(env, actor, max_steps=1, seed=0)
        probe = linear_probe(actor, states, states["agents", "observation"])
        assert probe.r2.min() > 0.9
        torch.testing.assert_close(probe.own_r2, torch.eye(3).double(), atol=0.05, rtol=0)
        # Who knows one of three numbers and their sum knows half of the variance of each of the others.
        torch.testing.assert_close(probe.acted_r2, (torch.eye(3).double() + 1) / 2, atol=0.1, rtol=0)

    def test_the_order_changes_little_where_agents_are_exchangeable(self, env, actor):
        sensitivity = order_sensitivity(env, actor, max_steps=1, seed=0)
        summary = sensitivity.summary()
        assert summary["order_return_max"] - summary["order_return_min"] < 0.05 * BLIND_COST
        assert 0 < summary["order_action_std"] < 0.2


@pytest.mark.parametrize("communication", ["lstm", "mean", "attention"])
def test_channels_that_change_nothing_leave_returns_equal_to_the_bit(communication):
    env = make_vmas_env("navigation", 5, n_agents=3)
    actor = BiCNetActor.from_env(env, communication=communication)
    channels = {
        "drop": Channel(drop=0.0),
        "noise": Channel(noise=0.0),
        "bits": Channel(bits=None),
        "window": Channel(window=2),
        "radius": Channel(radius=100.0, positions=(0, 1)),
        "both": Channel(direction="both"),
        "cut": Channel(window=0),
    }
    value = channel_value(env, actor, channels, max_steps=6, seed=1)
    plain = evaluate(env, actor, max_steps=6, seed=1).returns["agents"]
    assert torch.equal(value.intact.returns["agents"], plain)
    for label, evaluation in value.changed.items():
        assert torch.equal(evaluation.returns["agents"], plain) == (label != "cut"), label


def test_losses_and_noise_are_drawn_from_the_evaluations_own_stream():
    env = make_vmas_env("navigation", 5, n_agents=3)
    actor = BiCNetActor.from_env(env)
    channels = {"drop": Channel(drop=0.5), "noise": Channel(noise=1.0)}
    state = torch.get_rng_state()
    first, again = (channel_value(env, actor, channels, max_steps=4, seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for label in channels:
        returns = first.changed[label].returns["agents"]
        assert torch.equal(returns, again.changed[label].returns["agents"])
        assert not torch.equal(returns, first.intact.returns["agents"])


def test_examples_are_of_every_kind():
    channels = example_channels(5)
    assert len(set(channels.values())) == len(channels)
    assert [label for label in channels if "window" in label] == ["window 1", "window 2", "window 3"]


def test_states_are_those_of_first_episodes():
    env = make_vmas_env(Countdown(), 4)
    policy = TensorDictModule(
        lambda observation: observation.new_zeros(*observation.shape[:-1], 2),
        in_keys=[("agents", "observation")],
        out_keys=[("agents", "action")],
    )
    states = visited_states(env, policy, max_steps=3, seed=0)
    assert set(states.keys(True, True)) == {("agents", "observation"), "episode"}
    assert states["episode"].tolist() == [0, 1, 2, 3, 1, 2, 3, 2, 3]  # environment i ends after i + 1 steps
    # Environment i counts down from i + 1; cut off after 3 steps.
    assert states["agents", "observation"][:, 0, 0].tolist() == [1, 2, 3, 4, 1, 2, 3, 1, 2]


def test_states_are_those_that_the_policy_read():
    """Noise that writes its own state into the tensordict is no part of them."""
    env = make_vmas_env("navigation", 4, n_agents=2)
    actor = BiCNetActor.from_env(env)
    noisy = TensorDictSequential(actor, ExplorationNoise(actor.spec, sigma=0.5, correlation=0.9))
    states = visited_states(env, noisy, max_steps=3, seed=0)
    plain = visited_states(env, actor, max_steps=3, seed=0)
    assert torch.equal(states["agents", "observation"], plain["agents", "observation"])
    env.set_seed(0)
    assert torch.equal(states["agents", "observation"][:4], env.reset()["agents", "observation"])


class TestOrders:
    @pytest.mark.parametrize("communication", ["lstm", "mean"])
    def test_all_orders_of_a_small_team(self, communication):
        env = make_vmas_env("navigation", 4, n_agents=3)
        actor = BiCNetActor.from_env(env, communication=communication)
        sensitivity = order_sensitivity(env, actor, max_steps=5, seed=0)
        assert [tuple(order) for order in sensitivity.orders.tolist()] == list(itertools.permutations(range(3)))
        plain = evaluate(env, actor, max_steps=5, seed=0).returns["agents"]
        assert torch.equal(sensitivity.evaluations[0].returns["agents"], plain)
        summary = sensitivity.summary()
        assert summary["order_return_trained"] == pytest.approx(plain.mean().item())
        sensitive = communication == "lstm"
        assert (summary["order_return_std"] > 1e-4) == sensitive
        assert (summary["order_action_std"] > 1e-4) == sensitive
        assert summary["order_return_min"] <= summary["order_return_trained"] <= summary["order_return_max"]

    def test_each_order_has_its_return_and_its_difference_to_the_first(self):
        env = make_vmas_env("navigation", 5, n_agents=3)
        sensitivity = order_sensitivity(env, BiCNetActor.from_env(env), max_steps=5, seed=0)
        rows = sensitivity.by_order()
        assert json.loads(json.dumps(rows)) == rows
        assert [row["order"] for row in rows] == sensitivity.orders.tolist()
        assert rows[0]["return_difference"] == rows[0]["return_difference_stderr"] == 0
        difference = paired_difference(sensitivity.evaluations[3], sensitivity.evaluations[0])
        names = ("return_difference", "return_difference_stderr")
        assert [rows[3][name] for name in names] == pytest.approx([difference[f"evaluation_{name}"] for name in names])
        returns = [row["return"] for row in rows]
        assert [min(returns), max(returns)] == pytest.approx(
            [sensitivity.summary()[f"order_return_{end}"] for end in ("min", "max")]
        )

    def test_the_spread_of_the_actions_by_hand(self):
        """Two agents, one step: the spread is half of the distance between the actions in the two orders."""
        env = make_vmas_env("navigation", 4, n_agents=2)
        actor = BiCNetActor.from_env(env)
        sensitivity = order_sensitivity(env, actor, max_steps=1, seed=0)
        env.set_seed(0)
        td = env.reset()
        action = actor(td)["agents", "action"]
        td["agents", "observation"] = td["agents", "observation"].flip(-2)
        other = actor(td)["agents", "action"].flip(-2)
        expected = ((action - other) / 2).square().mean((0, 2)).sqrt()
        torch.testing.assert_close(sensitivity.action_std, expected.detach())

    def test_the_actor_in_train_mode_is_asked_in_eval_mode(self):
        env = make_vmas_env("navigation", 4, n_agents=2)
        encoder = nn.Sequential(nn.Linear(18, 8), nn.Dropout(0.5))
        encoder.out_features = 8
        actor = BiCNetActor.from_env(env, encoder=encoder, communication="mean")
        assert order_sensitivity(env, actor, max_steps=2, seed=0).action_std.max() < 1e-5
        assert all(module.training for module in actor.modules())

    def test_a_draw_of_the_orders_of_a_large_team(self):
        env = make_vmas_env("navigation", 2, n_agents=5)
        actor = BiCNetActor.from_env(env)
        orders = order_sensitivity(env, actor, max_steps=1, seed=0, max_orders=7).orders
        assert orders.shape == (7, 5)
        assert len(orders.unique(dim=0)) == 7
        assert torch.equal(orders[0], torch.arange(5))
        assert torch.equal(orders.sort(-1).values, torch.arange(5).expand(7, 5))
        assert torch.equal(order_sensitivity(env, actor, max_steps=1, seed=0, max_orders=7).orders, orders)

    def test_of_one_group_of_several(self):
        env = make_vmas_env("simple_tag", 2)
        policy = TensorDictSequential(*(BiCNetActor.from_env(env, group=group) for group in env.group_map))
        sensitivity = order_sensitivity(env, policy, max_steps=2, seed=0, group="adversary")
        assert sensitivity.orders.shape == (6, 3)
        assert sensitivity.action_std.shape == (3,)
        returns = evaluate(env, policy, max_steps=2, seed=0).returns["adversary"].mean(-1)
        assert torch.equal(sensitivity.returns()[0], returns)
        assert len(plot_order_sensitivity(sensitivity).axes[0].lines[0].get_xdata()) == 6
        with pytest.raises(ValueError, match=r"of exactly one group, found actors of \['adversary', 'agent'\]"):
            order_sensitivity(env, policy, max_steps=2, seed=0)
        with pytest.raises(ValueError, match="of group 'prey', found actors of"):
            order_sensitivity(env, policy, max_steps=2, seed=0, group="prey")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("communication", ["lstm", "attention"])
def test_everything_on_cuda(communication):
    env = make_vmas_env("navigation", 4, n_agents=3, device="cuda")
    actor = BiCNetActor.from_env(env, communication=communication)
    value = channel_value(env, actor, example_channels(3) | {"near": NEAR, "all": Channel(window=2)}, **SHORT)
    intact = value.intact.returns["agents"]
    assert intact.is_cuda
    assert torch.equal(value.changed["all"].returns["agents"], intact)
    assert not torch.equal(value.changed["cut"].returns["agents"], intact)
    assert plot_channel_value(value).axes[0].containers[0].lines[0].get_xdata()[0] == intact.mean().item()

    sensitivity = order_sensitivity(env, actor, **SHORT)
    assert torch.equal(sensitivity.evaluations[0].returns["agents"], intact)
    assert (sensitivity.action_std > 1e-4).all() == (communication == "lstm")
    assert sensitivity.summary()["order_return_trained"] == pytest.approx(intact.mean().item())
    plot_order_sensitivity(sensitivity)

    states = visited_states(env, actor, **SHORT)
    matrix = influence_matrix(actor, states)
    plot_influence(matrix)
    probe = linear_probe(actor, states, states["agents", "observation"][..., :2])
    torch.testing.assert_close(matrix.cpu(), influence_matrix(actor.cpu(), states.cpu()), rtol=0.02, atol=1e-3)
    assert probe.r2.shape == (3, 3)
