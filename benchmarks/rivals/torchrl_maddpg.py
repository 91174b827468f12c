"""TorchRL's own multi-agent DDPG recipe on navigation: networks, hyper-parameters and order of its MADDPG script.

Those of `sota-implementations/multiagent/maddpg_iddpg.py` and `.yaml` of pytorch/rl, which are for VMAS balance;
navigation and the evaluation, of this package and after each iteration, are what differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl import torchrl_logger
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer
from torchrl.envs import EnvBase, RewardSum, TransformedEnv, VmasEnv
from torchrl.modules import AdditiveGaussianModule, MultiAgentMLP, ProbabilisticActor, TanhDelta, ValueOperator
from torchrl.objectives import DDPGLoss, SoftUpdate, ValueEstimators

from torchrl_bicnet import evaluate, make_vmas_env

OBSERVATION, ACTION, REWARD = ("agents", "observation"), ("agents", "action"), ("agents", "reward")


@dataclass
class Options:
    evaluations: Path
    """CSV file to write: frames and return of each evaluation"""
    seed: int
    """seed of the training"""
    evaluation_episodes: int
    """first episodes of an evaluation"""
    evaluation_seed: int
    """seed of their start states"""
    max_steps: int = 100
    """time limit of an episode"""
    frames_per_batch: int = 60_000
    """frames of an iteration, in as many environments as reach the time limit in it; the buffer holds no more"""
    n_iterations: int = 500
    """iterations; exploration falls during half of them"""
    n_epochs: int = 45
    """passes over the buffer after each iteration"""
    minibatch_size: int = 4096
    """joint transitions per update"""
    gamma: float = 0.9
    """discount"""
    tau: float = 0.005
    """fraction of the way that the target critic moves at each update"""
    lr: float = 5e-5
    """learning rate (Adam)"""
    max_grad_norm: float = 40.0
    """gradients are clipped to this norm"""


def main(options: Options) -> None:
    torch.manual_seed(options.seed)
    total_frames = options.frames_per_batch * options.n_iterations
    env = VmasEnv(
        "navigation",
        num_envs=options.frames_per_batch // options.max_steps,
        max_steps=options.max_steps,
        seed=options.seed,
    )
    env = TransformedEnv(env, RewardSum(in_keys=[REWARD], out_keys=[("agents", "episode_reward")]))
    eval_env = make_vmas_env(
        "navigation", options.evaluation_episodes, max_steps=options.max_steps, seed=options.evaluation_seed
    )
    actor, critic = make_actor(env), make_critic(env)
    noise = AdditiveGaussianModule(
        spec=env.full_action_spec_unbatched, annealing_num_steps=total_frames // 2, action_key=ACTION
    )

    def run_evaluation(frames: int) -> None:
        evaluation = evaluate(eval_env, actor, max_steps=options.max_steps, seed=options.evaluation_seed)
        with options.evaluations.open("a") as file:
            file.write(f"{frames},{evaluation.summary()['evaluation_return']}\n")

    collector = Collector(
        env,
        TensorDictSequential(actor, noise),
        frames_per_batch=options.frames_per_batch,
        total_frames=total_frames,
        postproc=with_done_of_each_agent,
        auto_register_policy_transforms=False,
    )
    replay_buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(options.frames_per_batch),
        sampler=SamplerWithoutReplacement(),
        batch_size=options.minibatch_size,
    )
    loss = DDPGLoss(actor, critic, delay_value=True)
    loss.set_keys(
        state_action_value=("agents", "state_action_value"),
        reward=REWARD,
        done=("agents", "done"),
        terminated=("agents", "terminated"),
    )
    loss.make_value_estimator(ValueEstimators.TD0, gamma=options.gamma)
    target_update = SoftUpdate(loss, eps=1 - options.tau)
    optimiser = torch.optim.Adam(loss.parameters(), options.lr)

    run_evaluation(0)
    frames = 0
    for batch in collector:  # (num_envs, max_steps)
        frames += batch.numel()
        replay_buffer.extend(batch.reshape(-1))
        for _ in range(options.n_epochs * (options.frames_per_batch // options.minibatch_size)):
            output = loss(replay_buffer.sample())
            (output["loss_actor"] + output["loss_value"]).backward()
            torch.nn.utils.clip_grad_norm_(loss.parameters(), options.max_grad_norm)
            optimiser.step()
            optimiser.zero_grad()
            target_update.step()
        noise.step(batch.numel())
        run_evaluation(frames)
    collector.shutdown()


def make_actor(env: EnvBase) -> ProbabilisticActor:
    """A network per agent, of its own observation."""
    action = env.full_action_spec_unbatched[ACTION]
    net = mlp(env, env.observation_spec[OBSERVATION].shape[-1], action.shape[-1], centralised=False)
    return ProbabilisticActor(
        TensorDictModule(net, in_keys=[OBSERVATION], out_keys=[("agents", "param")]),
        spec=env.full_action_spec_unbatched,
        in_keys=[("agents", "param")],
        out_keys=[ACTION],
        distribution_class=TanhDelta,
        distribution_kwargs={"low": action.space.low, "high": action.space.high},
        return_log_prob=False,
    )


def make_critic(env: EnvBase) -> ValueOperator:
    """A network per agent, of the observations and actions of all."""
    inputs = env.observation_spec[OBSERVATION].shape[-1] + env.full_action_spec_unbatched[ACTION].shape[-1]
    net = mlp(env, inputs, 1, centralised=True)
    return ValueOperator(net, in_keys=[OBSERVATION, ACTION], out_keys=[("agents", "state_action_value")])


def mlp(env: EnvBase, inputs: int, outputs: int, *, centralised: bool) -> MultiAgentMLP:
    return MultiAgentMLP(
        n_agent_inputs=inputs,
        n_agent_outputs=outputs,
        n_agents=env.n_agents,
        centralised=centralised,
        share_params=False,
        depth=2,
        num_cells=256,
        activation_class=nn.Tanh,
    )


def with_done_of_each_agent(batch: TensorDictBase) -> TensorDictBase:
    """Done and terminated of the environment for each agent, of the reward's shape."""
    for name in ("done", "terminated"):
        value = batch["next", name].unsqueeze(-1)  # (num_envs, steps, 1, 1)
        batch["next", "agents", name] = value.expand(batch["next", REWARD].shape)
    return batch


if __name__ == "__main__":
    torchrl_logger.setLevel("WARNING")
    main(tyro.cli(Options, description=__doc__))
