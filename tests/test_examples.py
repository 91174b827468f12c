import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch
import tyro

from examples import train_vmas
from examples.train_vmas import Arguments, Options, check, load_run, main, make_env, train
from tests.helpers_vmas import SEVERAL_GROUPS
from torchrl_bicnet import Run
from torchrl_bicnet.runs.files import read_scalars

SCRIPT = Path(train_vmas.__file__)
QUICK = Options(
    max_steps=10,
    num_envs=4,
    hidden_size=8,
    num_cells=(12,),
    total_frames=120,
    frames_per_batch=40,
    updates_per_batch=2,
    batch_size=8,
    buffer_size=500,
    eval_interval=40,
    eval_episodes=3,
    test_episodes=5,
)


def run(tmp_path, name="run", **changes):
    """As the script does; the run folder, and the returns of the test before and after."""
    options = replace(QUICK, **changes)
    check(options)
    folder = Run.create(tmp_path / name, asdict(options))
    return folder, train(options, folder)


def weights(folder, which="last"):
    return load_run(folder, which)[1].state_dict()


def frames(folder, metric):
    return read_scalars(folder / f"scalars/{metric}.csv")[0].tolist()


def test_a_run_leaves_options_metrics_checkpoints_and_a_picture(tmp_path, capsys):
    folder, tests = run(tmp_path)
    written = json.loads((folder / "run.json").read_text())
    assert written["options"]["hidden_size"] == 8
    assert written["options"].keys() == {field.name for field in fields(Options)}
    assert written["versions"]["torch"] == torch.__version__
    for metric in ("loss_actor", "loss_value", "grad_norm", "sigma", "training_return"):
        assert frames(folder, metric) == [40, 80, 120], metric
    assert frames(folder, "frames_per_second")[-3:] == [40, 80, 120]
    for metric in ("evaluation_return", "evaluation_return_stderr", "evaluation_return_agent_3", "success_rate"):
        assert frames(folder, metric) == [0, 40, 80, 120]
    assert (folder / "pictures/learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "test_returns.json").read_text()) == tests
    assert len(tests["before"]) == len(tests["after"]) == 5
    captured = capsys.readouterr()
    last = captured.out.splitlines()[-1]
    before, after = (torch.tensor(tests[when]).mean() for when in ("before", "after"))
    assert last.startswith(f"evaluation return: {before:.2f} ± ")
    assert f"{after:.2f} ± " in last
    for shown in ("120/120", "evaluation_return=", "loss_actor=", "loss_value=", "frame/s"):
        assert shown in captured.err

    # The last checkpoint holds what the test was made with.
    options, policy = load_run(folder)
    again = train_vmas.evaluate(
        make_env(options, 5, train_vmas.TEST_SEED), policy, max_steps=10, seed=train_vmas.TEST_SEED
    )
    assert again.returns["agents"].mean(-1).tolist() == tests["after"]


def test_one_seed_is_one_run_to_the_bit_and_another_seed_differs(tmp_path):
    found = {
        name: weights(run(tmp_path, name, seed=seed)[0]) for name, seed in (("first", 0), ("again", 0), ("other", 1))
    }
    assert all(torch.equal(found["first"][key], found["again"][key]) for key in found["first"])
    moved = [not torch.equal(found["first"][key], found["other"][key]) for key in found["first"]]
    assert sum(moved) > 5


def test_evaluating_at_every_iteration_or_never_trains_the_same(tmp_path):
    often, never = (weights(run(tmp_path, name, eval_interval=n)[0]) for name, n in (("often", 40), ("never", 10_000)))
    assert all(torch.equal(often[key], never[key]) for key in often)


def test_what_follows_from_the_number_of_environments():
    few, many = Options(), Options(num_envs=8192, total_frames=1_000_000)
    assert (few.frames_per_batch, few.total_frames, few.buffer_size) == (600, 120_000, 120_000)
    assert (few.eval_interval, few.checkpoint_interval) == (12_000, 12_000)
    assert (many.frames_per_batch, many.total_frames, many.buffer_size) == (81_920, 13 * 81_920, 819_200)
    assert many.eval_interval == many.checkpoint_interval == 13 * 8192
    assert replace(many) == many  # as in a run folder
    given = Options(num_envs=10, frames_per_batch=20, total_frames=21, buffer_size=20, eval_interval=7)
    assert (given.frames_per_batch, given.total_frames, given.buffer_size, given.eval_interval) == (20, 40, 20, 7)


def test_more_environments_need_no_other_option(tmp_path):
    command = {"num_envs": 700, "total_frames": 8000, "max_steps": 5, "updates_per_batch": 1, "test_episodes": 2}
    main(Arguments(run_folder=tmp_path / "run", eval_episodes=2, **command))
    assert frames(tmp_path / "run", "loss_value") == [7000, 14_000]


@pytest.mark.parametrize("communication", ["gru", "rnn", "mean", "attention", "none"])
def test_every_communication(tmp_path, communication):
    run(tmp_path, communication=communication, total_frames=40)


def test_other_scenarios_options_and_separate_parameters(tmp_path):
    options = {"scenario_options": {"n_agents": 3}, "share_params": False, "scenario": "simple_spread"}
    folder, _ = run(tmp_path, total_frames=40, **options)
    assert frames(folder, "evaluation_return_agent_2") == [0, 40]
    assert not (folder / "scalars/evaluation_return_agent_3.csv").exists()


@pytest.mark.parametrize(
    ("scenario", "sizes"),
    [
        *SEVERAL_GROUPS.items(),
        ("football", {"agent_blue": 2, "agent_red": 2}),
    ],
)
def test_every_scenario_with_several_groups_trains_them_at_once(tmp_path, scenario, sizes):
    players = {"n_blue_agents": 2, "n_red_agents": 2, "ai_red_agents": False} if scenario == "football" else {}
    folder, tests = run(tmp_path, scenario=scenario, scenario_options=players, total_frames=40)
    assert tests.keys() == {f"{group}/{when}" for group in sizes for when in ("before", "after")}
    options, policy = load_run(folder)
    torch.manual_seed(options.seed)
    initial, _ = train_vmas.make_modules(options, make_env(options, 1, 0))
    for (group, n_agents), actor in zip(sizes.items(), policy):
        assert frames(folder, f"{group}/loss_value") == [40]
        assert frames(folder, f"{group}/evaluation_return_agent_{n_agents - 1}") == [0, 40]
        for key, value in initial[group].state_dict().items():
            # Bounds stay; an agent alone hears nobody, so its recurrent weights multiply zeros.
            stays = key.endswith(("low", "high")) or (n_agents == 1 and "weight_hh" in key)
            assert torch.equal(value, actor.state_dict()[key]) == stays, key


def test_a_padded_team_trains_in_one_group(tmp_path):
    changes = {"scenario": "simple_speaker_listener", "pad": True, "total_frames": 40}
    folder, _ = run(tmp_path, **changes)
    assert frames(folder, "evaluation_return_agent_1") == [0, 40]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorBoard's own
def test_tensorboard(tmp_path):
    folder, _ = run(tmp_path, logger="tensorboard", total_frames=40)
    assert list(folder.glob("events.out.tfevents*"))
    assert (folder / "scalars/loss_actor.csv").exists()


def test_it_explores_and_the_targets_follow(tmp_path, monkeypatch):
    """What a script can leave out without failing: the noise, its annealing, the update of the targets."""
    moved, calls = [], []

    class Noise(train_vmas.AdditiveGaussianModule):
        def forward(self, tensordict):
            before = tensordict[self.action_key]
            after = super().forward(tensordict)[self.action_key]
            moved.append((after - before).abs().max().item())
            return tensordict

    class Update(train_vmas.SoftUpdate):
        def step(self):
            calls.append(1)
            super().step()

    monkeypatch.setattr(train_vmas, "AdditiveGaussianModule", Noise)
    monkeypatch.setattr(train_vmas, "SoftUpdate", Update)
    folder, _ = run(tmp_path)
    steps = QUICK.total_frames // QUICK.num_envs
    assert sum(movement > 0 for movement in moved) >= steps
    assert len(calls) == QUICK.total_frames // QUICK.frames_per_batch * QUICK.updates_per_batch
    _, sigma = read_scalars(folder / "scalars/sigma.csv")
    assert sigma[0] < QUICK.sigma_start
    assert sigma[-1] == pytest.approx(QUICK.sigma_end)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk:UserWarning")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_everything_moves_to_cuda(tmp_path):
    folder, _ = run(tmp_path, device="cuda")
    for device in ("cpu", "cuda"):
        assert {parameter.device.type for parameter in load_run(folder, device=device)[1].parameters()} == {device}


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"scenario": "navigatoin"}, ValueError, "Unknown VMAS scenario 'navigatoin'; VMAS has"),
        ({"scenario_options": {"n_agent": 3}}, TypeError, "no option n_agent; it has"),
        ({"pad": True}, ValueError, "nothing to pad"),
        ({"eval_episodes": 1}, ValueError, "eval_episodes must be at least 2 for a standard error, found 1"),
        ({"scenario_options": {"max_steps": 3}}, ValueError, "max_steps: options of this script"),
        ({"scenario_options": {"n_agents": 0}}, ValueError, "'navigation' does not take {'n_agents': 0}"),
        ({"num_envs": 7}, ValueError, "frames_per_batch must be a multiple of num_envs, .* num_envs=7"),
        ({"buffer_size": 39}, ValueError, "buffer_size must hold a batch, frames_per_batch=40, found 39"),
        ({"cuda_graph": True}, ValueError, "cuda_graph=True expects a CUDA device, found device='cpu'"),
        ({"total_frames": -1}, ValueError, "total_frames must be at least 1, found -1"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, found 0"),
        ({"sigma_end": 2.0}, ValueError, "found sigma_start=0.9 and sigma_end=2.0"),
        ({"actor_lr": -1.0}, ValueError, "actor_lr must be above 0 and finite, found -1.0"),
        ({"gamma": 2.0}, ValueError, "gamma must be between 0 and 1, found 2.0"),
        ({"tau": 5.0}, ValueError, "tau must be between 0 and 1, found 5.0"),
        ({"seed": -1}, ValueError, "seed must not be negative and below"),
        ({"device": "gpu"}, ValueError, "device must be cpu, cuda or cuda:INDEX, found 'gpu'"),
        ({"num_envs": 0}, ValueError, "num_envs must be at least 1, found 0"),
    ],
)
def test_a_wrong_option_fails_before_anything_is_written(tmp_path, changes, error, match):
    with pytest.raises(error, match=match):
        run(tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []


def command(**options):
    """The script, without a process of its own; the code it exits with."""
    try:
        main(Arguments(**options))
    except SystemExit as exit:
        return exit.code
    return 0


def test_a_run_folder_is_not_overwritten(tmp_path):
    (tmp_path / "run").mkdir()
    assert "exists; choose another" in command(run_folder=tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_writes_a_checkpoint_and_says_how_to_go_on(tmp_path, number, capsys):
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
    assert (stopped / "test_returns.json").read_text() == (alone / "test_returns.json").read_text()
    assert (stopped / "scalars/loss_value.csv").read_text() == (alone / "scalars/loss_value.csv").read_text()


@pytest.mark.parametrize("what", ["loss_value", "agents.actor.module.net.decoder.0.weight"])
def test_what_is_not_finite_stops_the_run_before_it_reaches_a_checkpoint(tmp_path, monkeypatch, what):
    calls = []

    def update(learner, sample):
        calls.append(1)
        metrics = original(learner, sample)
        if len(calls) == 4:  # the last update of the second batch
            if what == "loss_value":
                metrics[what] = metrics[what] * torch.nan
            else:
                learner.actor.get_parameter("net.decoder.0.weight").data[0, 0] = torch.inf
        return metrics

    original = train_vmas.Learner.update
    monkeypatch.setattr(train_vmas.Learner, "update", update)
    code = command(**asdict(QUICK) | {"run_folder": tmp_path / "run", "checkpoint_interval": 40})
    assert code.startswith(f"error: Not finite after 80 frames: {what}")
    assert f"The last checkpoint is {tmp_path}/run/checkpoints/checkpoint-000000000040.torchrl" in code
    assert frames(tmp_path / "run", "loss_value") == [40]
    monkeypatch.undo()
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())
    assert command(resume=tmp_path / "run") == 0


def test_a_full_disk_stops_the_run_with_what_is_on_it_intact(tmp_path, monkeypatch):
    usage = train_vmas.Checkpoints._make_space

    def full(checkpoints, names):
        usage(checkpoints, names)
        if list(checkpoints.folder.glob("*.torchrl")):
            raise OSError(28, "No space for a checkpoint", str(checkpoints.folder))

    monkeypatch.setattr(train_vmas.Checkpoints, "_make_space", full)
    code = command(**asdict(QUICK) | {"run_folder": tmp_path / "run", "checkpoint_interval": 40})
    assert "No space for a checkpoint" in code
    assert "The last checkpoint is " in code
    monkeypatch.undo()
    assert command(resume=tmp_path / "run") == 0


def test_resuming_with_other_options_or_no_run_is_refused(tmp_path):
    folder, _ = run(tmp_path)
    assert "found seed beside --resume" in command(resume=folder, seed=3)
    assert "is not a run folder: it has no run.json" in command(resume=tmp_path)
    assert "is not a run folder: it has no run.json" in command(resume=tmp_path / "nowhere")
    options = json.loads((folder / "run.json").read_text())
    for change, said in (
        ({"seed": "0"}, "seed must be of type int, found '0'"),
        ({"speed": 1}, "has the unknown ['speed']"),
        ({"communication": "telepathy"}, "communication must be one of lstm"),
    ):
        changed = options | {"options": options["options"] | change}
        (folder / "run.json").write_text(json.dumps(changed))
        assert said in command(resume=folder)
    (folder / "run.json").write_text("{")
    assert "run.json is damaged" in command(resume=folder)


def test_a_damaged_checkpoint_offers_the_older_one_which_resumes(tmp_path):
    folder, tests = run(tmp_path, checkpoint_interval=40)
    older, newest = sorted((folder / "checkpoints").glob("*.torchrl"))
    newest.write_bytes(newest.read_bytes()[:1000])
    assert f"The next older checkpoint is {older}." in command(resume=folder)
    assert command(resume=older) == 0
    assert json.loads((folder / "test_returns.json").read_text()) == tests


def test_every_option_is_documented():
    help_text = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=True).stdout
    source = SCRIPT.read_text()
    for field in fields(Options):
        assert f"--{field.name.replace('_', '-')}" in help_text
        after = source.split(f"    {field.name}: ", 1)[1].splitlines()[1]
        assert after.strip().startswith('"""'), field.name


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
    command = [sys.executable, SCRIPT, "--scenario", "navigatoin", "--run-folder", tmp_path / "run"]
    failed = subprocess.run(command, capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines()[-1].startswith("error: Unknown VMAS scenario 'navigatoin'")
    assert "Traceback" not in failed.stderr


@pytest.mark.slow
def test_the_defaults_learn_navigation(tmp_path):
    """A seed of its own, beside those of benchmarks/results: at least 3.9 of about 4.2 at 120,000 frames."""
    options = Options(seed=7)
    folder = Run.create(tmp_path / "run", asdict(options))
    before, after = (torch.tensor(returns) for returns in train(options, folder).values())
    assert options.total_frames == 120_000
    assert before.mean() < 0
    assert len(after) == 1000
    assert after.mean() >= 3.9
