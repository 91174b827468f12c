"""benchmarks/env_throughput.py: what it leaves behind, that it measures what it says, and what it refuses."""

import itertools
import json
import runpy
import statistics
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro
from torchrl.envs import VmasEnv
from vmas.simulator.environment import Environment

from benchmarks import env_throughput
from benchmarks.env_throughput import (
    COMPILED,
    MAX_STEPS,
    Options,
    Team,
    collect,
    collection,
    compare,
    draw,
    environments,
    main,
    partial_reset,
    plan,
    staggered,
    step,
    throughput,
    torchrl_loop,
    vmas_loop,
)
from torchrl_bicnet import make_vmas_env

SCRIPT = Path(env_throughput.__file__)
TINY = Options(
    scenarios=("navigation",),
    num_envs=(4,),
    policies=("random", "bicnet"),
    done_fractions=(0.0, 0.25),
    reset_scenarios=("navigation",),
    reset_envs=(8,),
    step_scenarios=("navigation", "balance"),
    step_envs=(2,),
    collection_envs=(2,),
    collection_steps=10,
    repeats=3,
    budget=60.0,  # nothing is left out, however busy the machine
    turn_steps=2,
    compiled=False,
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("throughput")
    main(replace(TINY, output=folder))
    assert (folder / "cpu.png").read_bytes().startswith(b"\x89PNG")
    return json.loads((folder / "cpu.json").read_text())


def test_every_cell_holds_its_raw_repeats_and_what_they_give(results):
    contenders = {
        "throughput": {"vmas", "VmasEnv", "ours"},
        "partial_reset": {"VmasEnv", "ours", "VmasEnv, reset", "ours, reset"},
        "few_resets": {"vmas", "VmasEnv", "ours"},
        "step": {"VmasEnv", "ours"},
        "collection": {"bare loop", "net alone", "VmasEnv", "ours"},
    }
    for section, names in contenders.items():
        for cell in results[section]:
            assert cell["seconds"].keys() == names
            assert cell["left_out"] == {}
            for name, seconds in cell["seconds"].items():
                assert len(seconds) == 3
                assert min(seconds) > 0
                rate = cell["counted_per_turn"][name] / statistics.median(seconds)
                assert cell["per_second"][name] == pytest.approx(rate)
            assert cell["ratios"]
            for pair, ratio in cell["ratios"].items():
                first, second = pair.split(" / ")
                assert ratio == pytest.approx(cell["per_second"][first] / cell["per_second"][second])


def test_the_compiled_step_is_a_contender():
    options = replace(TINY, compiled=True)
    for function, arguments, n_ratios in (
        (throughput, ("random", 0.25), 5),
        (partial_reset, (), 4),
        (step, (), 3),
        (collection, (), 9),
    ):
        cell = function(options, "simple", 8, *arguments)
        assert {COMPILED, "ours", "VmasEnv"} <= cell["seconds"].keys()
        assert len(cell["ratios"]) == n_ratios
        counted = 1 if function is partial_reset else 8
        saved = counted / cell["per_second"]["ours"] - counted / cell["per_second"][COMPILED]
        assert cell["seconds_to_compile"] > 0
        assert cell["steps_until_it_pays"] == (pytest.approx(cell["seconds_to_compile"] / saved) if saved > 0 else None)


def test_what_cannot_be_compiled_is_left_out_with_the_reason():
    cell = step(replace(TINY, compiled=True), "discovery", 2)
    assert "A step of discovery cannot be compiled" in cell["left_out"][COMPILED]
    assert {"ours", "VmasEnv"} <= cell["seconds"].keys()


def test_every_combination_is_measured_once(results):
    names = ("scenario", "num_envs", "policy", "done_fraction", "resets_per_step")
    assert [tuple(cell[name] for name in names) for cell in results["throughput"]] == [
        ("navigation", 4, policy, fraction, resets)
        for policy in ("random", "bicnet")
        for fraction, resets in ((0.0, 0), (0.25, 1))
    ]
    assert [(cell["scenario"], cell["num_envs"]) for cell in results["partial_reset"]] == [("navigation", 8)]
    assert [(cell["num_envs"], cell["resets_per_step"]) for cell in results["few_resets"]] == [(32, 1), (32, 2)]
    assert [(cell["scenario"], cell["num_envs"]) for cell in results["step"]] == [("navigation", 2), ("balance", 2)]
    assert [cell["scenario"] for cell in results["collection"]] == ["navigation", "simple_spread"]
    # Frames, 10 and 2 steps of 2 environments; a reset counts once, and each of 8 environments is reset in a round.
    assert set(results["collection"][0]["counted_per_turn"].values()) == {20}
    assert set(results["step"][0]["counted_per_turn"].values()) == {4}
    assert set(results["partial_reset"][0]["counted_per_turn"].values()) == {16}


def test_it_says_where_and_with_what_it_was_measured(results):
    about = results["about"]
    assert about["options"]["repeats"] == 3
    assert about["versions"]["torch"] == torch.__version__
    assert about["threads"] == torch.get_num_threads()
    assert "CPUs" in about["machine"]
    assert about.keys() == {"options", "versions", "machine", "threads", "date", "commit"}


def test_the_picture_shows_the_results(results):
    figure = draw(results)
    assert [axes.get_title() for axes in figure.axes] == ["navigation, random actions", "navigation, bicnet actions"]
    lines = {line.get_label(): line for line in figure.axes[1].lines}
    assert lines.keys() == {f"{name}, {part} reset" for name in ("vmas", "VmasEnv", "ours") for part in ("0%", "25%")}
    wanted = {
        cell["num_envs"]: cell["per_second"]["ours"]
        for cell in results["throughput"]
        if (cell["policy"], cell["done_fraction"]) == ("bicnet", 0.25)
    }
    assert dict(zip(*lines["ours, 25% reset"].get_data())) == wanted
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("environments", "frames per second")


def test_the_picture_is_drawn_again_from_the_json_alone(results, tmp_path):
    file = tmp_path / "cpu.json"
    del results["throughput"][0]["per_second"]["vmas"]  # as where it was left out
    file.write_text(json.dumps(results))
    main(Options(plot=file))
    assert (tmp_path / "cpu.png").read_bytes().startswith(b"\x89PNG")
    for nothing in ("[]", "{}", '{"throughput": []}'):
        file.write_text(nothing)
        with pytest.raises(ValueError, match="no throughput to draw"):
            main(Options(plot=file))


def test_turns_are_taken_in_order_and_the_slow_are_left_out(monkeypatch):
    """A clock of our own: a unit of `fast` takes 1 ms, of `slow` 4 s, as they are called."""
    now, calls = [0.0], []

    def block(name, seconds):
        def work(units):
            calls.append((name, units))
            now[0] += units * seconds

        return work

    monkeypatch.setattr(env_throughput.time, "perf_counter", lambda: now[0])
    blocks = {"fast": block("fast", 0.001), "slow": block("slow", 4.0), "steady": block("steady", 0.01)}
    options = Options(repeats=2, budget=0.5)
    cell = compare(blocks, 8, [("fast", "steady"), ("fast", "slow")], options)
    assert calls[-4:] == [("fast", 100), ("steady", 25), ("fast", 100), ("steady", 25)]
    assert calls[:-4] == [("fast", 1), ("fast", 1), ("slow", 1), ("steady", 1), ("steady", 1)]
    assert cell["left_out"] == {"slow": "one step takes 4 s, more than the budget of 0.5 s"}
    assert cell["per_second"] == pytest.approx({"fast": 8000, "steady": 800})
    assert cell["ratios"] == pytest.approx({"fast / steady": 10})


@pytest.mark.parametrize(
    ("num_envs", "fraction", "count"), [(20, 0.05, 1), (1000, 0.2, 200), (32, 0.01, 1), (7, 0.3, 2), (4, 1.0, 4)]
)
def test_other_environments_end_at_each_step(num_envs, fraction, count):
    windows = staggered(num_envs, fraction)
    assert [len(window) for window in windows] == [count] * (num_envs // count)
    ended = torch.cat(windows)
    assert len(ended.unique()) == len(ended)
    assert ended.min() >= 0
    assert ended.max() < num_envs
    assert staggered(num_envs, 0.0) == []


def test_every_loop_steps_and_resets_as_often_as_it_says(monkeypatch):
    counts = Counter()

    def counting(name, method):
        def counted(self, *args, **kwargs):
            counts[name] += 1
            return method(self, *args, **kwargs)

        return counted

    for name in ("step", "reset_at"):
        monkeypatch.setattr(Environment, name, counting(name, getattr(Environment, name)))
    team, windows = Team("navigation", "cpu"), staggered(6, 0.34)
    for make in (
        lambda: vmas_loop("navigation", 6, "cpu", team.random, windows),
        lambda: torchrl_loop(VmasEnv("navigation", num_envs=6), team.random_policy, windows),
    ):
        block = make()
        counts.clear()
        block(5)
        assert counts == {"step": 5, "reset_at": 10}


def test_ours_is_reset_where_the_mask_says():
    env = make_vmas_env("navigation", 6, seed=0)
    (seen,), windows = [[]], staggered(6, 0.34)
    policy = Team("navigation", "cpu").random_policy
    torchrl_loop(env, lambda td: (seen.append(td["step_count"].squeeze(-1)), policy(td))[1], windows)(3)
    for before, after, window in zip(seen, seen[1:], windows):
        expected = before + 1
        expected[window] = 0
        assert after.tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["VmasEnv", "ours"])
def test_episodes_of_the_collection_end_one_after_another(name):
    envs, _ = environments(TINY, "simple", 7, MAX_STEPS)
    collector = collect(envs[name], Team("simple", "cpu"), "cpu")
    done = torch.cat([batch["next", "done"].clone() for batch in itertools.islice(collector, 21)], 1)[:, 100:, 0]
    assert (done[:, :100].sum(1) == 1).all()
    assert done[:, :100].any(0).sum() >= 6
    collector.shutdown()


def test_our_collector_fills_a_replay_buffer(monkeypatch):
    stored = []

    class Buffer(env_throughput.TensorDictReplayBuffer):
        def extend(self, transitions):
            stored.append(transitions)
            return super().extend(transitions)

    monkeypatch.setattr(env_throughput, "TensorDictReplayBuffer", Buffer)
    collection(replace(TINY, collection_steps=20, repeats=1), "navigation", 3)
    assert [transitions.shape for transitions in stored] == [(30,)] * 4  # two batches, twice: once to warm up
    assert {"observation", "action"} <= stored[0]["agents"].keys()
    assert {"observation", "reward", "done", "terminated"} <= stored[0]["next", "agents"].keys()
    assert stored[0]["agents", "action"].std() > 0.1


def test_the_net_on_plain_tensors_is_the_actor():
    team = Team("navigation", "cpu")
    td = make_vmas_env("navigation", 5, seed=0).reset()
    torch.testing.assert_close(team.act(td["agents", "observation"]), team.actor(td)["agents", "action"])
    actions = team.random(torch.empty(1000, 4, 18))
    assert actions.shape == (1000, 4, 2)
    assert actions.min() < -0.99
    assert actions.max() > 0.99


def test_quick_asks_less_and_one_step_long_enough_for_every_episode_to_end():
    everything, quick = (list(plan(options)) for options in (Options(), replace(Options(), **env_throughput.QUICK)))
    assert len(quick) < len(everything) / 2
    assert {section for section, *_ in quick} == {section for section, *_ in everything}
    assert Options().collection_steps >= MAX_STEPS


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_envs": (0,)}, "environments must be at least 1, found 0"),
        ({"step_envs": (-3,)}, "environments must be at least 1, found -3"),
        ({"repeats": 0}, "repeats must be at least 1, found 0"),
        ({"turn_steps": 0}, "turn_steps must be at least 1, found 0"),
        ({"budget": 0.0}, r"budget must be above 0 seconds, found 0\.0"),
        ({"done_fractions": (0.1, 20.0)}, r"done_fractions must be between 0 and 1, found 20\.0"),
        ({"collection_steps": 15}, "collection_steps must be a multiple of 10, found 15"),
        ({"device": "gpu"}, "device must be cpu, cuda or cuda:INDEX, found 'gpu'"),
        ({"scenarios": ("navigatoin",)}, "Unknown scenario 'navigatoin'; this package has dispersion_energy"),
        ({"scenarios": ("simple_tag",)}, "one group of agents; simple_tag has adversary, agent"),
    ],
)
def test_a_wrong_option_fails_before_anything_is_written(tmp_path, changes, match):
    with pytest.raises(ValueError, match=match):
        main(replace(TINY, output=tmp_path / "results", **changes))
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_option_ends_the_script_with_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--repeats", "0", "--output", str(tmp_path / "results")])
    with pytest.raises(SystemExit, match=r"^error: repeats must be at least 1, found 0\.$"):
        runpy.run_path(str(SCRIPT), run_name="__main__")


def test_the_command_line_turns_questions_off():
    assert tyro.cli(Options, args=["--num-envs", "--quick"]) == replace(Options(), num_envs=(), quick=True)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk:UserWarning")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda(tmp_path):
    main(replace(TINY, output=tmp_path, device="cuda"))
    results = json.loads((tmp_path / "cuda.json").read_text())
    assert torch.cuda.get_device_name() in results["about"]["machine"]
    assert all(cell["per_second"] for section in ("throughput", "collection") for cell in results[section])
