"""Pictures of the learning benchmark: a panel for each task, scores over updates and over seconds."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.figure import Figure

from benchmarks.algorithms import OURS
from benchmarks.learning_statistics import SECONDS, UPDATES, Run, curve_over
from benchmarks.report_learning import ORACLE, RANDOM, SILENT, in_order

FIRST = "hidden_goals_4"  # on the README's first screen


def draw_learning(results: dict[str, Any]) -> dict[str, Figure]:
    """File name to picture: a panel per task, scores over updates and over seconds; the README's task alone."""
    runs, references = results["runs"], results["references"]
    if not runs:
        return {}
    names = in_order({name for groups in runs.values() for name in groups})
    pictures = {
        "updates.png": draw_curves(runs, references, names, UPDATES, "updates"),
        "seconds.png": draw_curves(runs, references, names, SECONDS, "seconds of collecting and updates"),
    }
    if FIRST in runs:
        pictures[f"{FIRST}.png"] = draw_curves(
            {FIRST: runs[FIRST]}, references, names, SECONDS, "CPU seconds of training"
        )
    return pictures


def draw_curves(
    runs: dict[str, dict[str, list[Run]]], references: dict[str, Any], names: list[str], column: int, label: str
) -> Figure:
    columns = min(len(runs), 3)
    rows = math.ceil(len(runs) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows + 0.7), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes in panels[len(runs) :]:
        axes.set_visible(False)
    handles: dict[str, Any] = {}
    for axes, (task, groups) in zip(panels, runs.items()):
        for name in in_order(groups):
            colour = f"C{names.index(name)}"
            places, found = curve_over(groups[name], column)
            width = 2.2 if name == OURS else 1.2
            handles[name] = axes.plot(places, found[:, 0], color=colour, linewidth=width, label=name)[0]
            axes.fill_between(places, found[:, 1], found[:, 2], color=colour, alpha=0.15, linewidth=0)
        policies = references.get(task, {}).get("policies", {})
        for policy, style in ((ORACLE, "--"), (SILENT, ":")):
            if policy in policies:
                line = axes.axhline(policies[policy]["mean"], color="black", linewidth=1, linestyle=style)
                handles[f"script {policy.replace('_', ' ')}"] = line
        if {RANDOM, ORACLE} <= policies.keys():  # early falls far below random actions would flatten the rest
            random, oracle = (policies[policy]["mean"] for policy in (RANDOM, ORACLE))
            axes.set_ylim(bottom=max(axes.get_ylim()[0], random - 0.3 * (oracle - random)))
        axes.set(title=task, xlabel=label, ylabel=next(iter(groups.values()))[0]["reported"])
        axes.grid(alpha=0.3)
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper center", ncols=max(2, 5 * columns // 3), fontsize="small"
    )
    return figure
