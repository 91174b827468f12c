"""The report's section on messages and its picture, from the JSON of messages.py alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from matplotlib.figure import Figure

from torchrl_bicnet.analysis.plots import draw_readouts

KINDS = {
    "own": "own_r2",
    "heard": "r2",
    "untrained": "untrained_r2",
    "acted on": "acted_r2",
    "untrained, acted on": "untrained_acted_r2",
}
INTRODUCTION = """
What agents of the teams above say: linear readouts of what one agent alone knows, fit in half of {episodes:,} episodes
and judged in the other half by their coefficient of determination, R²: 1 is all, 0 nothing. Of each episode the first
{steps} steps; agent 1 reads what agent 0 knows, and the results have all pairs.

- "own": from the reader's observation alone. Late in an episode this rises, where agents have acted on what they heard.
- "heard": from what the reader heard, the output of its communication layer. What this has beyond "own" was heard.
- "acted on": from its observation and its action before the squashing. What this has beyond "own" is in what it does,
  as far as that is linear: not which of several landmarks is the goal.
- "untrained": the same of the same net with random weights, in the same states. A random layer passes on much of what
  its agents see: that something can be heard shows no language, that it is acted on does.
""".strip()


def messages(results: dict[str, Any]) -> str:
    """Markdown: what is shown, the picture, the table and the provenance."""
    about = results["about"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = ["## What is said", "", INTRODUCTION.format(**about), ""]
    lines += ["![Readouts against the truth, a panel for each task](results/learning/messages.png)", ""]
    lines += [table(results), ""]
    lines += [f"`{about['command']}`, {about['date']}, commit {about['commit']}, {about['machine']}.", f"{versions}."]
    return "\n".join(lines) + "\n"


def table(results: dict[str, Any]) -> str:
    """A row for each task, of one pair of agents; the results have all pairs."""
    lines = [f"| task | an agent alone knows | {' | '.join(KINDS)} |", "|---|---|" + "--:|" * len(KINDS)]
    for name, task in results["tasks"].items():
        i, j = task["receiver"], task["knower"]
        cells = [number(task[key][i][j]) for key in KINDS.values()]
        lines.append(f"| {name} | {task['private']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:z.2f}"


def draw_messages(results: dict[str, Any]) -> Figure:
    """A panel for each task: readouts of what one agent knows against the truth."""
    tasks = results["tasks"]
    columns = min(len(tasks), 4)
    rows = math.ceil(len(tasks) / columns)
    figure = Figure(figsize=(3.4 * columns, 3.5 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes in panels[len(tasks) :]:
        axes.set_visible(False)
    for axes, (name, task) in zip(panels, tasks.items()):
        i, j = task["receiver"], task["knower"]
        draw_readouts(axes, *(torch.tensor(task[key]) for key in ("truth", "readout", "own_readout")))
        own, heard, untrained, *_ = (number(task[key][i][j]) for key in KINDS.values())
        labels = (f"own observation, $R^2$ = {own}", f"heard, $R^2$ = {heard} (untrained {untrained})")
        axes.legend(labels, fontsize="small")
        axes.set(title=name, xlabel=f"what agent {j} knows:\n{task['private']}", ylabel=f"readout by agent {i}")
    return figure
