"""Learning curves over several runs and seeds, from run folders alone: numbers first, then their picture."""

from __future__ import annotations

import functools
import json
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_bicnet.runs.files import read_options, read_scalars
from torchrl_bicnet.runs.statistics import interquartile_mean


@dataclass(frozen=True, eq=False)
class LearningCurve:
    """The numbers of one line: a metric over the frames of ``runs`` runs that differ in their seed alone.

    Args:
        panel (str): the scenario, ``SCENARIO/GROUP`` where it has several groups of agents, all of them where they
            are aggregated.
        metric (str): name of the metric, after "normalised " where it is.
        label (str): the options that tell this curve from the others of its panel, such as ``"communication gru"``;
            empty if there is no other.
        runs (tuple of Path): the run folders.
        frames (ndarray): environment frames, rising, ``(T,)``.
        estimate (ndarray): interquartile mean over the runs, or the value of a single run, ``(T,)``.
        low, high (ndarray): 95% bootstrap interval over the runs, ``(T,)``; of a single run one standard error of its
            own evaluation to either side, NaN where it has none.

    Example:
        >>> line = np.array([-5.0, 1.0])
        >>> curve = LearningCurve("navigation", "evaluation_return", "", (), np.array([0, 600]), line, line, line)
        >>> curve.estimate[-1]
        np.float64(1.0)
    """

    panel: str
    metric: str
    label: str
    runs: tuple[Path, ...]
    frames: np.ndarray
    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray


def learning_curves(
    folders: Sequence[Path | str],
    *,
    metric: str = "evaluation_return",
    normalise: Mapping[str, tuple[float, float]] | None = None,
    ignore: Collection[str] = (),
) -> list[LearningCurve]:
    """The learning curves of run folders: one for each set of runs that differ in their seed and folder alone.

    A run folder, as ``examples/train_vmas.py`` leaves it, holds ``run.json`` with the run's ``"options"`` and
    ``scalars/NAME.csv`` or ``scalars/GROUP/NAME.csv`` with rows ``frames,value``. Scenarios, and groups of agents, get
    a panel each; with ``normalise`` they are one, in which every scenario is a stratum of the bootstrap.

    A curve has the frame counts that all its runs have. If a run is shorter than the others, stopped or not done yet,
    the curve ends with it, and a warning says so.

    Args:
        folders (sequence of Path): the run folders.

    Keyword Args:
        metric (str): ``NAME``, for all groups of agents, or ``GROUP/NAME``. Defaults to ``"evaluation_return"``.
        normalise (dict, optional): for each panel the value that becomes 0 and the one that becomes 1, such as a random
            policy's and a reference's. ``None``: the panels stay apart, in their own units.
        ignore (collection of str): options in which the runs of one curve may differ, beside ``seed`` and
            ``run_folder``.

    Returns:
        list of LearningCurve: in the order of the folders.

    Raises:
        ValueError: for a ``run.json`` or CSV file that is not as it should be, the message names file and line; for a
            metric that a run does not have, the message lists those it has; for runs that share no frame count.

    Example:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> folders = [Path(tempfile.mkdtemp()) for _ in range(3)]
        >>> for seed, folder in enumerate(folders):
        ...     options = {"scenario": "navigation", "communication": "gru", "seed": seed}
        ...     _ = (folder / "run.json").write_text(json.dumps({"options": options}))
        ...     (folder / "scalars").mkdir()
        ...     _ = (folder / "scalars" / "evaluation_return.csv").write_text(f"0,-5.0\\n600,{seed}.0\\n")
        >>> curve, = learning_curves(folders)
        >>> curve.panel, curve.frames, curve.estimate
        ('navigation', array([  0, 600]), array([-5.,  1.]))
    """
    for name, names in (("folders", folders), ("ignore", ignore)):
        if isinstance(names, (str, os.PathLike)) or not isinstance(names, Collection):
            raise TypeError(f"{name} must be a collection, found {names!r}.")
    series = _read_runs(folders, metric)
    panels: dict[str, dict[str, list[_Series]]] = {}  # panel to label to runs
    for panel in dict.fromkeys(run.panel for run in series):
        runs = [run for run in series if run.panel == panel]
        for run, label in zip(runs, _labels([run.options for run in runs], {"seed", "run_folder", *ignore})):
            panels.setdefault(panel, {}).setdefault(label, []).append(run)
    if normalise is None:
        return [_curve(panel, metric, label, [runs]) for panel in panels for label, runs in panels[panel].items()]

    _check_normalisation(normalise, panels)
    metric = f"normalised {metric}"
    strata = {
        panel: {label: _rescale(runs, *normalise[panel]) for label, runs in panels[panel].items()} for panel in panels
    }
    labels = next(iter(panels.values()))
    return [_curve(", ".join(panels), metric, label, [strata[panel][label] for panel in panels]) for label in labels]


@dataclass(frozen=True, eq=False)
class _Series:
    """A metric of one group of agents in one run."""

    folder: Path
    options: dict[str, Any]
    panel: str
    frames: np.ndarray  # (T,)
    values: np.ndarray  # (T,)
    errors: np.ndarray  # (T,) standard errors, NaN where there is none


def _read_runs(folders: Sequence[Path | str], metric: str) -> list[_Series]:
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise ValueError("No run folder was given.")
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"A run folder was given twice: {', '.join(map(str, paths))}.")
    series = []
    chosen = [read_options(folder) for folder in paths]
    for name in dict.fromkeys(name for options in chosen for name in options):
        distinct = {json.dumps(options[name], sort_keys=True) for options in chosen if name in options}
        if len(distinct) == 1:  # runs that predate the option do not differ in it
            for options in chosen:
                options.setdefault(name, json.loads(*distinct))
    for folder, given in zip(paths, chosen):
        options = _flat(folder, given)
        root = folder / "scalars"
        files = {file.relative_to(root).with_suffix("").as_posix(): file for file in sorted(root.rglob("*.csv"))}
        found = [name for name in files if name == metric or name.endswith(f"/{metric}")]
        if not found:
            raise ValueError(f"{folder} has no metric {metric!r}; it has {', '.join(files) or 'none'}.")
        for name in found:
            frames, values = read_scalars(files[name])
            standard_errors = {}
            if f"{name}_stderr" in files:
                standard_errors = dict(zip(*read_scalars(files[f"{name}_stderr"])))
            errors = np.array([standard_errors.get(frame, np.nan) for frame in frames])
            panel = "/".join([options["scenario"], *name.split("/")[:-1]])
            series.append(_Series(folder, options, panel, frames, values, errors))
    return series


def _flat(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The options, those of the scenario among them."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat = {**value, **flat} if isinstance(value, dict) else {**flat, name: value}
    if not isinstance(flat.get("scenario"), str):
        raise ValueError(f"{folder / 'run.json'} names no scenario, found {flat.get('scenario')!r}.")
    return flat


def _labels(options: Sequence[dict[str, Any]], ignored: Collection[str]) -> list[str]:
    """For each run the options in which the runs differ; an option that a run does not name has its default there."""

    def text(value: Any) -> str:
        return value if isinstance(value, str) else "default" if value is None else json.dumps(value, sort_keys=True)

    names = dict.fromkeys(name for run in options for name in run if name not in ignored)
    differing = [name for name in names if len({text(run.get(name)) for run in options}) > 1]
    return [", ".join(f"{name} {text(run.get(name))}" for name in differing) for run in options]


def _check_normalisation(
    normalise: Mapping[str, tuple[float, float]], panels: Mapping[str, Mapping[str, Sequence[_Series]]]
) -> None:
    if normalise.keys() != panels.keys():
        raise ValueError(f"normalise must name the panels {', '.join(panels)}, found {', '.join(normalise) or 'none'}.")
    for panel, pair in normalise.items():
        zero, one = pair
        if not np.isfinite([zero, one]).all() or zero == one:
            raise ValueError(f"normalise needs two different finite values, found {panel}: {zero}, {one}.")
    labels = next(iter(panels.values())).keys()
    for panel, curves in panels.items():
        if curves.keys() != labels:
            raise ValueError(
                f"Panels to aggregate must have the same curves: {panel} has {list(curves)}, not {list(labels)}."
            )


def _rescale(runs: Sequence[_Series], zero: float, one: float) -> list[_Series]:
    scale = one - zero
    return [replace(run, values=(run.values - zero) / scale, errors=run.errors / abs(scale)) for run in runs]


def _curve(panel: str, metric: str, label: str, strata: Sequence[Sequence[_Series]]) -> LearningCurve:
    runs = [run for stratum in strata for run in stratum]
    folders = tuple(dict.fromkeys(run.folder for run in runs))
    if len(runs) == 1:
        run = runs[0]
        band = run.values - run.errors, run.values + run.errors
        return LearningCurve(panel, metric, label, folders, run.frames, run.values, *band)
    name = " ".join(filter(None, (panel, label)))
    for stratum in strata:
        seeds = [run.options.get("seed") for run in stratum]
        if len(set(map(str, seeds))) < len(seeds):
            warnings.warn(f"{name}: runs with the same seed are not independent, found seeds {seeds}.", stacklevel=3)
    frames = functools.reduce(np.intersect1d, [run.frames for run in runs])
    if not frames.size:
        raise ValueError(f"{name}: the runs share no frame count: {', '.join(map(str, folders))}.")
    shortest, *_, longest = sorted(runs, key=lambda run: run.frames[-1])
    if shortest.frames[-1] < longest.frames[-1]:
        ends = f"{shortest.folder} ends at {shortest.frames[-1]} frames, {longest.folder} at {longest.frames[-1]}"
        warnings.warn(f"{name}: {ends}; the curve ends with the shorter.", stacklevel=3)
    scores = [np.stack([run.values[np.isin(run.frames, frames)] for run in stratum]) for stratum in strata]
    return LearningCurve(panel, metric, label, folders, frames, *interquartile_mean(scores))
