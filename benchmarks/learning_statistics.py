"""Numbers of the learning benchmark: what runs had reached after so many updates or seconds, and over several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import bootstrap

from torchrl_bicnet.runs.statistics import interquartile_mean

Run = dict[str, Any]  # what learning_run.py writes
FRAMES, UPDATES, SECONDS, SCORE = range(4)  # columns of a curve


class Estimate(NamedTuple):
    """The interquartile mean over seeds and its 95% interval, which is NaN of a single seed."""

    value: float
    low: float
    high: float


def reached(run: Run, column: int, place: float) -> float:
    """The score where a column of the curve has a value, between evaluations in proportion; NaN beyond the last."""
    curve = np.asarray(run["curve"], dtype=float)
    return float(np.interp(place, curve[:, column], curve[:, SCORE], right=np.nan))


def at(run: Run, column: int, place: float, wanted: int) -> float:
    """Another column where a column of the curve has a value; NaN beyond the last."""
    curve = np.asarray(run["curve"], dtype=float)
    return float(np.interp(place, curve[:, column], curve[:, wanted], right=np.nan))


def after_seconds(run: Run, seconds: float) -> float:
    """The score after so many seconds; that of the end for a run that ended before."""
    return reached(run, SECONDS, min(seconds, run["curve"][-1][SECONDS]))


def seconds_for(runs: Sequence[Run], updates: float) -> float:
    """The median over runs of the seconds until so many updates; NaN if none has taken them."""
    seconds = [at(run, UPDATES, updates, SECONDS) for run in runs]
    finite = [number for number in seconds if np.isfinite(number)]
    return float(np.median(finite)) if finite else float("nan")


def estimate(scores: Sequence[float]) -> Estimate:
    """Over the seeds that have a score; NaN without any."""
    finite = np.array([score for score in scores if np.isfinite(score)])
    if len(finite) < 2:
        return Estimate(float(finite[0]) if len(finite) else np.nan, np.nan, np.nan)
    return Estimate(*(float(number) for number in interquartile_mean([finite])))


def probability_of_improvement(strata: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Estimate:
    """How often a run of the first is above a run of the second, mean over tasks, with a stratified bootstrap interval.

    A draw counts as one half: per task it is the statistic of Mann and Whitney divided by the number of pairs. Agarwal
    et al., 2021, https://arxiv.org/abs/2108.13264, section 4.3.

    Args:
        strata: of each task the scores of the first and of the second.
    """
    samples = [np.asarray(scores, dtype=float) for pair in strata for scores in pair]

    def statistic(*scores: np.ndarray, axis: int = -1) -> np.ndarray:
        tasks = zip(scores[::2], scores[1::2])
        return np.mean([_share_above(first, second) for first, second in tasks], axis=0)

    if not samples or any(len(scores) == 0 for scores in samples):
        return Estimate(np.nan, np.nan, np.nan)
    value = float(statistic(*samples))
    if any(len(scores) < 2 for scores in samples):
        return Estimate(value, np.nan, np.nan)
    interval = bootstrap(
        samples, statistic, n_resamples=2000, batch=100, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))


def _share_above(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """``(*B, m), (*B, n) -> (*B)``."""
    difference = first[..., :, None] - second[..., None, :]
    return ((difference > 0) + 0.5 * (difference == 0)).mean((-1, -2))


def curve_over(runs: Sequence[Run], column: int, points: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Places of a column up to the end of the shortest run, and the estimates there, ``(points,), (points, 3)``."""
    places = np.linspace(0, min(run["curve"][-1][column] for run in runs), points)
    scores = np.array([[reached(run, column, place) for place in places] for run in runs])
    if len(runs) < 2:
        return places, scores.T.repeat(3, 1)
    return places, np.stack(interquartile_mean([scores]), -1)
