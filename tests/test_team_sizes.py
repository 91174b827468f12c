"""benchmarks/team_sizes.py: its grid, one run of it, and the report."""

import json

import pytest

from benchmarks import grid, mixed_collection, report_team_sizes, team_sizes, team_sizes_run
from benchmarks.suite import SUITE
from torchrl_bicnet import make_vmas_env

TINY = {
    "num_envs": 8,
    "frames_per_batch": 16,
    "updates_per_batch": 1,
    "batch_size": 8,
    "hidden_size": 8,
    "eval_episodes": 4,
    "test_episodes": 4,
    "compile": False,
}


def made_up(sizes, seed, tests, contender="gru"):
    about = {"date": "2026-11-27", "commit": "abc", "machine": "a machine", "episodes": 300}
    about["options"] = {"total_frames": 1000 * len(sizes), "scenario": "navigation"}
    return {"task": "navigation", "contender": contender, "sizes": sizes, "seed": seed, "tests": tests, **about}


def test_every_size_and_all_of_them_are_trained():
    options = team_sizes.Options(
        tasks=("navigation",), seeds=(100, 101), sizes=(2, 3), contenders=("gru", "gru, shuffled")
    )
    names = [job.name for job in team_sizes.plan(options)]
    one = ["gru-2_3", "gru_shuffled-2_3", "gru-2", "gru-3"]
    assert names == [f"navigation/{name}-seed{seed}" for seed in (100, 101) for name in one]


@pytest.mark.parametrize("sizes", [(3,), (2, 3)])
def test_a_run_is_tested_on_all_sizes(tmp_path, sizes):
    file = tmp_path / "a.json"
    team_sizes_run.main(
        team_sizes_run.Options(
            "hidden_goals_4", "gru, shuffled", 3, sizes, (2, 5), file, frames=16, episodes=6, recipe=TINY
        )
    )
    result = json.loads(file.read_text())
    assert result["tests"].keys() == {"2", "5"}
    assert result["options"]["total_frames"] == 16 * len(sizes)
    trained = result["options"]["n_agents"] or [result["options"]["scenario_options"]["n_agents"]]
    assert tuple(trained) == sizes
    assert (result["options"]["communication"], result["options"]["shuffle_agents"]) == ("gru", True)
    # From the middle of the square, where nobody moves, a goal is 0.77 away; untrained actors are worse, not absurd
    assert all(-100 < mean < -20 and error > 0 for mean, error in result["tests"].values())
    assert str(tmp_path) not in file.read_text().replace(str(file), "")


def test_observations_of_its_tasks_do_not_depend_on_the_size():
    for name in team_sizes.Options().tasks:
        make_vmas_env(SUITE[name].scenario, 4, n_agents=(2, 3))


def test_the_report(tmp_path):
    """By hand: 1 and 3 are 2 on average, with a standard error of 1; of one seed the error is that of its episodes."""
    runs = [
        made_up([2, 3], 100, {"2": [1.0, 0.5], "4": [5.0, 0.5]}),
        made_up([2, 3], 101, {"2": [3.0, 0.5], "4": [5.0, 0.5]}),
        made_up([2], 100, {"2": [4.0, 0.25], "4": [-1.0, 0.25]}),
    ]
    for i, run in enumerate(runs):
        (tmp_path / "navigation").mkdir(exist_ok=True)
        (tmp_path / "navigation" / f"{i}.json").write_text(json.dumps(run))
    tasks = report_team_sizes.read_team_sizes(tmp_path)
    text = report_team_sizes.team_sizes(tasks)
    assert "| gru: 2, 3 | 2 | 2.00 ± 1.00 | 5.00 ± 0.00 |" in text
    assert "| gru: 2 | 1 | 4.00 ± 0.25 | -1.00 ± 0.25 |" in text
    assert "with 1,000 frames of each, and" in text
    assert "300 start states" in text
    assert text.index("| gru: 2 |") < text.index("| gru: 2, 3 |")
    # Of seed 100 alone there are both: 1 instead of 4.
    assert "2 agents -75.0 % (1)." in text
    figure = report_team_sizes.draw_team_sizes(tasks)["navigation.png"]
    assert sorted(each.get_text() for each in figure.axes[0].texts) == ["-1.0", "2.0", "4.0", "5.0"]
    assert "Not run" in report_team_sizes.team_sizes({})


def test_the_readme_tells_what_was_measured():
    told = " ".join((grid.ROOT / "README.md").read_text().split())
    runs = report_team_sizes.read_team_sizes(team_sizes.RESULTS)["hidden_goals_4"]
    together = {name: row for name, row in report_team_sizes.rows_of(runs).items() if ": 2, 3, 4, 6" in name}
    ours = [mean for mean, *_ in together.pop("gru: 2, 3, 4, 6").values()]
    assert f"{min(ours):.1f} to {max(ours):.1f} in every team of 2 to 12 agents" in told
    others = [row[size][0] for row in together.values() for size in range(3, 13)]
    assert f"from three agents on at most {max(others):.1f}" in told
    seeds = {run["seed"] for run in runs}
    assert len(seeds) == 3
    assert "means of three seeds" in told
    assert all({run["seed"] for run in runs if run["contender"] == name} == seeds for name in team_sizes.CONTENDERS)


def test_what_collecting_them_together_costs(tmp_path):
    """The guide tells what was measured; a turn of both collects as many frames."""
    told = (grid.ROOT / "docs" / "guide.md").read_text()
    cells = json.loads(mixed_collection.Options().output.read_text())["cells"]
    # Rates apart by rates together are times together by times apart.
    cost = {(cell["num_envs"], cell["compile"]): cell["ratios"]["apart / together"] for cell in cells}
    text = f"{cost[64, False]:.2f} (64 environments) and {cost[512, False]:.2f} times (512)"
    assert text in " ".join(told.split())
    assert f"compiled {cost[64, True]:.2f} and {cost[512, True]:.2f} times" in " ".join(told.split())
    file = tmp_path / "cpu.json"
    mixed_collection.main(
        mixed_collection.Options(sizes=(1, 2), num_envs=(4,), compile=(False,), steps=10, repeats=2, output=file)
    )
    [cell] = json.loads(file.read_text())["cells"]
    assert cell["counted_per_turn"] == {"together": 40, "apart": 40}
