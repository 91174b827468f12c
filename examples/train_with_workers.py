"""Train BiCNet with collectors in other processes or on a Ray cluster: ``python examples/train_with_workers.py``.

Each worker steps environments of its own and sends what it collects; this process learns and sends weights back. VMAS
steps many environments at once, so one process goes far: `docs/processes.md` says when more of them are faster. This is
how it is done; it prints returns and keeps nothing. Run folders, checkpoints and all options are in `train_vmas.py`.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal

import torch
import tyro
from pydantic import NonNegativeInt, PositiveInt
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torchrl import torchrl_logger
from torchrl.collectors import BaseCollector, MultiAsyncCollector, MultiSyncCollector
from torchrl.collectors.distributed import RayCollector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import EnvBase

from torchrl_bicnet import (
    BiCNetActor,
    BiCNetCritic,
    ExplorationNoise,
    UpdateStep,
    evaluate,
    make_ddpg_loss,
    make_vmas_env,
)
from torchrl_bicnet.runs import EVAL_SEED, validated

try:
    from ray.exceptions import RayActorError as WorkerDiedError
except ImportError:  # Ray is needed by its own workers alone

    class WorkerDiedError(Exception):
        pass


NET = {"communication": "gru", "hidden_size": 48, "num_cells": (128,)}
NOISE = {"sigma": (0.05, 1.2), "correlation": 0.9}


@dataclass
class Options:
    backend: Literal["processes", "ray"] = "processes"
    """what the workers are: processes of this machine, or actors of a Ray cluster, of several machines perhaps"""
    workers: PositiveInt = 2
    """that collect"""
    sync: bool = True
    """a batch is of all workers, which wait for the next weights; otherwise of the worker that is ready first"""
    restarts: NonNegativeInt = 1
    """how often to go on with new workers after one of Ray has died"""
    scenario: str = "navigation"
    """name of a VMAS scenario, or a task of torchrl_bicnet.tasks"""
    max_steps: PositiveInt = 100
    """time limit of an episode"""
    num_envs: PositiveInt = 256
    """environments of each worker"""
    steps_per_batch: PositiveInt = 10
    """of each environment, between two exchanges"""
    total_frames: PositiveInt = 204_800
    """environment frames to train for, of all workers together"""
    updates_per_batch: PositiveInt = 20
    """gradient updates after each batch"""
    batch_size: PositiveInt = 256
    """transitions per update"""
    seed: int = 0
    """of the parameters and, from it on, one for the environments of each worker; their noise has none"""


def make_env(options: Options, num_envs: int, seed: int) -> EnvBase:
    return make_vmas_env(options.scenario, num_envs, max_steps=options.max_steps, seed=seed)


def make_collector(options: Options, policy: TensorDictModuleBase, total_frames: int, seed: int) -> BaseCollector:
    makers = [partial(make_env, options, options.num_envs, seed + worker) for worker in range(options.workers)]
    frames = options.num_envs * options.steps_per_batch * (options.workers if options.sync else 1)
    about = {"frames_per_batch": frames, "total_frames": total_frames}
    if options.backend == "ray":
        remote = {"num_cpus": 1, "num_gpus": 0}  # of each worker; without it Ray wants GPUs where there are some
        quiet = {"log_to_driver": False}  # TorchRL prints every collector; errors come as exceptions
        return RayCollector(makers, policy, sync=options.sync, remote_configs=remote, ray_init_config=quiet, **about)
    collector_class = MultiSyncCollector if options.sync else MultiAsyncCollector
    return collector_class(makers, policy, device="cpu", **about)


def collect(options: Options, policy: TensorDictModuleBase) -> Generator[TensorDictBase]:
    """Batches of transitions, each by the policy as it was sent after an earlier one.

    If a worker of Ray dies, what was being collected is lost, nothing else: a new collector takes the policy as it is.
    """
    frames, restarts = 0, options.restarts
    while frames < options.total_frames:
        seed = options.seed + (options.restarts - restarts) * options.workers  # not the same starts again
        # A copy, since TorchRL moves parameters that it shares between processes, away from the UpdateStep
        collector = make_collector(options, copy.deepcopy(policy), options.total_frames - frames, seed)
        try:
            collector.update_policy_weights_(policy)
            for batch in collector:
                yield batch.reshape(-1)
                frames += batch.numel()
                collector.update_policy_weights_(policy)
        except WorkerDiedError:
            if not restarts:
                raise
            restarts -= 1
            print(f"{frames:8} frames  a worker died; new ones go on", flush=True)
        finally:
            with contextlib.suppress(WorkerDiedError):
                collector.shutdown()


def train(options: Options) -> list[float]:
    """Train, print evaluations and the seconds until then, and return the evaluations."""
    torch.manual_seed(options.seed)
    eval_env = make_env(options, 200, EVAL_SEED)
    actor, critic = BiCNetActor.from_env(eval_env, **NET), BiCNetCritic.from_env(eval_env, **NET)
    noise = ExplorationNoise(actor.spec, **NOISE)
    loss = make_ddpg_loss(actor, critic, gamma=0.97)
    update = UpdateStep(loss, actor_lr=5e-4, critic_lr=1e-3, tau=0.01, max_grad_norm=1.0)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(200_000), batch_size=options.batch_size)
    returns: list[float] = []

    def report(frames: int, seconds: float) -> None:
        summary = evaluate(eval_env, actor, max_steps=options.max_steps, seed=EVAL_SEED).summary()
        returns.append(summary["evaluation_return"])
        print(f"{frames:8} frames  {seconds:6.1f} s  return {returns[-1]:7.3f}", flush=True)

    report(0, 0.0)
    frames, start = 0, time.perf_counter()
    for i, batch in enumerate(collect(options, TensorDictSequential(actor, noise)), start=1):
        frames += batch.numel()
        buffer.extend(batch.select(*loss.in_keys, strict=False))
        for _ in range(options.updates_per_batch):
            update(buffer.sample())
        if i % 10 == 0 or frames >= options.total_frames:
            report(frames, time.perf_counter() - start)
    return returns


if __name__ == "__main__":
    torchrl_logger.setLevel("WARNING")
    try:
        given = validated(Options, asdict(tyro.cli(Options, description=__doc__)))
        BiCNetActor.from_env(make_env(given, 1, 0))
    except (TypeError, ValueError) as error:
        sys.exit(f"error: {error}")
    train(given)
