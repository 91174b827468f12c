"""The report's section on learning and its pictures, from the JSON of learning.py and references.py alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.algorithms import OURS
from benchmarks.learning_statistics import (
    FRAMES,
    SCORE,
    SECONDS,
    UPDATES,
    Estimate,
    Run,
    after_seconds,
    estimate,
    probability_of_improvement,
    reached,
    seconds_for,
)
from benchmarks.suite import SUITE
from examples import train_vmas

BUDGETS = (4_000, 10_000)  # updates
SILENT, ORACLE, RANDOM = "without_communication", "with_communication", "random"
INTRODUCTION = """
Each run is one process with one thread. Scores are of the policy without exploration. Numbers are interquartile means
over the seeds (of fewer than four their mean), in brackets 95% bootstrap intervals, which are too narrow for few seeds.

- "updates": the score after so many gradient updates, from evaluations of 200 episodes with the same start states each
  time; between two evaluations in proportion.
- "in equal seconds": the score when `bicnet` had taken that number of updates, by the median of its seeds. ° the run
  had ended earlier; its last score is used.
- "test": after the last update, over 1000 start states used for nothing else. "share" and "/ oracle" are of it, beside
  scripts from the same start states; those of the curve may be easier or harder by some standard errors.
- "share": 0 for the best script without communication and 1 for the best with it; where the two hardly differ, 0 for
  random actions. "/ oracle": the cost in multiples of the cost of the script with communication.
- "seconds": CPU seconds of collecting and of updates. Compiling the update, once per run, and evaluations are not among
  them. "wall" is the same by the clock, on a machine that did other work beside.
- "parameters": of all actors and of all critics.
""".strip()


def read_learning(folder: Path) -> dict[str, Any]:
    """All that the section is made from: the runs by task and algorithm, as they are on disk, and the references.

    Raises:
        ValueError: if runs of an algorithm on a task have options that differ beyond the seed.
    """
    runs: dict[str, dict[str, list[Run]]] = {}
    today = json.loads(json.dumps(asdict(train_vmas.Options()), default=str))
    for file in sorted(folder.glob("runs/*/*.json")):
        run = json.loads(file.read_text())
        group = runs.setdefault(run["task"], {}).setdefault(run["algorithm"], [])
        # An option that a run predates had no other value than today's default.
        first, own = (today | each["options"] for each in ((group or [run])[0], run))
        differing = {name for name in own if first[name] != own[name]} - {"seed"}
        if differing:
            raise ValueError(f"{file} is of other options than the runs beside it: {', '.join(sorted(differing))}.")
        group.append(run)
    references = folder / "references.json"
    return {
        "runs": runs,
        "references": json.loads(references.read_text())["tasks"] if references.exists() else {},
        "recipes": [json.loads(file.read_text()) for file in sorted(folder.glob("recipes/**/*.json"))],
    }


def learning(results: dict[str, Any], budgets: tuple[int, int] = BUDGETS) -> str:
    """Markdown: what the algorithms are, a table per task, who improves on whom, order and channel, provenance."""
    runs, references = results["runs"], results["references"]
    if not runs:
        return "## Learning\n\nNot run: there is no `results/learning/runs`.\n"
    lines = ["## Learning", "", INTRODUCTION, ""]
    what = {run["algorithm"]: run["what"] for group in every_group(runs) for run in group}
    lines += [f"- `{name}`: {what[name]}." for name in in_order(what)]
    lines += ["", "![Scores over updates](results/learning/updates.png)", ""]
    lines += ["![Scores over seconds](results/learning/seconds.png)", ""]
    for task, groups in runs.items():
        lines += task_table(task, groups, references.get(task, {}), budgets)
    lines += other_recipes(runs, results["recipes"])
    lines += improvements(runs, budgets)
    lines += analyses(runs)
    lines += provenances(runs)
    return "\n".join(lines) + "\n"


def every_group(runs: dict[str, dict[str, list[Run]]]) -> Iterable[list[Run]]:
    return (group for groups in runs.values() for group in groups.values())


def in_order(names: Iterable[str]) -> list[str]:
    """Ours first, the others by name."""
    return sorted(names, key=lambda name: (name != OURS, name))


def task_table(
    task: str, groups: dict[str, list[Run]], references: dict[str, Any], budgets: tuple[int, int]
) -> list[str]:
    first = next(iter(groups.values()))[0]
    scripts = references.get("policies", {})
    policies = {name: policy["test_mean"] for name, policy in scripts.items()}
    head = ["algorithm", "seeds"]
    for updates in budgets:
        head += [f"{updates:,} updates", "in equal seconds"]
    head += [
        "test",
        "share",
        "/ oracle",
        "frames",
        "updates",
        "seconds",
        "wall",
        "compiling",
        "ms / update",
        "parameters",
    ]
    scenario = first["options"]["scenario"]
    chosen = ", ".join(f"{name} {value}" for name, value in first["options"]["scenario_options"].items())
    lines = [f"### {task}", ""]
    lines.append(
        f"{scenario}{f' ({chosen})' if chosen else ''}, {first['options']['max_steps']} steps: {first['reported']}."
    )
    if policies:
        shown = [
            f"{name} {number(policy['mean'])} ± {policy['standard_error']:.2g}" for name, policy in scripts.items()
        ]
        lines.append(f"Scripts, over {next(iter(scripts.values()))['episodes']:,} episodes: ")
        lines.append(f"{', '.join(shown).replace('_', ' ')}.")
    if limits := references.get("limits"):
        shown = [f"{name} {number(most)}" for name, most in limits.items()]
        lines.append(f"Over all start states no policy's mean exceeds: {', '.join(shown).replace('_', ' ')}.")
    lines += ["", f"| {' | '.join(head)} |", f"|---|{'--:|' * (len(head) - 1)}"]
    seconds = [seconds_for(groups.get(OURS, []), updates) for updates in budgets]
    for name in in_order(groups):
        group = groups[name]
        cells = [f"`{name}`", str(len(group))]
        for updates, limit in zip(budgets, seconds):
            cells.append(interval(estimate([reached(run, UPDATES, updates) for run in group])))
            cells.append(equal_seconds(group, limit))
        test = estimate([run["test"]["after"][0] for run in group])
        cells += [interval(test), share(test.value, policies), ratio(test.value, policies)]
        cells += [middle([run["curve"][-1][column] for run in group]) for column in (FRAMES, UPDATES, SECONDS)]
        cells += [middle([run[name] for run in group]) for name in ("training_wall_seconds", "compiling_seconds")]
        cells.append(middle([run["milliseconds_per_update"] for run in group], ".1f"))
        cells.append(parameters(group[0]))
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def parameters(run: Run) -> str:
    found = [
        sum(n for name, n in run.get("parameters", {}).items() if name.endswith(part)) for part in (".actor", ".critic")
    ]
    return " + ".join(f"{n:,}" for n in found) if any(found) else "-"


def equal_seconds(group: Sequence[Run], seconds: float) -> str:
    if not math.isfinite(seconds):
        return "-"
    ended = np.median([run["curve"][-1][SECONDS] for run in group]) < 0.95 * seconds
    return interval(estimate([after_seconds(run, seconds) for run in group])) + " °" * bool(ended)


def share(score: float, policies: dict[str, float]) -> str:
    """The place between the best script without communication, or a random one, and the best with it."""
    if not {SILENT, ORACLE, RANDOM} <= policies.keys():
        return "-"
    needs = policies[ORACLE] - policies[SILENT] > 0.1 * (policies[ORACLE] - policies[RANDOM])
    floor = policies[SILENT if needs else RANDOM]
    found = (score - floor) / (policies[ORACLE] - floor)
    return f"{found:.2f}" if math.isfinite(found) else "-"


def ratio(score: float, policies: dict[str, float]) -> str:
    """The cost in multiples of the oracle's, where both are costs."""
    oracle = policies.get(ORACLE, 0.0)
    return f"{score / oracle:.3f}" if math.isfinite(score) and max(score, oracle) < -1e-3 else "-"


def number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def interval(found: Estimate) -> str:
    if not math.isfinite(found.value):
        return "-"
    ends = f" [{number(found.low)}, {number(found.high)}]" if math.isfinite(found.low) else ""
    return number(found.value) + ends


def middle(numbers: Sequence[float], form: str = ",.0f") -> str:
    return format(float(np.median(numbers)), form)


def other_recipes(runs: dict[str, dict[str, list[Run]]], recipes: Sequence[Run]) -> list[str]:
    """What ours reaches with other options, beside the defaults after as many updates."""
    groups: dict[tuple[str, str, int], list[Run]] = {}
    for run in recipes:
        if OURS in runs.get(run["task"], {}):
            changed = changes(run["options"], runs[run["task"]][OURS][0]["options"])
            groups.setdefault((run["task"], changed, run["curve"][-1][UPDATES]), []).append(run)
    if not groups:
        return []
    lines = [
        f"### Other recipes for `{OURS}`",
        "",
        "The score of the last evaluation with other options of `examples/train_vmas.py`, and of the defaults after as",
        "many updates. Seeds below 10 were used for tuning.",
        "",
        "| task | changed | seeds | updates | score | defaults | seconds |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for (task, changed, updates), group in sorted(groups.items(), key=lambda item: item[0]):
        cells = [task, changed, ", ".join(str(run["seed"]) for run in group), f"{updates:,}"]
        cells.append(interval(estimate([run["curve"][-1][SCORE] for run in group])))
        cells.append(interval(estimate([reached(run, UPDATES, updates) for run in runs[task][OURS]])))
        cells.append(middle([run["curve"][-1][SECONDS] for run in group]))
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def changes(options: dict[str, Any], defaults: dict[str, Any]) -> str:
    """Options with another value than the defaults have; not those that follow from others or say how long it was.

    Those that a run of the defaults predates have today's.
    """
    defaults = asdict(train_vmas.Options()) | defaults
    follow = {"seed", "total_frames", "eval_interval", "frames_per_batch", "buffer_size"}
    found = [
        f"{name} {options[name]}"
        for name in options
        if name in defaults and name not in follow and options[name] != defaults[name]
    ]
    return ", ".join(found) or "nothing"


def improvements(runs: dict[str, dict[str, list[Run]]], budgets: tuple[int, int]) -> list[str]:
    """The probability that ours is above a rival, task by task and over all that both were run on."""
    rivals = in_order({name for groups in runs.values() if OURS in groups for name in groups} - {OURS})
    if not rivals:
        return []
    tasks = [task for task, groups in runs.items() if OURS in groups]
    kinds = {"need communication": [task for task in tasks if task in SUITE and SUITE[task].needs_communication]}
    kinds["all"] = tasks
    lines = [
        f"### Probability that `{OURS}` is above a rival",
        "",
        f"Of pairs of runs, at {budgets[-1]:,} updates / at equal seconds; ½ is a draw. In the last columns the mean",
        "over the tasks that the rival was run on, with their number.",
        "",
        f"| rival | {' | '.join(tasks)} | {' | '.join(kinds)} |",
        f"|---|{'--:|' * (len(tasks) + len(kinds))}",
    ]
    for rival in rivals:
        pairs = {task: scores_of_both(runs[task], rival, budgets) for task in tasks}
        cells = [
            " / ".join(interval_of_share(probability_of_improvement([one]), False) for one in pairs[task])
            for task in tasks
        ]
        for kind in kinds.values():
            strata = [pairs[task] for task in kind if all(all(one) for one in pairs[task])]
            found = [interval_of_share(probability_of_improvement(each)) for each in zip(*strata)]
            cells.append(f"{' / '.join(found)} ({len(strata)})" if strata else "-")
        lines.append(f"| `{rival}` | {' | '.join(cells)} |")
    return [*lines, ""]


def scores_of_both(
    groups: dict[str, list[Run]], rival: str, budgets: tuple[int, int]
) -> list[tuple[list[float], list[float]]]:
    """Scores of ours and of the rival's runs, at equal updates and at equal seconds."""
    limit = seconds_for(groups[OURS], budgets[-1])
    both = [groups[OURS], groups.get(rival, [])]
    by_updates = [finite(reached(run, UPDATES, budgets[-1]) for run in group) for group in both]
    by_seconds = [finite(after_seconds(run, limit) for run in group) for group in both]
    return [(by_updates[0], by_updates[1]), (by_seconds[0], by_seconds[1])]


def finite(scores: Iterable[float]) -> list[float]:
    return [score for score in scores if math.isfinite(score)]


def interval_of_share(found: Estimate, with_interval: bool = True) -> str:
    if not math.isfinite(found.value):
        return "-"
    ends = f" [{found.low:.2f}, {found.high:.2f}]" if with_interval and math.isfinite(found.low) else ""
    return f"{found.value:.2f}{ends}"


def analyses(runs: dict[str, dict[str, list[Run]]]) -> list[str]:
    """What the trained teams return in another order of the agents, and with a worse channel."""
    analysed = [
        (task, name, [run["analysis"] for run in groups[name] if "analysis" in run])
        for task, groups in runs.items()
        for name in in_order(groups)
    ]
    analysed = [row for row in analysed if row[-1]]
    if not analysed:
        return []
    channels = list(analysed[0][-1][0]["channel"])
    lines = [
        "### Order of the agents and value of the channel",
        "",
        "Differences of the trained team's return (mean over agents) to its own, means over the seeds ± standard",
        "errors (of one seed over its episodes): with another order of the agents in its communication, drawn at",
        "random, and with messages cut, lost, noisy (in multiples of a message's root mean square) or rounded.",
        "",
        f"| task | algorithm | seeds | another order | {' | '.join(channels)} |",
        f"|---|---|{'--:|' * (len(channels) + 2)}",
    ]
    for task, name, found in analysed:
        cells = [task, f"`{name}`", str(len(found))]
        orders = [each["order"] for each in found if "order" in each]
        names = ("another_order_difference", "another_order_difference_stderr")
        cells.append(signed([tuple(order[name] for name in names) for order in orders]))
        cells += [signed([each["channel"][channel] for each in found]) for channel in channels]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def signed(differences: Sequence[tuple[float, float]]) -> str:
    """Mean and standard error of differences, given with their own standard errors."""
    if not differences:
        return "-"
    means, errors = zip(*differences)
    error = np.std(means, ddof=1) / len(means) ** 0.5 if len(means) > 1 else errors[0]
    return f"{np.mean(means):+.2f} ± {error:.2f}"


def provenances(runs: dict[str, dict[str, list[Run]]]) -> list[str]:
    """Where, when and with which versions; each once."""
    every = [run for group in every_group(runs) for run in group]
    commits = sorted(
        {run["commit"][:12] + "-dirty" * run["commit"].endswith("-dirty") for run in every if run["commit"]}
    )
    dates = sorted({run["date"] for run in every})
    lines = [f"{len(every)} runs, `python -m benchmarks.learning`; the command of each is in its file."]
    lines += sorted({f"{run['machine']}, {run['threads']} thread{'s' * (run['threads'] > 1)} a run." for run in every})
    lines.append(f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}, commits {', '.join(commits)}.")
    lines += sorted(
        {", ".join(f"{name} {version}" for name, version in run["versions"].items()) + "." for run in every}
    )
    return lines
