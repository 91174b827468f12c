"""Teams of several sizes in one batch: each size equals an environment of its own, absent agents change nothing."""

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torchrl.envs.utils import ExplorationType, MarlGroupMapType, check_env_specs, set_exploration_type
from torchrl.objectives import SoftUpdate
from vmas.scenarios.navigation import Scenario as Navigation

from examples import evaluate_vmas, train_vmas
from tests.helpers_vmas import IGNORED_WARNINGS, assert_close, assert_same
from tests.quick import run
from torchrl_bicnet import (
    BiCNetActor,
    BiCNetCritic,
    ExplorationNoise,
    RewardScale,
    UpdateStep,
    evaluate,
    load_run,
    make_ddpg_loss,
    make_vmas_env,
    restore,
    snapshot,
)
from torchrl_bicnet.analysis import order_sensitivity
from torchrl_bicnet.rendering import render

pytestmark = IGNORED_WARNINGS

SIZES = (2, 4, 3)
MASK, ACTION = ("agents", "mask"), ("agents", "action")
NET = {"communication": "gru", "hidden_size": 8, "num_cells": (12,)}


def make(num_envs=8, seed=3, **options):
    return make_vmas_env("navigation", num_envs, n_agents=SIZES, seed=seed, max_steps=5, **options)


def entries(td):
    return {key: td[key] for key in td.keys(True, True) if "mask" not in key}


def of_size(td, k):
    """The environments of the k-th size, without slots of absent agents."""
    part = entries(td[k :: len(SIZES)])
    agents = td.ndim
    return {key: tensor.narrow(agents, 0, SIZES[k]) if "agents" in key else tensor for key, tensor in part.items()}


class Strength(Navigation):
    """Agents are stronger in larger teams."""

    def make_world(self, batch_dim, device, **kwargs):
        world = super().make_world(batch_dim, device, **kwargs)
        for agent in world.agents:
            agent.action._u_range = float(len(world.agents))
        return world


class Sides:
    """The mixed batch and an environment for each size, stepped and reset side by side."""

    def __init__(self, **options):
        self.mixed = make(**options)
        self.alone = [
            make_vmas_env("navigation", num_envs, n_agents=n, seed=3, max_steps=5, **options)
            for n, num_envs in zip(SIZES, (3, 3, 2))
        ]
        self.generator = torch.Generator().manual_seed(0)
        self.td, self.parts = self.mixed.reset(), [env.reset() for env in self.alone]

    def step(self):
        action = torch.rand(8, 4, 2, generator=self.generator) * 2 - 1
        self.td = self.mixed.step(self.td.set(ACTION, action))
        for k, env in enumerate(self.alone):
            self.parts[k] = env.step(self.parts[k].set(ACTION, action[k::3, : SIZES[k]].clone()))

    def go_on(self, picked=None):
        after = self.td["next"].clone()
        done = after["done"] if picked is None else picked
        self.td = self.mixed.reset(after.set("_reset", done)) if done.any() else after
        for k, env in enumerate(self.alone):
            part = self.parts[k]["next"].clone()
            self.parts[k] = env.reset(part.set("_reset", done[k::3])) if done[k::3].any() else part

    def assert_equal(self, check=assert_same):
        for k, part in enumerate(self.parts):
            check(of_size(self.td, k), entries(part))


class TestEnvironment:
    def test_it_is_one_batch_with_a_mask(self):
        env = make()
        check_env_specs(env)
        td = env.rollout(7, break_when_any_done=False)
        assert td["agents", "observation"].shape == (8, 7, 4, 18)
        assert td[MASK].sum(-1)[:, 0].tolist() == [2, 4, 3, 2, 4, 3, 2, 4]
        assert (td[MASK] == td["next", "agents", "mask"]).all()
        assert td[MASK][..., :2].all()
        for key, tensor in entries(td.exclude(ACTION)).items():
            assert "agents" not in key or not tensor[~td[MASK]].any(), key

    def test_each_size_is_the_environment_of_that_size_alone(self):
        sides = Sides()
        for _ in range(7):  # over a time limit
            sides.step()
            sides.assert_equal()
            sides.go_on()
        sides.step()
        picked = torch.tensor([True, False, False, True, True, False, False, False]).unsqueeze(-1)
        sides.go_on(picked)
        assert sides.td["step_count"].squeeze(-1).tolist() == [0, 3, 3, 0, 0, 3, 3, 3]
        sides.step()
        sides.assert_equal()

    @pytest.mark.parametrize("scenario", ["navigation", "discovery"])  # the second draws in its steps
    def test_a_reset_of_one_size_leaves_the_streams_of_the_others_alone(self, scenario):
        mixed = make_vmas_env(scenario, 4, n_agents=(2, 3), seed=3)
        alone = make_vmas_env(scenario, 2, n_agents=3, seed=3)
        td, start = mixed.reset(), alone.reset()
        for _ in range(3):
            td = mixed.reset(td.set("_reset", torch.tensor([[True], [False], [False], [False]])))
        assert torch.equal(td["agents", "observation"][1::2], start["agents", "observation"])
        td, start = mixed.reset(), alone.reset()
        assert torch.equal(td["agents", "observation"][1::2], start["agents", "observation"])

    @pytest.mark.slow
    def test_compiled_it_is_the_same(self):
        sides = Sides(compile=True)
        for _ in range(6):
            sides.step()
            sides.assert_equal(assert_close)
            sides.go_on()

    def test_actions_of_absent_agents_are_not_read(self):
        env, td = make(), make().reset()
        env.reset()
        td[ACTION] = torch.zeros(8, 4, 2)
        td[ACTION][~td[MASK]] = torch.nan
        assert all(tensor.isfinite().all() for tensor in entries(env.step(td)["next"]).values())

    def test_a_scenario_of_the_users_own_is_made_anew_for_each_size(self):
        scenario = Navigation()
        named, own = make(), make_vmas_env(scenario, 8, n_agents=SIZES, seed=3, max_steps=5)
        assert torch.equal(named.reset()["agents", "observation"], own.reset()["agents", "observation"])
        assert not hasattr(scenario, "n_agents")

    def test_a_seed_is_an_episode(self):
        env = make(seed=0)
        env.set_seed(7)
        first = env.reset()["agents", "observation"]
        env.set_seed(7)
        assert torch.equal(env.reset()["agents", "observation"], first)
        env.set_seed(8)
        assert not torch.equal(env.reset()["agents", "observation"], first)

    def test_a_snapshot_goes_on_to_the_bit(self):
        sides = Sides()
        sides.step()
        world, state = snapshot(sides.mixed), sides.td["next"].clone()
        action = torch.full((8, 4, 2), 0.5)
        after = sides.mixed.step(state.clone().set(ACTION, action))
        other = make(seed=9)
        other.reset()
        restore(other, world)
        assert_same(entries(other.step(state.set(ACTION, action))), entries(after))
        for wrong in (make_vmas_env("navigation", 8, n_agents=(2, 4)), make_vmas_env("navigation", 8, n_agents=2)):
            with pytest.raises(ValueError, match="snapshot"):
                restore(wrong, world)

    @pytest.mark.parametrize(
        ("scenario", "n_agents", "said"),
        [
            ("dispersion", (2, 3), r"'observation' of an agent of 'agents' is of shape \(\d+,\) in a team of"),
            ("navigation", (2, 2), "n_agents must be a number or different numbers of agents, found"),
            ("navigation", [], "n_agents must be a number or different numbers of agents, found"),
            ("navigation", (2, 0), "n_agents must be at least 1, found 0"),
            ("navigation", range(1, 10), "num_envs must be 9 or more for teams of 9 sizes, found 8"),
            (Strength(), (2, 3), "'action' of 'agents' has other bounds in a team of 2 than in the largest one"),
        ],
    )
    def test_what_cannot_be_one_batch_is_refused(self, scenario, n_agents, said):
        with pytest.raises(ValueError, match=said):
            make_vmas_env(scenario, 8, n_agents=n_agents)

    @pytest.mark.parametrize(
        ("group_map", "said"),
        [
            ({"agents": ["agent_0", "agent_1"]}, "group_map must be a MarlGroupMapType with teams of several sizes"),
            (MarlGroupMapType.ONE_GROUP_PER_AGENT, "Teams of several sizes need the same groups of agents"),
        ],
    )
    def test_groups_that_not_all_have_are_refused(self, group_map, said):
        with pytest.raises(ValueError, match=said):
            make_vmas_env("navigation", 8, n_agents=(2, 3), group_map=group_map)

    def test_a_team_of_one_size_is_drawn_and_several_are_refused(self):
        assert render(make_vmas_env("navigation", 2, n_agents=(3,)), 1, width=50).shape == (50, 50, 3)
        with pytest.raises(ValueError, match="Teams of one size can be drawn"):
            render(make())


@pytest.fixture
def parts():
    torch.manual_seed(0)
    env = make(num_envs=9)
    actor, critic = BiCNetActor.from_env(env, **NET), BiCNetCritic.from_env(env, **NET)
    noise = ExplorationNoise(actor.spec, sigma=0.5, correlation=0.5, mask_key=actor.mask_key)
    with set_exploration_type(ExplorationType.RANDOM):
        batch = env.rollout(6, TensorDictSequential(actor, noise), break_when_any_done=False)
    return env, actor, critic, batch


class TestLearning:
    def test_the_mask_is_found(self, parts):
        _, actor, critic, _ = parts
        assert actor.mask_key == critic.mask_key == MASK

    def test_losses_and_gradients_are_those_of_the_sizes_alone(self, parts):
        """Weighted by their numbers of agents, over which both losses average."""
        _, actor, critic, batch = parts
        loss = make_ddpg_loss(actor, critic, gamma=0.9)
        SoftUpdate(loss, tau=0.1)  # it would be missed

        def losses_and_gradients(batch):
            loss.zero_grad()
            out = loss(batch.clone())
            (out["loss_actor"] + out["loss_value"]).backward()
            gradients = [p.grad.clone() for p in loss.parameters() if p.grad is not None]
            return [out["loss_actor"].detach(), out["loss_value"].detach(), *gradients]

        together = losses_and_gradients(batch.reshape(-1))
        n_agents = torch.tensor([batch[k::3][MASK].sum() for k in range(3)])
        alone = []
        for k, size in enumerate(SIZES):
            part = TensorDict({}, (3, 6))
            everybody = torch.ones(3, 6, size, dtype=torch.bool)
            for key, tensor in {**of_size(batch, k), MASK: everybody, ("next", *MASK): everybody}.items():
                part[key] = tensor
            alone.append(losses_and_gradients(part.reshape(-1)))
        for found, *expected in zip(together, *alone):
            mean = sum(n * each for n, each in zip(n_agents, expected)) / n_agents.sum()
            torch.testing.assert_close(found, mean, atol=1e-5, rtol=1e-4)

    def test_garbage_in_absent_slots_changes_nothing(self, parts):
        env, _, _, batch = parts
        dirty = batch.clone()
        for key in (("agents", "observation"), ACTION, ("next", "agents", "observation"), ("next", "agents", "reward")):
            dirty[key][~batch[MASK]] = torch.nan
        results = []
        for data in (batch, dirty):
            torch.manual_seed(1)
            fresh = BiCNetActor.from_env(env, **NET), BiCNetCritic.from_env(env, **NET)
            scale = RewardScale(0.2)
            scale.update(data["next", "agents", "reward"], data[MASK])
            update = UpdateStep(make_ddpg_loss(*fresh), actor_lr=1e-3, critic_lr=1e-3, tau=0.1)
            metrics = [update(scale(data.reshape(-1).clone())) for _ in range(3)]
            results.append([*fresh[0].parameters(), *fresh[1].parameters(), scale.factor, metrics[-1]["grad_norm"]])
        assert all(torch.equal(*pair) for pair in zip(*results))
        assert all(tensor.isfinite().all() for tensor in results[1])


def test_evaluations_count_the_agents_that_there_are():
    env = make(num_envs=9)
    torch.manual_seed(0)
    actor = BiCNetActor.from_env(env, **NET)
    found = evaluate(env, actor, max_steps=5, seed=11)
    returns = found.returns["agents"]
    assert torch.equal(found.present["agents"], env.reset()[MASK])
    summary = found.summary()
    teams = found.team_returns()["agents"]
    torch.testing.assert_close(teams, returns.sum(-1) / torch.tensor(SIZES).repeat(3))
    assert summary["evaluation_return"] == pytest.approx(teams.mean().item(), abs=1e-6)
    for k, size in enumerate(SIZES):
        alone = make_vmas_env("navigation", 3, n_agents=size, max_steps=5)
        twin = BiCNetActor.from_env(alone, **NET)
        twin.load_state_dict(actor.state_dict())
        expected = evaluate(alone, twin, max_steps=5, seed=11)
        torch.testing.assert_close(returns[k::3, :size], expected.returns["agents"])
        assert torch.equal(found.success[k::3], expected.success)
        assert torch.equal(found.collisions[k::3], expected.collisions)
        assert summary[f"evaluation_return_team_of_{size}"] == pytest.approx(teams[k::3].mean().item(), abs=1e-6)


def test_actions_vary_with_the_order_of_the_teams_that_an_agent_is_in():
    """Agents 2 and 3 are in the teams of four alone: the others do not count."""
    torch.manual_seed(0)
    mixed, alone = (make_vmas_env("navigation", n, n_agents=sizes) for n, sizes in ((6, (2, 4)), (3, (4,))))
    actor = BiCNetActor.from_env(mixed, **NET)
    found, expected = (order_sensitivity(env, actor, max_steps=3, seed=0, max_orders=3) for env in (mixed, alone))
    torch.testing.assert_close(found.action_std[2:], expected.action_std[2:])
    assert (found.action_std[:2] != expected.action_std[:2]).all()


class TestScript:
    def test_absent_agents_are_left_out_of_what_is_collected(self, tmp_path, monkeypatch):
        counted, stored = [], []
        update, extend = RewardScale.update, train_vmas.TensorDictReplayBuffer.extend

        def count(self, rewards, mask):
            counted.append((rewards.clone(), mask.clone()))
            update(self, rewards, mask)

        monkeypatch.setattr(RewardScale, "update", count)
        buffer = train_vmas.TensorDictReplayBuffer
        monkeypatch.setattr(buffer, "extend", lambda self, td: stored.append(td.clone()) or extend(self, td))
        result = run(tmp_path, n_agents=(2, 3), num_envs=4, max_steps=5, n_steps=1)
        for (rewards, mask), batch, shown in zip(counted, stored, result.values("training_return")):
            assert not batch[ACTION][~batch[MASK]].any()
            assert torch.equal(mask.flatten(0, 1), batch[MASK])
            # Two episodes of five steps in each of the four environments
            returns = rewards.squeeze(-1).unflatten(1, (2, 5)).sum(2).sum(-1) / mask[:, ::5].sum(-1)
            assert shown == pytest.approx(returns.mean().item(), abs=1e-5)
        assert len(stored) == 3

    def test_one_network_is_trained_for_all_sizes_and_goes_on_to_the_bit(self, tmp_path, capsys):
        options = {"n_agents": (2, 3), "num_envs": 5, "checkpoint_interval": 40}
        result = run(tmp_path, **options)
        tests, losses = result.tests(), result.values("loss_value")
        assert len(result.values("evaluation_return_team_of_3")) == len(result.values("evaluation_return"))
        older = sorted((result.folder / "checkpoints").glob("*.torchrl"))[0]
        train_vmas.main(train_vmas.Options(resume=older))
        assert (result.tests(), result.values("loss_value")) == (tests, losses)

    def test_a_run_is_evaluated_on_teams_of_any_size(self, tmp_path, capsys):
        folder = run(tmp_path, n_agents=(2, 3), num_envs=5).folder
        loaded = load_run(folder)
        assert loaded.make_env(5).reset()[MASK].sum(-1).tolist() == [2, 3, 2, 3, 2]
        assert loaded.policy(loaded.make_env(2, n_agents=6).reset())[ACTION].shape == (2, 6, 2)
        arguments = {"episodes": 4, "pictures": False, "film_episodes": 1, "film_width": 50, "film_steps": 2}
        for n_agents, agents in ((None, 3), (4, 4)):
            evaluate_vmas.main(evaluate_vmas.Arguments(folder, n_agents=n_agents, **arguments))
            shown = capsys.readouterr().out
            assert shown.count("  agent_") == agents
            assert [size for size in range(1, 6) if f"  teams of {size}" in shown] == (
                [2, 3] if n_agents is None else []
            )
