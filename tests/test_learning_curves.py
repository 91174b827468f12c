"""Learning curves: the numbers against hand-derived ones, the picture against the numbers, and what is refused."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from torchrl.record.loggers import get_logger

from examples import plot_runs
from torchrl_bicnet.runs import interquartile_mean, learning_curves, plot_learning_curves
from torchrl_bicnet.runs.files import read_options, read_scalars

SCRIPT = Path(plot_runs.__file__)
RESULTS = SCRIPT.parent.parent / "benchmarks/results/navigation"


def run_folder(folder, metrics, **options):
    """As `examples/train_vmas.py` leaves it; metrics: name to {frames: value}."""
    options = {"scenario": "navigation", "scenario_options": {}, "seed": 0, "run_folder": str(folder), **options}
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"options": options}))
    logger = get_logger("csv", str(folder.parent), folder.name)
    for name, rows in metrics.items():
        for frames, value in rows.items():
            logger.log_scalar(name, value, step=frames)
    return folder


def runs_of(tmp_path, values, name="run", frames=(0, 600), **options):
    """A run for each row of values (runs, T)."""
    return [
        run_folder(tmp_path / f"{name}{seed}", {"evaluation_return": dict(zip(frames, row))}, seed=seed, **options)
        for seed, row in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 100], 4.5),  # of 3, 4, 5, 6
        ([8, 1, 100, 3, 2], 13 / 3),  # of 2, 3, 8: a quarter of 5, rounded down, is 1
        ([0, 1, 5], 2),  # a quarter of 3 is none
        ([7, 7, 7, 7], 7),
    ],
)
def test_the_interquartile_mean_by_hand(scores, expected):
    estimate, low, high = interquartile_mean([np.array(scores, dtype=float)])
    assert estimate == pytest.approx(expected)
    assert low <= estimate <= high


def test_equal_scores_have_an_interval_of_no_width():
    estimate, low, high = interquartile_mean([np.full((5, 3), 2.5)])
    assert (estimate == 2.5).all()
    assert (low == 2.5).all()
    assert (high == 2.5).all()


def test_the_interval_of_two_runs_by_hand():
    """Resamples of 0 and 1 have the mean 0, 1/2, 1 with probability 1/4, 1/2, 1/4."""
    for level, expected in ((0.95, (0.0, 1.0)), (0.4, (0.5, 0.5))):
        _, low, high = interquartile_mean([np.array([0.0, 1.0])], confidence_level=level)
        assert (low, high) == expected


def test_a_resample_draws_within_each_stratum():
    """Of tasks whose runs agree nothing varies, however far apart they are; drawn from one pot they would."""
    tasks = [np.zeros(4), np.full(4, 10.0)]
    estimate, low, high = interquartile_mean(tasks)
    assert estimate == low == high == 5
    _, low, high = interquartile_mean([np.concatenate(tasks)])
    assert low < 5 < high


def test_a_resample_draws_whole_runs():
    """Two columns of opposite sign: the same draws make their intervals mirror each other to the bit."""
    scores = np.random.default_rng(0).normal(size=9)
    _, low, high = interquartile_mean([np.stack([scores, -scores], 1)])
    assert low[0] == -high[1]
    assert high[0] == -low[1]


def test_the_same_scores_give_the_same_interval_and_leave_the_global_generator_alone():
    scores = [np.random.default_rng(0).normal(size=(6, 2))]
    before = np.random.get_state()[1].copy()
    first, again, other = (interquartile_mean(scores, seed=seed)[1] for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()
    assert (np.random.get_state()[1] == before).all()


def test_the_interval_covers_the_true_value():
    """Trials along the second dimension; the docstring's figures, 90% of 5 runs and 95% of 20, within 3 points."""
    generator = np.random.default_rng(1)
    for runs, expected in ((5, 0.90), (20, 0.95)):
        _, low, high = interquartile_mean([3 + generator.normal(size=(runs, 1000))], n_resamples=500)
        assert ((low <= 3) & (high >= 3)).mean() == pytest.approx(expected, abs=0.03)
    narrow = interquartile_mean([generator.normal(size=(20, 1000))], n_resamples=500, confidence_level=0.5)
    assert ((narrow[1] <= 0) & (narrow[2] >= 0)).mean() == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_a_gap(value):
    scores = np.arange(8.0).reshape(4, 2)
    scores[1, 0] = value
    for numbers in interquartile_mean([scores]):
        assert np.isnan(numbers).tolist() == [True, False]


def test_runs_that_differ_in_their_seed_are_one_curve(tmp_path):
    values = np.random.default_rng(0).normal(size=(5, 2))
    (curve,) = learning_curves(folders := runs_of(tmp_path, values))
    assert (curve.panel, curve.metric, curve.label) == ("navigation", "evaluation_return", "")
    assert curve.runs == tuple(folders)
    assert curve.frames.tolist() == [0, 600]
    for found, expected in zip((curve.estimate, curve.low, curve.high), interquartile_mean([values])):
        assert (found == expected).all()


def test_labels_are_the_options_that_differ(tmp_path):
    common = {"hidden_size": 64, "num_cells": [128]}
    folders = [
        *runs_of(tmp_path, [[0, 1], [0, 2]], "a", communication="gru", **common),
        *runs_of(tmp_path, [[0, 3], [0, 4]], "b", communication="lstm", **common),
        *runs_of(tmp_path, [[0, 5], [0, 6]], "c", communication="lstm", scenario_options={"n_agents": 3}, **common),
    ]
    curves = learning_curves(folders)
    assert [curve.label for curve in curves] == [
        "communication gru, n_agents default",
        "communication lstm, n_agents default",
        "communication lstm, n_agents 3",
    ]
    assert [curve.estimate.tolist() for curve in curves] == [[0, 1.5], [0, 3.5], [0, 5.5]]
    with pytest.warns(UserWarning, match="runs with the same seed are not independent"):
        labels = [curve.label for curve in learning_curves(folders, ignore=["n_agents"])]
    assert labels == ["communication gru", "communication lstm"]


def test_runs_that_predate_an_option_are_of_one_curve_with_those_that_agree_on_it(tmp_path):
    folders = runs_of(tmp_path, [[0, 1], [0, 2]])
    folders.append(run_folder(tmp_path / "new", {"evaluation_return": {0: 0, 600: 3}}, seed=2, compile=False))
    (curve,) = learning_curves(folders)
    assert len(curve.runs) == 3
    folders.append(run_folder(tmp_path / "other", {"evaluation_return": {0: 0, 600: 3}}, seed=3, compile=True))
    assert len(learning_curves(folders)) == 3  # what the old ones did is not known


def test_a_single_run_shows_the_standard_error_of_its_evaluation(tmp_path):
    metrics = {"evaluation_return": {0: 1.0, 600: 2.0, 1200: 3.0}, "evaluation_return_stderr": {0: 0.5, 1200: 0.25}}
    folder = run_folder(tmp_path / "run", metrics)
    (curve,) = learning_curves([folder])
    np.testing.assert_array_equal(curve.estimate, [1, 2, 3])
    np.testing.assert_array_equal(curve.low, [0.5, np.nan, 2.75])
    np.testing.assert_array_equal(curve.high, [1.5, np.nan, 3.25])
    (curve,) = learning_curves([folder], normalise={"navigation": (5.0, 3.0)})  # less is better
    np.testing.assert_array_equal(curve.estimate, [2, 1.5, 1])
    np.testing.assert_array_equal(curve.high, [2.25, np.nan, 1.125])


def test_a_curve_has_the_frames_that_all_runs_have_and_ends_with_the_shortest(tmp_path):
    first = run_folder(tmp_path / "a", {"evaluation_return": {0: 1, 100: 2, 200: 3, 300: 9}})
    second = run_folder(tmp_path / "b", {"evaluation_return": {0: 3, 150: 7, 200: 5}}, seed=1)
    with pytest.warns(UserWarning, match="b ends at 200 frames, .*a at 300; the curve ends with the shorter"):
        (curve,) = learning_curves([first, second])
    assert curve.frames.tolist() == [0, 200]
    assert curve.estimate.tolist() == [2, 4]
    third = run_folder(tmp_path / "c", {"evaluation_return": {50: 1, 300: 1}}, seed=2)
    with pytest.raises(ValueError, match="navigation: the runs share no frame count"):
        learning_curves([second, third])


def test_scenarios_and_groups_have_a_panel_each(tmp_path):
    folders = runs_of(tmp_path, [[0, 1], [0, 2]])
    for seed in range(2):
        tag = {"adversary/evaluation_return": {0: seed}, "agent/evaluation_return": {0: -seed}}
        folders.append(run_folder(tmp_path / f"tag{seed}", tag, scenario="simple_tag", seed=seed, max_steps=25))
    curves = learning_curves(folders)
    assert [(curve.panel, curve.label) for curve in curves] == [
        ("navigation", ""),
        ("simple_tag/adversary", ""),
        ("simple_tag/agent", ""),
    ]
    assert [curve.estimate[-1] for curve in curves] == [1.5, 0.5, -0.5]
    (curve,) = learning_curves(folders[2:], metric="agent/evaluation_return")
    assert curve.panel == "simple_tag/agent"


def test_normalised_scenarios_are_strata_of_one_curve(tmp_path):
    navigation, spread = np.array([[0, 2], [0, 4], [1, 4]]), np.array([[-500, -200], [-400, -100]])
    folders = []
    for net, gain in (("gru", 0), ("none", 1)):
        options = {"communication": net}
        folders += runs_of(tmp_path, navigation - gain, f"n{net}", **options)
        folders += runs_of(tmp_path, spread - gain, f"s{net}", scenario="simple_spread", max_steps=25, **options)
    gru, none = learning_curves(folders, normalise={"navigation": (0, 4), "simple_spread": (-500, -100)})
    assert (gru.panel, gru.metric) == ("navigation, simple_spread", "normalised evaluation_return")
    assert (gru.label, none.label) == ("communication gru", "communication none")
    assert len(gru.runs) == 5
    expected = interquartile_mean([navigation / 4, (spread + 500) / 400])
    for found, value in zip((gru.estimate, gru.low, gru.high), expected):
        np.testing.assert_array_equal(found, value)
    assert (none.estimate < gru.estimate).all()


@pytest.mark.parametrize(
    ("normalise", "match"),
    [
        ({}, "normalise must name the panels navigation, simple_spread, found none"),
        ({"navigation": (0, 1)}, "found navigation"),
        ({"navigation": (0, 1), "simple_spread": (2, 2)}, "two different finite values, found simple_spread: 2, 2"),
        ({"navigation": (0, 1), "simple_spread": (0, np.nan)}, "found simple_spread: 0, nan"),
        ({"navigation": (0, 1), "simple_spread": (0, 1)}, r"same curves: simple_spread has \[''\], not \['hidden_size"),
    ],
)
def test_a_normalisation_that_does_not_fit_is_refused(tmp_path, normalise, match):
    folders = runs_of(tmp_path, [[0, 1], [0, 2]], "a", hidden_size=8)
    folders += runs_of(tmp_path, [[0, 1], [0, 2]], "b", hidden_size=16)
    folders += runs_of(tmp_path, [[0, 1], [0, 2]], "c", scenario="simple_spread")
    with pytest.raises(ValueError, match=match):
        learning_curves(folders, normalise=normalise)


def test_the_picture_shows_the_numbers(tmp_path):
    folders = runs_of(tmp_path, [[0, 1], [0, 3]], "a", communication="gru")
    folders += runs_of(tmp_path, [[5, 5]], "b", communication="lstm")
    folders += runs_of(tmp_path, [[-9, -8]], "c", communication="lstm", scenario="simple_spread")
    curves = learning_curves(folders)
    navigation, spread = plot_learning_curves(curves).axes
    assert (navigation.get_title(), spread.get_title()) == ("navigation", "simple_spread")
    assert (navigation.get_xlabel(), navigation.get_ylabel()) == ("environment frames", "evaluation return")
    for line, curve in zip(navigation.lines, curves):
        np.testing.assert_array_equal(line.get_xdata(), curve.frames)
        np.testing.assert_array_equal(line.get_ydata(), curve.estimate)
    assert [text.get_text() for text in navigation.get_legend().get_texts()] == [
        "communication gru, interquartile mean of 2 runs, 95% interval",
        "communication lstm, one run",
    ]
    outline = {tuple(corner) for corner in navigation.collections[0].get_paths()[0].vertices}
    assert outline == {(0, 0), (600, curves[0].low[-1]), (600, curves[0].high[-1])}
    assert curves[0].low[-1] < curves[0].estimate[-1] < curves[0].high[-1]
    assert len({line.get_color() for line in navigation.lines}) == 2


def test_one_label_has_one_colour_and_metrics_have_rows(tmp_path):
    folders = []
    for scenario in ("navigation", "simple_spread"):
        for net in ("gru", "lstm") if scenario == "navigation" else ("lstm", "gru"):
            metrics = {"evaluation_return": {0: 1.0}, "loss_value": {0: 2.0}}
            folders.append(run_folder(tmp_path / f"{scenario}{net}", metrics, scenario=scenario, communication=net))
    curves = [*learning_curves(folders), *learning_curves(folders, metric="loss_value")]
    figure = plot_learning_curves(curves)
    assert [axes.get_ylabel() for axes in figure.axes] == ["evaluation return"] * 2 + ["loss value"] * 2
    assert [axes.get_title() for axes in figure.axes] == ["navigation", "simple_spread"] * 2
    colours = [{line.get_label(): line.get_color() for line in axes.lines} for axes in figure.axes]
    assert colours[0] == colours[1] == colours[2]
    with pytest.raises(ValueError, match="no curve to draw"):
        plot_learning_curves([])


def test_the_committed_results_make_the_curve_of_navigation():
    (curve,) = learning_curves([RESULTS / f"seed{seed}" for seed in range(3)])
    assert curve.label == ""
    total, interval = (read_options(RESULTS / "seed0")[name] for name in ("total_frames", "eval_interval"))
    assert curve.frames.tolist() == list(range(0, total + 1, interval))
    last = [read_scalars(folder / "scalars/evaluation_return.csv")[1][-1] for folder in curve.runs]
    assert curve.estimate[-1] == pytest.approx(sum(last) / 3)
    assert min(last) <= curve.low[-1] < curve.high[-1] <= max(last)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "evaluation_return.csv is empty"),
        ("0,1\n600\n", "evaluation_return.csv, line 2: a row is frames,value, found '600'"),
        ("frames,value\n", "line 1: a row is frames,value, found 'frames,value'"),
        ("0,1\n600,2,3\n", "line 2: a row is frames,value, found '600,2,3'"),
        ("0,1\n\n600,1\n", "line 2: a row is frames,value, found ''"),
        ("0.5,1\n", "line 1: a row is frames,value, found '0.5,1'"),
        ("9999999999999999999999,1\n", "line 1: a row is frames,value, found '99999"),
        ("600,1\n0,1\n", "line 2: frames must rise, found 0 after 600"),
        ("600,1\n600,1\n", "line 2: frames must rise, found 600 after 600"),
        (b"\xff\x00\x80", "line 1: a row is frames,value"),
    ],
)
def test_a_malformed_row_is_named(tmp_path, content, match):
    folder = run_folder(tmp_path / "run", {"evaluation_return": {0: 1}})
    file = folder / "scalars/evaluation_return.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=match):
        learning_curves([folder])


def test_what_is_not_there_is_named(tmp_path):
    folder = run_folder(tmp_path / "run", {"evaluation_return": {0: 1}, "agent/loss_actor": {0: 1}})
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty is not a run folder: it has no run\.json"):
        learning_curves([tmp_path / "empty"])
    with pytest.raises(ValueError, match="no metric 'reward'; it has agent/loss_actor, evaluation_return"):
        learning_curves([folder], metric="reward")
    with pytest.raises(ValueError, match="no metric 'return'"):  # whole names only
        learning_curves([folder], metric="return")
    with pytest.raises(ValueError, match="No run folder was given"):
        learning_curves([])
    with pytest.raises(ValueError, match="A run folder was given twice"):
        learning_curves([folder, tmp_path / "empty" / ".." / "run"])


def test_the_script_draws_and_prints_the_last_values(tmp_path, capsys):
    folders = runs_of(tmp_path, [[0, 1], [0, 3]])
    plot_runs.main(plot_runs.Options(tuple(folders), output=tmp_path / "curves.png"))
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert out.startswith("navigation, evaluation_return: 2 [1, 3] at 600 frames, 95% interval of 2 runs\n")


def test_the_script_leaves_out_a_run_that_has_no_curve_yet(tmp_path, capsys):
    folders = runs_of(tmp_path, [[0, 1], [0, 3]])
    (folders[1] / "scalars" / "evaluation_return.csv").unlink()
    plot_runs.main(plot_runs.Options(tuple(folders), output=tmp_path / "curves.png"))
    captured = capsys.readouterr()
    assert captured.err == f"Left out, without evaluation_return so far: {folders[1]}\n"
    assert "one run" in captured.out


def test_the_script_ends_with_one_line_for_a_folder_that_is_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(tmp_path), "--output", str(tmp_path / "curves.png")])
    with pytest.raises(SystemExit) as error:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert error.value.code == f"error: {tmp_path} is not a run folder: it has no run.json."
    assert not list(tmp_path.iterdir())
