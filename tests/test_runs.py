"""Run folders: what is written when, what other loggers get, and runs of earlier versions."""

import json
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torchrl.checkpoint import CheckpointError

from examples.train_vmas import Options
from torchrl_bicnet import Run, evaluate, load_run
from torchrl_bicnet.runs import TEST_SEED

ROOT = Path(__file__).resolve().parent.parent
NAVIGATION = ROOT / "benchmarks/results/navigation"


def test_nothing_is_written_before_start_has_checked_its_arguments(tmp_path):
    for wrong, said in (
        ({"logger": "tensorbord"}, "logger must be one of csv, tensorboard, wandb, found 'tensorbord'"),
        ({"components": {"a": 3}}, r"components\['a'\] must have a state dict"),
        ({"components": {"metrics": {}}}, "components must not be called metrics"),
        ({"best": ["net"]}, "No component is called net"),
        ({"leave_out": ["buffer"]}, "No component is called buffer"),
    ):
        refused = pytest.raises((TypeError, ValueError), match=said)
        with refused, Run(tmp_path / "run", {}) as run:
            run.start(**{"components": {}, "total_frames": 9} | wrong)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_error_of_the_loop_itself_is_not_hidden(tmp_path, when):
    for error in (ValueError("a bug"), OSError("a bug")):
        folder = tmp_path / type(error).__name__
        bug = pytest.raises(type(error), match="a bug")
        with bug, Run(folder, {}) as run:
            if when == "after":
                run.start({}, total_frames=9)
            raise error


def test_a_run_of_ones_own_says_how_to_go_on_and_finishes(tmp_path, capsys):
    """Without a scenario, evaluations or tests."""
    stopped = pytest.raises(SystemExit)
    with stopped as caught, Run(tmp_path / "run", {"rate": 0.1}) as run:
        run.start({}, total_frames=9)
        run.log(3, {"loss": 1.0})
        signal.raise_signal(signal.SIGTERM)
        run.checkpoint(interval=100)
    assert caught.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err.endswith(f"000000000003.torchrl. Go on: Run.resume {tmp_path / 'run'}\n")
    with Run.resume(tmp_path / "run") as run:
        assert run.start({}, total_frames=9) == 3
        run.log(9, {"loss": 0.5})
        assert run.finish() == f"Options, metrics, checkpoints and pictures are in {tmp_path / 'run'}"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_metric_is_logged_once_for_each_number_of_frames(tmp_path):
    with Run(tmp_path / "run", {}) as run:
        run.start({}, total_frames=9)
        run.log(3, {"loss": 1.0})
        for frames in (3, 2):
            with pytest.raises(ValueError, match=f"loss at {frames} frames: it was logged at 3 already"):
                run.log(frames, {"loss": 1.0})


def test_what_is_not_finite_is_named_and_not_written(tmp_path):
    net = torch.nn.Linear(2, 1)
    for metrics, named in (({"loss": float("nan")}, "loss"), ({"loss": 1.0}, "net.bias")):
        if named == "net.bias":
            net.bias.data.fill_(torch.inf)
        stopped = pytest.raises(SystemExit, match=f"error: Not finite after 3 frames: {named}. There is no checkpoint")
        with stopped, Run(tmp_path / named, {}) as run:
            run.start({"net": net}, total_frames=9, best=["net"])
            run.log(3, metrics)
        assert not list((tmp_path / named).rglob("*.csv"))


def test_due_at_each_multiple_of_an_interval(tmp_path):
    due = []
    with Run(tmp_path / "run", {}) as run:
        run.start({}, total_frames=90)
        for frames in range(10, 100, 10):
            run.log(frames, {})
            run.log(frames, {"again": 1.0})  # an evaluation, say
            due += [frames] if run.due(25) else []
    assert due == [30, 50, 80]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorBoard's own
@pytest.mark.parametrize("stops", [[50, 100], [50, 40, 100], [30, 100]])
def test_tensorboard_gets_each_metric_once_though_the_run_is_resumed(tmp_path, stops):
    """Stopped without a checkpoint of where it was, once before the frames that TensorBoard had got before, and
    between a metric and another one of the same frames."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class CrashError(Exception):
        pass

    def loop(run, until):
        for frames in range(run.start({}, total_frames=100, logger="tensorboard") + 10, 110, 10):
            run.log(frames, {"loss": frames / 100})
            if frames == until < 100:
                raise CrashError
            run.log(frames, {"evaluation": frames / 10})
            run.checkpoint(interval=30)

    for until in stops:
        made = Run.resume(tmp_path / "run") if (tmp_path / "run").exists() else Run(tmp_path / "run", {})
        with suppress(CrashError), made as run:
            loop(run, until)
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    for metric in ("loss", "evaluation"):
        assert [event.step for event in events.Scalars(metric)] == list(range(10, 110, 10))
        rows = (tmp_path / f"run/scalars/{metric}.csv").read_text().splitlines()
        assert [int(row.split(",")[0]) for row in rows] == list(range(10, 110, 10))
    assert [round(event.value, 2) for event in events.Scalars("loss")] == [n / 10 for n in range(1, 11)]


def test_a_crash_in_the_middle_of_a_row_is_mended(tmp_path):
    with Run(tmp_path / "run", {}) as run:
        run.start({}, total_frames=100)
        run.log(10, {"loss": 1.0})
        run.checkpoint(interval=10)
    with (tmp_path / "run/scalars/loss.csv").open("a") as file:
        file.write("20,0.5\n30")
    with Run.resume(tmp_path / "run") as run:
        assert run.start({}, total_frames=100) == 10
    assert (tmp_path / "run/scalars/loss.csv").read_text() == "10,1.0\n"


class TestLoadRun:
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_the_committed_runs_load(self, seed):
        """With the actor that was tested after the training."""
        options = json.loads((NAVIGATION / f"seed{seed}/run.json").read_text())["options"]
        run = load_run(NAVIGATION / f"seed{seed}")
        assert run.actors["agents"].module.net.communication.hidden_size == options["hidden_size"]
        found = evaluate(run.make_env(1000), run.policy, max_steps=options["max_steps"], seed=TEST_SEED)
        expected = json.loads((NAVIGATION / f"seed{seed}/test_returns.json").read_text())["after"]
        torch.testing.assert_close(
            found.returns["agents"].mean(-1), torch.tensor(expected), rtol=0, atol=0.05, equal_nan=False
        )

    def test_the_first_layout_of_run_json(self, tmp_path, finished_run):
        """Options before ``pad`` and checkpoint options, versions without date and id."""
        folder = shutil.copytree(finished_run.folder, tmp_path / "run")
        options = json.loads((folder / "run.json").read_text())["options"]
        for name in ("pad", "compile", "checkpoint_interval", "checkpoint_buffer", "resume"):
            del options[name]
        (folder / "run.json").write_text(json.dumps({"options": options}))
        run = load_run(folder)
        weights = finished_run.weights()
        assert all(torch.equal(value, weights[name]) for name, value in run.policy.state_dict().items())

    def test_an_option_of_a_later_version_is_named(self, tmp_path, finished_run):
        folder = shutil.copytree(finished_run.folder, tmp_path / "run")
        about = json.loads((folder / "run.json").read_text())
        about["options"] |= {"telepathy": True, "memory": "gru"}
        (folder / "run.json").write_text(json.dumps(about))
        with pytest.warns(UserWarning, match="options that this version does not know: memory, telepathy"):
            load_run(folder)

    def test_every_option_of_the_script_is_known(self, finished_run):
        """Otherwise the run just made would warn, and warnings are errors."""
        assert load_run(finished_run.folder).options.keys() == vars(Options()).keys()

    def test_a_folder_without_the_checkpoint_is_refused(self, tmp_path, finished_run):
        with pytest.raises(FileNotFoundError, match=r"is not a run folder: it has no run\.json"):
            load_run(tmp_path)
        shutil.copy(finished_run.folder / "run.json", tmp_path)
        for checkpoint in ("last", "best"):
            with pytest.raises(CheckpointError, match=f"has no {checkpoint} checkpoint"):
                load_run(tmp_path, checkpoint=checkpoint)
        with pytest.raises(ValueError, match="checkpoint must be 'last' or 'best', found 'first'"):
            load_run(finished_run.folder, checkpoint="first")
