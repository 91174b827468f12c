"""Search for options of train_vmas.py with Optuna: ``python examples/sweep.py --trials 20``.

Each trial is a training of its own, in a run folder of its own, and is judged by its last evaluation, not by its test.
The same command goes on with a search that was stopped; `optuna-dashboard sqlite:///runs/sweep/study.db` shows it (`pip
install optuna-dashboard`). What is searched is in `suggest`: put in what you want to know, here or in a copy beside
`train_vmas.py`.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import tyro
import yaml

from torchrl_bicnet.runs.files import read_scalars

TRAIN = Path(__file__).with_name("train_vmas.py")


@dataclass
class Options:
    trials: int = 20
    """trainings to run now, beside those of the folder"""
    folder: Path = Path("runs/sweep")
    """of the search and its runs"""
    config: Path | None = None
    """YAML or JSON file of options of train_vmas.py that all trials have, but for total_frames and seed"""
    total_frames: int = 102_400
    """of a training"""
    seed: int = 0
    """of the search and of each training"""


def suggest(trial: optuna.Trial) -> dict[str, Any]:
    """Options of train_vmas.py for a trial, of any type; of lists Optuna is given names:

    sizes = {"small": [64], "large": [128, 64]}
    num_cells = sizes[trial.suggest_categorical("num_cells", list(sizes))]
    """
    return {
        "actor_lr": trial.suggest_float("actor_lr", 1e-4, 3e-3, log=True),
        "critic_lr": trial.suggest_float("critic_lr", 3e-4, 6e-3, log=True),
        "gamma": trial.suggest_categorical("gamma", [0.9, 0.95, 0.97]),
        "n_steps": trial.suggest_int("n_steps", 1, 5),
    }


def last_evaluation(trial: optuna.Trial, options: Options) -> float:
    """Train, and return what is to be as large as possible."""
    folder = options.folder / f"trial-{trial.number:03d}"
    chosen = {"run_folder": folder, "seed": options.seed, "total_frames": options.total_frames, **suggest(trial)}
    command = [sys.executable, TRAIN, "--progress", "none"]
    if options.config is not None:
        command += ["--config", options.config]
    for name, value in chosen.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words = itertools.chain(*value.items()) if isinstance(value, dict) else value
            command += [f"--{flag}", *(words if isinstance(value, (dict, tuple, list)) else [value])]
    subprocess.run([str(part) for part in command], check=True)
    _, returns = read_scalars(folder / "scalars" / "evaluation_return.csv")
    return float(returns[-1])


def completed(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(states=[optuna.trial.TrialState.COMPLETE])


def main(options: Options) -> None:
    config = yaml.safe_load(options.config.read_text()) if options.config else None
    alike = {"total_frames": options.total_frames, "seed": options.seed, "config": config}
    if not TRAIN.exists():
        raise ValueError(f"A copy of this script must stand beside train_vmas.py, found none at {TRAIN}.")
    options.folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name="bicnet",
        storage=f"sqlite:///{options.folder / 'study.db'}",
        load_if_exists=True,
        direction="maximize",
    )
    known = study.user_attrs
    other = [name for name, value in alike.items() if known.get(name) != value]
    if other and completed(study):
        found, expected = ({name: each.get(name) for name in other} for each in (alike, known))
        raise ValueError(f"A search goes on as it began, or in another --folder: found {found}, expected {expected}.")
    for name, value in alike.items():
        study.set_user_attr(name, value)
    study.sampler = optuna.samplers.TPESampler(seed=options.seed + len(study.trials))  # draws anew when it goes on
    study.optimize(lambda trial: last_evaluation(trial, options), options.trials)
    best = study.best_trial
    print(f"best of {len(completed(study))}: trial {best.number}, return {best.value:.3f}, {json.dumps(best.params)}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except subprocess.CalledProcessError:
        sys.exit("error: the training of the last trial failed, as it says above")
