"""Our own tasks: who sees what, what it costs, and what scripted policies reach."""

import json
import math

import numpy as np
import pytest
import torch
from torchrl.envs.utils import check_env_specs

from benchmarks import references
from benchmarks.references import KINDS, haste, mean_distance, reach, silence
from benchmarks.scripted_policies import go
from benchmarks.suite import SUITE
from examples import train_vmas
from tests.helpers_vmas import assert_close, play, simulator
from torchrl_bicnet import BiCNetActor, Evaluation, make_vmas_env
from torchrl_bicnet.rendering import render
from torchrl_bicnet.runs import TEST_SEED
from torchrl_bicnet.tasks import SCENARIOS

OPTIONS = {"hidden_goals": {"n_agents": 3, "random_seers": True}}


def make(name, num_envs, **options):
    return make_vmas_env(name, num_envs, **{"seed": 0, **OPTIONS.get(name, {}), **options})


def observe(env):
    return env.reset()["agents", "observation"]


def reset_rows(env, td, rows):
    return env.reset(td.clone().set("_reset", rows.unsqueeze(-1)))


def step_without_force(env, td):
    td["agents", "action"] = env.full_action_spec["agents", "action"].zero()
    return env.step(td)["next", "agents"]


@pytest.mark.parametrize("name", SCENARIOS)
class TestEveryTask:
    def test_it_is_one_team_of_one_size(self, name):
        env = make(name, 4)
        check_env_specs(env)
        assert list(env.group_map) == ["agents"]
        td = env.rollout(2, BiCNetActor.from_env(env))
        assert td["agents", "action"].shape[2] == len(simulator(env).agents)

    def test_every_environment_and_every_reset_draws_its_own(self, name):
        env = make(name, 64)
        first, second = observe(env), observe(env)
        assert len(first.flatten(1).unique(dim=0)) == 64
        assert (first != second).flatten(1).any(1).all()

    def test_a_partial_reset_leaves_the_other_rows_alone(self, name):
        env = make(name, 32)
        mask = torch.arange(32) % 3 == 0
        td = env.reset()
        before, after = (each["agents", "observation"] for each in (td, reset_rows(env, td, mask)))
        assert torch.equal(after[~mask], before[~mask])
        assert (after[mask] != before[mask]).flatten(1).any(1).all()

    @pytest.mark.slow
    def test_compiled_it_gives_the_same(self, name):
        outputs = []
        for compiled in (False, True):
            env = make(name, 8, max_steps=20, compile=compiled)
            outputs.append(play(env, env.reset(), 60, seed=1)[1])
        assert_close(*outputs)


class TestWrongOptions:
    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("guess_the_sum", {"n_agents": 1}, "n_agents must be at least 2, found 1"),
            ("guess_the_sum", {"seen_once": 1}, "seen_once must be a bool, found 1"),
            ("hidden_goals", {"n_agents": 1}, "n_agents must be at least 2, found 1"),
            ("hidden_goals", {"n_agents": 2.5}, "n_agents must be an integer, found 2.5"),
            ("hidden_goals", {"random_seers": "yes"}, "random_seers must be a bool, found 'yes'"),
            ("speaker_listener", {"n_landmarks": 1}, "n_landmarks must be at least 2, found 1"),
        ],
    )
    def test_values(self, name, options, message):
        with pytest.raises(ValueError, match=message):
            make_vmas_env(name, 2, **options)

    def test_names(self):
        with pytest.raises(TypeError, match="'speaker_listener' has no option n_agents; it has n_landmarks"):
            make_vmas_env("speaker_listener", 2, n_agents=3)
        with pytest.raises(TypeError, match="'hidden_goals' has no option seers; it has n_agents, random_seers"):
            make_vmas_env("hidden_goals", 2, seers=True)


class TestHiddenGoals:
    @pytest.mark.parametrize("n_agents", range(2, 9))
    def test_random_seers_are_one_closed_chain(self, n_agents):
        env = make("hidden_goals", 50, n_agents=n_agents)
        td = reset_rows(env, env.reset(), torch.arange(50) % 2 == 0)
        whose = td["agents", "observation"][..., 6:]  # (B, seer, owner)
        assert ((whose == 0) | (whose == 1)).all()
        assert (whose.sum(-1) == 1).all()
        # Who follows the chain is back where it started after all agents, and not before.
        steps = torch.eye(n_agents).expand_as(whose)
        for taken in range(1, n_agents + 1):
            steps = steps @ whose
            assert (steps.diagonal(dim1=-2, dim2=-1) == (taken == n_agents)).all()

    def test_every_chain_is_as_likely(self):
        """Of 4 agents there are 3! = 6; the counts are within five standard errors."""
        whose = observe(make("hidden_goals", 6000, n_agents=4))[..., 6:].argmax(-1)
        _, counts = whose.unique(dim=0, return_counts=True)
        assert len(counts) == 6
        assert (counts - 1000).abs().max() < 5 * math.sqrt(6000 * 1 / 6 * 5 / 6)

    def test_each_sees_the_goal_of_the_next(self):
        env = make("hidden_goals", 16, n_agents=3, random_seers=False)
        seen = observe(env)
        for i, agent in enumerate(simulator(env).agents):
            assert torch.equal(seen[:, i - 1, 4:6], agent.goal.state.pos)

    def test_reward(self):
        """Distances 5, 0.3 and 0 to the own goals, by hand."""
        env = make("hidden_goals", 2)
        td = env.reset()
        ways = torch.tensor([[3.0, 4.0], [0.0, -0.3], [0.0, 0.0]])
        for agent, way in zip(simulator(env).agents, ways):
            agent.goal.set_pos(agent.state.pos + way, None)
        reward = step_without_force(env, td)["reward"]
        torch.testing.assert_close(reward, torch.full((2, 3, 1), -5.3 / 3))

    def test_silence_in_the_middle_costs_what_is_derived(self):
        env = make("hidden_goals", 10_000, n_agents=2, random_seers=False)
        td = env.reset()
        for agent in simulator(env).agents:
            agent.set_pos(torch.zeros(10_000, 2), None)
        reward = step_without_force(env, td)["reward"][:, 0]
        cost = (math.sqrt(2) + math.log(1 + math.sqrt(2))) / 3
        assert cost == pytest.approx(0.7652, abs=1e-4)
        assert -reward.mean().item() == pytest.approx(cost, abs=5 * reward.std().item() / 100)

    def test_a_picture_has_a_line_to_the_own_goal(self):
        env = make("hidden_goals", 1, n_agents=2, random_seers=False)
        env.reset()
        simulator(env).agents[1].set_pos(torch.tensor([[0.9, 0.9]]), None)
        simulator(env).agents[1].goal.set_pos(torch.tensor([[0.9, 0.9]]), None)
        simulator(env).agents[0].set_pos(torch.tensor([[-0.8, 0.0]]), None)
        simulator(env).agents[0].goal.set_pos(torch.tensor([[0.8, 0.0]]), None)
        middle = render(env, 0, width=700)[345:355, 345:355].reshape(-1, 3).astype(int)
        darkest = middle[middle.sum(-1).argmin()]
        assert darkest[0] > darkest[1] + 30  # agent 0 is red
        assert abs(darkest[1] - darkest[2]) < 5


class TestSpeakerListener:
    def test_each_sees_its_part_alone(self):
        env = make("speaker_listener", 300, n_landmarks=4)
        speaker, listener = observe(env).unbind(1)
        assert speaker.shape == (300, 2 + 8 + 4 + 2)
        assert (speaker[:, :10] == 0).all()
        assert ((speaker[:, 10:14] == 1).sum(-1) == 1).all()
        assert (speaker[:, 10:14].sum(0) - 75).abs().max() < 5 * math.sqrt(300 * 3 / 16)  # each goal as likely
        assert (listener[:, 10:14] == 0).all()
        to_landmarks = [mark.state.pos - simulator(env).agents[1].state.pos for mark in simulator(env).world.landmarks]
        assert torch.equal(listener[:, 2:10], torch.cat(to_landmarks, -1))
        assert torch.equal(torch.stack([speaker, listener], 1)[..., 14:], torch.eye(2).expand(300, 2, 2))

    def test_the_speaker_moves_nothing_and_the_listener_itself(self):
        env = make("speaker_listener", 4)
        for actor, moves in ((0, False), (1, True)):
            td = env.reset()
            before = td["agents", "observation"]
            td["agents", "action"] = torch.zeros(4, 2, 2)
            td["agents", "action"][:, actor] = 1.0
            after = env.step(td)["next", "agents", "observation"]
            assert torch.equal(after[:, 0], before[:, 0])
            assert (after[:, 1, :8] != before[:, 1, :8]).all() if moves else torch.equal(after, before)

    def test_reward(self):
        """A distance of 5 to the goal, by hand."""
        env = make("speaker_listener", 6)
        td = env.reset()
        goal = td["agents", "observation"][:, 0, 8:11].argmax(-1)
        assert goal.unique().numel() > 1
        place = simulator(env).agents[1].state.pos
        for i, landmark in enumerate(simulator(env).world.landmarks):
            way = torch.where((goal == i).unsqueeze(-1), torch.tensor([3.0, -4.0]), torch.tensor([0.5, 0.5]))
            landmark.set_pos(place + way, None)
        torch.testing.assert_close(step_without_force(env, td)["reward"], torch.full((6, 2, 1), -5.0))

    def test_pictures_of_two_goals_differ(self):
        env = make("speaker_listener", 1)
        env.reset()
        pictures = []
        for goal in torch.eye(3):
            simulator(env).scenario.goal[0] = goal
            pictures.append(render(env, 0, width=100))
        assert not np.array_equal(pictures[0], pictures[1])
        assert not np.array_equal(pictures[1], pictures[2])


def test_guess_the_sum_seen_once():
    """Numbers are shown at the first step, and asked for after it, from where each environment was reset."""
    env = make("guess_the_sum", 6, seen_once=True, max_steps=20)
    late = torch.arange(6) % 2 == 0
    td = env.reset()
    for step in range(4):
        if step == 2:
            td = reset_rows(env, td, late)
        shown = td["agents", "observation"].squeeze(-1)
        since = torch.full((6,), step) - 2 * (late & (step >= 2))  # the reset
        x = simulator(env).scenario.x
        assert shown.equal(torch.where((since == 0)[:, None], x, 0.0))
        td["agents", "action"] = torch.full((6, 3, 1), 0.5)
        following = env.step(td)["next"]
        cost = (0.5 - x.sum(-1)).square() * (since > 0)
        torch.testing.assert_close(following["agents", "reward"], -cost[:, None, None].expand(6, 3, 1))
        assert not following["done"].any()
        td = following.exclude("reward")


def test_guess_the_sum_draws_the_answers():
    env = make("guess_the_sum", 2)
    td = env.reset()
    pictures = []
    for answer in (-2.5, 2.5):
        td["agents", "action"] = torch.full((2, 3, 1), answer)
        env.step(td)
        pictures.append(render(env, 1, width=200).min(-1) < 200)  # what is not white
    left, right = (picture[:, :100].sum(-1).astype(int) - picture[:, 100:].sum(-1) for picture in pictures)
    assert left.sum() > 100 > -100 > right.sum()


class TestReferences:
    def test_forces_by_hand(self):
        """At rest full force moves by 0.01, and the next step can stop; from a speed of 0.1 by a force of -0.75."""
        still = torch.tensor(0.0)
        assert go(torch.tensor([0.01, -0.005]), still.expand(2)).tolist() == pytest.approx([1.0, -0.5], abs=1e-3)
        assert go(still, torch.tensor(0.1)).item() == pytest.approx(-0.75, abs=1e-3)
        assert go(torch.tensor(1.0), torch.tensor(0.4)).item() == 1.0

    @pytest.mark.parametrize("substeps", [1, 2])
    def test_it_arrives_without_overshoot_and_nearly_as_fast_as_full_force(self, substeps):
        way = torch.tensor([0.03, 0.2, 0.71, 1.9])
        place, velocity, first = torch.zeros(4), torch.zeros(4), torch.full((4,), 100)
        for step in range(100):
            force = go(way - place, velocity, substeps)
            for part in range(substeps):
                velocity = velocity * (0.75 if part == 0 else 1) + force * 0.1 / substeps
                place = place + velocity * 0.1 / substeps
            first = torch.where(((place - way).abs() < 1e-3) & (first == 100), step + 1, first)
            assert (place < way + 1e-4).all()
        assert ((place - way).abs() < 1e-4).all()
        full = (reach(100).unsqueeze(-1) < way).sum(0) + 1  # steps, without a brake and with one substep
        assert (first - full <= 5).all()

    def test_reach(self):
        """Velocities 0.1, 0.175, 0.23125 and a tenth of their sums, by hand."""
        assert reach(3).tolist() == pytest.approx([0.01, 0.0275, 0.050625])

    def test_mean_distances(self):
        """Of the middle in closed form, twice that of a corner, and by sampling of the middle of a side."""
        x, y = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0]], dtype=torch.double).T
        points = torch.rand(200_000, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
        sampled = (points - torch.tensor([1.0, 0.0])).norm(dim=-1).mean().item()
        middle = (math.sqrt(2) + math.log(1 + math.sqrt(2))) / 3
        assert mean_distance(x.clamp(max=1 - 1e-9), y.clamp(max=1 - 1e-9)).tolist() == pytest.approx(
            [middle, 2 * middle, sampled], abs=3e-3
        )

    def test_limits_of_an_episode_without_time_to_move(self):
        """After a step of 0.01 the mean distance is a little less than that of two places of the square, 1.0428."""
        assert 1.0428 - 0.02 < silence(1) < 1.0428
        assert 1.0428 - 0.02 < haste(1) < 1.0428
        assert haste(50) < silence(50) < 50 * 1.0428

    @pytest.mark.parametrize("task", SUITE.values(), ids=SUITE)
    def test_a_silent_agent_acts_on_its_own_observation_alone(self, task):
        silent = references.policies_of(task, 0)[KINDS[0]]
        env = task.make_env(6, seed=0)
        seen = observe(env)
        for i in range(seen.shape[1]):
            others = observe(env)
            others[:, i] = seen[:, i]
            torch.testing.assert_close(silent(others)[:, i], silent(seen)[:, i])

    @pytest.mark.parametrize("name", ["guess_the_sum", "hidden_goals_4_random_seers", "speaker_listener"])
    def test_more_knowledge_is_worth_more(self, name, tmp_path):
        options = references.Options(tasks=(name,), episodes=200, output=tmp_path / "references.json")
        references.main(options)
        results = json.loads(options.output.read_text())
        task = results["tasks"][name]
        policies = task["policies"]
        means = [policies[kind]["mean"] for kind in ("random", *KINDS)]
        errors = [policies[kind]["standard_error"] for kind in ("random", *KINDS)]
        assert means == sorted(means)
        assert means[2] - means[1] > 5 * errors[1]
        for kind in KINDS:
            assert policies[kind]["mean"] <= task["limits"][kind] + 5 * policies[kind]["standard_error"]
            assert policies[kind]["test_mean"] == pytest.approx(policies[kind]["mean"], abs=5 * errors[1])
            assert policies[kind]["test_mean"] != policies[kind]["mean"] or name == "guess_the_sum"
        assert str(tmp_path) not in json.dumps(results)
        assert name in references.table(results)

    def test_scripts_start_where_trained_teams_are_tested(self, monkeypatch, tmp_path):
        starts = []
        monkeypatch.setattr(
            references, "evaluate", lambda env, *args, **keywords: starts.append((env, keywords)) or done
        )
        done = Evaluation({"agents": torch.zeros(2, 3)}, torch.ones(2))
        references.main(references.Options(("guess_the_sum",), 4, output=tmp_path / "references.json"))
        env, keywords = starts[1]
        options = train_vmas.Options(
            scenario="guess_the_sum", scenario_options={"n_agents": 3}, max_steps=1, num_envs=2
        )
        test_env = train_vmas.make_envs(options)[2]
        env.set_seed(keywords["seed"]), test_env.set_seed(TEST_SEED)
        assert torch.equal(observe(env), observe(test_env))

    def test_the_committed_ones_are_those_of_the_suite(self):
        results = json.loads(references.Options().output.read_text())
        assert list(results["tasks"]) == list(SUITE)
        for name, found in results["tasks"].items():
            task = SUITE[name]
            assert (found["scenario"], found["scenario_options"]) == (task.scenario, task.scenario_options)
            assert (found["max_steps"], found["reported"]) == (task.max_steps, task.reported)
            silent, talking = (found["policies"][kind] for kind in KINDS)
            errors = 5 * math.hypot(silent["standard_error"], talking["standard_error"])
            assert (talking["mean"] - silent["mean"] > errors) == task.needs_communication, name

    def test_no_result_is_lost(self, tmp_path):
        file = tmp_path / "references.json"
        file.write_text(json.dumps({"tasks": {"navigation": {}}}))
        with pytest.raises(ValueError, match="--output would lose the results of navigation: give another file"):
            references.main(references.Options(tasks=("dropout",), output=file))
        with pytest.raises(ValueError, match=r"--tasks must be of guess_the_sum, .*, found navigate"):
            references.main(references.Options(tasks=("navigate",), output=file))
        assert json.loads(file.read_text()) == {"tasks": {"navigation": {}}}

    def test_random_guesses_know_nothing(self):
        """By hand: a guess in [-3, 3] has variance 3, the sum of three numbers in [-1, 1] has variance 1."""
        policy = references.policies_of(SUITE["guess_the_sum"], 0)["random"]
        found = references.score(SUITE["guess_the_sum"], policy, 4000, 0)
        assert found["mean"] == pytest.approx(-4, abs=5 * found["standard_error"])

    def test_scores(self):
        returns = torch.tensor([[1.0, 0.5, 0.5, 0.0]])
        assert SUITE["dispersion"].score(returns).tolist() == [2.0]
        assert SUITE["navigation"].score(returns).tolist() == [0.5]
