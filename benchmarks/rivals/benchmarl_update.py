"""The inner optimiser loop of BenchMARL's MADDPG on navigation, for `benchmarks/update.py`, in BenchMARL's environment.

Prints one JSON line that says what is timed; then, for each line with a number of updates on its input, the seconds
that they took. The nets and settings are BenchMARL's own for VMAS, but for the batch and the number of agents; the
replay buffer gives one prepared sample, so that sampling is left out of the time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from importlib.metadata import version

import torch
from benchmarl.algorithms import MaddpgConfig
from benchmarl.environments import VmasTask
from benchmarl.experiment import Experiment, ExperimentConfig
from benchmarl.models.mlp import MlpConfig
from torch import nn

GROUP = "agents"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--n-agents", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        experiment = make_experiment(options.batch_size, options.n_agents, folder)
        fill_buffer(experiment)
        print(json.dumps(describe(experiment)), flush=True)
        for line in sys.stdin:
            start = time.perf_counter()
            for _ in range(int(line)):
                experiment._optimizer_loop(GROUP)
            print(time.perf_counter() - start, flush=True)
        experiment.close()


def make_experiment(batch_size: int, n_agents: int, folder: str) -> Experiment:
    task = VmasTask.NAVIGATION.get_from_yaml()
    task.config["n_agents"] = n_agents
    config = ExperimentConfig.get_from_yaml()
    config.save_folder = folder
    config.loggers, config.create_json, config.evaluation, config.render = [], False, False, False
    config.off_policy_train_batch_size = batch_size
    config.off_policy_memory_size = batch_size
    config.off_policy_n_envs_per_worker = 64
    config.off_policy_collected_frames_per_batch = max(batch_size, 64)
    return Experiment(
        task=task,
        algorithm_config=MaddpgConfig.get_from_yaml(),
        model_config=MlpConfig.get_from_yaml(),
        critic_model_config=MlpConfig.get_from_yaml(),
        seed=0,
        config=config,
    )


def fill_buffer(experiment: Experiment) -> None:
    """Put one collected batch into the replay buffer, and have it give the same sample each time."""
    buffer = experiment.replay_buffers[GROUP]
    batch = experiment.algorithm.process_batch(GROUP, next(iter(experiment.collector)))
    buffer.extend(batch.reshape(-1))
    sample = buffer.sample()
    buffer.sample = lambda: sample


def describe(experiment: Experiment) -> dict[str, object]:
    loss = experiment.losses[GROUP]
    nets = {"actor": loss.actor_network, "critic": loss.value_network}
    parameters = {"actor": loss.actor_network_params, "critic": loss.value_network_params}
    sample = experiment.replay_buffers[GROUP].sample()
    return {
        "nets": {
            name: [f"{type(m).__name__}({m.in_features}, {m.out_features})" for m in net.modules() if is_linear(m)]
            for name, net in nets.items()
        },
        "parameters": {name: sum(p.numel() for p in held.values(True, True)) for name, held in parameters.items()},
        "sample": {name: list(sample[GROUP, name].shape) for name in ("observation", "action")},
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("benchmarl", "torch", "torchrl", "tensordict", "vmas")},
    }


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


if __name__ == "__main__":
    main()
