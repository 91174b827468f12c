"""BenchMARL's MADDPG or IDDPG with its VMAS settings on a VMAS task, evaluated after each of its iterations.

Run by the Python of an environment of its own: BenchMARL needs an older TorchRL than this package. What it installs
beyond this (torchvision, av, loggers) is not used here:

    python3.11 -m venv benchmarl
    benchmarl/bin/pip install torch==2.13.0 numpy tqdm hydra-core cloudpickle orjson pyvers packaging gym pyglet==1.5.27
    benchmarl/bin/pip install --no-deps benchmarl==1.5.2 torchrl==0.11.1 tensordict==0.11.0 vmas==1.5.2
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarl.algorithms import IddpgConfig, MaddpgConfig
from benchmarl.environments import VmasTask
from benchmarl.experiment import Callback, Experiment, ExperimentConfig
from benchmarl.models.mlp import MlpConfig
from first_episodes import first_episode_return
from torchrl.envs import VmasEnv

ALGORITHMS = {"maddpg": MaddpgConfig, "iddpg": IddpgConfig}

# fine_tuned/vmas/conf/config.yaml of BenchMARL, where it differs from the settings that its package comes with
VMAS_SETTINGS = {
    "gamma": 0.9,
    "exploration_anneal_frames": 1_000_000,
    "off_policy_collected_frames_per_batch": 6000,
    "off_policy_n_envs_per_worker": 60,
    "off_policy_n_optimizer_steps": 1000,
    "off_policy_train_batch_size": 128,
    "off_policy_memory_size": 1_000_000,
}
QUIET = {"evaluation": False, "render": False, "loggers": [], "create_json": False}


class Evaluations(Callback):
    """Appends a row to a CSV file before training and after each iteration, and one of a test at the end.

    Frames, return, its standard error, and the CPU and wall seconds until then, without those of evaluations.
    """

    def __init__(self, options: argparse.Namespace, scenario_options: dict[str, Any]) -> None:
        super().__init__()
        self.options, self.scenario_options = options, scenario_options
        self.not_counted = 0.0, 0.0  # seconds on both clocks

    def on_setup(self) -> None:
        self.env = self._make_env(self.options.evaluation_episodes)
        self.not_counted = clocks()
        self._evaluate(0)

    def on_train_end(self, training_td: object, group: str) -> None:
        self._evaluate(self.experiment.total_frames)

    def test(self) -> None:
        self.env = self._make_env(self.options.test_episodes)
        self.options.evaluation_seed = self.options.test_seed
        self._evaluate(self.experiment.total_frames)

    def _make_env(self, episodes: int) -> VmasEnv:
        return VmasEnv(self.options.task, num_envs=episodes, seed=0, **self.scenario_options)

    def _evaluate(self, frames: int) -> None:
        start = clocks()
        mean, error = first_episode_return(
            self.env, self.experiment.policy, max_steps=self.options.max_steps, seed=self.options.evaluation_seed
        )
        seconds = [round(now - before, 2) for now, before in zip(start, self.not_counted)]
        with self.options.evaluations.open("a") as file:
            file.write(f"{frames},{mean},{error},{seconds[0]},{seconds[1]}\n")
        self.not_counted = tuple(now - spent for now, spent in zip(clocks(), seconds))


def clocks() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--algorithm", choices=ALGORITHMS, required=True)
    parser.add_argument("--task", default="navigation", help="VMAS scenario that BenchMARL has")
    parser.add_argument("--task-options", type=json.loads, default={}, help="of the scenario, as JSON")
    parser.add_argument("--frames", type=int, default=10_000_000, help="when to stop")
    parser.add_argument("--evaluations", type=Path, required=True, help="CSV file to write, in a folder for all else")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--evaluation-episodes", type=int, required=True)
    parser.add_argument("--evaluation-seed", type=int, required=True)
    parser.add_argument("--test-episodes", type=int, default=0, help="of a test at the end, if any")
    parser.add_argument("--test-seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int, required=True, help="time limit of an episode")
    options = parser.parse_args()
    task = VmasTask[options.task.upper()].get_from_yaml()
    task.config = {"max_steps": options.max_steps, **options.task_options}  # the scenario's own defaults otherwise
    config = ExperimentConfig.get_from_yaml()
    settings = VMAS_SETTINGS | QUIET | {"max_n_frames": options.frames, "save_folder": str(options.evaluations.parent)}
    for name, value in settings.items():
        setattr(config, name, value)
    evaluations = Evaluations(options, options.task_options)
    Experiment(
        task=task,
        algorithm_config=ALGORITHMS[options.algorithm].get_from_yaml(),
        model_config=MlpConfig.get_from_yaml(),
        critic_model_config=MlpConfig.get_from_yaml(),
        seed=options.seed,
        config=config,
        callbacks=[evaluations],
    ).run()
    if options.test_episodes:
        evaluations.test()


if __name__ == "__main__":
    main()
