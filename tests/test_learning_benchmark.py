"""benchmarks/learning.py: one run and its clock, the grid of runs, its rivals, and the report of it."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro

from benchmarks import learning, learning_run, report_learning
from benchmarks.algorithms import ALGORITHMS
from benchmarks.learning import Job
from benchmarks.learning_run import TimedRun, first_batch_excess, train_options
from benchmarks.learning_statistics import (
    SECONDS,
    UPDATES,
    after_seconds,
    estimate,
    probability_of_improvement,
    reached,
    seconds_for,
)
from benchmarks.rivals.maddpg import MADDPGLearner
from benchmarks.rivals.mappo import MAPPOLearner
from benchmarks.rivals.silent_actors import SilentActorsLearner
from benchmarks.suite import SUITE
from tests.quick import QUICK
from torchrl_bicnet import evaluate, load_run, make_vmas_env
from torchrl_bicnet.analysis import OrderSensitivity
from torchrl_bicnet.evaluation import Evaluation
from torchrl_bicnet.runs import TEST_SEED
from torchrl_bicnet.runs.files import read_scalars

TINY = {
    "num_envs": 8,
    "frames_per_batch": 16,
    "updates_per_batch": 2,
    "batch_size": 8,
    "hidden_size": 8,
    "actor_warmup": 0,
    "eval_episodes": 4,
    "test_episodes": 5,
    "compile": False,
}


def tiny(output, algorithm="bicnet", task="guess_the_sum", **changes):
    options = {"seed": 3, "updates": 6, "recipe": TINY, "analysis_episodes": 5, **changes}
    learning_run.main(learning_run.Options(task, algorithm, output=output, **options))
    return json.loads(output.read_text())


@pytest.mark.parametrize("name", ["learning", "references"])
def test_it_is_started_from_the_root_of_the_repository(name):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    result = subprocess.run(command, cwd=learning.ROOT, env=environment, capture_output=True, text=True, check=True)
    assert f"benchmarks/{name}.py" in result.stdout


class TestOneRun:
    @pytest.fixture(scope="class")
    @classmethod
    def places(cls, tmp_path_factory):
        return tmp_path_factory.mktemp("run")

    @pytest.fixture(scope="class")
    @classmethod
    def result(cls, places):
        return tiny(places / "out" / "bicnet-seed3.json", run_folder=places / "run", team=places / "team")

    def test_the_curve_is_that_of_the_run(self, places, result):
        frames, updates, seconds, scores, errors = zip(*result["curve"])
        assert frames == (0, 16, 32, 48)
        assert updates == (0, 2, 4, 6)
        assert seconds[0] == 0
        assert list(seconds) == sorted(seconds)
        assert seconds[-1] <= result["training_wall_seconds"] + 0.1
        for name, found in (("", scores), ("_stderr", errors)):
            kept = read_scalars(places / "run" / "scalars" / f"evaluation_return{name}.csv")[1]
            np.testing.assert_allclose(found, kept, atol=6e-5)
        assert result["milliseconds_per_update"] == pytest.approx(1000 * seconds[-1] / 6, abs=1e-3)

    def test_the_test_returns_are_those_of_the_run(self, places, result):
        for when, returns in json.loads((places / "run" / "test_returns.json").read_text()).items():
            expected = np.mean(returns), np.std(returns, ddof=1) / 5**0.5
            np.testing.assert_allclose(result["test"][when], expected, atol=6e-5)

    def test_what_was_run_is_told(self, places, result):
        assert (result["task"], result["algorithm"], result["seed"]) == ("guess_the_sum", "bicnet", 3)
        expected = TINY | {"scenario": "guess_the_sum", "seed": 3, "max_steps": 1, "total_frames": 48}
        del expected["test_episodes"]  # beside the test returns
        assert {name: result["options"][name] for name in expected} == expected
        assert result["test_episodes"] == 5
        assert {"versions", "machine", "threads", "date", "commit", "parameters"} <= result.keys()
        text = (places / "out" / "bicnet-seed3.json").read_text()
        assert str(places) not in text
        assert len(text) < 10_000

    def test_the_kept_team_is_the_trained_one(self, places, result):
        team = load_run(places / "team")
        found = evaluate(team.make_env(5), team.policy, max_steps=1, seed=TEST_SEED)
        assert found.summary()["evaluation_return"] == pytest.approx(result["test"]["after"][0], abs=1e-4)
        assert sum(file.stat().st_size for file in (places / "team").rglob("*") if file.is_file()) < 300_000

    def test_a_team_that_hears_each_other_is_analysed(self, result):
        order, channel = result["analysis"]["order"], result["analysis"]["channel"]
        assert order["orders"] == 6
        # The mean over the five other orders, from the range over all six
        assert order["order_return_min"] <= order["order_return_trained"] + order["another_order_difference"] + 2e-4
        assert set(channel) == set(learning_run.CHANNELS)
        assert channel["cut"][0] != 0

    def test_a_folder_of_other_files_is_not_removed(self, tmp_path):
        (tmp_path / "mine.txt").touch()
        with pytest.raises(ValueError, match="--run-folder must be new or an earlier run's, found other files"):
            tiny(tmp_path / "out" / "a.json", run_folder=tmp_path)
        assert (tmp_path / "mine.txt").exists()

    def test_an_earlier_run_is_replaced(self, tmp_path):
        for seed in (3, 4):
            result = tiny(tmp_path / "a.json", seed=seed, run_folder=tmp_path / "run", team=tmp_path / "team")
            assert json.loads((tmp_path / "team" / "run.json").read_text())["options"]["seed"] == result["seed"] == seed
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "run", "team"]

    def test_nothing_is_written_for_a_task_that_there_is_not(self, tmp_path):
        with pytest.raises(ValueError, match="no 'navigate', only guess_the_sum"):
            tiny(tmp_path / "a.json", task="navigate")


def test_another_order_is_compared_with_the_trained_one(tmp_path, monkeypatch):
    """By hand: two episodes return -1 and -3 as trained, -2 and -3 in one order, -3 and -6 in another: 1.5 less."""
    returns = [[-1.0, -3.0], [-2.0, -3.0], [-3.0, -6.0]]
    evaluations = [Evaluation({"agents": torch.tensor(row).unsqueeze(-1)}, torch.ones(2), seed=0) for row in returns]
    made_up = OrderSensitivity(torch.zeros(3, 1), evaluations, torch.zeros(1), "agents")
    monkeypatch.setattr(learning_run, "order_sensitivity", lambda *args, **keywords: made_up)
    order = tiny(tmp_path / "a.json")["analysis"]["order"]
    assert order["another_order_difference"] == -1.5
    assert order["another_order_difference_stderr"] == 0.0  # -1.5 in both


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "bicnet"])
def test_every_algorithm_leaves_a_result(tmp_path, name):
    result = tiny(tmp_path / "a.json", name)
    assert [row[1] for row in result["curve"]] == [0, 2, 4, 6] if name != "mappo" else result["curve"][-1][1] == 6
    assert result["test"]["before"] != result["test"]["after"]
    assert ("analysis" in result) == ALGORITHMS[name].communicates
    options = ALGORITHMS[name].options
    assert {key: result["options"][key] for key in options if key not in TINY} == {
        key: value for key, value in options.items() if key not in TINY
    }


class TestBudget:
    def test_the_last_evaluation_comes_after_the_last_update(self):
        options = learning_run.Options("navigation", "bicnet", 0, Path("x"), updates=25_000)
        chosen = train_options(SUITE["navigation"], ALGORITHMS["bicnet"], options)
        updates = chosen.total_frames // chosen.frames_per_batch * chosen.updates_per_batch
        assert 25_000 <= updates <= 1.02 * 25_000
        assert chosen.total_frames % chosen.eval_interval == 0
        assert 50 <= chosen.total_frames // chosen.eval_interval <= 53
        assert chosen.compile

    def test_the_recipe_goes_before_the_algorithm_and_that_before_the_defaults(self):
        options = learning_run.Options("navigation", "none_id", 0, Path("x"), recipe={"agent_id": False, "n_steps": 9})
        chosen = train_options(SUITE["navigation"], ALGORITHMS["none_id"], options)
        assert (chosen.communication, chosen.agent_id, chosen.n_steps) == ("none", False, 9)


class TestClock:
    @pytest.fixture
    def run(self, tmp_path, monkeypatch):
        """A run whose clock moves when it is told to."""
        self.now = 0.0
        monkeypatch.setattr(learning_run.time, "process_time", lambda: self.now)
        monkeypatch.setattr(learning_run.time, "perf_counter", lambda: 3 * self.now)
        with TimedRun(tmp_path / "run", {}, SUITE["dispersion"]) as run:
            run.start({"agents.actor": torch.nn.Linear(2, 1)}, total_frames=40, best=["agents.actor"])
            run.log_test("before", evaluation(0.0))
            yield run

    def test_evaluations_checkpoints_and_compiling_do_not_count(self, run):
        """By hand: batches of 30, 2 and 2 s; evaluations of 100 s after the first and the third."""
        self.now = 50.0
        run.log(0, evaluation(-1.0).summary())
        for frames, seconds in ((10, 30.0), (20, 2.0), (30, 2.0)):
            self.now += seconds
            run.log(frames, {"loss_value": 1.0})
            if frames != 20:
                assert run.due(10)
                self.now += 100.0
                run.log_evaluation(evaluation(frames / 10))
            else:
                assert not run.due(30)
            self.now += 0.5  # counts
            run.checkpoint(1000)
        run.log_test("after", evaluation(2.0))
        summary = run.summary(replace(QUICK, frames_per_batch=10, updates_per_batch=4))
        # The second batch ends 2.5 s after the first and the third 2.5 s after that, so 27.5 s were for compiling.
        assert summary["compiling_seconds"] == 3 * 27.5
        assert summary["training_wall_seconds"] == 3 * 8.0
        # Of dispersion's two agents here the sum is told.
        assert [row[:4] for row in summary["curve"]] == [[0, 0, 0.0, -2.0], [10, 4, 2.5, 2.0], [30, 12, 7.5, 6.0]]
        assert summary["test"]["after"] == [4.0, 0.0]
        assert summary["reported"] == "foods eaten"

    def test_writing_a_checkpoint_does_not_count(self, run, monkeypatch):
        def save(step):
            self.now += 1000.0

        run.log(0, evaluation(-1.0).summary())
        monkeypatch.setattr(run.checkpoints, "save", save)
        for frames in (10, 20):
            self.now += 2.0
            run.log(frames, {"loss_value": 1.0})
            run.checkpoint(10)
        assert run.seconds == 4.0

    def test_one_batch_tells_nothing_about_compiling(self):
        assert first_batch_excess([30.0]) == 0
        assert first_batch_excess([1.0, 3.0, 6.0]) == 0
        assert first_batch_excess([30.0, 32.0, 34.0, 39.0]) == 28


def evaluation(value):
    return Evaluation({"agents": torch.full((6, 2), value)}, lengths=torch.ones(6), seed=0)


class TestGrid:
    @pytest.fixture
    def options(self, tmp_path, monkeypatch):
        """Runs of another program: it writes what a run writes, or fails."""
        self.lines = "open(output, 'w').write('{}')"

        def command(job, options):
            file = job.file(options)
            file.parent.mkdir(parents=True, exist_ok=True)
            return [sys.executable, "-c", f"import sys, time\noutput, job = {str(file)!r}, '{job}'\n{self.lines}"]

        monkeypatch.setattr(learning, "command_of", command)
        monkeypatch.setattr(learning, "POLL", 0.02)
        tasks, algorithms = ("guess_the_sum", "navigation"), ("bicnet", "none")
        return learning.Options(
            tasks, algorithms, (100, 101), output=tmp_path / "out", run_folders=tmp_path / "running"
        )

    def done(self, options):
        return sorted(str(file.relative_to(options.output / "runs")) for file in options.output.rglob("*.json"))

    def test_what_is_there_is_not_repeated(self, options, capsys):
        assert learning.main(replace(options, seeds=(101,))) == 0
        assert len(self.done(options)) == 4
        self.lines = "assert '101' not in job; open(output, 'w').write('{}')"
        assert learning.main(options) == 0
        assert self.done(options) == [
            f"{task}/{algorithm}-seed{seed}.json"
            for task in options.tasks
            for algorithm in options.algorithms
            for seed in options.seeds
        ]
        self.lines = "sys.exit('nothing is to be run')"
        assert learning.main(options) == 0
        assert "0 runs to do" in capsys.readouterr().err

    def test_the_first_seed_of_all_comes_first(self, options):
        assert [job.seed for job in learning.missing(options)] == 4 * [100] + 4 * [101]

    def test_a_failure_is_reported_and_stops_no_other(self, options, capsys):
        self.lines += "; job != 'navigation/none-seed100' or sys.exit('one\\rtwo: it broke')"
        self.lines = self.lines.replace("open", "job == 'navigation/none-seed100' or open", 1)
        assert learning.main(options) == 1
        assert len(self.done(options)) == 7
        assert "navigation/none-seed100 failed: two: it broke\n" in capsys.readouterr().out
        assert [file.name for file in options.run_folders.rglob("*.log")] == ["none-seed100.log"]

    def test_a_run_without_a_result_has_failed(self, options):
        self.lines = "pass"
        assert learning.main(replace(options, tasks=("navigation",), seeds=(100,))) == 2

    def test_no_run_is_started_after_the_limit(self, options, capsys):
        self.lines = "time.sleep(0.3); open(output, 'w').write('{}')"
        assert learning.main(replace(options, max_minutes=0.1 / 60)) == 0
        assert len(self.done(options)) == 1
        assert "7 runs are left for later" in capsys.readouterr().out
        assert learning.main(replace(options, max_minutes=0)) == 0
        assert len(self.done(options)) == 1

    @pytest.mark.parametrize("jobs", [1, 2])
    def test_so_many_at_a_time(self, options, jobs):
        self.lines = (
            "begin = time.monotonic(); time.sleep(0.4); open(output, 'w').write(f'[{begin}, {time.monotonic()}]')"
        )
        learning.main(replace(options, seeds=(100,), jobs=jobs))
        spans = [json.loads(file.read_text()) for file in options.output.rglob("*.json")]
        at_once = [sum(begin <= start < end for begin, end in spans) for start, _ in spans]
        assert max(at_once) == jobs

    def test_an_interrupted_grid_leaves_no_process(self, options, monkeypatch):
        self.lines = "time.sleep(60)"
        started = []
        popen = subprocess.Popen
        monkeypatch.setattr(learning.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])

        def interrupt(seconds):
            raise KeyboardInterrupt

        monkeypatch.setattr(learning.time, "sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            learning.main(replace(options, jobs=2))
        assert len(started) == 2
        assert all(process.returncode for process in started)

    @pytest.mark.parametrize(("recipe", "message"), [({"n_stps": 1}, "n_stps"), ({"gamma": 2.0}, "gamma: Input")])
    def test_a_recipe_that_there_is_not_starts_no_run(self, options, recipe, message):
        with pytest.raises((TypeError, ValueError), match=message):
            learning.main(replace(options, recipe=recipe))
        assert not self.done(options)
        assert not options.run_folders.exists()

    def test_names_that_there_are_not(self, options):
        with pytest.raises(ValueError, match=r"--tasks must be of guess_the_sum, .* found nowhere"):
            learning.main(replace(options, tasks=("navigation", "nowhere")))
        with pytest.raises(ValueError, match=r"--algorithms must be of bicnet, .* found qmix"):
            learning.main(replace(options, algorithms=("qmix",)))


class TestCommand:
    def parsed(self, job, **changes):
        options = learning.Options(seeds=(101, 100), **changes)
        _, _, module, *arguments = learning.command_of(job, options)
        assert module == learning_run.__name__
        return tyro.cli(learning_run.Options, args=arguments)

    def test_a_run_is_understood(self):
        job = Job("dispersion", "recurrent_attention", 101)
        found = self.parsed(
            job, recipe={"n_steps": 1, "tau": 0.5, "compile": False, "logger": "csv", "num_cells": (64,)}
        )
        assert (found.task, found.algorithm, found.seed, found.updates) == (
            "dispersion",
            "recurrent_attention",
            101,
            15_000,
        )
        assert found.recipe == {"n_steps": 1, "tau": 0.5, "compile": False, "logger": "csv", "num_cells": (64,)}
        assert found.output == learning.RESULTS / "runs" / "dispersion" / "recurrent_attention-seed101.json"

    def test_cheap_updates_may_be_more(self):
        assert ALGORITHMS["none"].budget > 1
        assert self.parsed(Job("dispersion", "none", 100)).updates == round(15_000 * ALGORITHMS["none"].budget)
        assert self.parsed(Job("dispersion", "none", 100), equal_seconds=False).updates == 15_000

    def test_one_team_of_a_task_is_kept(self):
        assert self.parsed(Job("dispersion", "bicnet", 100)).team == learning.RESULTS / "teams" / "dispersion"
        assert self.parsed(Job("dispersion", "bicnet", 101)).team is None
        assert self.parsed(Job("dispersion", "none", 100)).team is None


@pytest.mark.slow
def test_a_grid_of_real_processes(tmp_path, monkeypatch):
    places = {"output": tmp_path / "out", "run_folders": tmp_path / "running"}
    monkeypatch.setattr(learning, "QUICK", learning.QUICK | places | {"seeds": (0,)})
    assert learning.main(learning.Options(quick=True, jobs=2)) == 0
    results = report_learning.read_learning(tmp_path / "out")
    assert {name: len(runs) for name, runs in results["runs"]["guess_the_sum"].items()} == {"bicnet": 1, "none_id": 1}
    assert "| `none_id` | 1 |" in report_learning.learning(results, (40, 80))


class TestRivals:
    @pytest.fixture(scope="class")
    @classmethod
    def env(cls):
        return make_vmas_env("hidden_goals", 6, seed=0, max_steps=4, n_agents=3)

    @pytest.mark.parametrize("learner_class", [MADDPGLearner, SilentActorsLearner])
    def test_actors_see_themselves_and_critics_everything(self, env, learner_class):
        torch.manual_seed(0)
        learner = learner_class(env, "agents", QUICK)
        td = learner.critic(learner.actor(env.reset()))
        other = td.clone()
        other["agents", "observation"][:, 0] += 1
        moved = learner.actor(other)["agents", "action"] != td["agents", "action"]
        assert moved[:, 0].any(-1).all()
        assert not moved[:, 1:].any()
        other["agents", "action"] = td["agents", "action"]
        values = learner.critic(other)["agents", "state_action_value"]
        assert (values != td["agents", "state_action_value"]).all()
        assert (values[:, 0] != values[:, 1]).all()  # of each agent's own

    def test_maddpgs_agents_have_policies_of_their_own(self, env):
        torch.manual_seed(0)
        same = env.reset().clone()
        same["agents", "observation"][:] = same["agents", "observation"][:, :1].clone()
        action = MADDPGLearner(env, "agents", QUICK).actor(same)["agents", "action"]
        assert (action[:, 0] != action[:, 1]).any()

    @pytest.fixture
    def mappo(self, env):
        torch.manual_seed(0)
        learner = MAPPOLearner(env, "agents", QUICK)
        with torch.no_grad():
            batch = env.rollout(4, lambda td: learner.into_bounds(learner.policy(td)))
        return learner, batch

    def test_mappo_evaluates_the_mean_of_the_policy_that_it_trains(self, env, mappo):
        learner, batch = mappo
        with torch.no_grad():
            mean = learner.policy(batch.clone())["agents", "loc"].tanh()
            learner.actor(batch)
        low, high = learner.actor.module.low, learner.actor.module.high
        torch.testing.assert_close(batch["agents", "action"], low + (high - low) * (mean + 1) / 2)

    def test_mappos_samples_are_new_to_no_policy(self, mappo):
        """Before the first update the policy is the one that acted: the ratio is 1 and the objective the advantage."""
        learner, batch = mappo
        transitions = learner.estimate(batch)
        advantage = transitions["agents", "advantage"]
        torch.testing.assert_close(advantage.mean(0), torch.zeros(3, 1), atol=1e-5, rtol=0)
        torch.testing.assert_close(advantage.std(0), torch.ones(3, 1), atol=1e-4, rtol=0)
        losses = learner.loss(transitions)
        assert losses["loss_objective"].item() == pytest.approx(0, abs=1e-5)
        assert losses["clip_fraction"].item() == 0

    def test_mappos_targets_are_those_of_gae(self, mappo):
        """Of the last step: r + gamma V(s'), since the time limit cuts the episode off and does not end it."""
        learner, batch = mappo
        reward = batch["next", "agents", "reward"]
        reward = reward[:, -1] * QUICK.reward_rms / reward.square().mean().sqrt()
        with torch.no_grad():
            value = learner.critic(batch["next"][:, -1].clone())["agents", "state_value"]
        target = learner.estimate(batch)["agents", "value_target"].reshape(6, 4, 3, 1)[:, -1]
        torch.testing.assert_close(target, reward + QUICK.gamma * value)

    def test_mappo_learns(self, tmp_path):
        recipe = TINY | {"num_envs": 128, "frames_per_batch": 512, "batch_size": 128, "updates_per_batch": 16}
        recipe |= {"hidden_size": 16, "eval_episodes": 200, "actor_lr": 3e-3, "critic_lr": 3e-3}
        result = tiny(tmp_path / "a.json", "mappo", updates=160, recipe=recipe, analysis_episodes=0)
        assert result["curve"][-1][3] > result["curve"][0][3] / 2


def made_up_run(task, algorithm, seed, scores, seconds=1.0, updates=10):
    curve = [[100 * i, updates * i, seconds * i, score, 0.1] for i, score in enumerate(scores)]
    return {
        "task": task,
        "algorithm": algorithm,
        "what": f"it is {algorithm}",
        "seed": seed,
        "reported": "return",
        "curve": curve,
        "test": {"before": [scores[0], 0.1], "after": [scores[-1] - 1, 0.1]},
        "options": {"scenario": "navigation", "scenario_options": {"n_agents": 4}, "max_steps": 100},
        "compiling_seconds": 7.0,
        "training_wall_seconds": 9.0,
        "milliseconds_per_update": 1000 * seconds / updates,
        "parameters": {"agents.actor": 12, "agents.critic": 3456},
        "machine": "a machine",
        "threads": 1,
        "date": "2026-01-01",
        "commit": "0123456789abcdef",
        "versions": {"torch": "1"},
    }


RUN = {"curve": [[0, 0, 0.0, -8.0, 0.1], [100, 10, 2.0, -4.0, 0.1], [200, 20, 6.0, 0.0, 0.1]]}


class TestStatistics:
    def test_between_evaluations_in_proportion(self):
        assert reached(RUN, UPDATES, 15) == -2
        assert reached(RUN, SECONDS, 1.5) == -5
        assert reached(RUN, SECONDS, 3) == -3
        assert math.isnan(reached(RUN, UPDATES, 21))
        assert after_seconds(RUN, 5) == -1
        assert after_seconds(RUN, 60) == 0

    def test_seconds_for_updates(self):
        slow, slower = ({"curve": [[0, 0, 0.0, 0.0, 0.0], [1, 20, end, 0.0, 0.0]]} for end in (20.0, 400.0))
        short = {"curve": [[0, 0, 0.0, 0.0, 0.0], [1, 10, 1.0, 0.0, 0.0]]}
        assert seconds_for([RUN, slow, slower, short], 15) == 15  # of 4, 15 and 300; the last takes no 15 updates
        assert math.isnan(seconds_for([short], 15))
        assert math.isnan(seconds_for([], 15))

    def test_the_interquartile_mean_is_over_those_that_have_a_score(self):
        found = estimate([1.0, 2.0, math.nan, 3.0, 4.0, 5.0, 6.0, 7.0, 100.0])
        assert found.value == 4.5  # of 3, 4, 5 and 6
        assert found.low < 4.5 < found.high
        one, none = estimate([3.0, math.nan]), estimate([])
        assert (one.value, math.isnan(one.low), math.isnan(none.value)) == (3.0, True, True)

    def test_probability_of_improvement(self):
        """3 is above 1 and not above 4, 5 is above both: 3 of 4. Of the second task half, by a draw: 5 of 8 in all."""
        first, second = ([3.0, 5.0], [1.0, 4.0]), ([2.0, 2.0], [2.0, 2.0])
        assert probability_of_improvement([first]).value == 0.75
        assert probability_of_improvement([first, second]).value == 0.625
        found = probability_of_improvement([first])
        assert 0 <= found.low < 0.75 < found.high <= 1
        assert probability_of_improvement([([3.0, 4.0], [1.0, 2.0])]) == (1, 1, 1)
        assert probability_of_improvement([([1.0], [2.0, 3.0])])[0] == 0
        assert math.isnan(probability_of_improvement([([], [1.0])]).value)


class TestReport:
    @pytest.fixture
    def results(self, tmp_path):
        """Ours, a rival with updates four times as fast, and one with updates sixteen times as slow."""
        runs = [made_up_run("there", "bicnet", 100 + i, [-10.0, -4.0 + i, -6.0 + i]) for i in (0, 1)]
        runs += [made_up_run("there", "none", 100 + i, [-10.0, -9.0 + i, -8.0 + i], seconds=0.25) for i in (0, 1)]
        runs += [made_up_run("there", "mappo", 100, [-10.0, -8.0], seconds=8.0, updates=5)]
        runs += [made_up_run("elsewhere", "bicnet", 100, [0.0, 1.0, 2.0])]
        for run in runs:
            file = tmp_path / "runs" / run["task"] / f"{run['algorithm']}-seed{run['seed']}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(run))
        means = {"random": -10.0, "without_communication": -9.5, "with_communication": -5.0}
        policies = {name: {"mean": mean, "standard_error": 0.25, "episodes": 2000} for name, mean in means.items()}
        there = {"policies": policies, "limits": {"with_communication": -4.5}}
        (tmp_path / "references.json").write_text(json.dumps({"tasks": {"there": there}}))
        return report_learning.read_learning(tmp_path)

    def row(self, results, task, name):
        text = report_learning.learning(results, (10, 20))
        section = text.split(f"### {task}\n")[1].split("###")[0]
        [row] = [line for line in section.splitlines() if line.startswith(f"| `{name}`")]
        return [cell.strip() for cell in row.strip("|").split("|")]

    def test_ours(self, results):
        """By hand: -4 and -3 at 10 updates, -6 and -5 at 20, which are 1 and 2 s; the test, -6.5, is 3/4.5 up."""
        cells = self.row(results, "there", "bicnet")
        assert cells[:2] == ["`bicnet`", "2"]
        assert [cell.split(" [")[0] for cell in cells[2:7]] == ["-3.500", "-3.500", "-5.500", "-5.500", "-6.500"]
        assert cells[2] == "-3.500 [-4.000, -3.000]"
        assert cells[7:] == ["0.67", "1.300", "200", "20", "2", "9", "7", "100.0", "12 + 3,456"]

    def test_a_cheaper_rival(self, results):
        """It ends after half a second: at equal seconds its last evaluation counts, and is marked."""
        cells = self.row(results, "there", "none")
        assert [cell.split(" [")[0] for cell in cells[2:6]] == ["-8.500", "-7.500", "-7.500", "-7.500"]
        assert [cell.endswith("°") for cell in cells[2:6]] == [False, True, False, True]
        assert cells[7:9] == ["0.22", "1.700"]  # of the test, -8.5

    def test_a_rival_that_takes_fewer_updates(self, results):
        """A quarter of the way from -10 to -8 after 2 of 8 seconds; by the test, -9, 1/9 of the way from silence."""
        cells = self.row(results, "there", "mappo")
        assert cells[1:6] == ["1", "-", "-9.750", "-", "-9.500"]
        assert cells[7:9] == ["0.11", "1.800"]

    def test_scripts_and_limits_are_told(self, results):
        text = report_learning.learning(results, (10, 20))
        assert "Scripts, over 2,000 episodes:" in text
        assert "random -10.0 ± 0.25, without communication -9.500 ± 0.25, with communication -5.000 ± 0.25." in text
        assert "no policy's mean exceeds: with communication -4.500.\n" in text

    def test_other_recipes_are_told_by_what_differs(self, tmp_path, results):
        """The defaults stand at -3.5 and the others at -4.5 after 10 updates, with seeds in other folders together."""
        for seed, score in ((3, -4.0), (4, -5.0)):
            run = made_up_run("there", "bicnet", seed, [-10.0, score])
            run["options"] |= {"max_steps": 50, "n_frequencies": 2, "n_steps": QUICK.n_steps, "seed": seed}
            file = tmp_path / "recipes" / f"short-{seed}" / "bicnet.json"
            file.parent.mkdir(parents=True)
            file.write_text(json.dumps(run))
        text = report_learning.learning(report_learning.read_learning(tmp_path), (10, 20))
        scores = "-4.500 [-5.000, -4.000] | -3.500 [-4.000, -3.000]"
        assert f"| there | max_steps 50, n_frequencies 2 | 3, 4 | 10 | {scores} | 1 |" in text

    def test_runs_of_different_options_are_not_averaged(self, tmp_path, results):
        file = tmp_path / "runs" / "there" / "bicnet-seed102.json"
        run = made_up_run("there", "bicnet", 102, [-10.0, -4.0])
        file.write_text(json.dumps(run | {"options": run["options"] | {"seed": 102}}))
        assert len(report_learning.read_learning(tmp_path)["runs"]["there"]["bicnet"]) == 3
        file.write_text(json.dumps(run | {"options": run["options"] | {"n_steps": 7}}))
        with pytest.raises(ValueError, match=r"bicnet-seed102.json is of other options .*: n_steps"):
            report_learning.read_learning(tmp_path)

    def test_a_task_without_references(self, results):
        assert self.row(results, "elsewhere", "bicnet")[7:9] == ["-", "-"]

    def test_who_improves_on_whom(self, results):
        results["runs"]["navigation"] = {
            name: [made_up_run("navigation", name, 100, [0.0, score, score])]
            for name, score in (("bicnet", 1.0), ("none", 2.0))
        }
        results["runs"]["guess_the_sum"] = results["runs"].pop("there")  # the one of these that needs communication
        text = report_learning.learning(results, (10, 20))
        both = "1.00 [1.00, 1.00] / 1.00 [1.00, 1.00] (1)"
        assert f"| `none` | - / - | 0.00 / 0.00 | 1.00 / 1.00 | {both} | 0.50 / 0.50 (2) |" in text
        assert "| `mappo` | - / - | - / - | - / 1.00 | - | - |" in text

    def test_where_nothing_needs_to_be_said_random_actions_are_the_floor(self):
        policies = {"random": 0.0, "without_communication": 3.9, "with_communication": 4.0}
        assert report_learning.share(3.0, policies) == "0.75"
        assert report_learning.share(3.0, policies | {"without_communication": 2.0}) == "0.50"
        assert report_learning.ratio(3.0, policies) == "-"

    def test_pictures(self, results):
        pictures = report_learning.draw_learning(results)
        assert sorted(pictures) == ["seconds.png", "updates.png"]
        panels = [axes for axes in pictures["seconds.png"].axes if axes.get_visible()]
        assert [axes.get_title() for axes in panels] == ["elsewhere", "there"]
        ends = {
            line.get_label(): line.get_xdata()[-1] for line in panels[1].lines if not line.get_label().startswith("_")
        }
        assert ends == {"bicnet": 2.0, "none": 0.5, "mappo": 8.0}
        horizontal = [line.get_ydata()[0] for line in panels[1].lines if line.get_label().startswith("_")]
        assert horizontal == [-5.0, -9.5]

    def test_nothing_was_run(self, tmp_path):
        assert "Not run" in report_learning.learning(report_learning.read_learning(tmp_path))
        assert report_learning.draw_learning(report_learning.read_learning(tmp_path)) == {}

    def test_analyses_are_means_over_the_seeds(self, results):
        for run, difference in zip(results["runs"]["there"]["bicnet"], (-1.0, -2.0)):
            run["analysis"] = {
                "order": {"another_order_difference": difference, "another_order_difference_stderr": 0.3},
                "channel": {"cut": [2 * difference, 0.4]},
            }
        text = report_learning.learning(results, (10, 20))
        assert "| task | algorithm | seeds | another order | cut |" in text
        assert "| there | `bicnet` | 2 | -1.50 ± 0.50 | -3.00 ± 1.00 |" in text
        del results["runs"]["there"]["bicnet"][0]["analysis"]
        assert "| there | `bicnet` | 1 | -2.00 ± 0.30 | -4.00 ± 0.40 |" in report_learning.learning(results, (10, 20))
