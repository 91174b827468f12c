"""Run folders: what is written when, what other loggers get, and runs of earlier versions."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from torchrl.checkpoint import CheckpointError

from examples.train_vmas import Options
from torchrl_bicnet import Run, evaluate, load_run
from torchrl_bicnet.runs import TEST_SEED

ROOT = Path(__file__).resolve().parent.parent
NAVIGATION = ROOT / "benchmarks/results/navigation"


def test_nothing_is_written_before_start_and_errors_before_it_are_one_line(tmp_path):
    with pytest.raises(SystemExit, match="error: wrong") as caught, Run(tmp_path / "run", {}):
        raise ValueError("wrong")
    assert isinstance(caught.value.__cause__, ValueError)
    refused = pytest.raises(SystemExit, match="logger must be one of csv, tensorboard, wandb")
    with refused, Run(tmp_path / "run", {}) as run:
        run.start({}, total_frames=9, logger="tensorbord")
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_loop_itself_is_not_hidden(tmp_path):
    bug = pytest.raises(ValueError, match="a bug")
    with bug, Run(tmp_path / "run", {}) as run:
        run.start({}, total_frames=9)
        raise ValueError("a bug")


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
def test_tensorboard_gets_each_step_once_though_the_run_is_resumed(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    counts = {"frames": 0}

    def loop(run, until):
        for frames in range(run.start({"counts": counts}, total_frames=100, logger="tensorboard") + 10, until + 10, 10):
            run.log(frames, {"loss": frames / 100})
            counts["frames"] = frames
            run.checkpoint(interval=30)

    with Run(tmp_path / "run", {}) as run:
        loop(run, 50)  # the last checkpoint is of 30
    with Run.resume(tmp_path / "run") as run:
        loop(run, 100)
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert [(event.step, round(event.value, 2)) for event in events.Scalars("loss")] == [
        (frames, frames / 100) for frames in range(10, 110, 10)
    ]
    rows = (tmp_path / "run/scalars/loss.csv").read_text().splitlines()
    assert Counter(row.split(",")[0] for row in rows) == Counter(map(str, range(10, 110, 10)))


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
    def test_the_committed_runs_load_though_they_predate_options(self, seed):
        """Of version 0.1.0 before ``cuda_graph`` and ``resume``; the actor that was tested after the training."""
        options = json.loads((NAVIGATION / f"seed{seed}/run.json").read_text())["options"]
        assert "resume" not in options
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
        for name in ("pad", "cuda_graph", "checkpoint_interval", "checkpoint_buffer", "resume"):
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
