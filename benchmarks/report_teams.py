"""The report's section on the trained teams that are part of the repository, from their folders and their runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.report_learning import number

INTRODUCTION = """
Run folders in `results/learning/teams`, each with the networks after the last update as a checkpoint without pickles,
and a card, `run.json`: options, seed, versions, machine, date and commit. The command and the learning curve are in
`results/learning/runs`. `load_run(folder)` gives the actors and the environment. "Test" is the mean over 1000 start
states with its standard error; the scripts are those of the tables above.
""".strip()


def read_teams(folder: Path) -> dict[str, Any]:
    """What the section tells of each team, by its task."""
    references = json.loads((folder.parent / "references.json").read_text())["tasks"]
    found = {}
    for file in sorted(folder.glob("*/run.json")):
        name, card = file.parent.name, json.loads(file.read_text())
        run = folder.parent / "runs" / name / f"bicnet-seed{card['options']['seed']}.json"
        scripts = {script: policy["test_mean"] for script, policy in references[name]["policies"].items()}
        found[name] = {"card": card, "scripts": scripts, "run": json.loads(run.read_text())}
    return found


def teams(found: dict[str, Any]) -> str:
    lines = ["## Trained teams", "", INTRODUCTION, ""]
    lines += ["| team | task | reported | test | scripts | seed | date |", "|---|---|---|--:|---|--:|---|"]
    for name, team in found.items():
        run, card = team["run"], team["card"]
        options = ", ".join(f"{key} {value}" for key, value in card["options"]["scenario_options"].items())
        task = f"`{card['options']['scenario']}`{f' ({options})' if options else ''}"
        mean, error = run["test"]["after"]
        test = f"{number(mean + 0.0)} ± {error:.{3 if abs(mean) < 10 else 1}f}"
        scripts = ", ".join(f"{script.replace('_', ' ')} {number(value)}" for script, value in team["scripts"].items())
        about = [test, scripts, str(run["seed"]), run["date"]]
        lines.append(f"| `{name}` | {task} | {run['reported']} | {' | '.join(about)} |")
    return "\n".join(lines) + "\n"
