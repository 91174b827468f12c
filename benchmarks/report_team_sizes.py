"""The report's section on teams of other sizes than in training, and its pictures, from the JSON of team_sizes.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

Run = dict[str, Any]
INTRODUCTION = """
Return per agent of teams of each size, by what one network was trained on: a communication layer, and one size or
several at once, with {frames:,} frames of each, and so as many times the updates. "Shuffled" had the agents of each
replayed transition in a random order. Means over the seeds ± standard errors (of one seed over its episodes), over
{episodes:,} start states, the same in every row.
""".strip()


def read_team_sizes(folder: Path) -> dict[str, list[Run]]:
    """The runs by task."""
    tasks: dict[str, list[Run]] = {}
    for file in sorted(folder.glob("*/*.json")):
        run = json.loads(file.read_text())
        tasks.setdefault(run["task"], []).append(run)
    return tasks


def rows_of(runs: list[Run]) -> dict[str, dict[int, tuple[float, float, int]]]:
    """What was trained, one size before several, to the size of the test and its mean, error and number of seeds."""
    groups: dict[tuple[int, str, tuple[int, ...]], list[Run]] = {}
    for run in runs:
        sizes = tuple(run["sizes"])
        groups.setdefault((len(sizes), run["contender"], sizes), []).append(run)
    return {
        f"{contender}: {', '.join(map(str, sizes))}": {
            int(size): mean_and_error([run["tests"][size] for run in group]) for size in group[0]["tests"]
        }
        for (_, contender, sizes), group in sorted(groups.items())
    }


def scenario_of(runs: list[Run]) -> str:
    """Without the number of agents that a name of the suite ends with."""
    return runs[0]["options"]["scenario"]


def frames_of(run: Run) -> int:
    """Of each size."""
    return run["options"]["total_frames"] // len(run["sizes"])


def mean_and_error(tests: list[tuple[float, float]]) -> tuple[float, float, int]:
    means = [mean for mean, _ in tests]
    error = np.std(means, ddof=1) / len(means) ** 0.5 if len(means) > 1 else tests[0][1]
    return float(np.mean(means)), float(error), len(means)


def beside_own(runs: list[Run]) -> list[str]:
    """How far the network of several sizes is from those trained on one, in percent of their return; same seeds."""
    found = {}
    for run in runs:
        if run["contender"] != "gru" or len(run["sizes"]) > 1:
            continue
        [size] = run["sizes"]
        for other in runs:
            alike = other["contender"] == "gru" and other["seed"] == run["seed"]
            if alike and len(other["sizes"]) > 1 and size in other["sizes"]:
                own, together = (each["tests"][str(size)][0] for each in (run, other))
                found.setdefault(size, []).append(100 * (together - own) / abs(own))
    if not found:
        return []
    differences = ", ".join(
        f"{size} agents {np.mean(each):+.1f} % ({len(each)})" for size, each in sorted(found.items())
    )
    return [
        "The recurrence trained on several sizes, beside those trained on one size alone with as many frames of it",
        f"(in brackets the seeds): {differences}.",
        "",
    ]


def team_sizes(tasks: dict[str, list[Run]]) -> str:
    """Markdown: a picture and a table for each task, and provenance."""
    if not tasks:
        return "## Teams of other sizes\n\nNot run: there is no `results/team_sizes`.\n"
    every = [run for runs in tasks.values() for run in runs]
    lengths = {(frames_of(run), run["episodes"]) for run in every}
    if len(lengths) > 1:
        raise ValueError(f"Runs must have equal frames of each size and equal episodes, found {sorted(lengths)}.")
    [(frames, episodes)] = lengths
    lines = ["## Teams of other sizes", "", INTRODUCTION.format(frames=frames, episodes=episodes), ""]
    for task, runs in tasks.items():
        rows = rows_of(runs)
        sizes = sorted({size for row in rows.values() for size in row})
        lines += [f"### {scenario_of(runs)}, by size", "", f"![Returns by size](results/team_sizes/{task}.png)", ""]
        lines += [f"| trained on | seeds | {' | '.join(map(str, sizes))} |", "|---|" + "--:|" * (len(sizes) + 1)]
        for name, row in rows.items():
            cells = [f"{row[size][0]:.2f} ± {row[size][1]:.2f}" if size in row else "-" for size in sizes]
            lines.append(f"| {name} | {max(n for *_, n in row.values())} | {' | '.join(cells)} |")
        lines += ["", *beside_own(runs)]
    dates = sorted({run["date"] for run in every})
    commits = ", ".join(sorted({str(run["commit"])[:12] for run in every}))
    machines = ", ".join(sorted({run["machine"] for run in every}))
    lines.append(f"{len(every)} runs, `python -m benchmarks.team_sizes`; {machines}, one thread a run,")
    lines.append(f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}, commits {commits}.")
    return "\n".join(lines) + "\n"


def draw_team_sizes(tasks: dict[str, list[Run]]) -> dict[str, Figure]:
    """A heat map for each task: what was trained by the size of the test."""
    figures = {}
    for task, runs in tasks.items():
        rows = rows_of(runs)
        sizes = sorted({size for row in rows.values() for size in row})
        values = np.array([[row[size][0] if size in row else np.nan for size in sizes] for row in rows.values()])
        figure = Figure(figsize=(1.5 + 0.62 * len(sizes), 1.4 + 0.36 * len(rows)), layout="constrained")
        axes = figure.subplots()
        best = np.nanmax(values, 0)
        behind = 100 * (values - best) / np.abs(best)  # columns differ more than what was trained does
        lowest = min(np.nanquantile(behind, 0.1), -1.0)  # a few that fail altogether would flatten the rest
        image = axes.imshow(behind, aspect="auto", cmap="viridis", vmin=lowest, vmax=0)
        for (i, j), value in np.ndenumerate(values):
            dark = behind[i, j] < lowest / 2
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=7, color="white" if dark else "black")
        axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set(
            title=f"{scenario_of(runs)}: return per agent", xlabel="agents of the team in the test", ylabel="trained on"
        )
        figure.colorbar(image, label="% to the best of the column")
        figures[f"{task}.png"] = figure
    return figures
