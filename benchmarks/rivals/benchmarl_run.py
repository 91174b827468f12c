"""BenchMARL's MADDPG or IDDPG with its VMAS settings on navigation, evaluated after each of its iterations.

Run by the Python of an environment of its own: BenchMARL needs an older TorchRL than this package. What it installs
beyond this (torchvision, av, loggers) is not used here:

    python3.11 -m venv benchmarl
    benchmarl/bin/pip install torch==2.13.0 numpy tqdm hydra-core cloudpickle orjson pyvers packaging gym pyglet==1.5.27
    benchmarl/bin/pip install --no-deps benchmarl==1.5.2 torchrl==0.11.1 tensordict==0.11.0 vmas==1.5.2
"""

from __future__ import annotations

import argparse
from pathlib import Path

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
    "max_n_frames": 10_000_000,
    "off_policy_collected_frames_per_batch": 6000,
    "off_policy_n_envs_per_worker": 60,
    "off_policy_n_optimizer_steps": 1000,
    "off_policy_train_batch_size": 128,
    "off_policy_memory_size": 1_000_000,
}
QUIET = {"evaluation": False, "render": False, "loggers": [], "create_json": False}


class Evaluations(Callback):
    """Appends a row of frames and return to a CSV file before training and after each iteration."""

    def __init__(self, file: Path, *, max_steps: int, episodes: int, seed: int) -> None:
        super().__init__()
        self.file, self.max_steps, self.episodes, self.seed = file, max_steps, episodes, seed

    def on_setup(self) -> None:
        self.env = VmasEnv("navigation", num_envs=self.episodes, continuous_actions=True, seed=self.seed)
        self._evaluate(0)

    def on_train_end(self, training_td: object, group: str) -> None:
        self._evaluate(self.experiment.total_frames)

    def _evaluate(self, frames: int) -> None:
        value = first_episode_return(self.env, self.experiment.policy, max_steps=self.max_steps, seed=self.seed)
        with self.file.open("a") as file:
            file.write(f"{frames},{value}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--algorithm", choices=ALGORITHMS, required=True)
    parser.add_argument("--evaluations", type=Path, required=True, help="CSV file to write, in a folder for all else")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--evaluation-episodes", type=int, required=True)
    parser.add_argument("--evaluation-seed", type=int, required=True)
    parser.add_argument("--max-steps", type=int, required=True, help="time limit of an episode")
    options = parser.parse_args()
    task = VmasTask.NAVIGATION.get_from_yaml()
    task.config = {"max_steps": options.max_steps}  # the scenario's own defaults otherwise
    config = ExperimentConfig.get_from_yaml()
    for name, value in (VMAS_SETTINGS | QUIET | {"save_folder": str(options.evaluations.parent)}).items():
        setattr(config, name, value)
    evaluations = Evaluations(
        options.evaluations,
        max_steps=options.max_steps,
        episodes=options.evaluation_episodes,
        seed=options.evaluation_seed,
    )
    Experiment(
        task=task,
        algorithm_config=ALGORITHMS[options.algorithm].get_from_yaml(),
        model_config=MlpConfig.get_from_yaml(),
        critic_model_config=MlpConfig.get_from_yaml(),
        seed=options.seed,
        config=config,
        callbacks=[evaluations],
    ).run()


if __name__ == "__main__":
    main()
