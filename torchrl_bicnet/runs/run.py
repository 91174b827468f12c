"""A training run on disk: its folder, its metrics, its progress, and how it is stopped."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchrl.checkpoint import CheckpointError
from torchrl.record.loggers import get_logger

from torchrl_bicnet.checks import check_integer, check_type

if find_spec("tqdm") is not None:
    from tqdm import tqdm
from torchrl_bicnet.runs.files import write_whole

LOGGERS = ("csv", "tensorboard", "wandb", "mlflow", "trackio")
PACKAGES = ("torchrl_bicnet", "torch", "torchrl", "tensordict", "vmas", "numpy")


class Run:
    """A run folder, its metrics and its progress bar.

    The folder holds ``run.json`` (options, versions, machine, date and git commit) and ``scalars/NAME.csv``, rows of
    ``frames,value``, by TorchRL's :class:`~torchrl.record.loggers.csv.CSVLogger`. TensorBoard or W&B get the metrics
    too if asked for; of a resumed run they get those after the checkpoint a second time, the CSV files do not.

    Args:
        folder (Path or str): an existing folder, made by :meth:`create`.

    Keyword Args:
        total_frames (int): frames of the whole run, for the progress bar.
        logger (str): ``"csv"``, or one of TorchRL's others in addition. Defaults to ``"csv"``.
        shown (tuple of str): the metrics whose last values stand beside the bar, by the end of their names.

    Raises:
        ModuleNotFoundError: without ``tqdm``, which the extra ``train`` installs.
        FileNotFoundError: without the folder.
        TypeError, ValueError: for an option of another type, ``total_frames`` below 1, or an unknown logger.

    Example:
        >>> import tempfile
        >>> from torchrl_bicnet.runs import read_options
        >>> folder = Run.create(Path(tempfile.mkdtemp()) / "run", {"scenario": "navigation", "seed": 0})
        >>> read_options(folder)
        {'scenario': 'navigation', 'seed': 0}
        >>> run = Run(folder, total_frames=600)
        >>> run.log(600, {"loss_value": torch.tensor(0.5)})
        >>> run.close()
        >>> (folder / "scalars" / "loss_value.csv").read_text()
        '600,0.5\\n'
    """

    def __init__(
        self, folder: Path | str, *, total_frames: int, logger: str = "csv", shown: tuple[str, ...] = ()
    ) -> None:
        if find_spec("tqdm") is None:
            raise ModuleNotFoundError("Run shows progress with tqdm: pip install tqdm.")
        check_type("folder", folder, (str, os.PathLike), "a path")
        check_integer("total_frames", total_frames)
        check_type("shown", shown, tuple, "a tuple of names")
        if logger not in LOGGERS:
            raise ValueError(f"logger must be one of {', '.join(LOGGERS)}, found {logger!r}.")
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"There is no run folder {folder}; Run.create makes one.")
        self.shown = shown
        kinds = dict.fromkeys(("csv", logger))
        self.loggers = [get_logger(kind, str(self.folder.parent), self.folder.name) for kind in kinds]
        for unused in ("texts", "videos"):
            with suppress(OSError):  # not empty
                (self.folder / unused).rmdir()
        self.bar = tqdm(total=total_frames, unit="frame", unit_scale=True, dynamic_ncols=True)
        self._last_values: dict[str, str] = {}

    @staticmethod
    def create(folder: Path | str, options: Mapping[str, Any]) -> Path:
        """Make the folder and write ``run.json``; returns the folder.

        Raises:
            FileExistsError: if it exists: a run is not overwritten.
            TypeError: for options that are no mapping.
        """
        check_type("folder", folder, (str, os.PathLike), "a path")
        check_type("options", options, Mapping, "a mapping")
        folder = Path(folder)
        if folder.exists():
            raise FileExistsError(f"The run folder {folder} exists; choose another.")
        about = {
            "options": dict(options),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads",
            "date": time.strftime("%Y-%m-%d"),
            "commit": _commit(),
        }
        part = folder.with_name(f".{folder.name}.part")  # there whole, with its run.json, or not at all
        part.mkdir(parents=True, exist_ok=True)
        write_whole(part / "run.json", json.dumps(about, indent=2, default=str) + "\n")
        os.rename(part, folder)
        return folder

    @property
    def metrics(self) -> dict[str, list[tuple[int, float]]]:
        """All rows so far by name, a component for :class:`~torchrl_bicnet.Checkpoints`."""
        return self.loggers[0].experiment.scalars

    def log(self, frames: int, metrics: Mapping[str, Tensor | float]) -> None:
        """Write metrics under this number of frames and move the bar.

        Raises:
            FloatingPointError: for a metric that is not finite, before anything is written.
            TypeError, ValueError: for frames that are no count, or a metric that is not one number.
        """
        check_integer("frames", frames, least=0)
        check_type("metrics", metrics, Mapping, "a mapping of name to number")
        for name, value in metrics.items():
            if not (value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, Real)):
                raise TypeError(f"{name} must be one number, found {value!r}.")
        check_finite(frames, metrics)
        self.bar.update(frames - self.bar.n)
        rate = self.bar.format_dict["rate"]
        values = {name: float(value) for name, value in metrics.items()}
        self._last_values |= {name: f"{value:.3g}" for name, value in values.items() if name.endswith(self.shown)}
        if rate is not None:
            values["frames_per_second"] = rate
        for logger in self.loggers:
            for name, value in values.items():
                logger.log_scalar(name, value, step=frames)
        self.bar.set_postfix(self._last_values)

    def rewind(self, frames: int) -> None:
        """Go on from a checkpoint that restored :attr:`metrics`: the CSV files are written anew from them.

        Raises:
            CheckpointError: for metrics that are no rows of frames and value, or whose names lead out of the folder,
                before anything is written.
        """
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
            write_whole(file, "".join(f"{step},{value}\n" for step, value in rows))
        self.bar.n = self.bar.initial = frames
        self.bar.refresh()

    def close(self) -> None:
        """End the progress bar."""
        self.bar.close()


def _is_row(row: Any) -> bool:
    return isinstance(row, (list, tuple)) and len(row) == 2 and type(row[0]) is int and type(row[1]) is float


def check_finite(frames: int, tensors: Mapping[str, Tensor | float]) -> None:
    """Stop a run whose losses or parameters are not finite any more.

    Args:
        frames (int): how far the run is.
        tensors (dict): name to metric or parameter.

    Raises:
        FloatingPointError: names the tensors and the frames.

    Example:
        >>> check_finite(600, {"loss": torch.tensor(1.0)})
        >>> check_finite(1200, {"loss": torch.tensor(float("nan"))})
        Traceback (most recent call last):
        ...
        FloatingPointError: Not finite after 1200 frames: loss.
    """
    finite = [torch.as_tensor(tensor).detach().isfinite().all() for tensor in tensors.values()]
    if finite and not torch.stack(finite).all():
        wrong = [name for name, is_finite in zip(tensors, finite) if not is_finite]
        raise FloatingPointError(f"Not finite after {frames} frames: {', '.join(wrong)}.")


@contextmanager
def stop_signals() -> Iterator[list[signal.Signals]]:
    """Within ``with``, SIGINT (Ctrl-C) and SIGTERM are put into a list, for a loop to stop where it can be resumed.

    A second signal interrupts at once. Outside the main thread, where Python allows no handlers, signals act as before.

    Example:
        >>> with stop_signals() as stop:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     print(stop)
        [<Signals.SIGTERM: 15>]
    """
    caught: list[signal.Signals] = []

    def catch(number: int, frame: object) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(signal.Signals(number))

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _commit() -> str | None:
    """The git commit of this package's sources, ``-dirty`` with changes, if they are in a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        described = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return None
    return described.stdout.strip() or None
