"""A training run on disk: its folder, metrics, checkpoints and progress, and how it is stopped and resumed."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import signal
import sys
from collections import defaultdict
from collections.abc import Collection, Mapping
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torchrl.checkpoint import CheckpointError
from torchrl.record.loggers import get_logger

from torchrl_bicnet.checks import check_integer
from torchrl_bicnet.evaluation import Evaluation, by_group
from torchrl_bicnet.runs.checkpoints import Checkpoints
from torchrl_bicnet.runs.files import read_options, write_atomically
from torchrl_bicnet.runs.learning_curves import learning_curves
from torchrl_bicnet.runs.plots import plot_learning_curves
from torchrl_bicnet.runs.provenance import provenance
from torchrl_bicnet.runs.signals import stop_signals

if find_spec("tqdm") is not None:
    from tqdm import tqdm

LOGGERS = ("csv", "tensorboard", "wandb")
PROGRESS = ("auto", "bar", "lines", "none")


class _Nowhere(io.StringIO):
    """A file that keeps nothing."""

    def write(self, text: str) -> int:
        return len(text)


class Run:
    """A training run's folder, metrics, checkpoints, progress bar and signals; your loop does the training.

    The folder holds ``run.json`` (options, versions, machine, date and git commit), ``scalars/NAME.csv`` (rows of
    ``frames,value``), ``checkpoints/`` (the last two, and in ``best/`` the one with the highest evaluation return) and,
    at the end, ``test_returns.json`` and ``pictures/``. Nothing is written before :meth:`start`.

    Inside ``with run:``, from :meth:`start` on, Ctrl-C and SIGTERM wait for the next :meth:`checkpoint`, which then
    ends the run. A run that ends before its time, by a signal, a full disk, a damaged checkpoint or a value that is not
    finite, exits the program (``SystemExit``) with a line that says how to go on.

    Args:
        folder (Path or str): must not exist yet: ``with`` raises ``FileExistsError``, since no run is overwritten.
        options (mapping): whatever tells this run from others, as JSON values.

    Example:
        >>> import tempfile, torch
        >>> net = torch.nn.Linear(2, 1)
        >>> folder = Path(tempfile.mkdtemp()) / "run"
        >>> with Run(folder, {"scenario": "navigation", "seed": 0}) as run:
        ...     frames = run.start({"net": net}, total_frames=600)
        ...     run.log(600, {"loss_value": torch.tensor(0.5)})
        ...     run.checkpoint(interval=60)
        >>> (folder / "scalars" / "loss_value.csv").read_text()
        '600,0.5\\n'
        >>> with Run.resume(folder) as run:
        ...     run.options, run.start({"net": net}, total_frames=600)
        ({'scenario': 'navigation', 'seed': 0}, 600)
    """

    def __init__(self, folder: Path | str, options: Mapping[str, Any]) -> None:
        self.folder, self.options = Path(folder), dict(options)
        self.checkpoint_path: Path | None = None
        self.started = self._resumed = False
        self._closing = ExitStack()

    @classmethod
    def resume(cls, path: Path | str) -> Run:
        """The run in a folder, to go on from its last checkpoint, or from the checkpoint that ``path`` names.

        Raises:
            FileNotFoundError: if there is no run.
            ValueError: for a damaged ``run.json``, or a best checkpoint, which holds the networks alone.
        """
        path = Path(path).absolute()
        folder = path.parent.parent if path.is_file() else path
        if folder.name == "checkpoints":
            raise ValueError(f"{path} holds networks, not what a training goes on from: resume {folder.parent}.")
        run = cls(folder, read_options(folder))
        run._resumed = True
        run.checkpoint_path = path if path.is_file() else Checkpoints(folder / "checkpoints", {}).latest()
        return run

    def start(
        self,
        components: Mapping[str, Any],
        *,
        total_frames: int,
        best: Collection[str] = (),
        leave_out: Collection[str] = (),
        logger: str = "csv",
        shown: tuple[str, ...] = ("evaluation_return", "training_return", "loss_actor", "loss_value"),
        progress: str = "auto",
        resume_command: str = "Run.resume",
    ) -> int:
        """Make the folder, or restore all components from the checkpoint; returns the frames to go on from.

        Args:
            components (mapping): name to what a checkpoint holds, as for :class:`~torchrl_bicnet.Checkpoints`. The run
                adds its own ``metrics`` and ``tests``.

        Keyword Args:
            total_frames (int): frames of the whole run.
            best (collection of str): the components that the best checkpoint holds, such as the networks, whose
                parameters :meth:`log` checks for NaN and infinity.
            leave_out (collection of str): components that are not saved, such as the replay buffer.
            logger (str): ``"csv"``, or ``"tensorboard"`` or ``"wandb"`` in addition. They get each step once, also
                when the run is resumed.
            shown (tuple of str): metrics shown with the progress: those whose name ends so.
            progress (str): what stderr shows: ``"bar"``, ``"lines"``, one for each evaluation, or ``"none"``.
                Defaults to ``"auto"``, a bar on a terminal and lines elsewhere.
            resume_command (str): what a user types, followed by the folder, to go on with a stopped run.

        Raises:
            BlockingIOError: if another process trains in this folder.
            CheckpointError: if the checkpoint is damaged or of other components; nothing is changed then.
        """
        check_integer("total_frames", total_frames)
        taken = {"metrics", "tests"} & components.keys()
        if taken:
            raise ValueError(f"components must not be called {', '.join(taken)}, which the run adds itself.")
        if logger not in LOGGERS:
            raise ValueError(f"logger must be one of {', '.join(LOGGERS)}, found {logger!r}.")
        if progress not in PROGRESS:
            raise ValueError(f"progress must be one of {', '.join(PROGRESS)}, found {progress!r}.")
        for package in {"tqdm", logger} - {"csv"}:
            if find_spec(package) is None:
                raise ModuleNotFoundError(f"This run needs {package}: pip install {package}.")
        self.total_frames, self._shown, self._resume_command = total_frames, shown, resume_command
        self.metrics: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self.tests: dict[str, list[float]] = {}
        self._last_values: dict[str, str] = {}
        self.checkpoints = Checkpoints(
            self.folder / "checkpoints",
            {**components, "metrics": self.metrics, "tests": self.tests},
            best_components=best,
            leave_out=leave_out,
        )
        self._networks = {name: components[name] for name in best if isinstance(components[name], nn.Module)}
        if not self._resumed:
            self._make_folder()
        self._lock()
        frames = 0 if self.checkpoint_path is None else self.checkpoints.resume(self.checkpoint_path)
        self._rewind()
        self._csv: Any = get_logger("csv", str(self.folder.parent), self.folder.name)
        self._csv.experiment.scalars = self.metrics
        for unused in ("texts", "videos"):
            with suppress(OSError):  # not empty
                (self.folder / unused).rmdir()
        self._other: Any = None if logger == "csv" else self._other_logger(logger)
        if progress == "auto":
            progress = "bar" if sys.stderr.isatty() else "lines"
        self._lines = progress == "lines"
        file = None if progress == "bar" else _Nowhere()  # a bar that nobody sees still knows the frames per second
        self._bar = self._closing.enter_context(
            tqdm(total=total_frames, initial=frames, unit="frame", unit_scale=True, dynamic_ncols=True, file=file)
        )
        self._stop = self._closing.enter_context(stop_signals())
        self.frames, self._frames_before = frames, frames
        self.started = True
        return frames

    def log(self, frames: int, metrics: Mapping[str, Tensor | float]) -> None:
        """Write metrics under this number of frames and move the bar.

        Raises:
            FloatingPointError: for a metric, or a parameter of the networks, that is not finite, before anything is
                written.
        """
        values = {name: float(value) for name, value in metrics.items()}
        for name in values:
            if frames <= (self.metrics[name][-1][0] if self.metrics.get(name) else -1):
                raise ValueError(f"{name} at {frames} frames: it was logged at {self.metrics[name][-1][0]} already.")
        self._check_finite(frames, values)
        self._last_values |= {name: f"{value:.3g}" for name, value in values.items() if name.endswith(self._shown)}
        if frames > self.frames:
            self._frames_before, self.frames = self.frames, frames
            self._bar.update(frames - self._bar.n)
            if self._bar.format_dict["rate"] is not None:
                values["frames_per_second"] = self._bar.format_dict["rate"]
        for name, value in values.items():
            self._csv.log_scalar(name, value, step=frames)
        if self._other is not None:
            self._send(frames, values)
        self._bar.set_postfix(self._last_values)
        if self._lines and any(name.endswith("evaluation_return") for name in values):
            shown = ", ".join(f"{name} {value}" for name, value in self._last_values.items())
            tqdm.write(f"{frames:,} of {self.total_frames:,} frames: {shown}", file=sys.stderr)

    def log_test(self, when: str, evaluation: Evaluation) -> None:
        """Keep the team's return in each test episode, ``"before"`` or ``"after"`` the training, for :meth:`finish`."""
        teams = {group: {when: returns.tolist()} for group, returns in evaluation.team_returns().items()}
        self.tests.update(by_group(teams))

    def due(self, interval: int) -> bool:
        """Whether a multiple of ``interval`` frames was reached with the last batch of them that was logged."""
        return self.frames // interval > self._frames_before // interval

    def log_evaluation(self, evaluation: Evaluation) -> None:
        """Write its metrics, and keep the networks if no evaluation returned more so far (mean over the groups)."""
        metrics = evaluation.summary()
        self.log(self.frames, metrics)
        returns = [value for name, value in metrics.items() if name.endswith("evaluation_return")]
        self.checkpoints.save_best(self.frames, sum(returns) / len(returns))

    def checkpoint(self, interval: int) -> None:
        """Write a checkpoint if one is due, at the end of the run, or if a signal has come, which then ends the run.

        Raises:
            OSError: if the disk is full, before anything is written.
        """
        if self.due(interval) or self._stop or self.frames >= self.total_frames:
            self.checkpoint_path = self.checkpoints.save(self.frames)
        if self._stop:
            raise KeyboardInterrupt(self._stop[0])

    def finish(self) -> str:
        """Write the test returns and draw the learning curve; returns a summary to print."""
        write_atomically(self.folder / "test_returns.json", json.dumps(self.tests) + "\n")
        if "scenario" in self.options and any(name.endswith("evaluation_return") for name in self.metrics):
            picture = self.folder / "pictures" / "learning_curve.png"
            picture.parent.mkdir(exist_ok=True)
            plot_learning_curves(learning_curves([self.folder])).savefig(picture, dpi=120)
        lines = [f"Options, metrics, checkpoints and pictures are in {self.folder}"]
        for name, returns in self.tests.items():
            group = name.removesuffix("before")
            if name.endswith("before") and f"{group}after" in self.tests:
                before, after = torch.tensor(returns), torch.tensor(self.tests[f"{group}after"])
                errors = [returns.std() / len(returns) ** 0.5 for returns in (before, after)]
                lines.append(
                    f"{group}test return: {before.mean():.2f} ± {errors[0]:.2f} before, {after.mean():.2f} ± "
                    f"{errors[1]:.2f} after {self.total_frames} frames (mean ± standard error of {len(after)} episodes)"
                )
        return "\n".join(lines)

    def __enter__(self) -> Run:
        if self.folder.exists() and not self._resumed:
            raise FileExistsError(f"The run folder {self.folder} exists; choose another.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing.close()
        if isinstance(error, KeyboardInterrupt):
            number = error.args[0] if error.args else signal.SIGINT
            sys.stderr.write(f"\nStopped by {signal.Signals(number).name}. {self._how_to_go_on()}\n")
            raise SystemExit(128 + number) from error
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        if full or isinstance(error, FloatingPointError):
            raise SystemExit(f"error: {str(error).rstrip('.')}. {self._how_to_go_on()}") from error
        if isinstance(error, CheckpointError):
            raise SystemExit(f"error: {error}") from error

    def _how_to_go_on(self) -> str:
        if not self.started:
            return "Nothing was trained."
        last = self.checkpoints.latest()
        found = f"The last checkpoint is {last}. Go on" if last else "There is no checkpoint. Start"
        return f"{found}: {self._resume_command} {self.folder}"

    def _make_folder(self) -> None:
        """Put the folder there with its ``run.json``, whole or not at all."""
        part = self.folder.with_name(f".{self.folder.name}.part")
        part.mkdir(parents=True, exist_ok=True)
        about = {"id": uuid4().hex[:8], "options": self.options, **provenance()}
        write_atomically(part / "run.json", json.dumps(about, indent=2, default=str) + "\n")
        os.rename(part, self.folder)

    def _lock(self) -> None:
        try:
            self._closing.enter_context(FileLock(self.folder / ".lock", blocking=False))
        except Timeout:
            raise BlockingIOError(f"Another process trains in {self.folder}") from None

    def _rewind(self) -> None:
        """Write the CSV files anew from the checkpoint's metrics."""
        for name, rows in self.metrics.items():
            if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", name):
                raise CheckpointError(f"The checkpoint is damaged: it has a metric called {name!r}.")
            if not isinstance(rows, list) or not all(_is_row(row) for row in rows):
                raise CheckpointError(f"The checkpoint is damaged: metric {name} should be rows of frames and value.")
        folder = self.folder / "scalars"
        for file in folder.rglob("*.csv"):
            file.unlink()
        for name, rows in self.metrics.items():
            file = folder / f"{name}.csv"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, "".join(f"{step},{value}\n" for step, value in rows))

    def _send(self, frames: int, values: Mapping[str, float]) -> None:
        """Give the other logger what it has not got yet, also if the run was resumed from before it."""
        file = self.folder / "sent.json"  # metric to the last frames sent, which never fall
        sent: dict[str, int] = json.loads(file.read_text()) if file.is_file() else {}
        new = {name: value for name, value in values.items() if frames > sent.get(name, -1)}
        write_atomically(file, json.dumps(sent | dict.fromkeys(new, frames)))
        for name, value in new.items():
            self._other.log_scalar(name, value, step=frames)
        if hasattr(self._other.experiment, "flush"):
            self._other.experiment.flush()

    def _check_finite(self, frames: int, values: Mapping[str, float]) -> None:
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        for name, network in self._networks.items():
            parameters = dict(network.named_parameters())
            finite = torch.stack([parameter.detach().isfinite().all() for parameter in parameters.values()])
            if not finite.all():
                wrong += [f"{name}.{key}" for key, is_finite in zip(parameters, finite.tolist()) if not is_finite]
        if wrong:
            raise FloatingPointError(f"Not finite after {frames} frames: {', '.join(wrong)}.")

    def _other_logger(self, kind: str) -> Any:
        about = json.loads((self.folder / "run.json").read_text())
        options = {"wandb_kwargs": {"id": about.get("id")}} if kind == "wandb" else {}
        return get_logger(kind, str(self.folder.parent), self.folder.name, **options)


def _is_row(row: Any) -> bool:
    return isinstance(row, (list, tuple)) and len(row) == 2 and type(row[0]) is int and type(row[1]) is float
