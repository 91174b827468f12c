"""examples/train_vmas.py: the algorithm step by step, every option, and how a run ends, stops and goes on."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
from tensordict import TensorDict

from examples import train_vmas
from examples.train_vmas import Learner, Options, main
from tests.helpers_vmas import SEVERAL_GROUPS
from tests.quick import QUICK, Result, run
from torchrl_bicnet import evaluate, load_run, make_vmas_env, objectives
from torchrl_bicnet.runs import TEST_SEED
from torchrl_bicnet.vmas_graph.compiled_step import CompiledStep

SCRIPT = Path(train_vmas.__file__)
RECURRENT = "module.0.module.net.communication.weight_hh_l0"


def command(**options) -> Any:
    """The script, without a process of its own; the code it exits with."""
    try:
        main(Options(**options))
    except SystemExit as exit:
        return exit.code
    return 0


class TestUpdate:
    """The update is the textbook's step: Lillicrap et al., 2015, algorithm 1, with the joint critic of BiCNet."""

    @pytest.fixture(scope="class")
    @classmethod
    def env(cls):
        return make_vmas_env("navigation", 2, seed=0, n_agents=3)

    @pytest.fixture
    def double(self, env):
        """Adam divides by the size of a gradient: in single precision it makes steps of roundings."""
        torch.set_default_dtype(torch.float64)
        yield
        torch.set_default_dtype(torch.float32)

    def sample(self):
        generator = torch.Generator().manual_seed(1)
        draw = torch.empty(16, 3, 18), torch.empty(16, 3, 18), torch.empty(16, 3, 2), torch.empty(16, 3, 1)
        observation, after, action, reward = (x.uniform_(-1, 1, generator=generator) for x in draw)
        terminated = torch.rand(16, 1, 1, generator=generator).expand(16, 3, 1) < 0.3
        then = {"observation": after, "reward": reward, "done": terminated, "terminated": terminated}
        return TensorDict({"agents": {"observation": observation, "action": action}, "next": {"agents": then}}, [16])

    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"gamma": 1.0},
            {"gamma": 0.5},
            {"tau": 0.5},
            {"actor_lr": 3e-2, "critic_lr": 1e-4},
            {"max_grad_norm": 1e-3},
            {"actor_warmup": 2},
            {"saturation_penalty": 0.0},
            {"saturation_penalty": 0.7},
            {"max_grad_norm": torch.inf},
            {"share_params": False, "communication": "mean"},
        ],
        ids=str,
    )
    def test_three_updates_are_those_of_a_plain_torch_step(self, env, double, changes, monkeypatch):
        monkeypatch.setattr(objectives, "SATURATED", 0.1)  # which some of these small outputs exceed
        torch.manual_seed(0)
        options, sample = replace(QUICK, **changes), self.sample()
        learner = Learner(env, "agents", options)
        actor, critic = deepcopy(learner.actor.module), deepcopy(learner.critic.module)
        target_actor, target_critic = deepcopy(actor), deepcopy(critic)
        rates = dict.fromkeys(actor.parameters(), options.actor_lr)
        rates |= dict.fromkeys(critic.parameters(), options.critic_lr)
        risen = dict.fromkeys(actor.parameters(), options.actor_warmup)
        moments = {p: (torch.zeros_like(p), torch.zeros_like(p)) for p in rates}
        now, then = sample["agents"], sample["next", "agents"]
        for step in (1, 2, 3):
            found = learner.update(sample.clone())
            with torch.no_grad():
                next_value = target_critic(then["observation"], target_actor(then["observation"])[1])
                target = then["reward"] + options.gamma * (~then["terminated"]) * next_value
            loss_value = (critic(now["observation"], now["action"]) - target).square().mean()
            param, action = actor(now["observation"])
            penalty = (param.abs() - 0.1).clamp(min=0).square().mean()
            loss_actor = options.saturation_penalty * penalty - critic(now["observation"], action).mean()
            gradients = torch.autograd.grad(loss_actor, list(actor.parameters()))
            gradients += torch.autograd.grad(loss_value, list(critic.parameters()))
            norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
            scale = min(1.0, options.max_grad_norm / (norm.item() + 1e-6))
            with torch.no_grad():
                for (parameter, (m, v)), gradient in zip(moments.items(), gradients):
                    m.mul_(0.9).add_(0.1 * scale * gradient)
                    v.mul_(0.999).add_(0.001 * (scale * gradient) ** 2)
                    risen_to = min(1.0, step / risen[parameter]) if risen.get(parameter) else 1.0
                    step_size = risen_to * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
                    parameter -= rates[parameter] * step_size
                for targets, trained in ((target_actor, actor), (target_critic, critic)):
                    for old, new in zip(targets.parameters(), trained.parameters()):
                        old += options.tau * (new - old)
            for name, value in {"loss_value": loss_value, "loss_actor": loss_actor, "grad_norm": norm}.items():
                torch.testing.assert_close(found[name], value.detach())
        evaluated = dict(learner.target_actor.module.named_parameters())
        torch.testing.assert_close(evaluated, dict(target_actor.named_parameters()))
        targets = learner.loss.state_dict()
        for kind, ours, trained, target in (
            ("actor", learner.actor.module, actor, target_actor),
            ("value", learner.critic.module, critic, target_critic),
        ):
            torch.testing.assert_close(dict(ours.named_parameters()), dict(trained.named_parameters()))
            for name, value in target.named_parameters():
                torch.testing.assert_close(targets[f"target_{kind}_network_params.module.{name}"], value.data)

    def test_no_gradient_is_left_for_the_next_update(self, env):
        learner = Learner(env, "agents", QUICK)
        learner.update(self.sample())
        assert all(p.grad is None or not p.grad.any() for p in learner.loss.parameters())


class TestReplay:
    @pytest.fixture
    def record(self, tmp_path, monkeypatch):
        """Every batch collected and every sample drawn, in the order in which the script does it."""
        events = []

        class Buffer(train_vmas.TensorDictReplayBuffer):
            def extend(self, batch):
                events.append(("batch", batch["agents", "observation"].clone()))
                return super().extend(batch)

        class Update(train_vmas.UpdateStep):
            def __call__(self, sample):
                events.append(("sample", sample["agents", "observation"].clone()))
                return super().__call__(sample)

        monkeypatch.setattr(train_vmas, "TensorDictReplayBuffer", Buffer)
        monkeypatch.setattr(train_vmas, "UpdateStep", Update)

        def record(**changes):
            run(tmp_path, **changes)
            return events

        return record

    def test_updates_draw_from_all_that_was_collected(self, record):
        kept, sampled = [], []
        for kind, observation in record(total_frames=400, batch_size=16):
            rows = {tuple(row.flatten().tolist()) for row in observation}
            if kind == "batch":
                assert len(observation) == 40
                kept.append(rows)
            else:
                assert len(observation) == 16
                assert rows <= set().union(*kept)
                sampled.append([len(rows & batch) for batch in kept])
        assert len(kept) == 10
        assert len(sampled) == 20
        drawn = torch.tensor(sampled[-1]) + torch.tensor(sampled[-2])  # of 32 rows from ten batches alike
        assert (drawn > 0).sum() >= 6
        assert drawn[-1] < 16

    def test_the_buffer_keeps_the_newest(self, record):
        events = record(total_frames=400, buffer_size=80)
        last = [{tuple(row.flatten().tolist()) for row in rows} for kind, rows in events if kind == "batch"][-2:]
        samples = [{tuple(row.flatten().tolist()) for row in rows} for kind, rows in events if kind == "sample"][-2:]
        assert all(rows <= last[0] | last[1] for rows in samples)
        assert any(rows & last[0] for rows in samples)


class TestCheckpoints:
    @pytest.mark.parametrize("seed", [0, 1])
    def test_the_best_holds_the_networks_of_the_highest_evaluation(self, tmp_path, seed):
        result = run(tmp_path, seed=seed, total_frames=200)
        frames, returns = result.frames("evaluation_return")[1:], result.values("evaluation_return")[1:]
        best = max(returns)
        (path,) = (result.folder / "checkpoints/best").glob("*.torchrl")
        assert path.name == f"checkpoint-{frames[returns.index(best)]:012d}.torchrl"
        loaded = load_run(result.folder, checkpoint="best")
        again = evaluate(loaded.make_env(3), loaded.policy, max_steps=10, seed=train_vmas.EVAL_SEED)
        assert again.summary()["evaluation_return"] == best

    def test_the_last_holds_what_the_test_was_made_with(self, tmp_path):
        result = run(tmp_path)
        loaded = load_run(result.folder)
        again = evaluate(loaded.make_env(5), loaded.policy, max_steps=10, seed=TEST_SEED)
        assert again.returns["agents"].mean(-1).tolist() == result.tests()["after"]


# For each option another value, and what it changes: from the run with the option to a value that differs from QUICK's.
# How gamma, tau, the learning rates, clipping and the penalty act is held by TestUpdate, replay by TestReplay.
OBSERVED: dict[str, tuple[dict[str, Any], Callable[[Result], Any]]] = {
    "scenario": ({"scenario": "dispersion"}, lambda r: r.values("evaluation_return")[0]),
    "scenario_options": ({"scenario_options": {"n_agents": 3}}, lambda r: len(list(r.folder.rglob("*_agent_3.csv")))),
    "n_agents": ({"n_agents": (1, 3)}, lambda r: len(list(r.folder.rglob("*_agent_3.csv")))),
    "max_steps": ({"max_steps": 7}, lambda r: r.values("episode_length")[0]),
    "num_envs": ({"num_envs": 8}, lambda r: r.values("loss_value")[0]),
    "seed": ({"seed": 1}, lambda r: r.values("evaluation_return")[0]),
    "communication": (
        {"communication": "lstm"},
        lambda r: r.weights()[RECURRENT].shape,
    ),
    "hidden_size": ({"hidden_size": 9}, lambda r: r.weights()[RECURRENT].shape),
    "agent_id": ({"agent_id": True}, lambda r: r.weights()["module.0.module.net.encoder.0.weight"].shape),
    "num_cells": ({"num_cells": (13, 12)}, lambda r: r.weights()["module.0.module.net.encoder.0.weight"].shape),
    "critic_num_cells": ({"critic_num_cells": (13,)}, lambda r: r.values("loss_value")[0]),
    "activation_class": ({"activation_class": "Tanh"}, lambda r: r.tests()["before"]),
    "share_params": ({"share_params": False}, lambda r: [name for name in r.weights() if "encoder" in name]),
    "total_frames": ({"total_frames": 80}, lambda r: r.frames("loss_value")),
    "frames_per_batch": ({"frames_per_batch": 20}, lambda r: r.frames("loss_value")),
    "updates_per_batch": ({"updates_per_batch": 3}, lambda r: r.values("loss_value")[0]),
    "batch_size": ({"batch_size": 9}, lambda r: r.values("loss_value")[0]),
    "buffer_size": ({"buffer_size": 40}, lambda r: r.values("loss_value")[-1]),
    "gamma": ({"gamma": 0.5}, lambda r: r.values("loss_value")[0]),
    "shuffle_agents": ({"shuffle_agents": True}, lambda r: r.values("loss_value")[0]),
    "tau": ({"tau": 0.5}, lambda r: r.values("loss_value")[0]),
    "actor_lr": ({"actor_lr": 1e-2}, lambda r: r.values("loss_actor")[0]),
    "critic_lr": ({"critic_lr": 1e-2}, lambda r: r.values("loss_value")[0]),
    "actor_warmup": ({"actor_warmup": 9}, lambda r: r.values("loss_actor")[0]),
    "max_grad_norm": ({"max_grad_norm": 1e-9}, lambda r: r.values("loss_value")[0]),
    "n_frequencies": ({"n_frequencies": 1}, lambda r: r.weights()["module.0.module.net.encoder.0.weight"].shape),
    "n_steps": ({"n_steps": 3}, lambda r: r.values("loss_value")[0]),
    "reward_rms": ({"reward_rms": 0.1}, lambda r: r.values("loss_value")[0]),
    "sigma": ({"sigma": (0.1, 0.2)}, lambda r: r.values("loss_value")[0]),
    "correlation": ({"correlation": 0.5}, lambda r: r.values("loss_value")[0]),
    "eval_interval": ({"eval_interval": 80}, lambda r: r.frames("evaluation_return")),
    "film_interval": ({"film_interval": 80}, lambda r: sorted(path.name for path in r.folder.glob("films/*"))),
    "eval_episodes": ({"eval_episodes": 4}, lambda r: r.values("evaluation_return")[0]),
    "test_episodes": ({"test_episodes": 6}, lambda r: len(r.tests()["after"])),
    "logger": ({"logger": "tensorboard"}, lambda r: len(list(r.folder.glob("events.out.tfevents*")))),
    "checkpoint_interval": ({"checkpoint_interval": 1000}, lambda r: r.checkpoints()),
    "checkpoint_buffer": ({"checkpoint_buffer": False}, lambda r: "replay_buffer" in r.saved()),
}
ELSEWHERE = {"pad", "device", "compile", "config", "progress", "run_folder", "resume"}  # below
ELSEWHERE |= {"saturation_penalty"}  # above


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorBoard's own
@pytest.mark.parametrize("option", OBSERVED)
def test_an_option_changes_what_it_says(tmp_path, finished_run, option):
    changes, observe = OBSERVED[option]
    result = run(tmp_path, **changes)
    assert observe(result) != observe(finished_run)
    assert json.loads((result.folder / "run.json").read_text())["options"][option] == json.loads(
        json.dumps(changes[option])
    )


def test_every_option_is_observed_and_documented():
    assert OBSERVED.keys() | ELSEWHERE == {option.name for option in fields(Options)}
    help_text = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=True).stdout
    told = " ".join(re.sub("[│╭╮╰╯─,]", " ", help_text).split())
    texts = dict(text.split(" ", 1) for text in told.split(" --")[1:] if " " in text)
    for name in [option.name.replace("_", "-") for option in fields(Options)]:
        text = texts.get(name) or texts[f"no-{name}"]  # the text of a bool stands after both of its flags
        assert len(re.findall(r"\b[a-z]+\b", text.split("(default")[0])) >= 1, name


def test_pad_makes_one_group(tmp_path):
    apart = run(tmp_path, "apart", scenario="simple_speaker_listener", total_frames=40)
    together = run(tmp_path, "together", scenario="simple_speaker_listener", total_frames=40, pad=True)
    assert apart.tests().keys() == {"speaker/before", "speaker/after", "listener/before", "listener/after"}
    assert together.tests().keys() == {"before", "after"}
    assert together.frames("evaluation_return_agent_1") == [0, 40]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused(tmp_path):
    assert "device must be one that torch finds here" in command(run_folder=tmp_path / "run", device="cuda")
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk:UserWarning")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_everything_moves_to_cuda(tmp_path):
    result = run(tmp_path, device="cuda")
    for device in ("cpu", "cuda"):
        policy = load_run(result.folder, device=device).policy
        assert {parameter.device.type for parameter in policy.parameters()} == {device}


def test_a_run_leaves_options_metrics_checkpoints_and_a_picture(tmp_path, capsys):
    result = run(tmp_path)
    about = json.loads((result.folder / "run.json").read_text())
    assert about["options"].keys() == asdict(QUICK).keys()
    assert about["versions"]["torch"] == torch.__version__
    for metric in ("loss_actor", "loss_value", "grad_norm", "reward_factor", "training_return"):
        assert result.frames(metric) == [40, 80, 120], metric
    for metric in ("evaluation_return", "evaluation_return_stderr", "evaluation_return_agent_3", "success_rate"):
        assert result.frames(metric) == [0, 40, 80, 120]
    assert (result.folder / "pictures/learning_curve.png").read_bytes().startswith(b"\x89PNG")
    tests = result.tests()
    assert len(tests["before"]) == len(tests["after"]) == 5
    captured = capsys.readouterr()
    before, after = (torch.tensor(tests[when]) for when in ("before", "after"))
    error = after.std() / 5**0.5
    last = captured.out.splitlines()[-1]
    assert last.startswith(f"test return: {before.mean():.2f} ± ")
    assert f"{after.mean():.2f} ± {error:.2f} after 120 frames" in last
    lines = [line for line in captured.err.splitlines() if " of 120 frames: " in line]
    assert [line.split()[0] for line in lines] == ["0", "40", "80", "120"]
    for shown in ("evaluation_return ", "loss_actor ", "loss_value "):
        assert shown in lines[-1]
    assert len(result.frames("frames_per_second")) >= 2


@pytest.mark.parametrize("progress", ["bar", "none"])
def test_progress_is_a_bar_or_nothing(tmp_path, progress, capsys):
    run(tmp_path, progress=progress)
    shown = capsys.readouterr().err
    assert " frames: " not in shown
    for part in ("120/120", "evaluation_return=", "loss_actor=", "loss_value=", "frame/s"):
        assert (part in shown) == (progress == "bar")


def test_one_seed_is_one_run_to_the_bit_however_often_it_is_evaluated(tmp_path, finished_run):
    again = run(tmp_path, eval_interval=10_000).weights()
    assert all(torch.equal(value, again[key]) for key, value in finished_run.weights().items())


def test_what_follows_from_the_number_of_environments():
    few, many = Options(num_envs=60, total_frames=120_000), Options(num_envs=8192, total_frames=1_000_000)
    assert (few.frames_per_batch, few.total_frames, few.buffer_size) == (600, 120_000, 120_000)
    assert (few.eval_interval, few.checkpoint_interval) == (12_000, 12_000)
    assert (many.frames_per_batch, many.total_frames, many.buffer_size) == (81_920, 13 * 81_920, 819_200)
    assert many.eval_interval == many.checkpoint_interval == 13 * 8192
    assert replace(many) == many  # as in a run folder
    given = Options(num_envs=10, frames_per_batch=20, total_frames=21, buffer_size=20, eval_interval=7)
    assert (given.frames_per_batch, given.total_frames, given.buffer_size, given.eval_interval) == (20, 40, 20, 7)


FOOTBALL = {"n_blue_agents": 2, "n_red_agents": 2, "ai_red_agents": False}


@pytest.mark.parametrize(
    ("scenario", "sizes"),
    [
        ("simple_tag", SEVERAL_GROUPS["simple_tag"]),
        *[
            pytest.param(scenario, sizes, marks=pytest.mark.slow)
            for scenario, sizes in [*SEVERAL_GROUPS.items(), ("football", {"agent_blue": 2, "agent_red": 2})]
            if scenario != "simple_tag"
        ],
    ],
)
def test_every_scenario_with_several_groups_trains_them_at_once(tmp_path, scenario, sizes):
    options = {"scenario": scenario, "scenario_options": FOOTBALL if scenario == "football" else {}}
    result = run(tmp_path, total_frames=40, **options)
    assert result.tests().keys() == {f"{group}/{when}" for group in sizes for when in ("before", "after")}
    loaded = load_run(result.folder)
    torch.manual_seed(QUICK.seed)
    env = loaded.make_env(1)
    initial = {group: Learner(env, group, replace(QUICK, **options)).actor.state_dict() for group in env.group_map}
    for group, n_agents in sizes.items():
        assert result.frames(f"{group}/loss_value") == [40]
        assert result.frames(f"{group}/evaluation_return_agent_{n_agents - 1}") == [0, 40]
        for key, value in initial[group].items():
            # Bounds stay; an agent alone hears nobody, so its recurrent weights multiply zeros.
            stays = key.endswith(("low", "high")) or (n_agents == 1 and "weight_hh" in key)
            assert torch.equal(value, loaded.actors[group].state_dict()[key]) == stays, key


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"scenario": "navigatoin"},
            "Unknown scenario 'navigatoin'; this package has dispersion_energy,",
        ),
        ({"scenario": "missing.py:Mine"}, "scenario 'missing.py:Mine' is not found: there is no file missing.py"),
        (
            {"scenario": "missing.module:Mine"},
            "scenario 'missing.module:Mine' is not found: there is no package missing",
        ),
        (
            {"scenario": "vmas.scenarios.navigation:HeuristicPolicy"},
            "must name a class derived from BaseScenario, found <class 'vmas.scenarios.navigation.HeuristicPolicy'>",
        ),
        ({"scenario_options": {"n_agent": 3}}, "no option n_agent; it has"),
        ({"pad": True}, "nothing to pad"),
        ({"eval_episodes": 1}, "eval_episodes: Input should be greater than or equal to 2, found 1"),
        ({"scenario_options": {"max_steps": 3}}, "multiple values for keyword argument 'max_steps'"),
        ({"scenario_options": {"n_agents": 0}}, "'navigation' does not take {'n_agents': 0}"),
        ({"scenario_options": {"agents_with_same_goal": 2}}, "AssertionError('If agents share goals they cannot be"),
        ({"scenario": "hidden_goals", "scenario_options": {"n_agents": 1}}, "n_agents must be at least 2, found 1.')."),
        (
            {"scenario": "balance", "scenario_options": {"n_agents": 1}},
            "{'n_agents': 1}: assert self.n_agents > 1.",
        ),
        ({"num_envs": 7}, "frames_per_batch must be a multiple of num_envs, found 40 and 7"),
        ({"buffer_size": 39}, "buffer_size must hold a batch of 40, found 39"),
        ({"total_frames": -1}, "total_frames: Input should be greater than 0, found -1"),
        ({"batch_size": 0}, "batch_size: Input should be greater than 0, found 0"),
        ({"sigma": (0.5, 0.1)}, "sigma must be a finite number or a pair with 0 <= low <= high, found (0.5, 0.1)"),
        ({"correlation": 1.0}, "correlation: Input should be less than 1, found 1.0"),
        ({"n_steps": 0}, "n_steps: Input should be greater than 0, found 0"),
        ({"reward_rms": 0.0}, "reward_rms: Input should be greater than 0, found 0.0"),
        ({"actor_lr": -1.0}, "actor_lr: Input should be greater than 0, found -1.0"),
        ({"critic_lr": float("inf")}, "critic_lr: Input should be a finite number"),
        ({"gamma": 0.0}, "gamma: Input should be greater than 0, found 0.0"),
        ({"gamma": 2.0}, "gamma: Input should be less than or equal to 1, found 2.0"),
        ({"tau": float("nan")}, "tau: Input should be"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0, found -1"),
        ({"device": "gpu"}, "device must be one that torch finds here, such as 'cpu', found 'gpu'"),
        ({"n_agents": (0,)}, "n_agents.0: Input should be greater than 0, found 0"),
        ({"n_agents": (2, 2)}, "n_agents must be a number or different numbers of agents, found"),
        ({"shuffle_agents": True, "agent_id": True}, "shuffle_agents needs agents that are alike"),
        ({"n_agents": (2, 4), "scenario_options": {"n_agents": 3}}, "n_agents is given twice"),
        ({"n_agents": (2, 3, 4), "eval_episodes": 2}, "eval_episodes must be at least the number of sizes in n_agents"),
        ({"communication": "telepathy"}, "communication: Input should be 'lstm', 'gru'"),
        *([] if find_spec("wandb") else [({"logger": "wandb"}, "This run needs wandb: pip install wandb")]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_option_fails_before_anything_is_written(tmp_path, changes, said):
    code = command(**asdict(QUICK) | {"run_folder": tmp_path / "run"} | changes)
    assert code.startswith("error: ")
    assert said in code
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_is_not_overwritten(tmp_path):
    (tmp_path / "run").mkdir()
    assert "exists; choose another" in command(run_folder=tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--comunication", "gru"], "--communication"),
        (["--communication", "telepathy"], "lstm"),
        (["--seed", "x"], "int"),
    ],
)
def test_a_misspelt_option_names_the_valid_ones(arguments, named, capsys):
    with pytest.raises(SystemExit):
        tyro.cli(Options, args=arguments)
    captured = capsys.readouterr()
    assert named in captured.out + captured.err


def test_a_wrong_value_ends_the_script_with_one_line(tmp_path):
    arguments = [sys.executable, SCRIPT, "--scenario", "navigatoin", "--run-folder", tmp_path / "run"]
    failed = subprocess.run(arguments, capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines()[-1].startswith("error: Unknown scenario 'navigatoin'")
    assert "Traceback" not in failed.stderr


def test_one_number_of_agents_is_an_option_of_the_scenario():
    assert Options(n_agents=(3,)) == Options(scenario_options={"n_agents": 3})


class TestConfig:
    def parsed(self, monkeypatch, *arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        return train_vmas.command_line()

    def test_the_command_line_comes_on_top_of_the_file(self, tmp_path, monkeypatch):
        file = tmp_path / "options.yaml"
        file.write_text(
            "num_envs: 20\nn_agents: [2, 3]\nscenario_options: {collisions: false}\nactor_lr: 1.0e-4\ncritic_lr: 3e-4\n"
            "total_frames: 1000\nframes_per_batch: 0\nrun_folder: runs/x\n"
        )
        options = self.parsed(monkeypatch, "--config", file, "--actor-lr", "2e-4", "--max-steps", "7")
        expected = Options(
            num_envs=20,
            n_agents=(2, 3),
            scenario_options={"collisions": False},
            actor_lr=2e-4,
            critic_lr=3e-4,
            total_frames=1000,
            max_steps=7,
            run_folder=Path("runs/x"),
        )
        assert options == replace(expected, config=file)
        # What follows from other options follows from those of the command line.
        options = self.parsed(monkeypatch, "--config", file, "--num-envs", "30")
        assert (options.frames_per_batch, options.total_frames) == (300, 1200)

    def test_another_run_is_done_again_with_other_options(self, tmp_path, finished_run, monkeypatch):
        options = self.parsed(monkeypatch, "--config", finished_run.folder / "run.json", "--seed", "5")
        assert options == replace(QUICK, seed=5, config=finished_run.folder / "run.json")

    def test_what_followed_from_options_of_another_run_follows_from_changed_ones(self, tmp_path, monkeypatch):
        chosen = {"num_envs": 20, "eval_interval": 600, "total_frames": 1000, "scenario_options": {"n_agents": 3}}
        file = tmp_path / "run.json"
        file.write_text(json.dumps({"options": asdict(Options(**chosen)) | {"resume": "runs/x"}}))
        options = self.parsed(
            monkeypatch, "--config", tmp_path / "run.json", "--total-frames", 10_000, "--num-envs", 25
        )
        expected = Options(**chosen | {"num_envs": 25, "total_frames": 10_000})
        assert options == replace(expected, config=file)
        assert (options.frames_per_batch, options.checkpoint_interval, options.eval_interval) == (250, 1000, 600)

    @pytest.mark.parametrize(
        ("of_file", "given", "expected"),
        [
            ({"scenario_options": {"n_agents": 3}}, ["--n-agents", 4], {"scenario_options": {"n_agents": 4}}),
            ({"scenario_options": {"n_agents": 3}}, ["--n-agents", 2, 4], {"n_agents": (2, 4)}),
            ({"n_agents": (2, 3)}, ["--n-agents", 4], {"scenario_options": {"n_agents": 4}}),
            ({"n_agents": (2, 3)}, ["--scenario-options", "n_agents", 4], {"scenario_options": {"n_agents": 4}}),
            ({"n_agents": (2, 3)}, ["--seed", 0], {"n_agents": (2, 3)}),
            (
                {"scenario_options": {"n_agents": 3, "collisions": False}},
                ["--scenario-options", "n_agents", 4, "shared_rew", False],
                {"scenario_options": {"n_agents": 4, "collisions": False, "shared_rew": False}},
            ),
        ],
    )
    def test_options_of_the_scenario_on_top_of_a_file(self, tmp_path, monkeypatch, of_file, given, expected):
        (tmp_path / "options.json").write_text(json.dumps(of_file))
        options = self.parsed(monkeypatch, "--config", tmp_path / "options.json", *given)
        assert options == Options(**expected, config=tmp_path / "options.json")

    def test_no_limit_is_read_as_it_was_written(self, tmp_path, monkeypatch):
        (tmp_path / "run.json").write_text(json.dumps({"options": asdict(Options(max_grad_norm=math.inf))}))
        assert self.parsed(monkeypatch, "--config", tmp_path / "run.json").max_grad_norm == math.inf

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("num_envs: 0", r"options.yaml: num_envs: Input should be greater than 0, found 0"),
            ("communication: [gru]", r"options.yaml: communication: "),
            ("number: 3", r"options.yaml: number: Unexpected keyword argument, found 3"),
            ("- 3", r"options.yaml must hold names and values of options, found \[3\]"),
            ("a: b: c", r"options.yaml is neither YAML nor JSON"),
        ],
    )
    def test_a_wrong_file(self, tmp_path, monkeypatch, text, said):
        (tmp_path / "options.yaml").write_text(text)
        with pytest.raises(SystemExit, match=f"error: .*{said}"):
            self.parsed(monkeypatch, "--config", tmp_path / "options.yaml")

    def test_no_file(self, tmp_path, monkeypatch):
        with pytest.raises(SystemExit, match=r"error: .*No such file.*missing.yaml"):
            self.parsed(monkeypatch, "--config", tmp_path / "missing.yaml")


OWN_SCENARIO = """
from __future__ import annotations
from dataclasses import dataclass
from vmas.scenarios.navigation import Scenario

@dataclass
class Bonus:
    amount: float

class Generous(Scenario):
    def make_world(self, batch_dim, device, **kwargs):
        self.bonus = Bonus(kwargs.pop("bonus", 0.0))
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return super().reward(agent) + self.bonus.amount
"""


def test_a_scenario_of_ones_own(tmp_path, monkeypatch, finished_run):
    """Its reward is navigation's and 3 at each step; resumed, loaded and evaluated like any other."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(OWN_SCENARIO)
    options = {"scenario": "mine.py:Generous", "scenario_options": {"bonus": 3.0}, "checkpoint_interval": 40}
    result = run(tmp_path, **options)
    assert result.tests()["before"] == pytest.approx([x + 3 * 10 for x in finished_run.tests()["before"]], rel=1e-4)
    loaded = load_run(result.folder)
    again = evaluate(loaded.make_env(5), loaded.policy, max_steps=10, seed=TEST_SEED)
    assert again.returns["agents"].mean(-1).tolist() == result.tests()["after"]
    older = sorted((result.folder / "checkpoints").glob("*.torchrl"))[0]
    tests = result.tests()
    train_vmas.main(Options(resume=older))
    assert result.tests() == tests
    # The default folder is named by the class.
    train_vmas.main(replace(QUICK, **options, run_folder=None))
    assert [folder.name.startswith("Generous-seed0-") for folder in Path("runs").iterdir()] == [True]


def test_films_of_mixed_teams_do_not_disturb_the_training(tmp_path):
    options = {"n_agents": (2, 3), "num_envs": 5}
    with_films, without = (run(tmp_path, f"{interval}", film_interval=interval, **options) for interval in (40, 0))
    assert len(list(with_films.folder.glob("films/*.gif"))) == 3
    assert not (without.folder / "films").exists()
    assert with_films.values("loss_value") == without.values("loss_value")
    assert with_films.tests() == without.tests()


HOLDS_A_RUN = """
import sys
from torchrl_bicnet import Run
run = Run.resume(sys.argv[1])
run.checkpoint_path = None
with run:
    run.start({}, total_frames=120)
    print("started", flush=True)
    sys.stdin.read()
"""


class TestStopAndResume:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_writes_a_checkpoint_and_says_how_to_go_on(self, tmp_path, number, capsys, monkeypatch):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
        alone, stopped = tmp_path / "alone", tmp_path / "stopped"
        options = asdict(replace(QUICK, total_frames=800)) | {"eval_interval": 1000, "checkpoint_interval": 1000}
        assert command(**options | {"run_folder": alone}) == 0

        def send():
            while not list(stopped.glob("scalars/loss_value.csv")):
                time.sleep(0.001)
            os.kill(os.getpid(), number)

        sender = threading.Thread(target=send)
        sender.start()
        assert command(**options | {"run_folder": stopped}) == 128 + number
        sender.join()
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"Stopped by {number.name}. The last checkpoint is {stopped / 'checkpoints'}")
        assert said.endswith(f"train_vmas.py --resume {stopped}")
        assert not (stopped / "test_returns.json").exists()
        assert command(resume=stopped) == 0
        for file in ("test_returns.json", "scalars/loss_value.csv", "scalars/evaluation_return.csv"):
            assert (stopped / file).read_text() == (alone / file).read_text()

    @pytest.mark.parametrize("what", ["loss_value", "agents.actor.module.net.decoder.0.weight"])
    def test_what_is_not_finite_stops_the_run_before_it_reaches_a_checkpoint(self, tmp_path, monkeypatch, what):
        calls = []

        class Update(train_vmas.UpdateStep):
            def __call__(self, sample):
                calls.append(1)
                metrics = super().__call__(sample)
                if len(calls) == 4:  # the last update of the second batch
                    if what == "loss_value":
                        metrics[what] = metrics[what] * torch.nan
                    else:
                        weight = ("module", "net", "decoder", "0", "weight")
                        for networks in (self.loss.actor_network_params, self.loss.target_actor_network_params):
                            networks[weight].data[0, 0] = torch.inf  # as an update passes it on
                return metrics

        monkeypatch.setattr(train_vmas, "UpdateStep", Update)
        code = command(**asdict(QUICK) | {"run_folder": tmp_path / "run", "checkpoint_interval": 40})
        assert code.startswith(f"error: Not finite after 80 frames: {what}")
        assert f"The last checkpoint is {tmp_path}/run/checkpoints/checkpoint-000000000040.torchrl" in code
        result = Result(tmp_path / "run")
        assert result.frames("loss_value") == [40]
        monkeypatch.undo()
        assert all(value.isfinite().all() for value in result.weights().values())
        assert command(resume=tmp_path / "run") == 0

    def test_resuming_with_other_options_or_no_run_is_refused(self, tmp_path):
        folder = run(tmp_path).folder
        assert "--resume takes no other option" in command(resume=folder, seed=3)
        assert "is not a run folder: it has no run.json" in command(resume=tmp_path)
        assert "is not a run folder: it has no run.json" in command(resume=tmp_path / "nowhere")
        (best,) = folder.glob("checkpoints/best/*")
        assert "holds networks, not what a training goes on from" in command(resume=best)
        about = json.loads((folder / "run.json").read_text())
        for change, said in (
            ({"seed": "0"}, "seed: Input should be a valid integer, found '0'"),
            ({"speed": 1}, "speed: Unexpected keyword argument, found 1"),
            ({"communication": "telepathy"}, "communication: Input should be 'lstm', 'gru'"),
        ):
            (folder / "run.json").write_text(json.dumps(about | {"options": about["options"] | change}))
            assert said in command(resume=folder)
        (folder / "run.json").write_text("{")
        assert "run.json is damaged" in command(resume=folder)

    def test_a_damaged_checkpoint_offers_the_older_one_which_resumes(self, tmp_path):
        result = run(tmp_path, checkpoint_interval=40)
        tests = result.tests()
        older, newest = sorted((result.folder / "checkpoints").glob("*.torchrl"))
        newest.write_bytes(newest.read_bytes()[:1000])
        assert f"The next older checkpoint is {older}." in command(resume=result.folder)
        assert command(resume=older) == 0
        assert result.tests() == tests

    def test_a_compiled_run_goes_on_to_the_bit(self, tmp_path, monkeypatch):
        compiled = []
        call = CompiledStep.__call__
        monkeypatch.setattr(CompiledStep, "__call__", lambda self, td: compiled.append(self) or call(self, td))
        options = {"scenario": "simple_spread", "num_envs": 8, "max_steps": 7, "checkpoint_interval": 40}
        result = run(tmp_path, **options, compile=True)
        assert len(compiled) == 15  # of 8 environments each
        tests, losses, weights = result.tests(), result.values("loss_value"), result.weights()
        older = sorted((result.folder / "checkpoints").glob("*.torchrl"))[0]
        assert command(resume=older) == 0
        assert len(compiled) == 15 + 5
        assert (result.tests(), result.values("loss_value")) == (tests, losses)
        assert all(torch.equal(value, weights[name]) for name, value in result.weights().items())

    def test_a_run_of_an_earlier_version_goes_on_with_the_defaults_of_what_it_predates(self, tmp_path):
        result = run(tmp_path, checkpoint_interval=40)
        tests = result.tests()
        about = json.loads((result.folder / "run.json").read_text())
        for option in ("compile", "pad", "resume", "checkpoint_buffer"):
            del about["options"][option]
        (result.folder / "run.json").write_text(json.dumps({"options": about["options"]}))
        assert command(resume=sorted((result.folder / "checkpoints").glob("*.torchrl"))[0]) == 0
        assert result.tests() == tests

    def test_a_second_process_is_refused(self, tmp_path):
        folder = run(tmp_path).folder
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDS_A_RUN, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert holder.stdout.readline() == "started\n"
        assert command(resume=folder) == f"error: Another process trains in {folder}"
        holder.kill()
        holder.communicate()
        assert command(resume=folder) == 0


@pytest.mark.slow
def test_the_defaults_learn_navigation(tmp_path):
    """A seed of its own, beside those of benchmarks/results, which end at about 4.1 after three times the frames."""
    main(Options(seed=7, total_frames=42_000, run_folder=tmp_path / "run"))
    tests = Result(tmp_path / "run").tests()
    before, after = (torch.tensor(tests[when]) for when in ("before", "after"))
    assert before.mean() < 0
    assert len(after) == 1000
    assert after.mean() >= 3.0
