"""benchmarks/training_time.py: what it reads from evaluations, how it watches a contender, and the rivals' pieces."""

import json
import math
import os
import sys
import time
from dataclasses import replace

import pytest
import torch
from torchrl.envs import VmasEnv
from torchrl.envs.utils import set_exploration_type
from vmas.simulator.environment import Environment

from benchmarks import training_time
from benchmarks.report_training_time import draw_training_time
from benchmarks.report_training_time import training_time as section
from benchmarks.rivals import torchrl_maddpg
from benchmarks.rivals.first_episodes import first_episode_return
from benchmarks.training_time import COMPILED, OURS, ContenderError, Options, describe, main, reached, read_rows, watch
from examples import train_vmas
from torchrl_bicnet import BiCNetActor, evaluate, make_vmas_env


def evaluations(*returns):
    return [{"seconds": 2.0 * i, "frames": 600 * i, "return": value} for i, value in enumerate(returns)]


@pytest.mark.parametrize(
    ("returns", "place"),
    [
        ((), None),
        ((4.0,), None),
        ((3.0, 4.0, 3.8, 4.0), None),
        ((3.0, 3.9, 3.9, 4.0), 2),
        ((4.0, 3.8, 3.9, 4.0, 4.0), 3),
        ((math.nan, 4.0, math.nan, 4.0), None),
    ],
)
def test_the_second_evaluation_in_a_row_counts(returns, place):
    rows = evaluations(*returns)
    assert reached(rows, 3.9) == (None if place is None else rows[place])


def test_a_row_counts_once_it_is_whole(tmp_path):
    file = tmp_path / "evaluations.csv"
    assert read_rows(file) == []
    file.write_text("0,-5.5\n600,1.2")
    assert read_rows(file) == [(0, -5.5)]
    file.write_text("0,-5.5\n600,1.25\n")
    assert read_rows(file) == [(0, -5.5), (600, 1.25)]


def watched(tmp_path, lines, **limits):
    file = tmp_path / "evaluations.csv"
    code = f"import sys, time\ndef row(text): print(text, file=open({str(file)!r}, 'a'), flush=True)\n{lines}"
    return watch([sys.executable, "-c", code], file, os.environ, **limits)


def test_a_contender_is_stopped_once_it_is_there(tmp_path):
    start = time.perf_counter()
    lines = "row('0,1.0'); row('600,4.0'); time.sleep(1); row('1200,4.0'); time.sleep(100)"
    found = watched(tmp_path, lines, target=3.9, limit=60)
    assert time.perf_counter() - start < 50
    assert [(row["frames"], row["return"]) for row in found["evaluations"]] == [(0, 1.0), (600, 4.0), (1200, 4.0)]
    assert found["reached"] == found["evaluations"][-1]
    assert found["reached"]["seconds"] - found["evaluations"][1]["seconds"] == pytest.approx(1, abs=0.7)
    assert found["reached"]["seconds"] >= 1
    assert found["cpu_seconds"] < 50
    assert found["cpu_seconds_of_others"] >= -0.1


def test_a_contender_is_stopped_at_the_limit(tmp_path):
    found = watched(tmp_path, "row('0,1.0'); time.sleep(100)", target=3.9, limit=1.5)
    assert found["reached"] is None
    assert 1.5 <= found["seconds"] < 30


def test_a_contender_may_end_by_itself_or_fail(tmp_path):
    assert watched(tmp_path, "row('0,4.0'); row('600,4.0')", target=3.9, limit=60)["reached"]["frames"] == 600
    with pytest.raises(ContenderError, match="no such thing"):
        watched(tmp_path, "raise ValueError('no such thing')", target=9.0, limit=60)


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Results of a measurement whose contenders are made up."""
    seconds = {"uncompiled": 9, "empty_cache": 40, "from_cache": 12}
    monkeypatch.setattr(training_time, "compiling", lambda cache: seconds)

    def made_up(command, file, environment, *, target, limit):
        used = {"cpu_seconds": 9.0, "cpu_seconds_of_others": 1.0}
        if "torchrl_maddpg.py" in command[1]:
            return used | {"reached": None, "seconds": limit, "evaluations": evaluations(-1.0, 2.0)}
        rows = evaluations(0.0, 4.0, 4.0) if "--compile" in command else evaluations(0.0, 1.0, 2.0, 3.0, 4.0, 4.0)
        return used | {"reached": rows[-1], "seconds": rows[-1]["seconds"], "evaluations": rows}

    monkeypatch.setattr(training_time, "watch", made_up)
    options = Options(output=tmp_path / "results" / "cpu.json", limit=100)
    main(options)
    return options, json.loads(options.output.read_text())


def test_what_is_measured_is_kept(measured):
    options, results = measured
    assert [run["contender"] for run in results["runs"]] == [OURS, COMPILED, "TorchRL MADDPG"]
    assert set(results["left_out"]) == {"BenchMARL MADDPG", "BenchMARL IDDPG"}
    assert describe(results["runs"][0], 3.9) == "ours, seed 0: 3.9 after 10.0 s and 3,000 frames"
    assert describe(results["runs"][2], 3.9) == "TorchRL MADDPG, seed 0: not 3.9 in 100 s and 600 frames, at most 2.00"
    main(replace(options, seeds=(0, 1), contenders=(OURS,)))
    again = json.loads(options.output.read_text())
    assert again["runs"][:3] == results["runs"]
    assert again["runs"][3]["seed"] == 1
    with pytest.raises(ValueError, match=r"3\.9, not 2"):
        main(replace(options, target=2.0))


def test_the_report_has_a_row_for_each_training(measured):
    _, results = measured
    text = section(results)
    assert "| ours | 0 | 10 | 9 | 1 | 3,000 | 4.00 | 4.00 | 1.00 | 2.50 |" in text
    assert "| ours, compiled | 0 | 4 | 9 | 1 | 1,200 | 4.00 | 4.00 | 0.40 | 1.00 |" in text
    assert "| TorchRL MADDPG | 0 | > 100 | 9 | 1 | > 600 | 2.00 | 2.00 | > 10.00 | > 25.00 |" in text
    assert "9 s uncompiled, 40 s with `--compile`" in text
    assert "BenchMARL IDDPG is left out: it needs --benchmarl-python." in text
    axes = draw_training_time(results).axes[0]
    assert [label.get_text() for label in axes.get_legend().get_texts()] == [OURS, COMPILED, "TorchRL MADDPG"]


def test_rivals_are_evaluated_as_we_are():
    env = make_vmas_env("navigation", 6, seed=3)
    stock = VmasEnv("navigation", num_envs=6, seed=3)
    torch.manual_seed(0)
    actor = BiCNetActor.from_env(env, hidden_size=8, num_cells=(8,))
    summary = evaluate(env, actor, max_steps=50, seed=5).summary()
    streams, torch_stream = list(Environment.vmas_random_state), torch.get_rng_state()
    with set_exploration_type("random"):
        found = first_episode_return(stock, actor, max_steps=50, seed=5)
    expected = summary["evaluation_return"], summary["evaluation_return_stderr"]
    assert found == pytest.approx(expected, abs=1e-4)
    assert Environment.vmas_random_state[0] is streams[0]
    assert torch.equal(torch.get_rng_state(), torch_stream)


def test_the_first_episode_alone_counts():
    stock = VmasEnv("navigation", num_envs=6, max_steps=10)
    policy = stock.rand_action
    torch.manual_seed(0)
    short = first_episode_return(stock, policy, max_steps=10, seed=5)
    torch.manual_seed(0)
    assert first_episode_return(stock, policy, max_steps=40, seed=5) == short


def test_torchrls_recipe_runs(tmp_path):
    file = tmp_path / "evaluations.csv"
    options = torchrl_maddpg.Options(
        file,
        seed=0,
        evaluation_episodes=3,
        evaluation_seed=1,
        max_steps=5,
        frames_per_batch=20,
        n_iterations=2,
        n_epochs=1,
        minibatch_size=10,
    )
    torchrl_maddpg.main(options)
    assert [frames for frames, _ in read_rows(file)] == [0, 20, 40]
    assert all(math.isfinite(value) for _, value in read_rows(file))


@pytest.mark.slow
def test_quick_measures_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(Options(quick=True))
    results = json.loads((tmp_path / "runs" / "training-time-quick" / "cpu.json").read_text())
    [run] = results["runs"]
    batch = train_vmas.Options().frames_per_batch
    assert run["reached"]["frames"] == batch
    assert [row["frames"] for row in run["evaluations"]] == [0, batch]
    assert 1 < run["evaluations"][0]["seconds"] < run["reached"]["seconds"]
