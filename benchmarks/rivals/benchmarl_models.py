"""BenchMARL's IDDPG on VMAS navigation with one of its models or with BiCNet, to BenchMARL's own JSON.

Run by the Python of an environment of its own, as benchmarl_run.py says, with torch_geometric for its GNN.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarl.algorithms import IddpgConfig
from benchmarl.environments import VmasTask
from benchmarl.experiment import Experiment, ExperimentConfig
from benchmarl.models import GnnConfig, MlpConfig, SequenceModelConfig
from benchmarl_run import VMAS_SETTINGS

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
from torchrl_bicnet.integrations.benchmarl import BicnetConfig

MODELS = {
    "bicnet": lambda: BicnetConfig(communication="gru"),
    "mlp": MlpConfig.get_from_yaml,
    # As BenchMARL's own examples have it, an MLP after the graph
    "gnn": lambda: SequenceModelConfig(
        [GnnConfig.get_from_yaml(), MlpConfig.get_from_yaml()], intermediate_sizes=[256]
    ),
}
EVALUATIONS = {
    "evaluation": True,
    "evaluation_interval": VMAS_SETTINGS["off_policy_collected_frames_per_batch"],
    "evaluation_episodes": 60,
    "render": False,
    "loggers": [],
    "create_json": True,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, required=True, help="of actor and critic")
    parser.add_argument("--frames", type=int, required=True, help="when to stop")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args()
    config = ExperimentConfig.get_from_yaml()
    with tempfile.TemporaryDirectory() as folder:
        for name, value in (VMAS_SETTINGS | EVALUATIONS).items():
            setattr(config, name, value)
        config.max_n_frames, config.save_folder = options.frames, folder
        Experiment(
            task=VmasTask.NAVIGATION.get_from_yaml(),
            algorithm_config=IddpgConfig.get_from_yaml(),
            model_config=MODELS[options.model](),
            critic_model_config=MODELS[options.model](),
            seed=options.seed,
            config=config,
        ).run()
        [written] = Path(folder).glob("*/*.json")
        options.output.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(written, options.output)


if __name__ == "__main__":
    main()
