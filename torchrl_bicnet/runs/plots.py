"""Pictures of learning curves."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

# SciPy and Matplotlib, of the extra `train`, are loaded by the functions that need them: they would add half again to
# the time that `import torchrl_bicnet` takes.
if TYPE_CHECKING:
    from matplotlib.figure import Figure
from torchrl_bicnet.runs.learning_curves import LearningCurve


def plot_learning_curves(curves: Sequence[LearningCurve]) -> Figure:
    """Draw learning curves, a panel for each metric and each of their ``panel`` names.

    Args:
        curves (sequence of LearningCurve): of :func:`learning_curves`, of several metrics too. Those of one label
            have one colour.

    Returns:
        Figure: of Matplotlib, outside of pyplot: ``figure.savefig("picture.png")``.

    Example:
        >>> from pathlib import Path
        >>> import numpy as np
        >>> line = np.array([-5.0, 1.0])
        >>> runs = tuple(Path(f"runs/seed{seed}") for seed in range(3))
        >>> curve = LearningCurve("navigation", "evaluation_return", "", runs, np.array([0, 600]), line, line, line)
        >>> plot_learning_curves([curve]).axes[0].get_title()
        'navigation'
    """
    from matplotlib.figure import Figure

    if not isinstance(curves, Sequence) or not all(isinstance(curve, LearningCurve) for curve in curves):
        raise TypeError(f"curves must be a sequence of LearningCurve, found {curves!r}.")
    if not curves:
        raise ValueError("There is no curve to draw.")
    cells = list(dict.fromkeys((curve.metric, curve.panel) for curve in curves))
    colours = {label: f"C{index}" for index, label in enumerate(dict.fromkeys(curve.label for curve in curves))}
    columns = min(len({curve.panel for curve in curves}), 3)
    rows = -(-len(cells) // columns)
    legends = [textwrap.fill(_legend(curve), 80) for curve in curves]
    lines = "\n".join(legends).count("\n") + 1
    figure = Figure(figsize=(6 * columns, (3.6 + 0.17 * lines) * rows), layout="constrained")
    for place, (metric, panel) in enumerate(cells, start=1):
        axes = figure.add_subplot(rows, columns, place)
        for curve, label in zip(curves, legends):
            if (curve.metric, curve.panel) == (metric, panel):
                colour = colours[curve.label]
                axes.plot(curve.frames, curve.estimate, marker="o", markersize=3, color=colour, label=label)
                axes.fill_between(curve.frames, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)
        axes.set(xlabel="environment frames", ylabel=metric.replace("_", " "), title=panel)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize="small", frameon=False)
    return figure


def _legend(curve: LearningCurve) -> str:
    if len(curve.runs) > 1:
        line = f"interquartile mean of {len(curve.runs)} runs, 95% interval"
    else:
        line = "one run" if np.isnan(curve.low).all() else "one run ± standard error of its evaluation"
    return ", ".join(filter(None, (curve.label, line)))
