"""Writes benchmarks/README.md and its pictures from the raw results that are committed, and from nothing else.

A benchmark joins with one import and one entry in SECTIONS.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from matplotlib.figure import Figure

from benchmarks.draw_learning import draw_learning
from benchmarks.report_benchmarl_models import benchmarl_models, draw_benchmarl_models, read_benchmarl_models
from benchmarks.report_communication_layer import (
    communication_layer,
    communication_layer_memory_kept,
    draw_communication_layer,
)
from benchmarks.report_learning import learning, read_learning
from benchmarks.report_memory import memory, read_memory
from benchmarks.report_messages import draw_messages, messages
from benchmarks.report_team_sizes import draw_team_sizes, read_team_sizes, team_sizes
from benchmarks.report_teams import read_teams, teams
from benchmarks.report_training_time import draw_training_time, training_time
from benchmarks.report_update import update

HERE = Path(__file__).resolve().parent
HEADER = """# Benchmarks

Written by `python -m benchmarks.report` from the raw results in `results/`; each section names the command that made
them, and each script has `--help` and `--quick`. The contenders of a section were timed on the same machine: their
ratios are worth more than their times. The speed of environments is in [docs/speed.md](../docs/speed.md).
"""


class Section(NamedTuple):
    """A part of the report: its raw results, their text in Markdown and, where there are some, their pictures.

    Results are a JSON file with at most one picture beside it, or a folder that ``read`` reads, with pictures in it by
    name.
    """

    results: str
    script: str
    text: Callable[[dict[str, Any]], str]
    draw: Callable[[dict[str, Any]], Figure | dict[str, Figure]] | None = None
    read: Callable[[Path], dict[str, Any]] = lambda file: json.loads(file.read_text())


SECTIONS = [
    Section("learning", "learning.py", learning, draw_learning, read_learning),
    Section("learning/messages.json", "messages.py", messages, draw_messages),
    Section("learning/teams", "learning.py", teams, read=read_teams),
    Section("team_sizes", "team_sizes.py", team_sizes, draw_team_sizes, read_team_sizes),
    Section("memory", "../examples/train_with_memory.py", memory, read=read_memory),
    Section("benchmarl_models", "benchmarl_models.py", benchmarl_models, draw_benchmarl_models, read_benchmarl_models),
    Section("update/one_thread.json", "update.py", update),
    Section("update/two_threads.json", "update.py", update),
    Section("communication_layer/cpu.json", "communication_layer.py", communication_layer, draw_communication_layer),
    Section("communication_layer/cpu_memory_kept.json", "communication_layer.py", communication_layer_memory_kept),
    Section("training_time/cpu.json", "training_time.py", training_time, draw_training_time),
]


def main() -> None:
    """Write the report, and beside each JSON file, or in each folder, its pictures."""
    for section in SECTIONS:
        place = HERE / "results" / section.results
        if section.draw and place.exists():
            drawn = section.draw(section.read(place))
            pictures = {place.with_suffix(".png"): drawn} if isinstance(drawn, Figure) else drawn
            for name, figure in pictures.items():
                figure.savefig(place / name, dpi=120)
    (HERE / "README.md").write_text(report())
    print(f"Written to {HERE / 'README.md'}")


def report() -> str:
    return "\n".join([HEADER, *map(section_text, SECTIONS)])


def section_text(section: Section) -> str:
    file = HERE / "results" / section.results
    if not file.exists():
        return f"## {section.script}\n\nNot run: there is no `results/{section.results}`.\n"
    return section.text(section.read(file))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
