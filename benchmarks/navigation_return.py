"""What `examples/train_vmas.py` reaches with its defaults: one run per seed, the raw metrics and the README's curve.

Runs that are in the output folder already are kept, so that a stopped benchmark goes on where it stopped.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from torchrl_bicnet import Checkpoints, load_run, make_vmas_env
from torchrl_bicnet.runs import TEST_SEED, learning_curves, plot_learning_curves

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Options:
    seeds: tuple[int, ...] = (0, 1, 2)
    """seeds to train with"""
    output: Path = ROOT / "benchmarks" / "results" / "navigation"
    """where the raw results go, a folder per seed"""
    compile: bool = False
    """train with `--compile`"""


def main(options: Options) -> None:
    folders = [options.output / f"seed{seed}" for seed in options.seeds]
    for seed, folder in zip(options.seeds, folders):
        if not folder.exists():
            train(seed, folder, ["--compile"] if options.compile else [])
    plot_learning_curves(learning_curves(folders)).savefig(options.output / "learning_curve.png", dpi=120)
    summary = {
        "command": " ".join(["python benchmarks/navigation_return.py --seeds", *map(str, options.seeds)])
        + " --compile" * options.compile,
        "return": "per agent, first episode of each of 1000 environments that are used for nothing else",
        "upper_bound": upper_bound(),
        "runs": [summarise(folder) for folder in folders],
    }
    (options.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary["runs"], indent=2))


def train(seed: int, folder: Path, flags: list[str]) -> None:
    """Run the example's own command, and keep all of its run folder, but of the checkpoints the actors alone."""
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary) / "run"
        start = time.perf_counter()
        command = [sys.executable, ROOT / "examples" / "train_vmas.py", "--seed", str(seed), "--run-folder", run]
        command += flags
        subprocess.run(command, check=True)
        about = json.loads((run / "run.json").read_text())
        about["options"]["run_folder"] = None
        about["seconds"] = round(time.perf_counter() - start)
        (run / "run.json").write_text(json.dumps(about, indent=2) + "\n")
        shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints", "pictures", ".lock"))
        actors = {f"{group}.actor": actor for group, actor in load_run(run).actors.items()}
        Checkpoints(folder / "checkpoints", actors).save(about["options"]["total_frames"])


def upper_bound(num_envs: int = 1000, seed: int = TEST_SEED) -> float:
    """No policy returns more from the start states of a seed, on average; by default from the test's.

    The shared reward sums over agents by how much the distance to the goal falls, so an episode cannot return more than
    the distances at its start, and 0.01 for the arrival.
    """
    env = make_vmas_env("navigation", num_envs, seed=seed)
    env.set_seed(seed)
    to_goal = env.reset()["agents", "observation"][..., 4:6]  # (num_envs, N, 2)
    return round(to_goal.norm(dim=-1).sum(-1).mean().item() + 0.01, 3)


def summarise(folder: Path) -> dict[str, float | int | str]:
    about = json.loads((folder / "run.json").read_text())
    returns = json.loads((folder / "test_returns.json").read_text())
    after = returns["after"]
    return {
        "seed": about["options"]["seed"],
        "frames": about["options"]["total_frames"],
        "episodes": len(after),
        "return_before": round(statistics.mean(returns["before"]), 3),
        "return_after": round(statistics.mean(after), 3),
        "standard_error_after": round(statistics.stdev(after) / len(after) ** 0.5, 3),
        "seconds": about["seconds"],
        "machine": about["machine"],
        "date": about["date"],
        "commit": about["commit"],
        **about["versions"],
    }


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
