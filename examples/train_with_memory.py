"""Train BiCNet with a memory over time, off-policy, on a task that needs one: ``python examples/train_with_memory.py``.

Each agent sees a number at the first step of an episode, and all must say the sum of the team's numbers in the steps
after it: they must talk, and remember. Actor and critic have an `AgentMemory` each; DDPG learns from sequences of steps
that a replay buffer cuts out of episodes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torchrl import torchrl_logger
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, SliceSampler, TensorDictReplayBuffer
from torchrl.envs import EnvBase

from torchrl_bicnet import (
    AgentMemory,
    BiCNetActor,
    BiCNetCritic,
    ExplorationNoise,
    UpdateStep,
    evaluate,
    make_ddpg_loss,
    make_vmas_env,
)
from torchrl_bicnet.runs import EVAL_SEED
from torchrl_bicnet.runs.provenance import provenance

OBSERVATION, ACTION = ("agents", "observation"), ("agents", "action")


@dataclass
class Options:
    n_agents: int = 3
    """size of the team"""
    max_steps: int = 10
    """length of an episode, in steps"""
    memory_size: int = 32
    """what an agent remembers, in numbers; 0: no memory"""
    slice_steps: int = 10
    """steps of a replayed sequence that are learned from"""
    burn_in: int = 0
    """steps before those that only bring the stored memories up to date"""
    num_envs: int = 256
    """environments simulated side by side"""
    seed: int = 0
    """seed of the parameters, the exploration, the replay and the environments"""
    total_frames: int = 76_800
    """environment frames to train for, rounded up to whole episodes; a frame is one step of one environment, with all
    its agents"""
    updates_per_batch: int = 40
    """gradient updates after each episode of all environments"""
    batch_size: int = 256
    """sequences per update"""
    gamma: float = 0.5
    """discount; an answer changes nothing about later ones"""
    lr: float = 1e-3
    """learning rate of actor and critic (Adam)"""
    sigma: float = 0.3
    """standard deviation of the exploration noise, in units of half the action's range"""
    results: Path | None = None
    """JSON file to write the evaluations to"""


NET = {"communication": "gru", "hidden_size": 32, "num_cells": (64,)}


def make_networks(
    env: EnvBase, options: Options
) -> tuple[TensorDictModuleBase, TensorDictModuleBase, list[AgentMemory]]:
    """Actor and critic, each behind a memory of its own; without memories to see what they are worth."""
    size = options.memory_size
    if size == 0:
        return BiCNetActor.from_env(env, **NET), BiCNetCritic.from_env(env, **NET), []
    n_inputs = env.full_observation_spec[OBSERVATION].shape[-1] + size
    actor_memory = AgentMemory.from_env(env, size, name="actor_memory")
    actor = BiCNetActor(n_inputs, env.full_action_spec, in_keys=[OBSERVATION, ("agents", "actor_memory")], **NET)
    critic_memory = AgentMemory.from_env(env, size, name="critic_memory")
    critic = BiCNetCritic(n_inputs, 1, in_keys=[OBSERVATION, ("agents", "critic_memory"), ACTION], **NET)
    memories = [actor_memory, critic_memory]
    return TensorDictSequential(actor_memory, actor), TensorDictSequential(critic_memory, critic), memories


def make_env(options: Options, num_envs: int, seed: int, memories: Sequence[AgentMemory] = ()) -> EnvBase:
    """The environment, which passes on what the memories hold from step to step."""
    about = {"max_steps": options.max_steps, "n_agents": options.n_agents, "seen_once": True}
    env = make_vmas_env("guess_the_sum", num_envs, seed=seed, **about)
    for memory in memories:
        env = env.append_transform(memory.make_tensordict_primer())
    return env


def train(options: Options) -> list[dict[str, float]]:
    """Train, print evaluations, and return them."""
    torch.manual_seed(options.seed)
    actor, critic, memories = make_networks(make_env(options, 1, 0), options)
    env = make_env(options, options.num_envs, options.seed, memories)
    loss = make_ddpg_loss(actor, critic, gamma=options.gamma)
    update = UpdateStep(loss, actor_lr=options.lr, critic_lr=options.lr, tau=0.01, max_grad_norm=1.0)
    noise = ExplorationNoise(env.full_action_spec, sigma=options.sigma)
    frames_per_batch = options.num_envs * options.max_steps
    total_frames = math.ceil(options.total_frames / frames_per_batch) * frames_per_batch
    collector = Collector(
        env,
        # The critic's memory goes along, so that its state too is stored with each step
        TensorDictSequential(actor, noise, *memories[1:]),
        frames_per_batch=frames_per_batch,
        total_frames=total_frames,
    )
    steps = options.burn_in + options.slice_steps
    replay_buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(100_000, ndim=2),  # of time and environments
        dim_extend=1,  # the time of a collected batch
        sampler=SliceSampler(slice_len=steps, end_key=("next", "done")),
        batch_size=options.batch_size * steps,
    )
    eval_env = make_env(options, 1000, EVAL_SEED, memories[:1])
    evaluations: list[dict[str, float]] = []

    forgetful = evaluate(eval_env, say_zero, max_steps=options.max_steps, seed=EVAL_SEED).summary()["evaluation_return"]

    def report(frames: int) -> None:
        summary = evaluate(eval_env, actor, max_steps=options.max_steps, seed=EVAL_SEED).summary()
        share = 1 - summary["evaluation_return"] / forgetful  # the best return is 0
        evaluations.append({"frames": frames, **summary, "share_of_the_best": share})
        print(f"{frames:8} frames  return {summary['evaluation_return']:7.3f}  {share:6.1%} of the best", flush=True)

    report(0)
    for i, batch in enumerate(collector, start=1):
        replay_buffer.extend(batch.select(*loss.in_keys, ("next", "done"), strict=False))
        for _ in range(options.updates_per_batch):
            sequences = replay_buffer.sample().reshape(options.batch_size, steps)
            for memory in memories:
                memory.burn_in(sequences, options.burn_in)
            update(sequences[:, options.burn_in :])
        if i % 10 == 0 or i * batch.numel() == total_frames:
            report(i * batch.numel())
    return evaluations


def say_zero(td: TensorDictBase) -> TensorDictBase:
    """The best policy without memory: 0 is the expectation of the sum. From a number of its own nobody knows more."""
    return td.set(ACTION, torch.zeros_like(td[OBSERVATION]))


def main(options: Options) -> None:
    evaluations = train(options)
    if options.results is not None:
        results = {**provenance(), "options": asdict(options), "evaluations": evaluations}
        options.results.write_text(json.dumps(results, indent=1, default=str) + "\n")


if __name__ == "__main__":
    torchrl_logger.setLevel("WARNING")  # its notes would break the table
    main(tyro.cli(Options, description=__doc__))
