import copy
import pickle
from contextlib import nullcontext

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torch.utils._python_dispatch import TorchDispatchMode
from torchrl.collectors import Collector
from torchrl.data import Bounded, Composite
from torchrl.envs.utils import ExplorationType, set_exploration_type

from tests.test_modules import random_bounds
from torchrl_bicnet import BiCNetActor, ExplorationNoise, make_vmas_env

STATE = ("agents", "exploration_noise")
SMALL = {"hidden_size": 8, "num_cells": (12,)}


def spec(*shape, low=-3.0, high=5.0):
    """By default the middle is 1 and half the range 4."""
    return Composite({"agents": {"action": Bounded(low, high, shape)}})


def data(*shape, action=1.0, is_init=False):
    td = TensorDict({"agents": {"action": torch.full(shape, action)}}, shape[:-2])
    td["is_init"] = torch.full((*shape[:-2], 1), is_init)
    return td


def explore(noise, td):
    with set_exploration_type(ExplorationType.RANDOM):
        return noise(td)


def process(noise, n_steps, *shape, restarts=None):
    """The noise added over time, (n_steps, *shape), from the start of an episode; restarts: time -> is_init."""
    td = data(*shape, is_init=True)
    added = []
    for step in range(n_steps):
        explore(noise, td)
        added.append(td["agents", "action"] - 1)
        td["agents", "action"] = torch.ones(shape)
        td["is_init"] = (restarts or {}).get(step + 1, torch.zeros(*shape[:-2], 1, dtype=torch.bool))
    return torch.stack(added)


def correlation(x, y):
    return torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1].item()


class TestDistribution:
    # 1000 values an environment and step: a standard error of 0.022 for the deviation of one step's, of 0.01 for that
    # of all five environments, and of at most 0.005 over all steps, of which correlation leaves about a tenth as many.
    shape = (5, 50, 20)
    n_steps = 200

    @pytest.mark.parametrize("c", [0.0, 0.5, 0.9])
    def test_deviation_of_each_environment_and_autocorrelation(self, c):
        torch.manual_seed(0)
        noise = ExplorationNoise(spec(50, 20), sigma=(0.02, 0.1), correlation=c)
        added = process(noise, self.n_steps, *self.shape)
        sigma = 4 * torch.tensor([0.02, 0.04, 0.06, 0.08, 0.1])
        torch.testing.assert_close(added.std((0, 2, 3)), sigma, rtol=0.02, atol=0)
        normalised = added / sigma[:, None, None]
        torch.testing.assert_close(normalised.std((1, 2, 3)), torch.ones(self.n_steps), rtol=0.04, atol=0)
        assert normalised.mean().abs() < 0.02
        assert normalised.pow(4).mean() == pytest.approx(3, abs=0.15)  # of a normal distribution
        for lag in (1, 2, 5):
            assert correlation(normalised[lag:], normalised[:-lag]) == pytest.approx(c**lag, abs=0.02), lag
        for dim in (1, 2, 3):  # nothing in common between environments, agents or actions
            assert correlation(normalised, normalised.roll(1, dim)) == pytest.approx(0, abs=0.02)

    def test_one_scale_everywhere(self):
        torch.manual_seed(0)
        added = process(ExplorationNoise(spec(50, 20), sigma=0.05), self.n_steps, *self.shape)
        torch.testing.assert_close(added.std((0, 2, 3)), torch.full((5,), 0.2), rtol=0.02, atol=0)

    def test_half_the_range_is_each_actions_own(self):
        torch.manual_seed(0)
        low, high = torch.tensor([[0.0, -8.0], [-9.0, 0.0]]), torch.tensor([[2.0, 10.0], [11.0, 2.0]])
        noise = ExplorationNoise(spec(2, 2, low=low, high=high), sigma=0.1)
        added = explore(noise, data(10_000, 2, 2))["agents", "action"] - 1
        torch.testing.assert_close(added.std(0), 0.1 * (high - low) / 2, rtol=0.04, atol=0)

    @pytest.mark.parametrize(
        ("batch", "sigma"),
        [((), [0.06]), ((1,), [0.06]), ((2,), [0.02, 0.1]), ((2, 2), [0.02, 0.14 / 3, 0.22 / 3, 0.1])],
    )
    def test_environments_are_the_whole_batch(self, batch, sigma):
        torch.manual_seed(0)
        added = explore(ExplorationNoise(spec(100, 100), sigma=(0.02, 0.1)), data(*batch, 100, 100))
        deviation = (added["agents", "action"] - 1).std((-2, -1)).flatten()
        torch.testing.assert_close(deviation, 4 * torch.tensor(sigma), rtol=0.04, atol=0)

    def test_an_empty_batch(self):
        noise = ExplorationNoise(spec(3, 2), sigma=(0.1, 0.2), correlation=0.5)
        assert explore(noise, data(0, 3, 2))["agents", "action"].shape == (0, 3, 2)


def test_restarts_with_the_episode():
    torch.manual_seed(0)
    ended = torch.tensor([[False], [True]])
    added = process(ExplorationNoise(spec(50, 100), sigma=0.05, correlation=0.95), 20, 2, 50, 100, restarts={10: ended})
    for lag in (1, 3):
        # 5000 values: a standard error of 0.014
        assert correlation(added[9 + lag, 0], added[9, 0]) == pytest.approx(0.95**lag, abs=0.06)
        assert correlation(added[9 + lag, 1], added[9, 1]) == pytest.approx(0, abs=0.06)
        assert correlation(added[10 + lag, 1], added[10, 1]) == pytest.approx(0.95**lag, abs=0.06)
    torch.testing.assert_close(added.std((2, 3)), torch.full((20, 2), 0.2), rtol=0.05, atol=0)


@pytest.mark.parametrize("mode", [ExplorationType.DETERMINISTIC, ExplorationType.MODE, ExplorationType.MEAN, None])
@pytest.mark.parametrize("c", [0.0, 0.9])
def test_silent_outside_exploration(mode, c):
    noise = ExplorationNoise(spec(3, 2), sigma=1.0, correlation=c)
    outside = torch.get_rng_state()
    td = data(4, 3, 2, action=9.0)  # an action it would clamp
    with nullcontext() if mode is None else set_exploration_type(mode):
        noise(td)
    assert (td["agents", "action"] == 9).all()
    assert torch.equal(torch.get_rng_state(), outside)
    assert set(td.keys(True, True)) == {("agents", "action"), "is_init", *noise.out_keys}


def test_exploration_that_begins_within_an_episode_begins_at_full_strength():
    torch.manual_seed(0)
    noise = ExplorationNoise(spec(100, 100), sigma=0.05, correlation=0.99)
    td = explore(noise, data(100, 100, is_init=True))
    first = td[STATE]
    td["is_init"] = torch.tensor([False])
    noise(td)
    assert (td[STATE] == 0).all()
    second = explore(noise, td)[STATE]
    assert second.std() == pytest.approx(1, abs=0.04)
    assert correlation(first, second) == pytest.approx(0, abs=0.04)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("per_agent", [False, True])
def test_actions_never_leave_the_bounds(seed, per_agent):
    torch.manual_seed(seed)
    low, high = (bound.expand(3, 2).contiguous() for bound in random_bounds(3 if per_agent else 1, 2))
    actor = BiCNetActor(5, Bounded(low, high), **SMALL)
    noise = ExplorationNoise(actor.spec, sigma=(0.0, 10.0), correlation=0.5)
    td = TensorDict({"agents": {"observation": torch.randn(1000, 3, 5)}}, [1000])
    td["is_init"] = torch.ones(1000, 1, dtype=torch.bool)
    for _ in range(5):
        action = explore(noise, actor(td))["agents", "action"]
        assert (action >= low).all()
        assert (action <= high).all()
    assert torch.equal(action[0], actor(td)["agents", "action"][0])  # of the environment with sigma 0


def test_each_environment_of_a_batch_of_two_dimensions_restarts_on_its_own():
    torch.manual_seed(0)
    noise = ExplorationNoise(spec(4, 2), sigma=0.3, correlation=0.999)  # of standard deviation 1.2
    restart = torch.tensor([[True, False, False], [False, False, True]]).unsqueeze(-1)  # (2, 3, 1)
    first, second = process(noise, 2, 2, 3, 4, 2, restarts={1: restart})
    changed = (second - first).abs().amax((-2, -1)) > 0.4  # otherwise by 0.05, one standard deviation
    assert torch.equal(changed, restart.squeeze(-1))


def test_the_state_dict_holds_the_annealing_alone():
    """So that it loads for another number of agents, whose bounds are its own."""
    noise, other = ExplorationNoise(spec(3, 2), sigma=0.5), ExplorationNoise(spec(5, 2), sigma=0.5)
    noise.step()
    assert {name: (value.dtype, value.item()) for name, value in noise.state_dict().items()} == {
        "n_steps": (torch.int64, 1)
    }
    other.load_state_dict(noise.state_dict())
    assert other.factor == noise.factor


class TestAnnealing:
    def test_the_factor_falls_linearly_and_stays(self):
        noise = ExplorationNoise(spec(3, 2), sigma=1.0, end_factor=0.2, annealing_num_steps=4)
        factors = []
        for _ in range(7):
            factors.append(noise.factor)
            noise.step()
        torch.testing.assert_close(torch.stack(factors), torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2]))

    def test_the_noise_falls_with_it_and_the_state_does_not(self):
        noise = ExplorationNoise(spec(3, 2), sigma=0.01, correlation=0.9, end_factor=0.5, annealing_num_steps=1)
        torch.manual_seed(0)
        before = explore(noise, data(4, 3, 2))
        noise.step()
        torch.manual_seed(0)
        after = explore(noise, data(4, 3, 2))
        assert torch.equal(after[STATE], before[STATE])
        torch.testing.assert_close(after["agents", "action"] - 1, (before["agents", "action"] - 1) / 2)

    def test_a_state_dict_resumes_it(self):
        noise = ExplorationNoise(spec(3, 2), sigma=1.0, annealing_num_steps=10)
        for _ in range(3):
            noise.step()
        resumed = ExplorationNoise(spec(7, 2), sigma=1.0, annealing_num_steps=10)
        resumed.load_state_dict(noise.state_dict())
        for module in (resumed, copy.deepcopy(noise), pickle.loads(pickle.dumps(noise))):
            assert torch.equal(module.factor, noise.factor)
            module.step()
            assert module.factor.item() == pytest.approx(0.64)
        assert noise.factor.item() == pytest.approx(0.73)


class TestMask:
    mask = torch.tensor([[True, False, True], [False, False, True]])

    @pytest.mark.parametrize("c", [0.0, 0.9])
    def test_absent_agents_stay_at_zero_whatever_their_slots_hold(self, c):
        noise = ExplorationNoise(
            spec(3, 2, low=2.0, high=6.0), sigma=0.1, correlation=c, mask_key=("agents", "mask")
        )  # 0 is outside the bounds
        td = data(2, 3, 2, action=4.0, is_init=True)
        td["agents", "mask"] = self.mask
        td["agents", "action"][~self.mask] = torch.nan
        explore(noise, td)
        assert (td["agents", "action"][~self.mask] == 0).all()
        assert ((td["agents", "action"][self.mask] - 4).abs() > 0).all()
        if c:
            assert (td[STATE][~self.mask] == 0).all()

    def test_an_agent_that_joins_has_noise_of_full_strength_and_the_others_go_on(self):
        torch.manual_seed(0)
        noise = ExplorationNoise(spec(3, 10_000), sigma=0.1, correlation=0.99, mask_key=("agents", "mask"))
        td = data(2, 3, 10_000, is_init=True)
        td["agents", "mask"] = self.mask
        before = explore(noise, td)[STATE]
        td["is_init"] = torch.zeros(2, 1, dtype=torch.bool)
        td["agents", "mask"] = torch.ones(2, 3, dtype=torch.bool)
        after = explore(noise, td)[STATE]
        torch.testing.assert_close(after.std(-1), torch.ones(2, 3), rtol=0.04, atol=0)
        assert correlation(after[self.mask], before[self.mask]) == pytest.approx(0.99, abs=0.01)


def test_keys():
    noise = ExplorationNoise(spec(3, 2), sigma=1.0)
    assert noise.in_keys == noise.out_keys == [("agents", "action")]
    noise = ExplorationNoise(spec(3, 2), sigma=1.0, correlation=0.5, mask_key=("agents", "mask"))
    assert noise.in_keys == [("agents", "action"), STATE, "is_init", ("agents", "mask")]
    assert noise.out_keys == [("agents", "action"), STATE]


def test_several_groups_each_have_their_own():
    actions = Composite({"red": {"action": Bounded(-1.0, 1.0, (3, 2))}, "blue": {"action": Bounded(-1.0, 1.0, (2, 1))}})
    red, blue = (
        ExplorationNoise(actions, sigma=0.1, correlation=0.5, action_key=(group, "action")) for group in ("red", "blue")
    )
    td = TensorDict({"is_init": torch.tensor([True]), **actions.zero()})
    td = explore(TensorDictSequential(red, blue), td)
    assert td["red", "exploration_noise"].shape == (3, 2)
    assert td["blue", "exploration_noise"].shape == (2, 1)
    flat = ExplorationNoise(Composite({"action": Bounded(-1.0, 1.0, (3, 2))}), sigma=0.1, correlation=0.5)
    assert flat.out_keys == ["action", "exploration_noise"]


class Collected:
    """20 environments, 8 batches of 5 steps in episodes of 7, so that episodes end within and between batches."""

    def __init__(self, seed=0, c=0.9, **options):
        torch.manual_seed(seed)
        env = make_vmas_env("navigation", 20, max_steps=7, seed=seed, n_agents=3)
        self.actor = BiCNetActor.from_env(env, **SMALL)
        noise = ExplorationNoise(self.actor.spec, sigma=(0.1, 0.5), correlation=c)
        policy = TensorDictSequential(self.actor, noise)
        collector = Collector(env, policy, frames_per_batch=100, total_frames=800, **options)
        self.batch = torch.cat(list(collector), -1)  # (20, 40)
        collector.shutdown()


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch.compile's own
class TestCollector:
    # TorchRL picks out what a compiled policy, or one on another device, has written by the keys it saw it write.
    @pytest.mark.parametrize("options", [{}, {"use_buffers": True}, {"compile_policy": {"backend": "eager"}}], ids=str)
    def test_the_process_goes_on_from_batch_to_batch_and_restarts_with_the_episode(self, options):
        collected = Collected(**options)
        batch, state = collected.batch, collected.batch[STATE]
        assert batch.shape == (20, 40)
        # The action is the actor's and the noise.
        sigma = torch.linspace(0.1, 0.5, 20)[:, None, None, None]
        with torch.no_grad():
            action = collected.actor(batch.clone())["agents", "action"]
        torch.testing.assert_close(batch["agents", "action"], (action + sigma * state).clamp(-1, 1))
        # The noise is the process: e_t standard normal and independent of n_{t-1}, n_t where the episode starts.
        starts = batch["is_init"].squeeze(-1)[:, 1:]
        assert starts.any(0).sum() >= 5
        previous, following = state[:, :-1], state[:, 1:]
        fresh = (following - 0.9 * previous) / 0.19**0.5
        assert fresh[~starts].std() == pytest.approx(1, abs=0.06)  # about 4000 values
        assert correlation(fresh[~starts], previous[~starts]) == pytest.approx(0, abs=0.07)
        assert following[starts].std() == pytest.approx(1, abs=0.12)  # about 600
        assert correlation(following[starts], previous[starts]) == pytest.approx(0, abs=0.17)

    def test_without_correlation_there_is_no_state(self):
        assert STATE not in Collected(c=0.0).batch.keys(True)

    def test_two_runs_with_one_seed_are_equal_and_another_differs(self):
        first, again, other = (Collected(seed).batch.exclude("collector") for seed in (0, 0, 1))
        assert (first == again).all()
        assert not torch.equal(first[STATE], other[STATE])

    def test_random_frames_first(self):
        collected = Collected(init_random_frames=100)
        state = collected.batch[STATE][:, 5:]
        assert state.std() == pytest.approx(1, abs=0.1)
        assert correlation(state[:, 1], state[:, 0]) == pytest.approx(0.9, abs=0.1)

    def test_the_state_is_no_part_of_what_the_environment_returns(self):
        assert not any("exploration_noise" in key for key in Collected().batch["next"].keys(True, True))


def test_nothing_waits_for_the_device():
    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    names = []
    noise = ExplorationNoise(spec(3, 2), sigma=(0.1, 0.5), correlation=0.9, mask_key=("agents", "mask"))
    td = explore(noise, data(4, 3, 2, is_init=True).set(("agents", "mask"), torch.ones(4, 3, dtype=torch.bool)))
    with Operations():
        explore(noise, td)
        noise.step()
    assert any("clamp" in name for name in names)
    for blocking in ("_local_scalar_dense", "nonzero", "aten::_to_copy", "lift_fresh"):
        assert not [name for name in names if blocking in name]


def test_entries_that_are_missing_or_of_another_shape():
    noise = ExplorationNoise(spec(3, 2), sigma=0.1, correlation=0.5)
    with pytest.raises(KeyError, match=r'needs "is_init", which was not found: append torchrl.envs.InitTracker'):
        explore(noise, data(4, 3, 2).exclude("is_init"))
    with pytest.raises(ValueError, match=r'"is_init" of shape \(4, 1\) .* found \(4, 3, 1\)'):
        explore(noise, data(4, 3, 2).set("is_init", torch.zeros(4, 3, 1, dtype=torch.bool)))
    with pytest.raises(KeyError, match='key "action" not found'):
        explore(noise, data(4, 3, 2).exclude(("agents", "action")))
    with pytest.raises(ValueError, match=r"ends in that of the bounds, \(2,\), found \(4, 3, 5\)"):
        explore(noise, data(4, 3, 5))
    masked = ExplorationNoise(spec(3, 2), sigma=0.1, mask_key=("agents", "mask"))
    with pytest.raises(KeyError, match='key "mask" not found'):
        explore(masked, data(4, 3, 2))
    with pytest.raises(TypeError, match="must be boolean"):
        explore(masked, data(4, 3, 2).set(("agents", "mask"), torch.ones(4, 3)))
