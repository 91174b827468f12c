"""The report's section on BiCNet as a model of BenchMARL, and its picture, from BenchMARL's JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

INTRODUCTION = """
BenchMARL's IDDPG on VMAS navigation, its settings and loop, with another model of actor and critic: return of 60
episodes without exploration, mean over agents, ± standard error over seeds. BenchMARL's JSON, as marl-eval reads it, is
in `results/benchmarl_models`.
""".strip()


def read_benchmarl_models(folder: Path) -> dict[str, Any]:
    """What was run, and by model the frames and the returns of its seeds, ``(seeds, evaluations)``."""
    curves: dict[str, list[tuple[list[int], list[float]]]] = {}
    for file in sorted(folder.glob("*-seed*.json")):
        curves.setdefault(file.stem.partition("-seed")[0], []).append(read_evaluations(json.loads(file.read_text())))
    found = {}
    for model, runs in curves.items():
        if len({tuple(frames) for frames, _ in runs}) > 1:
            raise ValueError(f"Runs of {model} must be of equal length, found evaluations of different frames.")
        found[model] = np.array(runs[0][0]), np.array([returns for _, returns in runs])
    return {"about": json.loads((folder / "about.json").read_text()), "curves": found}


def read_evaluations(written: dict[str, Any]) -> tuple[list[int], list[float]]:
    """Frames and mean returns of a run's evaluations: environment, task, algorithm, seed, step."""
    while "absolute_metrics" not in written:
        [written] = written.values()
    steps = [step for name, step in written.items() if name != "absolute_metrics"]
    return [step["step_count"] for step in steps], [float(np.mean(step["return"])) for step in steps]


def mean_and_error(returns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Over seeds, the first dimension; of one seed there is no error, NaN."""
    n_seeds = len(returns)
    error = returns.std(0, ddof=1) / n_seeds**0.5 if n_seeds > 1 else np.full(returns.shape[1], np.nan)
    return returns.mean(0), error


def benchmarl_models(results: dict[str, Any]) -> str:
    """Markdown: what the curves end at, a table, and provenance."""
    title = "## BiCNet in BenchMARL"
    if not results["curves"]:
        return f"{title}\n\nNot run: there is no `results/benchmarl_models`.\n"
    about = results["about"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    some = next(iter(results["curves"].values()))[0]
    shown = [int(index) for index in np.linspace(0, len(some) - 1, 4).round()]
    lines = [
        title,
        "",
        INTRODUCTION,
        "",
        "![Returns of the three models](results/benchmarl_models/curves.png)",
        "",
        "| model | seeds | " + " | ".join(f"{some[index]:,} frames" for index in shown) + " |",
        "|---|--:|" + "--:|" * len(shown),
    ]
    for model, (_, returns) in results["curves"].items():
        mean, error = mean_and_error(returns)
        cells = [f"{mean[i]:.2f}" + (f" ± {error[i]:.2f}" if len(returns) > 1 else "") for i in shown]
        lines.append(f"| {model} | {len(returns)} | {' | '.join(cells)} |")
    lines += ["", f"`{about['command']}`; {about['machine']}, one thread a run, {about['date']}; {versions}."]
    return "\n".join(lines) + "\n"


def draw_benchmarl_models(results: dict[str, Any]) -> dict[str, Figure]:
    if not results["curves"]:
        return {}
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    for model, (frames, returns) in results["curves"].items():
        mean, error = mean_and_error(returns)
        (line,) = axes.plot(frames, mean, label=f"{model} ({len(returns)})")
        axes.fill_between(frames, mean - error, mean + error, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(title="navigation, BenchMARL's IDDPG", xlabel="frames", ylabel="return (mean over agents)")
    axes.legend(title="model (seeds)")
    return {"curves.png": figure}
