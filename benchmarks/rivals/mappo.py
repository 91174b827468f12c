"""MAPPO with BiCNet's nets on the compiled environment of `examples/train_vmas.py`.

Yu et al., 2022, https://arxiv.org/abs/2103.01955: PPO with one policy for all agents, a critic that sees the whole
team, advantages per agent, normalised. TorchRL's ClipPPOLoss and GAE. The policy's mean and the critic are the nets of
the options, communication included; its scale is a parameter per action, the same in every state.
"""

from __future__ import annotations

import os
from functools import partial

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.checkpoint import GlobalRNGState
from torchrl.collectors import Collector
from torchrl.envs import EnvBase
from torchrl.modules import ProbabilisticActor, TanhNormal
from torchrl.objectives import ClipPPOLoss

from examples.train_vmas import Options, make_envs
from torchrl_bicnet import BiCNet, BiCNetActor, RewardScale, Run, evaluate
from torchrl_bicnet.evaluation import by_group
from torchrl_bicnet.runs import EVAL_SEED, TEST_SEED
from torchrl_bicnet.specs import agent_spec

GAE_LAMBDA = 0.95
CLIP_EPSILON = 0.2
START_SCALE = 0.6  # before the tanh

# What differs from the options of examples/train_vmas.py. Frames being cheap, one pass over few new ones in small parts
# learned fastest.
OPTIONS = {
    "num_envs": 256,
    "frames_per_batch": 256 * 25,
    "updates_per_batch": 32,
    "batch_size": 200,
    "n_steps": 1,
}


class MAPPOLearner:
    """Policy, critic, loss and optimiser of a group of agents."""

    def __init__(self, env: EnvBase, group: str, options: Options) -> None:
        observations = agent_spec(env, (group, "observation"))
        self.group, self.options = group, options
        # Acts in evaluations by the mean, in training through `policy`, whose mean has the same net.
        self.actor = BiCNetActor.from_env(env, group=group, **options.net_options(options.num_cells))
        mean = TensorDictModule(self.actor.module.net, in_keys=[(group, "observation")], out_keys=[(group, "loc")])
        scale = _Scale(self.actor.module.low.shape[-1])
        self.policy = ProbabilisticActor(
            TensorDictSequential(mean, TensorDictModule(scale, [(group, "loc")], [(group, "scale")])),
            in_keys={"loc": (group, "loc"), "scale": (group, "scale")},
            out_keys=[(group, "squashed")],
            distribution_class=TanhNormal,
            return_log_prob=True,
            log_prob_key=(group, "log_prob"),
        )
        # Not by the distribution, which refuses the entries of a padded action, whose bounds are both 0
        self.into_bounds = TensorDictModule(self._into_bounds, [(group, "squashed")], [(group, "action")])
        n_agents, n_inputs = observations.shape[-2:]
        self.critic = TensorDictModule(
            BiCNet(n_inputs, 1, n_agents=n_agents, device=env.device, **options.net_options(options.critic_num_cells)),
            in_keys=[(group, "observation")],
            out_keys=[(group, "state_value")],
        )
        self.loss = ClipPPOLoss(self.policy, self.critic, clip_epsilon=CLIP_EPSILON, entropy_bonus=False)
        self.loss.set_keys(
            action=(group, "squashed"),
            sample_log_prob=(group, "log_prob"),
            value=(group, "state_value"),
            advantage=(group, "advantage"),
            value_target=(group, "value_target"),
            reward=(group, "reward"),
            done=(group, "done"),
            terminated=(group, "terminated"),
        )
        self.reward_scale = RewardScale(options.reward_rms, reward_key=("next", group, "reward"), device=options.device)
        self.loss.make_value_estimator(gamma=options.gamma, lmbda=GAE_LAMBDA, deactivate_vmap=True)
        self.optimiser = torch.optim.Adam(
            [
                {"params": self.policy.parameters(), "lr": options.actor_lr},
                {"params": self.critic.parameters(), "lr": options.critic_lr},
            ],
            fused=True,
        )

    def _into_bounds(self, squashed: Tensor) -> Tensor:
        low, high = self.actor.module.low, self.actor.module.high
        return (low + (high - low) * (squashed + 1) / 2).clamp(low, high)

    def estimate(self, batch: TensorDictBase) -> TensorDictBase:
        """The batch's advantages and value targets, ``(environments, time) -> (transitions)``."""
        self.reward_scale.update(batch["next", self.group, "reward"])
        batch = self.reward_scale(batch)
        with torch.no_grad():
            self.loss.value_estimator(batch)
        advantage = batch[self.group, "advantage"]  # (environments, time, N, 1)
        batch[self.group, "advantage"] = (advantage - advantage.mean((0, 1))) / (advantage.std((0, 1)) + 1e-6)
        names = ("observation", "squashed", "log_prob", "advantage", "value_target", "state_value")
        return batch.select(*((self.group, name) for name in names)).reshape(-1)

    def update(self, sample: TensorDictBase) -> dict[str, Tensor]:
        losses = self.loss(sample)
        (losses["loss_objective"] + losses["loss_critic"]).backward()
        networks = self.policy, self.critic  # apart: the critic's gradient falls by orders of magnitude
        norms = [nn.utils.clip_grad_norm_(each.parameters(), self.options.max_grad_norm) for each in networks]
        self.optimiser.step()
        self.optimiser.zero_grad()
        return {name: losses[name].detach() for name in ("loss_objective", "loss_critic")} | {"grad_norm": norms[0]}


class _Scale(nn.Module):
    def __init__(self, n_actions: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((n_actions,), START_SCALE).log())

    def forward(self, loc: Tensor) -> Tensor:
        return self.log_scale.exp().expand_as(loc)


def train(options: Options, run: Run) -> None:
    """As `examples/train_vmas.py` trains, with its options; of these replay, noise and targets mean nothing here."""
    torch.manual_seed(options.seed)
    env, eval_env, test_env = make_envs(options)
    learners = {group: MAPPOLearner(env, group, options) for group in env.group_map}
    actors = TensorDictSequential(*(learner.actor for learner in learners.values()))
    run_evaluation = partial(evaluate, eval_env, actors, max_steps=options.max_steps, seed=EVAL_SEED)
    run_test = partial(evaluate, test_env, actors, max_steps=options.max_steps, seed=TEST_SEED)
    collector = Collector(
        env,
        TensorDictSequential(
            *(part for learner in learners.values() for part in (learner.policy, learner.into_bounds))
        ),
        frames_per_batch=options.frames_per_batch,
        total_frames=options.total_frames,
        device=options.device,
        track_traj_ids=False,
        return_same_td=True,
    )
    networks = {f"{group}.{part}": getattr(learners[group], part) for group in learners for part in ("actor", "critic")}
    run.start(
        networks | {"random": GlobalRNGState()},
        total_frames=options.total_frames,
        best=list(networks),
        logger=options.logger,
        resume_command=f"python {os.path.relpath(__file__)} cannot go on with",
    )
    run.log_test("before", run_test())
    run.log(0, run_evaluation().summary())
    frames_done = 0
    for batch in collector:  # (num_envs, steps)
        frames_done += options.frames_per_batch
        metrics = {}
        for group, learner in learners.items():
            transitions = learner.estimate(batch)
            parts = iter(())
            for _ in range(options.updates_per_batch):
                if (part := next(parts, None)) is None:  # another pass over the batch
                    parts = iter(torch.randperm(len(transitions)).split(options.batch_size))
                    part = next(parts)
                metrics[group] = learner.update(transitions[part])
        run.log(frames_done, by_group(metrics))
        if run.due(options.eval_interval):
            run.log_evaluation(run_evaluation())
        run.checkpoint(options.checkpoint_interval)
    collector.shutdown()
    run.log_test("after", run_test())
    print(run.finish())
