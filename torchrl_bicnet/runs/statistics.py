"""Interquartile means over runs and their bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from torchrl_bicnet.checks import check_integer


def interquartile_mean(
    strata: Sequence[np.ndarray], *, confidence_level: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The interquartile mean over runs and its stratified bootstrap interval.

    The quarter of the scores that is lowest and the quarter that is highest are left out, rounded down: fewer than four
    give their plain mean. A resample draws whole runs of every stratum with replacement, the same ones for all of
    ``*shape``; the interval lies between percentiles of the resamples. From few runs it is too narrow: of normal
    scores, the 95% interval of 3, 5, 10 and 20 runs held the true value in 75, 90, 94 and 95% of 4000 trials.

    Args:
        strata (sequence of ndarray): the scores of each task, on one scale, ``(runs, *shape)``; tasks may have
            different numbers of runs, and one with more weighs more.

    Keyword Args:
        confidence_level (float): of the interval. Defaults to 0.95.
        n_resamples (int): resamples drawn. Defaults to 2000.
        seed (int): of the resampling: the same scores give the same interval.

    Returns:
        tuple of ndarray: interquartile mean, lower and upper end, ``(*shape)`` each; NaN where a score is not finite.

    Raises:
        ValueError: if there is no stratum or one holds fewer than two runs, or for strata of different shapes.

    References: Agarwal et al., *Deep RL at the Edge of the Statistical Precipice*, 2021,
    https://arxiv.org/abs/2108.13264.

    Example:
        >>> import numpy as np
        >>> scores = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 100.0])  # of 8 runs
        >>> estimate, low, high = interquartile_mean([scores])
        >>> float(estimate), bool(low < estimate < high)  # the mean of 3, 4, 5 and 6
        (4.5, True)
    """
    from scipy.stats import bootstrap, trim_mean  # type: ignore[import-untyped]

    if not isinstance(strata, Sequence) or not all(isinstance(scores, np.ndarray) for scores in strata):
        raise TypeError(f"strata must be a sequence of arrays, found {strata!r}.")
    shapes = [scores.shape for scores in strata]
    if any(not shape or shape[1:] != shapes[0][1:] for shape in shapes):
        raise ValueError(f"strata must be of shape (runs, *shape) with one shape, found {shapes}.")
    check_integer("n_resamples", n_resamples)
    sizes = [len(scores) for scores in strata]
    if not sizes or min(sizes) < 2:
        raise ValueError(f"An interval needs at least two runs of each task, found {sizes} runs.")
    if not 0 < confidence_level < 1:
        raise ValueError(f"confidence_level must be between 0 and 1, found {confidence_level}.")
    valid = np.logical_and.reduce([np.isfinite(scores).all(0) for scores in strata])  # (*shape)
    finite = [np.nan_to_num(scores, posinf=0, neginf=0) for scores in strata]

    def statistic(*samples: np.ndarray, axis: int) -> np.ndarray:
        return trim_mean(np.concatenate(samples, axis), 0.25, axis)

    interval = bootstrap(
        finite,
        statistic,
        n_resamples=n_resamples,
        batch=100,  # bounds the memory
        confidence_level=confidence_level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    estimate, low, high = (
        np.where(valid, x, np.nan) for x in (statistic(*finite, axis=0), interval.low, interval.high)
    )
    return estimate, low, high
