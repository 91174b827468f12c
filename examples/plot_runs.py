"""Learning curves of run folders over their seeds: ``python examples/plot_runs.py runs/*``.

Runs that differ in their seed alone are one curve: the interquartile mean over them with its 95% bootstrap interval.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from torchrl_bicnet.runs import learning_curves, plot_learning_curves


@dataclass
class Options:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run folders of train_vmas.py"""
    metrics: tuple[str, ...] = ("evaluation_return",)
    """what to draw, a row for each: names of the files in the run folders' scalars/"""
    output: Path = Path("learning_curves.png")
    """the picture, of a kind that its ending names: png, pdf, svg, ..."""
    normalise: dict[str, tuple[float, float]] = field(default_factory=dict)
    """draw all scenarios as one curve: for each its name, the value that becomes 0 and the one that becomes 1"""
    ignore: tuple[str, ...] = ()
    """options of the runs, beside the seed, in which the runs of one curve may differ"""


def main(options: Options) -> None:
    curves = []
    for metric in options.metrics:
        # A run that was stopped before its first evaluation has no curve yet.
        without = [run for run in options.runs if (run / "run.json").is_file() and not has_metric(run, metric)]
        runs = [run for run in options.runs if run not in without] or options.runs
        if runs is not options.runs and without:
            print(f"Left out, without {metric} so far: {', '.join(map(str, without))}", file=sys.stderr)
        curves += learning_curves(runs, metric=metric, normalise=options.normalise or None, ignore=options.ignore)
    plot_learning_curves(curves).savefig(options.output, dpi=120)
    for curve in curves:
        name = ", ".join(filter(None, (curve.panel, curve.metric, curve.label)))
        last = f"{curve.estimate[-1]:.4g} [{curve.low[-1]:.4g}, {curve.high[-1]:.4g}]"
        several = len(curve.runs) > 1
        what = f"95% interval of {len(curve.runs)} runs" if several else "one run ± standard error of its evaluation"
        print(f"{name}: {last} at {curve.frames[-1]} frames, {what}")
    print(f"The picture is {options.output}")


def has_metric(run: Path, metric: str) -> bool:
    return any((run / "scalars").rglob(f"{metric}.csv"))


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
