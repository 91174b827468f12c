"""The report's section on memory over time, from the JSON of examples/train_with_memory.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

INTRODUCTION = """
Each of three agents sees a number at the first of ten steps and must say the team's sum in those after it
(`guess_the_sum` with `seen_once`). 0 % is who always says 0, the best without memory, 100 % an oracle; 1000 episodes
from the same start states each time.
""".strip()


def read_memory(folder: Path) -> dict[str, Any]:
    """The runs by the size of the memory, the larger first, as they are on disk."""
    runs: dict[str, Any] = {}
    for file in sorted(folder.glob("*.json"), reverse=True):
        run = json.loads(file.read_text())
        runs.setdefault(str(run["options"]["memory_size"]), []).append(run)
    return runs


def memory(runs: dict[str, Any]) -> str:
    """Markdown: what share of the oracle's improvement each seed has after so many frames, and provenance."""
    every = [run for group in runs.values() for run in group]
    frames = [row["frames"] for row in every[0]["evaluations"]][1:]
    lines = ["## Memory over time", "", INTRODUCTION, ""]
    lines.append(f"| memory | seed | {' | '.join(f'{count:,} frames' for count in frames)} |")
    lines.append("|---|--:|" + "--:|" * len(frames))
    for size, group in runs.items():
        for run in sorted(group, key=lambda run: run["options"]["seed"]):
            shares = [f"{100 * row['share_of_the_best']:.1f} %" for row in run["evaluations"][1:]]
            name = f"{size} numbers" if size != "0" else "none"
            lines.append(f"| {name} | {run['options']['seed']} | {' | '.join(shares)} |")
    dates, commits = (sorted({str(run[key])[:12] for run in every}) for key in ("date", "commit"))
    machines = ", ".join(sorted({run["machine"] for run in every}))
    lines += [
        "",
        "`python examples/train_with_memory.py --seed SEED --results FILE`, without memory `--memory-size 0`;",
    ]
    threads = ", ".join(sorted({str(run["threads"]) for run in every}))
    lines.append(f"{machines}, threads: {threads}, {', '.join(dates)}, commit {', '.join(commits)}.")
    return "\n".join(lines) + "\n"
