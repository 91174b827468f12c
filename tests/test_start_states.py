import itertools
import logging
from copy import deepcopy

import numpy as np
import pytest
import torch
import vmas
from scipy.stats import ks_2samp
from tensordict import TensorDict

from tests.helpers_vmas import Countdown, assert_same, assert_same_world, partly_reset, simulator, waits
from torchrl_bicnet import make_vmas_env, restore, snapshot
from torchrl_bicnet.envs.environment import StreamedEnvironment

MASK = torch.tensor([False, True, False, True, True])


class Shelter(Countdown):
    """Resets its rows of everything independently; ``leak`` adds what does not belong there."""

    def __init__(self, leak=None):
        super().__init__()
        self.leak = leak

    def make_world(self, batch_dim, device, **kwargs):
        world = super().make_world(batch_dim, device, **kwargs)
        self.whole = torch.zeros(batch_dim, 3)
        self.alias, self.nested = self.whole, [1, torch.zeros(batch_dim, 2)]
        self.seen, self.flag, self.constant = torch.zeros(batch_dim), 0, torch.zeros(2, 2)
        self.written = torch.zeros(batch_dim, 2)
        self.resets = []
        return world

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        rows = slice(None) if env_index is None else env_index
        drawn = torch.rand(self.world.batch_dim, 3)
        self.written[rows] = drawn[rows, :2]  # in place
        if env_index is None:
            self.whole = drawn + 1
            self.alias = self.whole
            self.nested[1] = drawn[:, :2]
            self.constant = self.constant.clone()
        else:
            self.whole[env_index] = drawn[env_index] + 1
            self.nested[1][env_index] = drawn[env_index, :2]
        if self.leak == "flag":
            self.flag += 1
        elif self.leak == "tensor":
            self.constant = self.constant + 1
        elif self.leak == "shape":
            self.constant = torch.zeros(2, self.constant.shape[1] + 1)
        elif self.leak == "mean":
            self.whole[rows] += self.seen.mean()
        elif self.leak == "choice":
            self.flag = int(torch.rand(1) < 0.5)
        elif self.leak == "list":
            self.resets.append(env_index)

    def observation(self, agent):
        self.seen = self.seen + torch.rand(self.world.batch_dim)
        self.written += 1
        return torch.cat([self.seen.unsqueeze(-1), self.whole, self.written], -1)


def reset_rows(environment, mask):
    """Observations, dones and infos of all."""
    return environment.reset_rows(mask, lambda: environment.get_from_scenario(True, False, True, True))


def handing_out(scenario, num_envs, **options):
    """A user's scenario as with ``compile=True`` or on a GPU, without either."""
    env = make_vmas_env(scenario, num_envs, **options)
    simulator(env).hands_out_start_states = True
    return env


def of_steps(world):
    return {path: tensor for path, tensor in world.tensors.items() if not path.startswith("environment.start_states")}


class TestRows:
    def test_of_state_of_every_kind(self):
        environment = simulator(handing_out(Shelter(), 5, seed=0))
        scenario = environment.scenario
        environment.get_from_scenario(True, False, False, False)
        before = {name: getattr(scenario, name).clone() for name in ("whole", "seen", "written", "left")}
        nested = scenario.nested[1].clone()
        observations, _, _ = reset_rows(environment, MASK)
        assert environment.shared_state == ""
        for name, tensor in before.items():
            assert torch.equal(getattr(scenario, name)[~MASK], tensor[~MASK]), name
            if name != "left":  # the same at every reset
                assert (getattr(scenario, name)[MASK] != tensor[MASK]).any(), name
        assert torch.equal(scenario.nested[1][~MASK], nested[~MASK])
        assert (scenario.nested[1][MASK] != nested[MASK]).all()
        # Seen and written by two observations: kept inside, removed outside; what was given is what was seen.
        assert torch.equal(
            observations[1][MASK], torch.cat([scenario.seen[:, None], scenario.whole, scenario.written], -1)[MASK]
        )
        assert torch.equal(observations[0][~MASK, 1:4], before["whole"][~MASK])

    def test_keep_what_shares_memory_shared(self):
        environment = simulator(handing_out(Shelter(), 5, seed=0))
        scenario = environment.scenario
        reset_rows(environment, MASK)
        assert scenario.alias is scenario.whole

    def test_of_a_full_reset_are_all(self):
        env = make_vmas_env("balance", 5, seed=0)
        env.reset()
        world = snapshot(env)
        expected = env.reset()
        restore(env, world)
        reset_rows(simulator(env), torch.ones(5, dtype=torch.bool))
        now = snapshot(env)
        restore(env, world)
        assert_same([expected], [partly_reset(env, torch.ones(5, dtype=torch.bool))])
        assert_same(of_steps(now), of_steps(snapshot(env)))

    def test_the_question_leaves_no_trace_and_its_answer_is_part_of_a_snapshot(self):
        worlds = []
        for answer in (None, ""):
            env = handing_out(Shelter(), 5, seed=0)
            simulator(env).shared_state = answer
            reset_rows(simulator(env), MASK)
            worlds.append(snapshot(env))
        assert_same_world(*worlds)
        other = handing_out(Shelter(), 5)
        restore(other, worlds[0])
        assert simulator(other).shared_state == ""


class Ordered(Shelter):
    """Has as many agents as environments; the order of the agents is no row of an environment."""

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.order = torch.randperm(5)


class TestOneByOne:
    def test_as_many_of_something_else_as_environments(self):
        environment = simulator(handing_out(Ordered(), 5, seed=0))
        with pytest.warns(UserWarning, match="share state that a reset changes: scenario.order changes"):
            reset_rows(environment, MASK)
        assert sorted(environment.scenario.order.tolist()) == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize(
        ("leak", "message"),
        [
            ("flag", "scenario.flag changes"),
            ("tensor", "scenario.constant changes"),
            ("shape", "scenario.constant changes"),
            ("mean", "scenario.(whole|alias) changes"),
            ("list", "scenario.resets changes"),
        ],
    )
    def test_if_environments_have_something_in_common(self, leak, message):
        ours, stock = (simulator(handing_out(Shelter(leak), 5, seed=0)) for _ in range(2))
        for environment in (ours, stock):
            environment.get_from_scenario(True, False, False, False)
        with pytest.warns(UserWarning, match=rf"reset one by one.*{message}") as warned:
            observations, dones, _ = reset_rows(ours, MASK)
        assert len(warned) == 1
        for index in (1, 3, 4):
            stock.reset_at(index, return_observations=False)
        expected, expected_dones, _ = stock.get_from_scenario(True, False, True, True)
        assert all(torch.equal(one, other) for one, other in zip(observations, expected))
        assert torch.equal(dones, expected_dones)
        assert ours.scenario.flag == stock.scenario.flag
        reset_rows(ours, MASK)  # and says it once

    @pytest.mark.parametrize("seed", range(6))
    def test_if_a_choice_for_all_comes_out_as_before(self, seed):
        environment = simulator(handing_out(Shelter("choice"), 5, seed=seed))
        with pytest.warns(UserWarning, match=r"scenario.flag changes"):
            reset_rows(environment, MASK)

    def test_if_it_shows_later(self):
        environment = simulator(handing_out(Shelter(), 5, seed=0))
        reset_rows(environment, MASK)
        environment.scenario.leak = "flag"
        with pytest.warns(UserWarning, match="reset one by one.*scenario.flag changes"):
            reset_rows(environment, MASK)
        assert environment.scenario.flag == 3  # of three resets of one


class Ladder(Countdown):
    """Starts at a level that the scenario keeps as ``kind``: of each environment, of all, or a number of Python."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.number, self.numbers = kind, 0.0, np.zeros(1)
        self.config, self.sample = {"level": 0.0}, lambda: 0.0

    def make_world(self, batch_dim, device, **kwargs):
        world = super().make_world(batch_dim, device, **kwargs)
        self.level = torch.zeros(batch_dim if self.kind in ("rows", "listed", "asked", "out") else 1)
        self.buffer = torch.zeros(batch_dim)
        self.start, self.n_resets = torch.zeros(batch_dim, 1), 0
        return world

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        rows = slice(None) if env_index is None else env_index
        level = self.level.expand(self.world.batch_dim)
        if self.kind == "listed":
            level = torch.tensor([2.0 * value for value in self.level.tolist()])
        elif self.kind == "asked":
            level = torch.zeros(self.world.batch_dim)
            for index in range(self.world.batch_dim):
                if self.level[index] > 1.5:
                    level[index] = 10
        elif self.kind == "out":
            level = torch.add(self.level, 0, out=self.buffer)
        self.start = self.start.clone()
        noise = torch.rand(self.world.batch_dim)
        number = self.number + float(self.numbers[0]) + self.config["level"] + self.sample()
        self.start[rows, 0] = (level + number + noise / 2)[rows]

    def observation(self, agent):
        return self.start.clone()

    def climb(self):
        """Written in the three ways in which a scenario's step or its user may do it."""
        if self.kind == "python":
            self.number += 1
        elif self.kind == "array":
            self.numbers[0] += 1
        elif self.kind == "config":
            self.config["level"] += 1
        elif self.kind == "callable":
            self.sample = [lambda: 1.0, lambda: 2.0, lambda: 3.0][int(self.sample())]
        elif self.kind == "in place":
            self.level += 1
        else:
            self.level = self.level + 1


class TestHandingOut:
    @pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
    def test_each_row_once_and_one_reset_for_all(self, compile, monkeypatch):
        env = make_vmas_env("navigation", 8, seed=0, compile=compile)
        td, n_resets, seen = env.rand_step(env.reset())["next"], [], []
        partly_reset(env, torch.arange(8) < 1)  # asks the questions
        reset = StreamedEnvironment.reset
        monkeypatch.setattr(StreamedEnvironment, "reset", lambda *a, **k: (n_resets.append(1), reset(*a, **k))[1])
        order = [index for _ in range(3) for index in torch.randperm(8).tolist()]
        order.remove(0)
        for index in order:
            td = env.reset(td.set("_reset", (torch.arange(8) == index).unsqueeze(-1)))
            seen.append(td["agents", "observation"][index].flatten())
            td = env.rand_step(td)["next"]
        assert len(n_resets) == 2
        distance = torch.cdist(torch.stack(seen), torch.stack(seen)) + torch.eye(len(seen))
        assert distance.min() > 1e-3

    @pytest.mark.parametrize(
        ("kind", "compile"),
        [
            *((kind, False) for kind in ("rows", "listed", "asked", "out", "all", "in place", "python", "array")),
            *((kind, False) for kind in ("config", "callable")),
            *(pytest.param(kind, True, marks=pytest.mark.slow) for kind in ("rows", "out", "python", "config")),
        ],
    )
    def test_a_curriculum_is_followed_at_once(self, kind, compile):
        scenario = Ladder(kind)
        env = handing_out(scenario, 6, seed=0, compile=compile)
        env.rollout(2)
        for level in range(3):
            for index in (level, level + 3):  # none of them twice
                td = partly_reset(env, torch.arange(6) == index)
                expected = {"listed": 2 * level, "asked": 10 if level > 1 else 0}.get(kind, level)
                assert int(td["agents", "observation"][index, 0, 0]) == expected, (kind, level)
            scenario.climb()
        assert simulator(env).shared_state == ""

    def test_a_snapshot_holds_those_that_are_left(self):
        env = make_vmas_env("simple_spread", 6, seed=0)
        env.reset()
        partly_reset(env, torch.arange(6) < 2)
        world = snapshot(env)
        masks = [torch.arange(6) == index for index in (2, 5, 0, 3)]  # 0 asks for new ones
        expected = [partly_reset(env, mask) for mask in masks]
        other = make_vmas_env("simple_spread", 6, seed=1)
        for again in (env, other):
            restore(again, world)
            assert_same([partly_reset(again, mask) for mask in masks], expected)

    def test_a_copy_hands_out_its_own(self):
        env = make_vmas_env("simple_spread", 6, seed=0)
        env.reset()
        partly_reset(env, torch.arange(6) < 2)
        other, mask = deepcopy(env), torch.arange(6) == 3
        before = simulator(other).agents[0].state.pos.clone()
        assert_same([partly_reset(other, mask)], [partly_reset(env, mask)])
        after = simulator(other).agents[0].state.pos
        assert (after != before).any(-1).tolist() == mask.tolist()

    def test_in_inference_mode_and_after_it(self):
        env = make_vmas_env("navigation", 6, seed=0)
        with torch.inference_mode():
            env.rollout(2)
            partly_reset(env, torch.arange(6) < 2)
        for index in (3, 0):
            partly_reset(env, torch.arange(6) == index)
        env.rollout(2)

    def test_whether_they_are_handed_out_is_no_state(self):
        env, plain = handing_out(Shelter(), 5, seed=0), make_vmas_env(Shelter(), 5)
        restore(plain, snapshot(env))
        assert not simulator(plain).hands_out_start_states

    def test_a_seed_draws_them_anew(self):
        env = make_vmas_env("simple_spread", 6)
        starts = []
        for n_before in (1, 4):
            env.reset()
            partly_reset(env, torch.arange(6) < n_before)
            env.set_seed(3)
            env.reset()
            starts.append(partly_reset(env, torch.arange(6) == 5))
        assert_same(*starts)

    @pytest.mark.parametrize("scenario", ["navigation", "dropout", "wheel"])
    def test_what_is_given_is_what_is_observed_of_the_state(self, scenario):
        """Of the episode before, as in VMAS, where a reset sets nothing: the reward in navigation's info."""
        env = make_vmas_env(scenario, 6, seed=0)
        td = env.reset()
        for step in range(6):
            td = env.step(env.rand_action(td))["next"]
            mask = (torch.arange(6) == step).unsqueeze(-1)
            found = env.base_env._reset(TensorDict({"_reset": mask}, [6]))
            expected = env.base_env._observe()["agents"]
            assert_same([found["agents"].select(*expected).to_dict()], [expected])

    def test_what_is_written_from_outside_is_seen_by_the_others(self):
        env = make_vmas_env("simple_spread", 4, seed=0)
        td = env.rand_step(env.reset())["next"]
        simulator(env).agents[0].state.pos[3] = 7.0
        mask = (torch.arange(4) < 2).unsqueeze(-1)
        found = env.base_env._reset(TensorDict({"_reset": mask}, [4]))["agents", "observation"]
        assert found[3, 0, 0] == 7.0
        assert torch.equal(found[2], td["agents", "observation"][2])

    @pytest.mark.parametrize(
        ("attribute", "message"),
        [
            (lambda scenario: (1, scenario.whole[:, 0]), "holds a tensor in a tuple"),
            (lambda scenario: scenario.whole[:, 1], "are parts of one tensor"),
        ],
    )
    def test_state_that_cannot_be_exchanged_is_reset_one_by_one(self, attribute, message):
        class Held(Shelter):
            def reset_world_at(self, env_index=None):
                super().reset_world_at(env_index)
                self.held = attribute(self)

        env = handing_out(Held(), 5, seed=0)
        whole = simulator(env).scenario.whole.clone()
        with pytest.warns(UserWarning, match=f"one by one.*{message}"):
            partly_reset(env, MASK)
        assert torch.equal(simulator(env).scenario.whole[~MASK], whole[~MASK])


@pytest.mark.parametrize("n_resets", [1, 60])
def test_nothing_waits_for_each_environment(n_resets):
    env = make_vmas_env("simple_spread", 64, seed=0)
    td = env.reset()
    mask = torch.arange(64) < n_resets
    partly_reset(env, ~mask)
    partial = TensorDict({"_reset": mask.unsqueeze(-1)}, td.batch_size)
    # Whether the mask has all of them, and whether their start states were handed out before.
    assert len(waits(env.base_env._reset, partial)) == 2


@pytest.mark.parametrize("scenario", ["dispersion", "navigation", "simple_spread"])
def test_start_states_have_the_distribution_of_vmas(scenario):
    n = 400
    ours, stock = simulator(make_vmas_env(scenario, n, seed=1)), vmas.make_env(scenario, n, seed=2)
    reset = torch.arange(n) % 2 == 0
    for rows in reset.nonzero().flatten().split(7):
        reset_rows(ours, torch.isin(torch.arange(n), rows))
    for index in reset.nonzero().flatten().tolist():
        stock.reset_at(index, return_observations=False)

    def samples(environment):
        entities = environment.world.entities
        distance = torch.linalg.vector_norm(entities[0].state.pos - entities[1].state.pos, dim=-1, keepdim=True)
        return torch.cat([distance, *(part for e in entities for part in (e.state.pos, e.state.vel, e.state.rot))], -1)

    one, other = samples(ours)[reset].T, samples(stock)[reset].T
    for x, y in zip(one, other):
        # One in 200 runs of all of these would fail by chance; the seeds are fixed.
        assert ks_2samp(x.numpy(), y.numpy()).pvalue > 0.005 / len(one)


def test_what_cannot_be_seen_is_reset_one_by_one():
    scenario = Shelter()
    scenario.log, scenario.numbers, scenario.counter = logging.getLogger("x"), range(3), itertools.count()
    environment = simulator(handing_out(scenario, 5, seed=0))
    whole = environment.scenario.whole.clone()
    with pytest.warns(
        UserWarning,
        match=r"share state that a reset changes: The state of scenario.counter cannot be seen.*itertools.count",
    ):
        reset_rows(environment, MASK)
    assert torch.equal(environment.scenario.whole[~MASK], whole[~MASK])
    assert (environment.scenario.whole[MASK] != whole[MASK]).any()
