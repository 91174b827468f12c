"""Wall-clock seconds to a return of 3.9 on VMAS navigation: ours, TorchRL's MADDPG script, BenchMARL's MADDPG, IDDPG.

The scenario's defaults (4 agents), 100 steps. An evaluation is the mean return, over agents and 200 first episodes from
the same start states, of the policy without exploration. A contender has reached the return with the second evaluation
in a row that is at least 3.9; then it is stopped, or by a limit. Each is a process of its own, with the machine to
itself, and its seconds count from its start: imports, compiling and evaluations included.

Measurements that are in the output file already are kept, so that a stopped benchmark goes on where it stopped.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from torchrl_bicnet.runs import EVAL_SEED
from torchrl_bicnet.runs.provenance import provenance

ROOT = Path(__file__).resolve().parent.parent
MAX_STEPS = 100  # of an episode
EVAL_EPISODES = 200
IN_A_ROW = 2
POLL = 0.05  # seconds between two looks for a new evaluation
OURS, COMPILED, TORCHRL = "ours", "ours, compiled", "TorchRL MADDPG"
BENCHMARL = {"BenchMARL MADDPG": "maddpg", "BenchMARL IDDPG": "iddpg"}


class ContenderError(Exception):
    """Why a contender cannot be measured."""


Evaluation = dict[str, float]  # seconds since the start of the process, frames, return


@dataclass
class Options:
    contenders: tuple[
        Literal["ours", "ours, compiled", "TorchRL MADDPG", "BenchMARL MADDPG", "BenchMARL IDDPG"], ...
    ] = (OURS, COMPILED, TORCHRL, *BENCHMARL)
    """who is measured, in this order"""
    seeds: tuple[int, ...] = (0,)
    """seeds of the trainings"""
    target: float = 3.9
    """return to reach"""
    limit: float = 900.0
    """seconds after which a contender is stopped"""
    eval_interval: int = 6000
    """frames between two evaluations of ours; BenchMARL is evaluated after each of its iterations of 6000 frames,
    TorchRL's script after each of 60,000"""
    benchmarl_python: Path | None = None
    """Python of an environment with BenchMARL, see benchmarks/rivals/benchmarl_run.py; without it BenchMARL is left
    out"""
    output: Path = ROOT / "benchmarks" / "results" / "training_time" / "cpu.json"
    """where the results go"""
    quick: bool = False
    """a look in some seconds, into runs/training-time-quick: the first two evaluations of ours, whatever these options
    say"""


QUICK = {
    "contenders": (OURS,),
    "seeds": (0,),
    "target": -100.0,
    "limit": 60.0,
    "eval_interval": 600,
    "output": Path("runs", "training-time-quick", "cpu.json"),
}


def main(options: Options) -> None:
    if options.quick:
        options = replace(options, **QUICK)
        options.output.unlink(missing_ok=True)
    results = json.loads(options.output.read_text()) if options.output.exists() else new_results(options)
    if results["target"] != options.target:
        raise ValueError(f"{options.output} holds results for a return of {results['target']}, not {options.target}.")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        for contender, seed in itertools.product(options.contenders, options.seeds):
            if any((run["contender"], run["seed"]) == (contender, seed) for run in results["runs"]):
                continue
            print(f"{contender}, seed {seed}", file=sys.stderr)
            results["left_out"].pop(contender, None)
            try:
                if contender == COMPILED and not any(cache.iterdir()):
                    results["compiling"] = compiling(cache)
                results["runs"].append(measure(contender, seed, options, cache))
            except (ContenderError, subprocess.CalledProcessError) as error:
                results["left_out"][contender] = str(error)
            options.output.write_text(json.dumps(results, indent=2) + "\n")
    for run in results["runs"]:
        print(describe(run, options.target))
    for contender, why in results["left_out"].items():
        print(f"{contender}: left out, {why}")
    print(f"The evaluations are in {options.output}")


def new_results(options: Options) -> dict[str, Any]:
    about = {
        "task": "VMAS navigation, the scenario's defaults (4 agents)",
        "max_steps": MAX_STEPS,
        "evaluation_episodes": EVAL_EPISODES,
        "evaluations_in_a_row": IN_A_ROW,
        "seconds": "from the start of the process; imports, compiling and evaluations included",
    }
    left_out = dict.fromkeys(options.contenders, "not measured")
    return {"about": about, "target": options.target, "compiling": None, "runs": [], "left_out": left_out}


def measure(contender: str, seed: int, options: Options, cache: Path) -> dict[str, Any]:
    """Run a contender until it has reached the return or the limit."""
    about = {"contender": contender, "seed": seed, "limit": options.limit, **provenance()}
    if contender in BENCHMARL:
        if options.benchmarl_python is None:
            raise ContenderError("it needs --benchmarl-python")
        about["versions"] = benchmarl_versions(options.benchmarl_python)
    about |= {"started": time.strftime("%H:%M:%S"), "load_average_before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder:
        command, file = command_of(contender, seed, options, Path(folder))
        shown = shlex.join(["python", *command[1:]]).replace(f"{ROOT}{os.sep}", "").replace(folder, "FOLDER")
        about["command"] = shown
        outcome = watch(command, file, environment_with(cache), target=options.target, limit=options.limit)
    return about | outcome


def command_of(contender: str, seed: int, options: Options, folder: Path) -> tuple[list[str], Path]:
    """The command of a contender, and the CSV file of frames and returns that it will append its evaluations to."""
    if contender in (OURS, COMPILED):
        flags = ["--seed", seed, "--eval-interval", options.eval_interval, "--eval-episodes", EVAL_EPISODES]
        flags += ["--test-episodes", 2, "--run-folder", folder / "run", *["--compile"] * (contender == COMPILED)]
        command = [sys.executable, ROOT / "examples" / "train_vmas.py", *flags]
        return [*map(str, command)], folder / "run" / "scalars" / "evaluation_return.csv"
    file = folder / "evaluations.csv"
    rivals = ROOT / "benchmarks" / "rivals"
    if contender in BENCHMARL:
        command = [options.benchmarl_python, rivals / "benchmarl_run.py", "--algorithm", BENCHMARL[contender]]
    else:
        command = [sys.executable, rivals / "torchrl_maddpg.py"]
    flags = ["--seed", seed, "--evaluation-episodes", EVAL_EPISODES, "--evaluation-seed", EVAL_SEED]
    return [*map(str, [*command, *flags, "--max-steps", MAX_STEPS, "--evaluations", file])], file


def watch(
    command: Sequence[str], file: Path, environment: Mapping[str, str], *, target: float, limit: float
) -> dict[str, Any]:
    """Run a command, note when each row of its CSV file appears, and stop it at the target or the limit.

    Raises:
        ContenderError: if the command fails.
    """
    evaluations: list[Evaluation] = []
    cpu_before, busy_before = cpu_seconds_of_children(), busy_cpu_seconds()
    with tempfile.TemporaryFile("w+") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            code, seconds = None, 0.0
            while code is None and reached(evaluations, target) is None and seconds < limit:
                time.sleep(POLL)
                code, seconds = process.poll(), round(time.perf_counter() - start, 2)
                new = read_rows(file)[len(evaluations) :]
                evaluations += [{"seconds": seconds, "frames": frames, "return": value} for frames, value in new]
        finally:
            stop(process)
        output.seek(0)
        if code:
            raise ContenderError("\n".join(output.read().strip().splitlines()[-20:]) or f"exit code {code}")
    cpu_seconds = cpu_seconds_of_children() - cpu_before
    return {
        "reached": reached(evaluations, target),
        "seconds": seconds,
        "cpu_seconds": round(cpu_seconds, 1),
        "cpu_seconds_of_others": round(busy_cpu_seconds() - busy_before - cpu_seconds, 1),
        "evaluations": evaluations,
    }


def reached(evaluations: Sequence[Evaluation], target: float) -> Evaluation | None:
    """The evaluation with which the return was at least the target twice in a row, if there is one."""
    in_a_row = 0
    for evaluation in evaluations:
        in_a_row = in_a_row + 1 if evaluation["return"] >= target else 0
        if in_a_row == IN_A_ROW:
            return evaluation
    return None


def read_rows(file: Path) -> list[tuple[int, float]]:
    """The first two columns, frames and return, of each whole line of a CSV file that another process appends to."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    rows = [line.split(",") for line in lines if line.endswith("\n")]
    return [(int(frames), float(value)) for frames, value, *_ in rows]


def stop(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def cpu_seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def busy_cpu_seconds() -> float:
    """Of all processes of the machine since it was started; NaN where there is no Linux to ask."""
    file = Path("/proc/stat")
    if not file.exists():
        return float("nan")
    user, nice, system = map(int, file.read_text().split(maxsplit=4)[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def compiling(cache: Path) -> dict[str, float]:
    """Seconds of our script for two batches of frames: uncompiled, compiled with an empty cache, and from the cache."""
    environment = environment_with(cache)
    flags = ["--total-frames", 1200, "--eval-interval", 1200, "--eval-episodes", 2, "--test-episodes", 2]
    seconds = {}
    for name, compiled in (("uncompiled", []), ("empty_cache", ["--compile"]), ("from_cache", ["--compile"])):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, ROOT / "examples" / "train_vmas.py", *flags, "--run-folder", f"{folder}/run"]
            start = time.perf_counter()
            subprocess.run([*map(str, command), *compiled], env=environment, cwd=ROOT, check=True, capture_output=True)
            seconds[name] = round(time.perf_counter() - start, 1)
    return seconds


def environment_with(cache: Path) -> dict[str, str]:
    """This process's environment with this checkout's package, and an Inductor cache."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "TORCHINDUCTOR_CACHE_DIR": str(cache)}


def benchmarl_versions(python: Path | None) -> dict[str, str]:
    packages = ("benchmarl", "torch", "torchrl", "tensordict", "vmas", "numpy")
    code = f"""
import json, platform
from importlib.metadata import version
print(json.dumps({{"python": platform.python_version(), **{{name: version(name) for name in {packages}}}}}))
"""
    return json.loads(subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout)


def describe(run: Mapping[str, Any], target: float) -> str:
    name, found = f"{run['contender']}, seed {run['seed']}", run["reached"]
    if found is not None:
        return f"{name}: {target} after {found['seconds']:.1f} s and {found['frames']:,} frames"
    best = max((evaluation["return"] for evaluation in run["evaluations"]), default=float("nan"))
    frames = run["evaluations"][-1]["frames"] if run["evaluations"] else 0
    return f"{name}: not {target} in {run['seconds']:.0f} s and {frames:,} frames, at most {best:.2f}"


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
