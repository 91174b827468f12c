"""One run of the learning benchmark: a task, an algorithm and a seed, to one JSON file. `learning.py` runs many.

Seconds are CPU seconds of collecting frames and of updates, in one thread: what they take on a core of their own, also
where the machine does other work. What evaluations, checkpoints and analyses take does not count; what compiling takes
is told apart by the first batch of frames, which waits for it, and given by the clock.
"""

from __future__ import annotations

import ast
import itertools
import json
import math
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from tensordict.nn import TensorDictSequential
from torch import Tensor, nn
from torchrl import torchrl_logger

from benchmarks.algorithms import ALGORITHMS, Algorithm
from benchmarks.suite import SUITE, Task
from examples import train_vmas
from torchrl_bicnet import Checkpoints, Run, make_vmas_env
from torchrl_bicnet.analysis import Channel, channel_value, order_sensitivity
from torchrl_bicnet.evaluation import Evaluation, mean_and_stderr
from torchrl_bicnet.runs import TEST_SEED, validated
from torchrl_bicnet.runs.files import write_atomically
from torchrl_bicnet.runs.provenance import command_line, provenance

CHANNELS = {
    "cut": Channel(window=0),
    "half lost": Channel(drop=0.5),
    "noise 0.3": Channel(noise=0.3),
    "noise 1.0": Channel(noise=1.0),
    "4 bits": Channel(bits=4),
    "1 bit": Channel(bits=1),
}
EVALUATIONS = 50  # on a curve


def literal(text: str) -> Any:
    """The value of a Python literal, such as `1e-3`, `False` or `(64,)`, or the text if it is none."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


Value = Annotated[
    Any,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="VALUE",
        instance_from_str=lambda arguments: literal(arguments[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    ),
]


@dataclass
class Options:
    task: str
    """a name of benchmarks/suite.py"""
    algorithm: str
    """a name of benchmarks/algorithms.py"""
    seed: int
    """of the training; those reported begin at 100, those below 10 are for tuning"""
    output: Path
    """the JSON file to write, once the run is done"""
    updates: int = 10_000
    """gradient updates, rounded up so that the last evaluation comes after the last of them"""
    recipe: dict[str, Value] = field(default_factory=dict)
    """options of examples/train_vmas.py for this run, names and values separated by spaces, over the algorithm's own;
    values are Python's, such as `num_cells "(64,)"`"""
    run_folder: Path | None = None
    """where the run is while it goes on; what is there is removed. Default: a temporary one"""
    team: Path | None = None
    """keep the trained actors here, as a run folder that `load_run` takes"""
    analysis_episodes: int = 100
    """episodes for each order of the agents and each channel; 0: no analysis"""


def main(options: Options) -> None:
    for name, known in ((options.task, SUITE), (options.algorithm, ALGORITHMS)):
        if name not in known:
            raise ValueError(f"There is no {name!r}, only {', '.join(known)}.")
    task, algorithm = SUITE[options.task], ALGORITHMS[options.algorithm]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.run_folder or Path(temporary, "run")
        if folder.exists() and not (folder / "run.json").exists():
            raise ValueError(f"--run-folder must be new or an earlier run's, found other files in {folder}.")
        shutil.rmtree(folder, ignore_errors=True)
        chosen = train_options(task, algorithm, options)
        run = TimedRun(folder, asdict(chosen), task)
        with run:
            algorithm.train(chosen, run)
        result = {
            "task": options.task,
            "algorithm": options.algorithm,
            "what": algorithm.what,
            "seed": options.seed,
            "command": re.sub(r" --(run-folder|team) \S+", "", command_line(__file__)),
            **provenance(),
            "options": differing(chosen),
            "parameters": run.n_parameters,
            **run.summary(chosen),
        }
        if algorithm.communicates and options.analysis_episodes:
            result["analysis"] = analyse(run, chosen, options.analysis_episodes)
        if options.team is not None:
            keep_team(run, options.team)
        write(options.output, result)


def train_options(task: Task, algorithm: Algorithm, options: Options) -> train_vmas.Options:
    """The options of the script: its defaults but for the task, the algorithm and the budget."""
    recipe = {"compile": True, **algorithm.options, **options.recipe}
    about = {"scenario": task.scenario, "scenario_options": dict(task.scenario_options), "max_steps": task.max_steps}
    chosen = train_vmas.Options(**about, seed=options.seed, **recipe)
    batches = math.ceil(options.updates / chosen.updates_per_batch)
    between = max(batches // EVALUATIONS, 1)
    total_frames = math.ceil(batches / between) * between * chosen.frames_per_batch
    chosen = replace(
        chosen,
        total_frames=total_frames,
        eval_interval=between * chosen.frames_per_batch,
        # One at the end: a run that is cut off starts again, since a resumed one would have other seconds.
        checkpoint_interval=total_frames,
        checkpoint_buffer=False,
    )
    return validated(train_vmas.Options, asdict(chosen))


class TimedRun(Run):
    """A run that knows the seconds of its training and the task's own number, and has its networks at hand."""

    def __init__(self, folder: Path, options: Mapping[str, Any], task: Task) -> None:
        super().__init__(folder, options)
        self.task = task

    def start(self, components: Mapping[str, Any], **keywords: Any) -> int:
        networks = {name: part for name, part in components.items() if name.endswith((".actor", ".critic"))}
        self.actors = {name.removesuffix(".actor"): part for name, part in networks.items() if name.endswith(".actor")}
        self.n_parameters = {name: sum(p.numel() for p in net.parameters()) for name, net in networks.items()}
        self.seconds = self.wall_seconds = 0.0  # of training
        self._since: tuple[float, float] | None = None
        # CPU and wall seconds at the end of each batch of frames and its updates
        self._batches: list[tuple[float, float]] = []
        self.rows: list[tuple[int, float, float, float]] = []  # frames, seconds, return, its standard error
        self.scores: dict[str, tuple[float, float]] = {}
        return super().start(components, **keywords)

    def log_test(self, when: str, evaluation: Evaluation) -> None:
        super().log_test(when, evaluation)
        returns = torch.cat([*evaluation.returns.values()], -1)  # (E, N)
        self.scores[when] = mean_and_stderr(self.task.score(returns))
        # What the mean over agents is multiplied by to be the task's number
        self.factor = self.task.score(torch.ones(1, returns.shape[-1])).item()

    def log(self, frames: int, metrics: Mapping[str, Tensor | float]) -> None:
        returns = [float(value) for name, value in metrics.items() if name.endswith("evaluation_return")]
        if returns:
            errors = [float(value) for name, value in metrics.items() if name.endswith("evaluation_return_stderr")]
            # Of several groups the mean; that of their errors is then at least the error.
            self.rows.append((frames, self.seconds, statistics.mean(returns), statistics.mean(errors)))
        super().log(frames, metrics)
        if frames == 0:
            self._go_on()
        elif not returns:
            self._stop_clock()
            self._batches.append((self.seconds, self.wall_seconds))
            self._go_on()

    def log_evaluation(self, evaluation: Evaluation) -> None:
        super().log_evaluation(evaluation)
        self._go_on()  # what passed since the batch was logged does not count

    def checkpoint(self, interval: int) -> None:
        self._stop_clock()
        super().checkpoint(interval)
        self._go_on()

    def _go_on(self) -> None:
        self._since = time.process_time(), time.perf_counter()

    def _stop_clock(self) -> None:
        if self._since is not None:
            self.seconds += time.process_time() - self._since[0]
            self.wall_seconds += time.perf_counter() - self._since[1]
            self._since = None

    def summary(self, options: train_vmas.Options) -> dict[str, Any]:
        """The curve, the test returns, and what training took."""
        # The compiler is another process: its time is in the wall seconds alone.
        compiling, compiling_wall = (first_batch_excess(ends) for ends in zip(*self._batches))
        per_frame = options.updates_per_batch / options.frames_per_batch
        curve = [
            [frames, round(frames * per_frame), round(max(seconds - compiling, 0.0), 2)]
            + [round(self.factor * number, 4) for number in returns]
            for frames, seconds, *returns in self.rows
        ]
        return {
            "reported": self.task.reported,
            "curve_columns": ["frames", "updates", "seconds", "reported", "standard_error"],
            "curve": curve,
            "compiling_seconds": round(compiling_wall, 1),
            "training_wall_seconds": round(self.wall_seconds - compiling_wall, 1),
            "milliseconds_per_update": round(1000 * curve[-1][2] / curve[-1][1], 3),
            "test": {when: [round(number, 4) for number in score] for when, score in self.scores.items()},
            "test_episodes": options.test_episodes,
        }


def first_batch_excess(ends: Sequence[float]) -> float:
    """Seconds by which the first batch took longer than the others do; 0 if it is the only one."""
    lengths = [end - begin for begin, end in itertools.pairwise(ends)]
    return max(ends[0] - statistics.median(lengths), 0.0) if lengths else 0.0


def differing(options: train_vmas.Options) -> dict[str, Any]:
    """The options without those that say where a run goes and how it is watched."""
    left_out = ("run_folder", "config", "resume", "logger", "progress", "device", "test_episodes", "film_interval")
    left_out += ("checkpoint_interval", "checkpoint_buffer")
    return {name: value for name, value in asdict(options).items() if name not in left_out}


def analyse(run: TimedRun, options: train_vmas.Options, episodes: int) -> dict[str, Any]:
    """What the order of the agents does to the trained team, and what its messages are worth to it.

    Differences to its own score and their standard errors.
    """
    env = make_vmas_env(
        options.scenario, episodes, seed=0, max_steps=options.max_steps, pad=options.pad, **options.scenario_options
    )  # evaluations seed it
    policy = TensorDictSequential(*run.actors.values())
    setting = {"max_steps": options.max_steps, "seed": TEST_SEED}
    found: dict[str, Any] = {"episodes": episodes}
    if len(run.actors) == 1:  # of a team
        sensitivity = order_sensitivity(env, policy, **setting)
        returns = sensitivity.returns()
        # An order drawn for each episode returns, on average, the mean over the orders.
        others, error = mean_and_stderr(returns[1:].mean(0) - returns[0])
        summary = sensitivity.summary() | {"another_order_difference": others, "another_order_difference_stderr": error}
        found["order"] = {"orders": len(returns), **{name: round(value, 4) for name, value in summary.items()}}
    differences = channel_value(env, policy, CHANNELS, **setting).differences()
    keys = ("evaluation_return_difference", "evaluation_return_difference_stderr")
    found["channel"] = {
        label: [round(statistics.mean(v for k, v in each.items() if k.endswith(key)), 4) for key in keys]
        for label, each in differences.items()
    }
    return found


def keep_team(run: TimedRun, folder: Path) -> None:
    """The run's options and its actors, instead of an earlier run's, whole or not at all."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    about = json.loads((run.folder / "run.json").read_text())
    about["options"]["run_folder"] = None
    actors: dict[str, nn.Module] = {f"{group}.actor": actor for group, actor in run.actors.items()}
    Checkpoints(part / "checkpoints", actors).save(run.total_frames)
    (part / "run.json").write_text(json.dumps(about, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def write(file: Path, result: dict[str, Any]) -> None:
    """Small and readable: lists of numbers on one line each."""
    text = json.dumps(result, indent=1, allow_nan=False)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda found: re.sub(r"\s*\n\s*", " ", found[0]), text)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, text + "\n")


if __name__ == "__main__":
    torchrl_logger.setLevel("WARNING")
    torch.set_num_threads(1)
    try:
        main(tyro.cli(Options, description=__doc__))
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
