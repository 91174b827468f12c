"""Train BiCNet by backpropagating through the simulator: ``python examples/train_by_gradient.py --help``.

The actor climbs the gradient of the returns of a window of steps, through the simulator, with the critic as the value
of what follows. What has no gradient in the simulator, such as a bonus at the goal or the penalty for a collision,
reaches the actor through the critic alone.

This is the short-horizon actor-critic of Xu et al., *Accelerated Policy Learning with Parallel Differentiable
Simulation*, 2022, https://arxiv.org/abs/2204.07137, but for two things: the actor climbs the TD(lambda) returns of all
steps of the window, as in Dreamer (Hafner et al., 2020, https://arxiv.org/abs/1912.01603), since within a window that
ends with the critic a collision would go unnoticed; and the critic learns from replay, as in DDPG, where the
transitions of one window, all from the same part of an episode, taught it less.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl import torchrl_logger
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import EnvBase
from torchrl.objectives import SoftUpdate
from torchrl.objectives.value.functional import vec_td_lambda_return_estimate

from torchrl_bicnet import BiCNetActor, BiCNetCritic, detach, evaluate, make_ddpg_loss, make_vmas_env
from torchrl_bicnet.runs import EVAL_SEED
from torchrl_bicnet.runs.provenance import provenance

OBSERVATION, ACTION, VALUE = (("agents", name) for name in ("observation", "action", "state_action_value"))


@dataclass
class Options:
    scenario: str = "navigation"
    """VMAS scenario with one group, "agents", whose rewards are differentiable"""
    max_steps: int = 100
    """time limit of an episode, in steps"""
    num_envs: int = 128
    """environments simulated side by side"""
    seed: int = 0
    """seed of the parameters, the exploration and the environments"""
    compile: bool = False
    """compile the step and its gradients, which takes a minute or two at the start, and a C++ compiler"""
    total_frames: int = 200_000
    """environment frames to train for; a frame is one step of one environment, with all its agents"""
    window: int = 4
    """steps that gradients go back"""
    gamma: float = 0.97
    """discount"""
    lmbda: float = 0.6
    """weight of the simulator against the critic in the returns that the actor climbs, TD(lambda): 0 takes a reward and
    the critic, 1 all rewards of the window and the critic at its end"""
    sigma: float = 0.4
    """standard deviation of the exploration noise, in units of the action"""
    actor_lr: float = 1e-3
    """learning rate of the actor at the start (Adam); falls to 0"""
    critic_lr: float = 1e-3
    """learning rate of the critic (Adam)"""
    critic_updates: int = 10
    """updates of the critic after each window"""
    batch_size: int = 256
    """transitions per update of the critic"""
    buffer_size: int = 120_000
    """transitions kept for the critic"""
    tau: float = 0.01
    """fraction of the way that the target networks move towards the trained ones at each update"""
    max_grad_norm: float = 1.0
    """gradients of actor and of critic are clipped to this norm"""
    eval_interval: int = 24
    """windows between two evaluations"""
    eval_episodes: int = 200
    """episodes of an evaluation, from the same start states each time"""
    results: Path | None = None
    """JSON file to write the evaluations to"""


def state_value(actor: TensorDictModuleBase, critic: TensorDictModuleBase, td: TensorDictBase) -> Tensor:
    """The value of a state is that of the actor's action in it, ``(*B, N, 1)``."""
    return critic(actor(td.select(OBSERVATION)))[VALUE]


def roll_out(
    env: EnvBase, td: TensorDictBase, actor: TensorDictModuleBase, options: Options
) -> tuple[TensorDictBase, TensorDictBase]:
    """The transitions of a window, ``(B, T)``, with gradients through the simulator, and the step after it."""
    steps = []
    for _ in range(options.window):
        td = actor(td)
        noise = options.sigma * torch.randn_like(td[ACTION])
        td[ACTION] = env.full_action_spec[ACTION].project(td[ACTION] + noise)
        td, following = env.step_and_maybe_reset(td)
        steps.append(td.select(OBSERVATION, ACTION, "next"))
        td = following
    return torch.stack(steps, 1), td


def train(options: Options) -> list[dict[str, float]]:
    """Train, print evaluations, and return them."""
    torch.manual_seed(options.seed)
    evaluations, start = [], time.perf_counter()
    env = make_vmas_env(
        options.scenario,
        options.num_envs,
        max_steps=options.max_steps,
        seed=options.seed,
        compile=options.compile,
        grad_enabled=True,
    )
    eval_env = make_vmas_env(options.scenario, options.eval_episodes, max_steps=options.max_steps, seed=EVAL_SEED)
    actor, critic = BiCNetActor.from_env(env), BiCNetCritic.from_env(env)
    loss = make_ddpg_loss(actor, critic, gamma=options.gamma)
    target_update = SoftUpdate(loss, tau=options.tau)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(options.buffer_size), batch_size=options.batch_size)
    actor_optimiser = torch.optim.Adam(actor.parameters(), lr=options.actor_lr)
    critic_optimiser = torch.optim.Adam(critic.parameters(), lr=options.critic_lr)
    n_windows = -(-options.total_frames // (options.num_envs * options.window))
    schedule = torch.optim.lr_scheduler.LinearLR(actor_optimiser, 1.0, 1e-3, total_iters=n_windows)

    td = env.reset()
    for window in range(n_windows + 1):
        if window % options.eval_interval == 0 or window == n_windows:
            started = time.perf_counter()
            summary = evaluate(eval_env, actor, max_steps=options.max_steps, seed=EVAL_SEED).summary()
            start += time.perf_counter() - started  # not counted
            frames, seconds = window * options.num_envs * options.window, time.perf_counter() - start
            evaluations.append({"frames": frames, "seconds": seconds, **summary})
            print(f"{frames:8} frames {seconds:6.0f} s  return {summary['evaluation_return']:.2f}", flush=True)
        batch, td = roll_out(env, td, actor, options)
        # The actor climbs the returns of all steps of the window
        value = state_value(actor, critic, batch["next"])
        ends = (batch["next", "agents", name] for name in ("reward", "done", "terminated"))
        returns = vec_td_lambda_return_estimate(options.gamma, options.lmbda, value, *ends, time_dim=1)
        (-returns.mean()).backward()
        torch.nn.utils.clip_grad_norm_(actor.parameters(), options.max_grad_norm)
        actor_optimiser.step()
        schedule.step()
        detach(env)
        td = td.detach()
        # The critic learns from replay, as in DDPG
        buffer.extend(batch.detach().reshape(-1).select(*loss.in_keys, strict=False))
        for _ in range(options.critic_updates):
            loss.zero_grad()
            loss.loss_value(buffer.sample())[0].mean().backward()
            torch.nn.utils.clip_grad_norm_(critic.parameters(), options.max_grad_norm)
            critic_optimiser.step()
            target_update.step()
        loss.zero_grad()
    return evaluations


def main(options: Options) -> None:
    evaluations = train(options)
    if options.results is not None:
        results = {**provenance(), "options": asdict(options), "evaluations": evaluations}
        options.results.write_text(json.dumps(results, indent=1, default=str) + "\n")


if __name__ == "__main__":
    torchrl_logger.setLevel("WARNING")  # its notes would break the table
    main(tyro.cli(Options, description=__doc__))
