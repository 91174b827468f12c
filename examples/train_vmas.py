"""Train BiCNet with DDPG on a VMAS scenario: ``python examples/train_vmas.py --help``."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
import tyro
from matplotlib.figure import Figure
from tensordict import TensorDictBase
from tensordict.nn import TensorDictSequential
from torch import Tensor
from torchrl import torchrl_logger
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import EnvBase
from torchrl.modules import AdditiveGaussianModule
from torchrl.objectives import SoftUpdate
from torchrl.record.loggers import get_logger
from tqdm import tqdm

from torchrl_bicnet import BiCNetActor, BiCNetCritic, evaluate, make_ddpg_loss, make_vmas_env

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

    communication: Literal["lstm", "gru", "rnn", "mean", "attention", "none"] = "lstm"
    """communication layer of actor and critic"""
    hidden_size: int = 64
    """size of a direction's hidden state"""
    num_cells: tuple[int, ...] = (128,)
    """widths of the hidden layers of encoder and decoder"""
    share_params: bool = True
    """one encoder and decoder for all agents, or one per agent slot"""

    total_frames: int = 120_000
    """environment frames to train for, a multiple of frames_per_batch; a frame is one step of one environment, with all
    its agents"""
    frames_per_batch: int = 600
    """frames collected between two rounds of updates, a multiple of num_envs"""
    updates_per_batch: int = 10
    """gradient updates after each batch of frames"""
    batch_size: int = 256
    """joint transitions per update"""
    buffer_size: int = 120_000
    """joint transitions kept for replay"""
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

    eval_interval: int = 12_000
    """frames between two evaluations"""
    eval_episodes: int = 200
    """episodes of an evaluation during training, from the same start states each time"""
    test_episodes: int = 1000
    """episodes of the evaluation before and after training, from start states used for nothing else"""
    logger: Literal["csv", "tensorboard", "wandb"] = "csv"
    """metrics are always written as CSV; tensorboard or wandb get them too"""
    run_folder: Path | None = None
    """where options, metrics, weights and the picture go; must not exist. Default: runs/SCENARIO-seedSEED-TIME"""


def make_env(options: Options, num_envs: int, seed: int) -> EnvBase:
    """Each environment has a random stream of its own: evaluating one does not disturb training in another."""
    return make_vmas_env(
        options.scenario,
        num_envs,
        max_steps=options.max_steps,
        device=options.device,
        seed=seed,
        pad=options.pad,
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


def train(options: Options) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns of the test episodes before and after training, for each group (test_episodes, N)."""
    torch.manual_seed(options.seed)

    env = make_env(options, options.num_envs, options.seed)
    eval_env = make_env(options, options.eval_episodes, EVAL_SEED)
    test_env = make_env(options, options.test_episodes, TEST_SEED)
    actors, critics = make_modules(options, env)
    groups = list(actors)
    policy = TensorDictSequential(*actors.values())

    # Exploration
    n_batches = options.total_frames // options.frames_per_batch
    noises = [
        AdditiveGaussianModule(
            actor.spec,
            sigma_init=options.sigma_start,
            sigma_end=options.sigma_end,
            annealing_num_steps=max(int(n_batches * options.sigma_fraction), 1),
            action_key=actor.out_keys[-1],
            device=options.device,
        )
        for actor in actors.values()
    ]

    # Losses, target networks and optimisers
    losses = {group: make_ddpg_loss(actors[group], critics[group], gamma=options.gamma) for group in groups}
    target_updates = {group: SoftUpdate(losses[group], tau=options.tau) for group in groups}
    optimisers = {
        group: torch.optim.Adam(
            [
                {"params": list(actors[group].parameters()), "lr": options.actor_lr},
                {"params": list(critics[group].parameters()), "lr": options.critic_lr},
            ],
            fused=True,
        )
        for group in groups
    }
    transition_keys = {key for loss in losses.values() for key in loss.in_keys}

    # Collection and replay of transitions
    collector = Collector(
        env,
        TensorDictSequential(policy, *noises),
        frames_per_batch=options.frames_per_batch,
        total_frames=options.total_frames,
    )
    replay_buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(options.buffer_size, device=options.device), batch_size=options.batch_size
    )

    def returns(env: EnvBase, seed: int) -> dict[str, Tensor]:
        return evaluate(env, policy, max_steps=options.max_steps, seed=seed).returns

    def evaluation() -> Metrics:
        return {
            (group, name): value
            for group, result in returns(eval_env, EVAL_SEED).items()
            for name, value in mean_and_standard_error(result).items()
        }

    run = Run(options, groups)
    before = returns(test_env, TEST_SEED)
    run.log(0, evaluation())

    for step, batch in enumerate(collector, start=1):
        frames = step * options.frames_per_batch
        replay_buffer.extend(batch.reshape(-1).select(*transition_keys, strict=False))
        metrics: Metrics = {}
        for _ in range(options.updates_per_batch):
            sample = replay_buffer.sample()
            for group in groups:
                output = losses[group](sample)
                (output["loss_actor"] + output["loss_value"]).backward()
                parameters = [*actors[group].parameters(), *critics[group].parameters()]
                grad_norm = torch.nn.utils.clip_grad_norm_(parameters, options.max_grad_norm)
                optimisers[group].step()
                optimisers[group].zero_grad()
                target_updates[group].step()
                metrics |= {(group, name): output[name].detach() for name in ("loss_actor", "loss_value")}
                metrics[group, "grad_norm"] = grad_norm
        for noise in noises:
            noise.step()

        metrics |= {(group, "sigma"): noise.sigma for group, noise in zip(groups, noises)}
        metrics |= finished_episodes(batch, groups)
        if frames // options.eval_interval > (frames - options.frames_per_batch) // options.eval_interval:
            metrics |= evaluation()
        run.log(frames, metrics)

    collector.shutdown()
    after = returns(test_env, TEST_SEED)
    run.finish(actors, critics, before, after)
    return before, after


def check(options: Options) -> None:
    """Fail before anything is built or written, with what was found and what is expected."""
    counts = ("num_envs", "max_steps", "updates_per_batch", "batch_size", "buffer_size")
    for name in (*counts, "total_frames", "frames_per_batch", "eval_interval"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 1, found {getattr(options, name)}.")
    if options.frames_per_batch % options.num_envs or options.total_frames % options.frames_per_batch:
        raise ValueError(
            f"frames_per_batch must be a multiple of num_envs and divide total_frames, found "
            f"frames_per_batch={options.frames_per_batch}, num_envs={options.num_envs}, "
            f"total_frames={options.total_frames}."
        )
    for name in ("eval_episodes", "test_episodes"):
        if getattr(options, name) < 2:
            raise ValueError(f"{name} must be at least 2 for a standard error, found {getattr(options, name)}.")
    ours = sorted({"max_steps", "device", "seed", "pad", "num_envs"} & options.scenario_options.keys())
    if ours:
        raise ValueError(
            f"{', '.join(ours)}: options of this script, not of the scenario (--{ours[0].replace('_', '-')})."
        )
    for name in ("actor_lr", "critic_lr", "max_grad_norm"):
        if not getattr(options, name) > 0:
            raise ValueError(f"{name} must be above 0, found {getattr(options, name)}.")
    for name in ("gamma", "tau", "sigma_fraction"):
        if not 0 <= getattr(options, name) <= 1:
            raise ValueError(f"{name} must be between 0 and 1, found {getattr(options, name)}.")
    if not 0 <= options.sigma_end <= options.sigma_start:
        raise ValueError(
            f"The noise falls from sigma_start to sigma_end, 0 <= sigma_end <= sigma_start; found sigma_start="
            f"{options.sigma_start} and sigma_end={options.sigma_end}."
        )
    if options.seed < 0:
        raise ValueError(f"seed must not be negative, found {options.seed}.")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", options.device):
        raise ValueError(f"device must be cpu, cuda or cuda:INDEX, found {options.device!r}.")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={options.device} was asked for, but torch finds no CUDA device.")
    if options.logger != "csv" and find_spec(options.logger) is None:
        raise ValueError(f"logger={options.logger} was asked for: pip install {options.logger}.")
    if options.run_folder is not None and options.run_folder.exists():
        raise FileExistsError(f"The run folder {options.run_folder} exists; choose another with --run-folder.")
    # The scenario's options, its groups of agents and the nets' options, on one environment.
    try:
        make_modules(options, make_env(options, 1, seed=0))
    except AssertionError as error:  # by which VMAS refuses an option
        raise ValueError(f"{options.scenario} does not take {options.scenario_options}: {error}") from error


Metrics = dict[tuple[str, str], Tensor]  # (group, name) to a scalar


def finished_episodes(batch: TensorDictBase, groups: list[str]) -> Metrics:
    """The mean return of the episodes that ended in a batch, over agents, if any did."""
    ended = batch["next", "done"].squeeze(-1)
    if not ended.any():
        return {}
    return {(group, "training_return"): batch["next", group, "episode_reward"][ended].mean() for group in groups}


def mean_and_standard_error(returns: Tensor) -> dict[str, Tensor]:
    """Over episodes, of the mean over agents; returns: (episodes, N)."""
    episodes = returns.mean(-1)
    return {"evaluation_return": returns.mean(), "evaluation_return_stderr": episodes.std() / len(episodes) ** 0.5}


class Run:
    """The run folder, its loggers and the progress bar."""

    def __init__(self, options: Options, groups: list[str]) -> None:
        self.options = options
        self.groups = groups
        default = f"runs/{options.scenario}-seed{options.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
        self.folder = options.run_folder or Path(default)
        self.folder.mkdir(parents=True)
        packages = ("torchrl_bicnet", "torch", "torchrl", "tensordict", "vmas")
        about = {
            "options": asdict(options),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads",
            "date": time.strftime("%Y-%m-%d"),
        }
        (self.folder / "run.json").write_text(json.dumps(about, indent=2, default=str) + "\n")
        kinds = dict.fromkeys(("csv", options.logger))
        self.loggers = [get_logger(kind, str(self.folder.parent), self.folder.name) for kind in kinds]
        for unused in ("texts", "videos"):
            (self.folder / unused).rmdir()
        self.bar = tqdm(total=options.total_frames, unit="frame", unit_scale=True, dynamic_ncols=True)
        self.shown: dict[str, str] = {}

    def name(self, group: str, name: str) -> str:
        """``name`` of the only group, ``group/name`` of several."""
        return name if len(self.groups) == 1 else f"{group}/{name}"

    def log(self, frames: int, metrics: Metrics) -> None:
        self.bar.update(frames - self.bar.n)
        rate = self.bar.format_dict["rate"]
        values = {self.name(*key): float(value) for key, value in metrics.items()}
        shown = ("evaluation_return", "training_return", "loss_actor", "loss_value")
        self.shown |= {name: f"{value:.3g}" for name, value in values.items() if name.endswith(shown)}
        if rate is not None:
            values["frames_per_second"] = rate
        for logger in self.loggers:
            for name, value in values.items():
                logger.log_scalar(name, value, step=frames)
        self.bar.set_postfix(self.shown)

    def finish(
        self,
        actors: dict[str, BiCNetActor],
        critics: dict[str, BiCNetCritic],
        before: dict[str, Tensor],
        after: dict[str, Tensor],
    ) -> None:
        self.bar.close()
        weights, returns, lines = {}, {}, []
        for group in self.groups:
            weights[self.name(group, "actor")] = actors[group].state_dict()
            weights[self.name(group, "critic")] = critics[group].state_dict()
            first, last = mean_and_standard_error(before[group]), mean_and_standard_error(after[group])
            returns[self.name(group, "before")] = before[group].mean(-1).tolist()
            returns[self.name(group, "after")] = after[group].mean(-1).tolist()
            lines.append(
                f"{self.name(group, 'evaluation return')}: {first['evaluation_return']:.2f} ± "
                f"{first['evaluation_return_stderr']:.2f} before, {last['evaluation_return']:.2f} ± "
                f"{last['evaluation_return_stderr']:.2f} after {self.options.total_frames} frames "
                f"(mean ± standard error of {len(after[group])} episodes)"
            )
        torch.save(weights, self.folder / "weights.pt")
        (self.folder / "test_returns.json").write_text(json.dumps(returns) + "\n")
        plot_learning_curves([self.folder], self.folder / "learning_curve.png")
        print(f"Options, metrics, weights and learning_curve.png are in {self.folder}")
        print("\n".join(lines))


def plot_learning_curves(folders: list[Path], picture: Path) -> None:
    """Draw the evaluation returns of run folders, with their standard errors, from the CSV files."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for folder in folders:
        options = json.loads((folder / "run.json").read_text())["options"]
        for curve in sorted((folder / "scalars").rglob("evaluation_return.csv")):
            frames, means = zip(*read_csv(curve))
            errors = [error for _, error in read_csv(curve.with_name("evaluation_return_stderr.csv"))]
            group = "" if curve.parent.name == "scalars" else f"{curve.parent.name}, "
            label = f"{group}{options['communication']}, seed {options['seed']}"
            axes.plot(frames, means, marker="o", markersize=3, label=label)
            low, high = zip(*[(mean - error, mean + error) for mean, error in zip(means, errors)])
            axes.fill_between(frames, low, high, alpha=0.2)
    axes.set(xlabel="environment frames", ylabel="return per agent", title=options["scenario"])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)


def read_csv(path: Path) -> list[tuple[int, float]]:
    """Rows (frames, value) of a metric written by TorchRL's CSVLogger."""
    rows = [line.split(",") for line in path.read_text().splitlines()]
    return [(int(frames), float(value)) for frames, value in rows]


if __name__ == "__main__":
    torchrl_logger.setLevel("WARNING")  # its notes would break the progress bar
    chosen = tyro.cli(Options, description=__doc__)
    try:
        check(chosen)
    except (ValueError, TypeError, FileExistsError) as error:
        sys.exit(f"error: {error}")
    train(chosen)
