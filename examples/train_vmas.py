"""Train BiCNet with DDPG on a VMAS scenario: ``python examples/train_vmas.py --help``."""

from __future__ import annotations

import math
import os
import sys
import time
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from tensordict.nn import TensorDictSequential
from torch import nn
from torchrl import torchrl_logger
from torchrl.checkpoint import GlobalRNGState
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.postprocs import MultiStep
from torchrl.envs import EnvBase

from torchrl_bicnet import (
    BiCNetActor,
    BiCNetCritic,
    CollectorState,
    ExplorationNoise,
    RewardScale,
    Run,
    UpdateStep,
    evaluate,
    make_ddpg_loss,
    make_vmas_env,
    shuffle_agents,
)
from torchrl_bicnet.evaluation import by_group
from torchrl_bicnet.net import CommunicationName
from torchrl_bicnet.rendering import record, save_film
from torchrl_bicnet.runs import EVAL_SEED, TEST_SEED, options_of_file, validated

Fraction = Annotated[float, Field(ge=0, le=1)]
Episodes = Annotated[int, Field(ge=2)]  # two for a standard error


@dataclass
class Options:
    scenario: str = "navigation"
    """VMAS scenario, or one of your own as path/to/file.py:ClassName; each group of agents, those of one kind, has its
    own actor and critic"""
    scenario_options: dict[str, int | float | bool | str] = field(default_factory=dict)
    """options of the scenario, names and values separated by spaces, such as `n_agents 3 shared_rew False`"""
    n_agents: tuple[PositiveInt, ...] = ()
    """agents of a team; of several numbers, one network learns teams of all these sizes at once, each in as many
    environments, give or take one. Default: the scenario's own"""
    pad: bool = False
    """put agents of all kinds into one padded group, so that they can talk"""
    max_steps: PositiveInt = 100
    """time limit of an episode, in steps"""
    num_envs: PositiveInt = 512
    """environments simulated side by side"""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """seed of the parameters, the exploration, the replay samples and the environments"""
    device: str = "cpu"
    """where everything lives, replay included: cpu, cuda, cuda:1, ..."""
    compile: bool = False
    """compile the step of the training environments and the update; needs a C++ compiler, and pays in long runs"""

    communication: CommunicationName = "gru"
    """communication layer of actor and critic"""
    agent_id: bool = False
    """tell each agent its place in the team, as a one-hot beside its observation"""
    hidden_size: PositiveInt = 48
    """size of a direction's hidden state"""
    num_cells: tuple[int, ...] = (64,)
    """widths of the hidden layers of encoder and decoder"""
    critic_num_cells: tuple[int, ...] = (128, 64)
    """the same of the critic"""
    n_frequencies: NonNegativeInt = 3
    """Fourier features of an agent's observation, of so many frequencies; 0: none"""
    activation_class: Literal["SiLU", "ReLU", "Tanh"] = "SiLU"
    """activation of the hidden layers"""
    share_params: bool = True
    """one encoder and decoder for all agents, or one per agent slot"""

    total_frames: PositiveInt = 409_600
    """environment frames to train for, rounded up to whole batches of them; a frame is one step of one environment,
    with all its agents"""
    frames_per_batch: NonNegativeInt = 0
    """frames collected between two rounds of updates, a multiple of num_envs; 0: ten steps of all environments"""
    updates_per_batch: PositiveInt = 40
    """gradient updates after each batch of frames; with more environments that batch is larger, their number is not"""
    batch_size: PositiveInt = 256
    """joint transitions per update"""
    buffer_size: NonNegativeInt = 0
    """joint transitions kept for replay; 0: 120,000, or ten batches of frames if that is more"""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.95
    """discount"""
    n_steps: PositiveInt = 2
    """steps of reward in a target, before the critic's value of what follows"""
    reward_rms: PositiveFloat = 0.2
    """root mean square that rewards are scaled to for learning, measured over those collected"""
    shuffle_agents: bool = False
    """put the agents of each replayed transition in a random order, so that no order of a recurrence is learned; for
    agents that are alike"""
    tau: Fraction = 0.01
    """fraction of the way that the target networks move towards the trained ones at each update"""
    actor_lr: PositiveFloat = 1e-3
    """learning rate of the actor (Adam)"""
    critic_lr: PositiveFloat = 2e-3
    """learning rate of the critic (Adam)"""
    actor_warmup: NonNegativeInt = 500
    """updates over which the actor's learning rate rises, so that it does not follow a critic that knows nothing yet"""
    saturation_penalty: NonNegativeFloat = 0.05
    """weight in the actor's loss of how far into the tails of tanh its output is, so that actions do not end at their
    bounds while the critic hardly tells them apart"""
    max_grad_norm: Annotated[float, Field(gt=0, allow_inf_nan=True)] = 1.0
    """gradients of actor and critic together are clipped to this norm; inf: not clipped"""
    sigma: tuple[NonNegativeFloat, NonNegativeFloat] = (0.05, 1.2)
    """standard deviation of the exploration noise, spread over the environments, in units of half the action's range"""
    correlation: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """of the noise of an action with that of the step before"""

    eval_interval: NonNegativeInt = 0
    """frames between two evaluations; 0: a tenth of the training"""
    eval_episodes: Episodes = 200
    """episodes of an evaluation during training, from the same start states each time"""
    film_interval: NonNegativeInt = 0
    """frames between two films of three of these episodes, in the folder films of the run; 0: none"""
    test_episodes: Episodes = 1000
    """episodes of the evaluation before and after training, from start states used for nothing else"""
    logger: Literal["csv", "tensorboard", "wandb"] = "csv"
    """metrics are always written as CSV; tensorboard or wandb get them too"""
    progress: Literal["auto", "bar", "lines", "none"] = "auto"
    """on stderr: a bar, a line for each evaluation, or nothing; auto: a bar on a terminal, lines elsewhere"""
    checkpoint_interval: NonNegativeInt = 0
    """frames between two checkpoints; one more is written at the end and when the run is interrupted. 0: a tenth of the
    training"""
    checkpoint_buffer: bool = True
    """save the replay buffer too: without it checkpoints are small, and a resumed run fills its buffer anew"""
    run_folder: Path | None = None
    """where options, metrics, checkpoints and pictures go; must not exist. Default: runs/SCENARIO-seedSEED-TIME"""
    config: Path | None = None
    """YAML or JSON file of options, or the run.json of another run; those of the command line come on top"""
    resume: Path | None = None
    """go on with a run as if it had never stopped: its folder, or one of its checkpoints. Takes no other option"""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    def __post_init__(self) -> None:
        """Derive defaults from the number of environments: 8192 of them ask for no more options than 60.

        Ranges are not checked yet: ``validated`` does it.
        """
        # One number is an option of the scenario as any other
        if len(self.n_agents) == 1 and self.n_agents[0] > 0 and "n_agents" not in self.scenario_options:
            self.scenario_options = {**self.scenario_options, "n_agents": self.n_agents[0]}
            self.n_agents = ()
        self.frames_per_batch = self.frames_per_batch or 10 * self.num_envs
        if self.frames_per_batch > 0 and self.total_frames > 0:
            self.total_frames = math.ceil(self.total_frames / self.frames_per_batch) * self.frames_per_batch
        self.buffer_size = self.buffer_size or max(120_000, 10 * self.frames_per_batch)
        self.eval_interval = self.eval_interval or max(self.total_frames // 10, 1)
        self.checkpoint_interval = self.checkpoint_interval or max(self.total_frames // 10, 1)

    def net_options(self, num_cells: tuple[int, ...]) -> dict[str, Any]:
        """Options of a :class:`~torchrl_bicnet.BiCNet`."""
        names = ("communication", "agent_id", "hidden_size", "n_frequencies", "share_params")
        same = {name: getattr(self, name) for name in names}
        return {**same, "num_cells": num_cells, "activation_class": getattr(nn, self.activation_class)}

    @model_validator(mode="after")
    def _fit_together(self) -> Options:
        if self.frames_per_batch % self.num_envs:
            raise ValueError(
                f"frames_per_batch must be a multiple of num_envs, found {self.frames_per_batch} and {self.num_envs}"
            )
        if self.n_agents and "n_agents" in self.scenario_options:
            raise ValueError("n_agents is given twice, by n_agents and among scenario_options")
        if self.shuffle_agents and (self.pad or self.agent_id or not self.share_params):
            raise ValueError("shuffle_agents needs agents that are alike: no pad, no agent_id, and share_params")
        for name in ("num_envs", "eval_episodes", "test_episodes"):
            if getattr(self, name) < len(self.n_agents):
                found = f"found {getattr(self, name)} and {len(self.n_agents)}"
                raise ValueError(f"{name} must be at least the number of sizes in n_agents, {found}")
        if self.buffer_size < self.frames_per_batch:
            raise ValueError(f"buffer_size must hold a batch of {self.frames_per_batch}, found {self.buffer_size}")
        return self


class Learner:
    """Actor, critic, exploration noise, loss and update of a group of agents."""

    def __init__(self, env: EnvBase, group: str, options: Options) -> None:
        self.actor, self.critic = self.make_networks(env, group, options)
        self.noise = ExplorationNoise(
            self.actor.spec,
            sigma=options.sigma,
            correlation=options.correlation,
            action_key=self.actor.out_keys[-1],
            mask_key=self.actor.mask_key,
        )
        self.loss = make_ddpg_loss(  # with the target networks
            self.actor, self.critic, gamma=options.gamma, saturation_penalty=options.saturation_penalty
        )
        self.reward_scale = RewardScale(options.reward_rms, reward_key=("next", group, "reward"), device=options.device)
        # A gradient step of actor and critic on a batch of transitions, and one of the targets towards them
        self.update = UpdateStep(
            self.loss,
            actor_lr=options.actor_lr,
            critic_lr=options.critic_lr,
            tau=options.tau,
            actor_warmup=options.actor_warmup,
            max_grad_norm=options.max_grad_norm,
            compile=options.compile,
        )

        # It is the target actor that is evaluated and kept: an average, in which the last few updates matter less. This
        # is a module with the memory of the loss's target parameters.
        self.target_actor = deepcopy(self.actor)
        targets = self.loss.target_actor_network_params.flatten_keys(".")
        for name, tensor in self.target_actor.state_dict(keep_vars=True).items():
            tensor.data = targets[name].data

    def make_networks(self, env: EnvBase, group: str, options: Options) -> tuple[BiCNetActor, BiCNetCritic]:
        actor = BiCNetActor.from_env(env, group=group, **options.net_options(options.num_cells))
        critic = BiCNetCritic.from_env(env, group=group, **options.net_options(options.critic_num_cells))
        return actor, critic


def make_env(options: Options, num_envs: int, seed: int, **others: Any) -> EnvBase:
    """An environment with a random stream of its own: evaluating one does not disturb training in another."""
    several = {"n_agents": options.n_agents} if options.n_agents else {}
    about = {"max_steps": options.max_steps, "device": options.device, "pad": options.pad}
    return make_vmas_env(
        options.scenario, num_envs, seed=seed, **about, **options.scenario_options, **{**several, **others}
    )


def make_envs(options: Options) -> tuple[EnvBase, EnvBase, EnvBase]:
    """The environments of training, of evaluations and of the test."""
    return (
        make_env(options, options.num_envs, options.seed, compile=options.compile),
        make_env(options, options.eval_episodes, EVAL_SEED),
        make_env(options, options.test_episodes, TEST_SEED),
    )


def train(options: Options, run: Run, learner_class: type[Learner] = Learner) -> None:
    """Train from the start, or from the checkpoint that the run is resumed from."""
    torch.manual_seed(options.seed)
    if options.compile:
        print(f"Compiling the step of {options.scenario} and the update", file=sys.stderr)
    env, eval_env, test_env = make_envs(options)

    # Actors, critics and what they learn with
    learners = {group: learner_class(env, group, options) for group in env.group_map}
    policy = TensorDictSequential(*(learner.target_actor for learner in learners.values()))
    explorer = TensorDictSequential(*(part for learner in learners.values() for part in (learner.actor, learner.noise)))
    run_evaluation = partial(evaluate, eval_env, policy, max_steps=options.max_steps, seed=EVAL_SEED)
    run_test = partial(evaluate, test_env, policy, max_steps=options.max_steps, seed=TEST_SEED)

    # Collector and replay
    collector = Collector(
        env,
        explorer,
        frames_per_batch=options.frames_per_batch,
        total_frames=options.total_frames,
        device=options.device,
        track_traj_ids=False,  # nobody reads them
        return_same_td=True,  # one tensordict for all batches: the buffer copies each before the next is written
    )
    replay_buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(options.buffer_size, device=options.device), batch_size=options.batch_size
    )
    multi_step = MultiStep(options.gamma, options.n_steps)
    multi_step.reward_keys = tuple((group, "reward") for group in learners)
    transition_keys = {key for learner in learners.values() for key in learner.loss.in_keys}

    # What a checkpoint holds: the loss has trained networks and targets; actor and critic alone are kept as the best
    state = {
        f"{group}.{name}": part
        for group, learner in learners.items()
        for name, part in {
            "actor": learner.target_actor,
            "critic": learner.critic,
            "loss": learner.loss,
            "update": learner.update,
            "noise": learner.noise,
            "reward_scale": learner.reward_scale,
        }.items()
    }

    several = {"n_agents": [max(options.n_agents)]} if options.n_agents else {}  # what is drawn is of one size
    film_env = make_env(options, 3, EVAL_SEED, **several) if options.film_interval else None

    # A new run makes its folder; a resumed one restores all of this from the checkpoint
    frames_done = run.start(
        state | {"collector": CollectorState(collector), "replay_buffer": replay_buffer, "random": GlobalRNGState()},
        total_frames=options.total_frames,
        best=[name for name in state if name.endswith((".actor", ".critic"))],
        leave_out=() if options.checkpoint_buffer else ("replay_buffer",),
        logger=options.logger,
        progress=options.progress,
        resume_command=f"python {os.path.relpath(__file__)} --resume",
    )
    if frames_done == 0:
        run.log_test("before", run_test())
        run.log(0, run_evaluation().summary())  # no candidate for the best checkpoint

    for batch in collector:  # (num_envs, steps)
        frames_done += options.frames_per_batch
        masks = {group: batch.get((group, "mask"), None) for group in learners}  # (num_envs, steps, N)
        for group, learner in learners.items():
            learner.reward_scale.update(batch["next", group, "reward"], masks[group])
        replay_buffer.extend(multi_step(batch).reshape(-1).select(*transition_keys, strict=False))
        for _ in range(options.updates_per_batch):
            sample = replay_buffer.sample()
            for group in learners if options.shuffle_agents else ():
                shuffle_agents(sample, group)
            metrics = {group: learner.update(learner.reward_scale(sample)) for group, learner in learners.items()}
        ended = batch["next", "done"].squeeze(-1)
        for group, learner in learners.items():
            metrics[group]["reward_factor"] = learner.reward_scale.factor
            if ended.any():
                returns = batch["next", group, "episode_reward"].squeeze(-1)[ended]  # (episodes, N)
                n_agents = returns.shape[-1]
                if masks[group] is not None:  # those that were there, in this batch or before it
                    seen = masks[group].any(1, keepdim=True).expand_as(masks[group])[ended]
                    n_agents = (seen | (returns != 0)).sum(-1).clamp(min=1)
                metrics[group]["training_return"] = (returns.sum(-1) / n_agents).mean()
        run.log(frames_done, by_group(metrics))
        if run.due(options.eval_interval):
            run.log_evaluation(run_evaluation())
        if film_env is not None and run.due(options.film_interval):
            look = {"env_index": range(3), "columns": 3, "width": 240}
            pictures = record(film_env, policy, max_steps=options.max_steps, seed=EVAL_SEED, **look)
            (run.folder / "films").mkdir(exist_ok=True)
            save_film(pictures, run.folder / "films" / f"film-{frames_done:012d}.gif")
        run.checkpoint(options.checkpoint_interval)

    collector.shutdown()
    run.log_test("after", run_test())
    print(run.finish())


def command_line() -> Options:
    """The options given, on top of those of a file if there is one."""
    given = tyro.cli(Options, description=__doc__)
    if given.config is None:
        return given
    try:
        defaults = options_of_file(Options, given.config)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    # By tyro, names that are not in a dict's default could not be given
    of_file, defaults.scenario_options = defaults.scenario_options, {}
    options = tyro.cli(Options, description=__doc__, default=defaults)
    if "n_agents" in options.scenario_options:
        options.n_agents = ()
    elif options.n_agents:
        of_file.pop("n_agents", None)
    options.scenario_options = {**of_file, **options.scenario_options}
    return options


def main(options: Options) -> None:
    run = None
    try:
        if options.resume is None:
            options = validated(Options, asdict(options))
            name = f"{options.scenario.rpartition(':')[-1]}-seed{options.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
            run = Run(options.run_folder or Path("runs", name), asdict(options))
        else:
            if options != Options(resume=options.resume):
                raise ValueError("--resume takes no other option: a run keeps those that it was started with")
            run = Run.resume(options.resume)
            options = validated(Options, run.options)
            print(f"Going on from {run.checkpoint_path or 'the start: there is no checkpoint yet'}", file=sys.stderr)
        with run:
            train(options, run)
    except (ImportError, OSError, TypeError, ValueError) as error:
        if run is not None and run.started:
            raise
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    torchrl_logger.setLevel("WARNING")  # its notes would break the progress bar
    main(command_line())
