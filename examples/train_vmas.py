"""Train BiCNet with DDPG on a VMAS scenario: ``python examples/train_vmas.py --help``."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import torch
import tyro
from tensordict import TensorDictBase
from tensordict.nn import TensorDictSequential
from torch import Tensor
from torchrl import torchrl_logger
from torchrl.checkpoint import CheckpointError, GlobalRNGState
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import EnvBase
from torchrl.modules import AdditiveGaussianModule
from torchrl.objectives import SoftUpdate

from torchrl_bicnet import (
    BiCNetActor,
    BiCNetCritic,
    Checkpoints,
    CollectorState,
    Evaluation,
    Run,
    evaluate,
    make_ddpg_loss,
    make_vmas_env,
)
from torchrl_bicnet.checks import check_device
from torchrl_bicnet.runs import learning_curves, plot_learning_curves
from torchrl_bicnet.runs.files import read_options, write_whole
from torchrl_bicnet.runs.run import check_finite, stop_signals

# Metrics whose last values stand beside the progress bar.
SHOWN = ("evaluation_return", "training_return", "loss_actor", "loss_value")
# Of a learner, what changes while it learns, beside its networks; the loss holds the target networks.
LEARNER_STATE = ("loss", "optimiser", "noise")
# Start states of the evaluations during training, and of the test before and after it: used for nothing else.
EVAL_SEED, TEST_SEED = 1_000_001, 1_000_002


@dataclass
class Options:
    scenario: str = "navigation"
    """VMAS scenario; each group of agents has its own actor and critic"""
    scenario_options: dict[str, int | float | bool | str] = field(default_factory=dict)
    """options of the scenario, names and values separated by spaces, such as `n_agents 3 shared_rew False`"""
    pad: bool = False
    """put agents of all kinds into one padded group, so that they can talk"""
    max_steps: int = 100
    """time limit of an episode, in steps"""
    num_envs: int = 60
    """environments simulated in one batch"""
    seed: int = 0
    """seed of the parameters, the exploration, the replay samples and the environments"""
    device: str = "cpu"
    """where everything lives, replay included: cpu, cuda, cuda:1, ..."""
    cuda_graph: bool = False
    """capture the step of the environments in a CUDA graph; not measured on a GPU yet"""

    communication: Literal["lstm", "gru", "rnn", "mean", "attention", "none"] = "lstm"
    """communication layer of actor and critic"""
    hidden_size: int = 64
    """size of a direction's hidden state"""
    num_cells: tuple[int, ...] = (128,)
    """widths of the hidden layers of encoder and decoder"""
    share_params: bool = True
    """one encoder and decoder for all agents, or one per agent slot"""

    total_frames: int = 120_000
    """environment frames to train for, rounded up to whole batches of them; a frame is one step of one environment,
    with all its agents"""
    frames_per_batch: int = 0
    """frames collected between two rounds of updates, a multiple of num_envs; 0: ten steps of all environments"""
    updates_per_batch: int = 10
    """gradient updates after each batch of frames, which is larger with more environments"""
    batch_size: int = 256
    """joint transitions per update"""
    buffer_size: int = 0
    """joint transitions kept for replay; 0: 120,000, or ten batches of frames if that is more"""
    gamma: float = 0.97
    """discount"""
    tau: float = 0.01
    """step of the target networks towards the trained ones, at each update"""
    actor_lr: float = 5e-4
    """learning rate of the actor (Adam)"""
    critic_lr: float = 1e-3
    """learning rate of the critic (Adam)"""
    max_grad_norm: float = 1.0
    """gradients of actor and critic together are clipped to this norm"""
    sigma_start: float = 0.9
    """standard deviation of the exploration noise at the start, in units of the action"""
    sigma_end: float = 0.1
    """standard deviation of the exploration noise at the end"""
    sigma_fraction: float = 0.6
    """part of the training during which the noise falls"""

    eval_interval: int = 0
    """frames between two evaluations; 0: a tenth of the training"""
    eval_episodes: int = 200
    """episodes of an evaluation during training, from the same start states each time"""
    test_episodes: int = 1000
    """episodes of the evaluation before and after training, from start states used for nothing else"""
    logger: Literal["csv", "tensorboard", "wandb"] = "csv"
    """metrics are always written as CSV; tensorboard or wandb get them too"""
    checkpoint_interval: int = 0
    """frames between two checkpoints; one more is written at the end and when the run is interrupted. 0: a tenth of the
    training"""
    checkpoint_buffer: bool = True
    """save the replay buffer too: without it checkpoints are small, and a resumed run fills its buffer anew"""
    run_folder: Path | None = None
    """where options, metrics, checkpoints and pictures go; must not exist. Default: runs/SCENARIO-seedSEED-TIME"""

    def __post_init__(self) -> None:
        """What follows from the number of environments, so that 8192 of them ask for no more options than 60."""
        self.frames_per_batch = self.frames_per_batch or 10 * self.num_envs
        if self.frames_per_batch > 0 and self.total_frames > 0:
            self.total_frames = math.ceil(self.total_frames / self.frames_per_batch) * self.frames_per_batch
        self.buffer_size = self.buffer_size or max(120_000, 10 * self.frames_per_batch)
        self.eval_interval = self.eval_interval or max(self.total_frames // 10, 1)
        self.checkpoint_interval = self.checkpoint_interval or max(self.total_frames // 10, 1)


def make_env(options: Options, num_envs: int, seed: int, cuda_graph: bool = False) -> EnvBase:
    """Each environment has a random stream of its own: evaluating one does not disturb training in another."""
    return make_vmas_env(
        options.scenario,
        num_envs,
        max_steps=options.max_steps,
        device=options.device,
        seed=seed,
        pad=options.pad,
        cuda_graph=cuda_graph,
        **options.scenario_options,
    )


def make_modules(options: Options, env: EnvBase) -> tuple[dict[str, BiCNetActor], dict[str, BiCNetCritic]]:
    """An actor and a critic for each group of agents."""
    net = {name: getattr(options, name) for name in ("communication", "hidden_size", "num_cells", "share_params")}
    actors, critics = {}, {}
    for group in env.group_map:
        actors[group] = BiCNetActor.from_env(env, group=group, **net)
        critics[group] = BiCNetCritic.from_env(env, group=group, **net)
    return actors, critics


@dataclass
class Learner:
    """What a group of agents learns with."""

    actor: BiCNetActor
    critic: BiCNetCritic
    options: Options

    def __post_init__(self) -> None:
        options = self.options
        n_batches = options.total_frames // options.frames_per_batch
        self.noise = AdditiveGaussianModule(
            self.actor.spec,
            sigma_init=options.sigma_start,
            sigma_end=options.sigma_end,
            annealing_num_steps=max(int(n_batches * options.sigma_fraction), 1),
            action_key=self.actor.out_keys[-1],
            device=options.device,
        )
        self.loss = make_ddpg_loss(self.actor, self.critic, gamma=options.gamma)
        self.target_update = SoftUpdate(self.loss, tau=options.tau)
        actor_parameters, critic_parameters = list(self.actor.parameters()), list(self.critic.parameters())
        self.parameters = [*actor_parameters, *critic_parameters]
        self.optimiser = torch.optim.Adam(
            [
                {"params": actor_parameters, "lr": options.actor_lr},
                {"params": critic_parameters, "lr": options.critic_lr},
            ],
            fused=True,
        )

    def update(self, sample: TensorDictBase) -> Metrics:
        """One gradient step of actor and critic on a batch of transitions, and one of the targets towards them."""
        output = self.loss(sample)
        (output["loss_actor"] + output["loss_value"]).backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.options.max_grad_norm)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.target_update.step()
        losses = {name: output[name].detach() for name in ("loss_actor", "loss_value")}
        return {**losses, "grad_norm": grad_norm}


def train(options: Options, folder: Path, checkpoint: Path | None = None) -> dict[str, list[float]]:
    """Train in a run folder, from the start or from a checkpoint; returns the test episodes' returns."""
    torch.manual_seed(options.seed)

    env = make_env(options, options.num_envs, options.seed, options.cuda_graph)
    eval_env = make_env(options, options.eval_episodes, EVAL_SEED)
    test_env = make_env(options, options.test_episodes, TEST_SEED)
    actors, critics = make_modules(options, env)
    learners = {group: Learner(actors[group], critics[group], options) for group in actors}
    policy = TensorDictSequential(*actors.values())

    # Collection and replay of transitions
    collector = Collector(
        env,
        TensorDictSequential(policy, *(learner.noise for learner in learners.values())),
        frames_per_batch=options.frames_per_batch,
        total_frames=options.total_frames,
        device=options.device,
        track_traj_ids=False,
        return_same_td=True,  # each batch is in the replay buffer before the next one is written over it
    )
    replay_buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(options.buffer_size, device=options.device), batch_size=options.batch_size
    )
    transition_keys = {key for learner in learners.values() for key in learner.loss.in_keys}

    # What a run goes on from: all of it together is the state of the training
    run = Run(folder, total_frames=options.total_frames, logger=options.logger, shown=SHOWN)
    tests: dict[str, list[float]] = {}
    checkpoints = Checkpoints(
        folder / "checkpoints",
        {
            **networks(actors, critics),
            **{f"{group}.{part}": getattr(learners[group], part) for group in learners for part in LEARNER_STATE},
            "collector": CollectorState(collector),
            "replay_buffer": replay_buffer,
            "random": GlobalRNGState(),
            "metrics": run.metrics,
            "tests": tests,
        },
        best_components=networks(actors, critics),
        leave_out=() if options.checkpoint_buffer else ("replay_buffer",),
    )

    def evaluation(env: EnvBase, seed: int) -> Evaluation:
        return evaluate(env, policy, max_steps=options.max_steps, seed=seed)

    with stop_signals() as stop, closing(run):
        first = 0 if checkpoint is None else checkpoints.resume(checkpoint)
        run.rewind(first)
        if first == 0:
            tests |= team_returns("before", evaluation(test_env, TEST_SEED))
            run.log(0, evaluation(eval_env, EVAL_SEED).summary())

        for step, batch in enumerate(collector, start=first // options.frames_per_batch + 1):
            frames = step * options.frames_per_batch
            replay_buffer.extend(batch.reshape(-1).select(*transition_keys, strict=False))
            for _ in range(options.updates_per_batch):
                sample = replay_buffer.sample()
                updates = {group: learner.update(sample) for group, learner in learners.items()}
            for group, learner in learners.items():
                learner.noise.step()
                updates[group]["sigma"] = learner.noise.sigma

            metrics = flat(updates) | flat(finished_episodes(batch, learners))
            check_finite(frames, metrics)
            check_finite(frames, parameters(actors, critics))
            if due(options.eval_interval, frames, options):
                metrics |= evaluation(eval_env, EVAL_SEED).summary()
            run.log(frames, metrics)
            if due(options.eval_interval, frames, options):
                checkpoints.save_best(frames, score(metrics))
            if stop or frames == options.total_frames or due(options.checkpoint_interval, frames, options):
                checkpoints.save(frames)
            if stop:
                raise KeyboardInterrupt(stop[0])

    collector.shutdown()
    tests |= team_returns("after", evaluation(test_env, TEST_SEED))
    finish(run, options, tests)
    return tests


def check(options: Options) -> None:
    """Fail before anything is built or written, with what was found and what is expected."""
    counts = ("num_envs", "max_steps", "updates_per_batch", "batch_size", "buffer_size")
    for name in (*counts, "total_frames", "frames_per_batch", "eval_interval", "checkpoint_interval"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 1, found {getattr(options, name)}.")
    if options.frames_per_batch % options.num_envs:
        raise ValueError(
            f"frames_per_batch must be a multiple of num_envs, found frames_per_batch={options.frames_per_batch} and "
            f"num_envs={options.num_envs}."
        )
    if options.buffer_size < options.frames_per_batch:
        raise ValueError(
            f"buffer_size must hold a batch, frames_per_batch={options.frames_per_batch}, found {options.buffer_size}."
        )
    for name in ("eval_episodes", "test_episodes"):
        if getattr(options, name) < 2:
            raise ValueError(f"{name} must be at least 2 for a standard error, found {getattr(options, name)}.")
    ours = sorted({"max_steps", "device", "seed", "pad", "num_envs", "cuda_graph"} & options.scenario_options.keys())
    if ours:
        raise ValueError(
            f"{', '.join(ours)}: options of this script, not of the scenario (--{ours[0].replace('_', '-')})."
        )
    for name in ("actor_lr", "critic_lr"):
        if not 0 < getattr(options, name) < float("inf"):
            raise ValueError(f"{name} must be above 0 and finite, found {getattr(options, name)}.")
    if not options.max_grad_norm > 0:
        raise ValueError(f"max_grad_norm must be above 0, found {options.max_grad_norm}.")
    for name in ("gamma", "tau", "sigma_fraction"):
        if not 0 <= getattr(options, name) <= 1:
            raise ValueError(f"{name} must be between 0 and 1, found {getattr(options, name)}.")
    if not 0 <= options.sigma_end <= options.sigma_start < float("inf"):
        raise ValueError(
            "The noise falls from sigma_start to sigma_end, 0 <= sigma_end <= sigma_start, both finite; found "
            f"sigma_start={options.sigma_start} and sigma_end={options.sigma_end}."
        )
    if not 0 <= options.seed < 2**32:
        raise ValueError(f"seed must not be negative and below 2**32, found {options.seed}.")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", options.device):
        raise ValueError(f"device must be cpu, cuda or cuda:INDEX, found {options.device!r}.")
    check_device(options.device)
    for name, kind in get_type_hints(Options).items():
        if get_origin(kind) is Literal and getattr(options, name) not in get_args(kind):
            raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, found {getattr(options, name)!r}.")
    if options.logger != "csv" and find_spec(options.logger) is None:
        raise ValueError(f"logger={options.logger} was asked for: pip install {options.logger}.")
    # The scenario's options, its groups of agents and the nets' options, on one environment.
    make_modules(options, make_env(options, 1, seed=0, cuda_graph=options.cuda_graph))


Metrics = dict[str, Tensor]  # name to scalar


def flat(metrics: dict[str, Metrics]) -> Metrics:
    """Metrics of each group by one name: ``name`` of the only group, ``group/name`` of several."""
    several = len(metrics) > 1
    return {
        f"{group}/{name}" if several else name: value
        for group, values in metrics.items()
        for name, value in values.items()
    }


def finished_episodes(batch: TensorDictBase, groups: Iterable[str]) -> dict[str, Metrics]:
    """The mean return of the episodes that ended in a batch, over agents, if any did."""
    ended = batch["next", "done"].squeeze(-1)
    if not ended.any():
        return {}
    return {group: {"training_return": batch["next", group, "episode_reward"][ended].mean()} for group in groups}


def team_returns(name: str, evaluation: Evaluation) -> dict[str, list[float]]:
    """Of each episode, the mean over agents."""
    return flat({group: {name: returns.mean(-1).tolist()} for group, returns in evaluation.returns.items()})


def score(metrics: Mapping[str, float]) -> float:
    """What the best checkpoint is best in: the evaluation return, of several groups their mean."""
    returns = [value for name, value in metrics.items() if name.endswith("evaluation_return")]
    return sum(returns) / len(returns)


def due(interval: int, frames: int, options: Options) -> bool:
    """Whether a multiple of ``interval`` was reached with the last batch of frames."""
    return frames // interval > (frames - options.frames_per_batch) // interval


def networks(actors: Mapping[str, BiCNetActor], critics: Mapping[str, BiCNetCritic]) -> dict[str, torch.nn.Module]:
    """The trained networks as components of a checkpoint."""
    return {f"{group}.actor": actor for group, actor in actors.items()} | {
        f"{group}.critic": critic for group, critic in critics.items()
    }


def parameters(actors: Mapping[str, BiCNetActor], critics: Mapping[str, BiCNetCritic]) -> dict[str, Tensor]:
    return {
        f"{network}.{name}": parameter
        for network, module in networks(actors, critics).items()
        for name, parameter in module.named_parameters()
    }


def load_run(
    folder: Path, which: Literal["last", "best"] = "last", device: str = "cpu"
) -> tuple[Options, TensorDictSequential]:
    """Options and trained actors of a run folder, one actor per group, from its last or its best checkpoint."""
    options = replace(run_options(folder), device=device)
    check(options)
    actors, critics = make_modules(options, make_env(options, 1, seed=0))
    checkpoints = Checkpoints(folder / "checkpoints", networks(actors, critics))
    path = checkpoints.best() if which == "best" else checkpoints.latest()
    if path is None:
        raise CheckpointError(f"The run in {folder} has no {which} checkpoint yet, or a damaged one.")
    checkpoints.load(path, map_location=device)
    return options, TensorDictSequential(*actors.values())


def run_options(folder: Path) -> Options:
    """The options of a run folder, refused if they are not those of this script."""
    values, defaults = read_options(folder), asdict(Options())
    if values.keys() != defaults.keys():
        raise ValueError(
            f"{folder / 'run.json'} is of another version of this script: it lacks "
            f"{sorted(defaults.keys() - values.keys())} and has the unknown {sorted(values.keys() - defaults.keys())}."
        )
    for name, default in defaults.items():
        value = values[name] = tuple(values[name]) if isinstance(values[name], list) else values[name]
        kinds = (int, float) if isinstance(default, float) else (type(default),)
        if type(value) not in kinds and name != "run_folder":
            raise ValueError(f"{folder / 'run.json'}: {name} must be of type {kinds[-1].__name__}, found {value!r}.")
    return Options(**values | {"run_folder": None})


def find_checkpoint(resume: Path, options: Options) -> tuple[Path, Path | None]:
    """The run folder and the checkpoint to go on from; ``resume`` is either."""
    changed = [name for name, value in asdict(Options()).items() if asdict(options)[name] != value]
    if changed:
        follow = {"total_frames", "frames_per_batch", "buffer_size", "eval_interval", "checkpoint_interval"}
        changed = [name for name in changed if name not in follow] or changed[:1]
        raise ValueError(
            f"A resumed run keeps the options in its run.json; found {', '.join(changed)} beside --resume {resume}."
        )
    folder = resume.absolute().parent.parent if resume.is_file() else resume
    if folder.name == "checkpoints":
        raise ValueError(f"{resume} holds the best networks, not what a training goes on from: resume {folder.parent}.")
    read_options(folder)
    return folder, resume if resume.is_file() else Checkpoints(folder / "checkpoints", {}).latest()


def finish(run: Run, options: Options, tests: dict[str, list[float]]) -> None:
    """Write the results, draw the learning curve, and say where they are."""
    write_whole(run.folder / "test_returns.json", json.dumps(tests) + "\n")
    picture = run.folder / "pictures" / "learning_curve.png"
    picture.parent.mkdir(exist_ok=True)
    plot_learning_curves(learning_curves([run.folder])).savefig(picture, dpi=120)
    print(f"Options, metrics, checkpoints and pictures are in {run.folder}")
    for name in tests:
        if name.endswith("before"):
            group = name.removesuffix("before")
            before, after = (torch.tensor(tests[group + when]) for when in ("before", "after"))
            errors = [returns.std() / len(returns) ** 0.5 for returns in (before, after)]
            print(
                f"{group}evaluation return: {before.mean():.2f} ± {errors[0]:.2f} before, {after.mean():.2f} ± "
                f"{errors[1]:.2f} after {options.total_frames} frames (mean ± standard error of {len(after)} episodes)"
            )


@dataclass
class Arguments(Options):
    resume: Path | None = None
    """go on with a run as if it had never stopped: its folder, or one of its checkpoints. Takes no other option"""


def how_to_go_on(folder: Path) -> str:
    last = Checkpoints(folder / "checkpoints", {}).latest()
    command = shlex.join(["python", os.path.relpath(__file__), "--resume", str(folder)])
    return f"The last checkpoint is {last}. Go on: {command}" if last else f"There is no checkpoint. Start: {command}"


def main(arguments: Arguments) -> None:
    options = Options(**{option.name: getattr(arguments, option.name) for option in fields(Options)})
    try:
        if arguments.resume is None:
            check(options)
            name = f"{options.scenario}-seed{options.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
            folder, checkpoint = Run.create(options.run_folder or Path("runs", name), asdict(options)), None
        else:
            folder, checkpoint = find_checkpoint(arguments.resume, options)
            options = run_options(folder)
            check(options)
            print(f"Going on from {checkpoint or 'the start: there is no checkpoint yet'}", file=sys.stderr)
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
    try:
        train(options, folder, checkpoint)
    except KeyboardInterrupt as interrupt:
        number = interrupt.args[0] if interrupt.args else signal.SIGINT
        print(f"\nStopped by {signal.Signals(number).name}. {how_to_go_on(folder)}", file=sys.stderr)
        sys.exit(128 + number)
    except CheckpointError as error:
        sys.exit(f"error: {error}")
    except (FloatingPointError, OSError) as error:
        sys.exit(f"error: {str(error).rstrip('.')}. {how_to_go_on(folder)}")


if __name__ == "__main__":
    torchrl_logger.setLevel("WARNING")  # its notes would break the progress bar
    main(tyro.cli(Arguments, description=__doc__))
