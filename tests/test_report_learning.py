"""The report of benchmarks/learning.py: its statistics, tables and pictures, from made-up runs."""

import json
import math

import pytest

from benchmarks import report_learning, report_teams
from benchmarks.draw_learning import draw_learning
from benchmarks.learning_statistics import (
    SECONDS,
    UPDATES,
    after_seconds,
    estimate,
    probability_of_improvement,
    reached,
    seconds_for,
)
from benchmarks.messages import RESULTS
from benchmarks.suite import SUITE
from tests.quick import QUICK
from torchrl_bicnet import evaluate, load_run


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
        policies = {
            name: {"mean": mean - 1, "standard_error": 0.25, "episodes": 2000, "test_mean": mean}
            for name, mean in means.items()
        }
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
        assert "random -11.0 ± 0.25, without communication -10.5 ± 0.25, with communication -6.000 ± 0.25." in text
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
        pictures = draw_learning(results)
        assert sorted(pictures) == ["seconds.png", "updates.png"]
        panels = [axes for axes in pictures["seconds.png"].axes if axes.get_visible()]
        assert [axes.get_title() for axes in panels] == ["elsewhere", "there"]
        ends = {
            line.get_label(): line.get_xdata()[-1] for line in panels[1].lines if not line.get_label().startswith("_")
        }
        assert ends == {"bicnet": 2.0, "none": 0.5, "mappo": 8.0}
        horizontal = [line.get_ydata()[0] for line in panels[1].lines if line.get_label().startswith("_")]
        assert horizontal == [-6.0, -10.5]

    def test_nothing_was_run(self, tmp_path):
        assert "Not run" in report_learning.learning(report_learning.read_learning(tmp_path))
        assert draw_learning(report_learning.read_learning(tmp_path)) == {}

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


def test_each_team_that_is_kept_is_that_of_the_run_whose_return_it_is_given():
    teams = report_teams.read_teams(RESULTS / "teams")
    assert teams.keys() == SUITE.keys()
    for name, team in teams.items():
        own, of_run = team["card"], team["run"]
        assert of_run["task"] == name
        assert all(own["options"][option] == value for option, value in of_run["options"].items())
        assert all(own[key] == of_run[key] for key in ("versions", "machine", "date", "commit"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hidden_goals_2", "guess_the_sum"])
def test_a_team_that_is_kept_returns_what_its_run_did(name):
    mean, error = report_teams.read_teams(RESULTS / "teams")[name]["run"]["test"]["after"]
    team = load_run(RESULTS / "teams" / name)
    found = evaluate(team.make_env(1000), team.policy, max_steps=team.options["max_steps"], seed=7).summary()
    assert abs(found["evaluation_return"] - mean) < 4 * 2**0.5 * error + 1e-3
