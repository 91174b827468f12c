"""benchmarks/learning.py: one run and its clock, the grid of runs, and its rivals."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro

from benchmarks import grid, learning, learning_run, report_learning
from benchmarks.algorithms import ALGORITHMS
from benchmarks.learning_run import TimedRun, first_batch_excess, train_options
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


RESULT = '{"test": {"after": [-1.5, 0.25]}}'


class TestGrid:
    @pytest.fixture
    def options(self, tmp_path, monkeypatch):
        """Runs of another program: it writes what a run writes, or fails."""
        self.lines = f"open(output, 'w').write({RESULT!r})"

        job_of = learning.job_of

        def other(*arguments):
            job = job_of(*arguments)
            job.result.parent.mkdir(parents=True, exist_ok=True)
            code = f"import sys, time\noutput, job = {str(job.result)!r}, {job.name!r}\n{self.lines}"
            return replace(job, command=(sys.executable, "-c", code))

        monkeypatch.setattr(learning, "job_of", other)
        monkeypatch.setattr(grid, "POLL", 0.02)
        tasks, algorithms = ("guess_the_sum", "navigation"), ("bicnet", "none")
        return learning.Options(
            tasks, algorithms, (100, 101), output=tmp_path / "out", run_folders=tmp_path / "running"
        )

    def done(self, options):
        return sorted(str(file.relative_to(options.output / "runs")) for file in options.output.rglob("*.json"))

    def test_what_is_there_is_not_repeated(self, options, capsys):
        assert learning.main(replace(options, seeds=(101,))) == 0
        assert len(self.done(options)) == 4
        told = capsys.readouterr().err
        assert told.count(": -1.500 ± 0.25 in the test after 0 s.") == 4
        assert "3 of 4 runs have ended; all others would take about 0 minutes\n" in told
        self.lines = f"assert '101' not in job; open(output, 'w').write({RESULT!r})"
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
        seeds = [job.name[-3:] for job in learning.plan(options)]
        assert seeds == 4 * ["100"] + 4 * ["101"]

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
        self.lines = f"time.sleep(0.3); open(output, 'w').write({RESULT!r})"
        assert learning.main(replace(options, max_minutes=0.1 / 60)) == 0
        assert len(self.done(options)) == 1
        told = capsys.readouterr()
        assert "7 runs are left for later" in told.out
        assert "1 of 8 runs have ended" in told.err
        assert learning.main(replace(options, max_minutes=0)) == 0
        assert len(self.done(options)) == 1

    @pytest.mark.parametrize("jobs", [1, 2])
    def test_so_many_at_a_time(self, options, jobs):
        self.lines = (
            f"import json; begin = time.monotonic(); time.sleep(0.4); result = json.loads({RESULT!r}); "
            "json.dump({**result, 'span': [begin, time.monotonic()]}, open(output, 'w'))"
        )
        learning.main(replace(options, seeds=(100,), jobs=jobs))
        spans = [json.loads(file.read_text())["span"] for file in options.output.rglob("*.json")]
        at_once = [sum(begin <= start < end for begin, end in spans) for start, _ in spans]
        assert max(at_once) == jobs

    def test_an_interrupted_grid_leaves_no_process(self, options, monkeypatch):
        self.lines = "time.sleep(60)"
        started = []
        popen = subprocess.Popen
        monkeypatch.setattr(grid.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])

        def interrupt(seconds):
            raise KeyboardInterrupt

        monkeypatch.setattr(grid.time, "sleep", interrupt)
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
    def parsed(self, *job, **changes):
        options = learning.Options(seeds=(101, 100), **changes)
        _, _, module, *arguments = learning.job_of(*job, options).command
        assert module == learning_run.__name__
        return tyro.cli(learning_run.Options, args=arguments)

    def test_a_run_is_understood(self):
        job = ("dispersion", "recurrent_attention", 101)
        found = self.parsed(
            *job, recipe={"n_steps": 1, "tau": 0.5, "compile": False, "logger": "csv", "num_cells": (64,)}
        )
        assert (found.task, found.algorithm, found.seed, found.updates) == (
            "dispersion",
            "recurrent_attention",
            101,
            10_000,
        )
        assert found.recipe == {"n_steps": 1, "tau": 0.5, "compile": False, "logger": "csv", "num_cells": (64,)}
        assert found.output == learning.RESULTS / "runs" / "dispersion" / "recurrent_attention-seed101.json"

    def test_cheap_updates_may_be_more(self):
        assert ALGORITHMS["none"].budget > 1
        assert self.parsed("dispersion", "none", 100).updates == round(10_000 * ALGORITHMS["none"].budget)
        assert self.parsed("dispersion", "none", 100, equal_seconds=False).updates == 10_000

    def test_one_team_of_a_task_is_kept(self):
        assert self.parsed("dispersion", "bicnet", 100).team == learning.RESULTS / "teams" / "dispersion"
        assert self.parsed("dispersion", "bicnet", 101).team is None
        assert self.parsed("dispersion", "none", 100).team is None


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

    @pytest.mark.parametrize("learner_class", [MADDPGLearner, SilentActorsLearner, MAPPOLearner])
    def test_rivals_have_the_features_that_ours_has(self, env, learner_class):
        """By hand: of each of six numbers that an agent sees two of each frequency; of actions none."""
        widths = [
            next(module.in_features for module in net.modules() if hasattr(module, "in_features"))
            for n_frequencies in (0, 2)
            for learner in [learner_class(env, "agents", replace(QUICK, n_frequencies=n_frequencies))]
            for net in (learner.actor, learner.critic)
        ]
        seen = 3 if learner_class is MADDPGLearner else 1  # agents that the critic's first layer sees
        assert (widths[2] - widths[0], widths[3] - widths[1]) == (24, 24 * seen)

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
