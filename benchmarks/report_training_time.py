"""The report's section on wall-clock time to a return, and its picture, from the JSON of training_time.py alone."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

OURS, COMPILED = "ours", "ours, compiled"
CONTENDERS = """
Ours is `examples/train_vmas.py` with the defaults that it had at the commits below (60 environments, an LSTM of 64),
evaluated every 6,000 frames. TorchRL's is the recipe of its
`sota-implementations/multiagent/maddpg_iddpg.py` with the hyper-parameters of its YAML file, which are for VMAS
balance: 60,000 frames, then 630 updates of 4,096, evaluated after them. BenchMARL's are its `fine_tuned/vmas` settings:
6,000 frames, then 1,000 updates of 128, evaluated after them. Neither rival was tuned for navigation.
""".strip().splitlines()


def training_time(results: dict[str, Any]) -> str:
    """Markdown: a table with a row for each training, and what was measured how."""
    about, target, runs = results["about"], results["target"], results["runs"]
    seconds = {(run["contender"], run["seed"]): run["reached"]["seconds"] for run in runs if run["reached"]}
    lines = [
        f"## Wall-clock time to a return of {target}",
        "",
        f"{about['task']}, {about['max_steps']} steps: seconds until {about['evaluations_in_a_row']} evaluations in a "
        f"row returned at least {target} (mean of {about['evaluation_episodes']} first episodes without exploration), "
        f"{about['seconds']}. Who does not get there is stopped: its ratio is then a lower bound. "
        "CPU seconds of others are what other processes of the machine took at the same time.",
        "",
        "| contender | seed | seconds | CPU seconds | of others | frames | best return | last return | / ours "
        "| / ours, compiled |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for run in runs:
        last = run["evaluations"][-1]["frames"] if run["evaluations"] else 0
        found = run["reached"] or {"seconds": run["seconds"], "frames": last}
        bound = "" if run["reached"] else "> "
        returns = [evaluation["return"] for evaluation in run["evaluations"]] or [float("nan")]
        ratios = [
            f"{bound}{found['seconds'] / seconds[ours, run['seed']]:.2f}" if (ours, run["seed"]) in seconds else "-"
            for ours in (OURS, COMPILED)
        ]
        cells = [run["contender"], run["seed"], f"{bound}{found['seconds']:.0f}", f"{run['cpu_seconds']:.0f}"]
        cells.append(f"{run['cpu_seconds_of_others']:.0f}")
        cells += [f"{bound}{found['frames']:,}", f"{max(returns):.2f}", f"{returns[-1]:.2f}", *ratios]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines.append("")
    if results["compiling"]:
        lines.append(
            "Our script for two batches of frames: {uncompiled:.0f} s uncompiled, {empty_cache:.0f} s with `--compile` "
            "and an empty cache, {from_cache:.0f} s from the cache, as in the table.".format(**results["compiling"])
            + pays(results["compiling"], {run["contender"]: run for run in runs})
        )
    lines += [f"{contender} is left out: {why.splitlines()[-1]}." for contender, why in results["left_out"].items()]
    lines += ["", *CONTENDERS, *settings(runs), "", "![Return over seconds](results/training_time/cpu.png)", ""]
    return "\n".join(lines)


def pays(compiling: dict[str, float], runs: dict[str, dict[str, Any]]) -> str:
    """From how many frames on `--compile` takes less time, by the speed between first and last evaluation."""
    if not {OURS, COMPILED} <= runs.keys():
        return ""
    uncompiled, compiled = (seconds_per_frame(runs[name]["evaluations"]) for name in (OURS, COMPILED))
    if compiled >= uncompiled:
        return " It does not pay here."
    frames = {
        name: (compiling[name] - compiling["uncompiled"]) / (uncompiled - compiled)
        for name in ("empty_cache", "from_cache")
    }
    return " It pays from {empty_cache:,.0f} frames on, and from {from_cache:,.0f} with the cache.".format(**frames)


def seconds_per_frame(evaluations: list[dict[str, float]]) -> float:
    first, last = evaluations[0], evaluations[-1]
    return (last["seconds"] - first["seconds"]) / (last["frames"] - first["frames"])


def settings(runs: list[dict[str, Any]]) -> list[str]:
    """Where, when and with which versions; each once."""
    places = {f"{run['machine']}, {run['threads']} threads, {run['date']}, commit {run['commit']}" for run in runs}
    versions = {}
    for run in runs:
        packages = {name: version for name, version in run["versions"].items() if name != "torchrl_bicnet"}
        versions.setdefault(", ".join(f"{name} {version}" for name, version in packages.items()), []).append(run)
    command = "`python benchmarks/training_time.py --benchmarl-python PYTHON`"
    lines = ["", *(f"{command}, {place}." for place in sorted(places))]
    for line, group in versions.items():
        names = dict.fromkeys(run["contender"] for run in group)
        lines.append(f"{'; '.join(names)}: {line}.")
    return lines


def draw_training_time(results: dict[str, Any]) -> Figure:
    """Return over seconds of each training, and a mark where it reached the target."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    contenders = list(dict.fromkeys(run["contender"] for run in results["runs"]))
    for run in results["runs"]:
        colour = f"C{contenders.index(run['contender'])}"
        seconds = [evaluation["seconds"] for evaluation in run["evaluations"]]
        returns = [evaluation["return"] for evaluation in run["evaluations"]]
        label = run["contender"] if run["seed"] == results["runs"][0]["seed"] else None
        axes.plot(seconds, returns, marker="o", markersize=3, color=colour, label=label)
        if run["reached"]:
            axes.plot(run["reached"]["seconds"], run["reached"]["return"], marker="*", markersize=14, color=colour)
    axes.axhline(results["target"], color="black", linewidth=0.8, linestyle="--")
    axes.set(xscale="log", xlabel="seconds since the start of the script", ylabel="evaluation return")
    axes.set_title(f"Time to a return of {results['target']} twice in a row (star)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure
