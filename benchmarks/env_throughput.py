"""Frames per second of VMAS alone, of TorchRL's `VmasEnv` and of `make_vmas_env`: the raw repeats and a plot of them.

A frame is one step of one environment, with all its agents. The contenders of a cell are timed in turns, A B C A B C,
in one process; rates are medians over the turns, ratios those of the medians.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
import vmas
from matplotlib.figure import Figure
from tensordict import TensorDictBase
from tensordict.nn import TensorDictSequential
from torch import Tensor
from torch._inductor.utils import fresh_cache
from torchrl import torchrl_logger
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import EnvBase, VmasEnv
from torchrl.modules import AdditiveGaussianModule
from tqdm import tqdm

from torchrl_bicnet import BiCNet, BiCNetActor, BiCNetCritic, make_ddpg_loss, make_vmas_env
from torchrl_bicnet.runs.provenance import provenance

ROOT = Path(__file__).resolve().parent.parent

MAX_STEPS = 100  # of an episode, in the collection
SIGMA = 0.3  # of the exploration noise, in the collection
FRACTION = 0.05  # of the environments, in a partial reset
COMPILED = "ours, compiled"

Block = Callable[[int], None]  # does so many units of work
Policy = Callable[[TensorDictBase], TensorDictBase]
Cell = dict[str, Any]


@dataclass
class Options:
    scenarios: tuple[str, ...] = ("navigation", "simple_spread")
    """VMAS scenarios of the throughput, each with one group of agents, as all others"""
    num_envs: tuple[int, ...] = (32, 128, 512, 2048, 8192, 32768)
    """environments simulated in one batch"""
    policies: tuple[Literal["random", "bicnet"], ...] = ("random", "bicnet")
    """who acts: uniformly random actions, or an untrained BiCNet"""
    done_fractions: tuple[float, ...] = (0.0, 0.05, 0.2)
    """part of the environments that is reset after each step, at least one of them unless 0"""
    reset_scenarios: tuple[str, ...] = ("navigation", "balance", "simple_spread", "football")
    """VMAS scenarios of the questions what resets of 5% cost, and one and two resets a step among 32 environments"""
    reset_envs: tuple[int, ...] = (1024,)
    """environments of the question what resetting 5% of them costs"""
    step_scenarios: tuple[str, ...] = ("navigation", "balance", "dispersion", "simple_spread", "transport", "wheel")
    """VMAS scenarios of the question what a step costs"""
    step_envs: tuple[int, ...] = (64, 1024)
    """environments of the question what a step costs"""
    collection_envs: tuple[int, ...] = (64, 1024)
    """environments of the question what collection costs, on navigation and simple_spread"""
    collection_steps: int = 100
    """steps of a timed block of collection, a multiple of 10; an episode has 100, and they end spread over the steps"""
    repeats: int = 5
    """turns of each contender"""
    budget: float = 3.0
    """seconds aimed at for all turns of a contender in a cell; one whose single step takes longer is left out of it"""
    turn_steps: int = 100
    """steps of a turn at most"""
    device: str = "cpu"
    """where everything lives: cpu, cuda, cuda:1, ..."""
    compiled: bool = True
    """measure ours with its step compiled too"""
    output: Path = ROOT / "benchmarks" / "results" / "throughput"
    """folder for DEVICE.json and DEVICE.png"""
    quick: bool = False
    """a look in about half a minute, into runs/throughput-quick: navigation, uncompiled, few environments and turns,
    whatever these options say"""
    plot: Path | None = None
    """draw the picture of this JSON file again, and measure nothing"""


QUICK = {
    "scenarios": ("navigation",),
    "num_envs": (32, 256),
    "done_fractions": (0.0, 0.05),
    "reset_scenarios": ("navigation",),
    "reset_envs": (256,),
    "step_scenarios": ("navigation",),
    "step_envs": (64,),
    "collection_envs": (64,),
    "collection_steps": 10,
    "repeats": 3,
    "budget": 0.3,
    "compiled": False,
    "output": Path("runs", "throughput-quick"),
}


def main(options: Options) -> None:
    if options.plot is not None:
        draw(json.loads(options.plot.read_text())).savefig(options.plot.with_suffix(".png"), dpi=120)
        return
    check(options)
    if options.quick:
        options = replace(options, **QUICK)
    file = options.output / f"{torch.device(options.device).type}.json"
    options.output.mkdir(parents=True, exist_ok=True)
    sections = ("throughput", "partial_reset", "few_resets", "step", "collection")
    chosen = {name: value for name, value in asdict(options).items() if name not in ("output", "plot")}
    about = {"options": chosen, **provenance()}
    results = {"about": about, **{section: [] for section in sections}}
    bar = tqdm(list(plan(options)), unit="cell", dynamic_ncols=True)
    for section, function, settings in bar:
        bar.set_postfix_str(" ".join([section, *map(str, settings.values())]))
        torch.manual_seed(0)
        results[section].append({**settings, **function(options, **settings)})
        file.write_text(json.dumps(results, indent=2) + "\n")  # after each cell: a stopped benchmark keeps the others
    for section, cell in ((name, cell) for name in sections for cell in results[name]):
        question = f"{section}, {cell['scenario']}, {cell['num_envs']} environments"
        if section != "throughput":
            print(f"{question}: " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in cell["ratios"].items()))
        if "steps_until_it_pays" in cell:
            pays = cell["steps_until_it_pays"]
            after = "never pays" if pays is None else f"has paid after {pays:.0f} steps"
            print(f"{question}: compiled in {cell['seconds_to_compile']:.1f} s, which {after}")
        for name, why in cell["left_out"].items():
            print(f"left out: {question}, {name}: {why}")
    if results["throughput"]:
        draw(results).savefig(file.with_suffix(".png"), dpi=120)
    print(f"The raw repeats are in {file}")


def plan(options: Options) -> Iterator[tuple[str, Callable[..., Cell], dict[str, Any]]]:
    """The cells to measure: their section of the results, the function that does it and its settings."""
    for scenario, num_envs in itertools.product(options.reset_scenarios, options.reset_envs):
        yield "partial_reset", partial_reset, {"scenario": scenario, "num_envs": num_envs}
    names = ("scenario", "num_envs", "policy", "done_fraction")
    for scenario, resets in itertools.product(options.reset_scenarios, (1, 2)):
        yield "few_resets", throughput, dict(zip(names, (scenario, 32, "random", resets / 32)))
    for scenario, num_envs in itertools.product(options.step_scenarios, options.step_envs):
        yield "step", step, {"scenario": scenario, "num_envs": num_envs}
    for scenario, num_envs in itertools.product(("navigation", "simple_spread"), options.collection_envs):
        yield "collection", collection, {"scenario": scenario, "num_envs": num_envs}
    for values in itertools.product(options.scenarios, options.num_envs, options.policies, options.done_fractions):
        yield "throughput", throughput, dict(zip(names, values))


def throughput(options: Options, scenario: str, num_envs: int, policy: str, done_fraction: float) -> Cell:
    """Frames per second of the simulators, some environments reset after each step."""
    team = Team(scenario, options.device)
    random = policy == "random"
    windows = staggered(num_envs, done_fraction)
    blocks = {"vmas": vmas_loop(scenario, num_envs, options.device, team.random if random else team.act, windows)}
    envs, compilation = environments(options, scenario, num_envs)
    for name, env in envs.items():
        blocks[name] = torchrl_loop(env, team.random_policy if random else team.actor, windows)
    resets = {"resets_per_step": len(windows[0]) if windows else 0}
    ratios = [(name, other) for name in ("ours", COMPILED) for other in ("VmasEnv", "vmas")] + [(COMPILED, "ours")]
    return resets | finish(compare(blocks, num_envs, ratios, options), num_envs, compilation)


def partial_reset(options: Options, scenario: str, num_envs: int) -> Cell:
    """Partial resets and steps per second, in rounds in which each environment is reset once."""
    windows, policy = staggered(num_envs, FRACTION), Team(scenario, options.device).random_policy
    envs, compilation = environments(options, scenario, num_envs)
    loops = {name: torchrl_loop(env, policy, []) for name, env in envs.items()}
    loops |= {f"{name}, reset": torchrl_loop(env, None, windows) for name, env in envs.items()}
    blocks = {name: lambda units, loop=loop: loop(units * len(windows)) for name, loop in loops.items()}
    ratios = [(f"{name}, reset", other) for name in ("ours", COMPILED) for other in ("VmasEnv, reset", name)]
    return finish(compare(blocks, len(windows), ratios, options), 1, compilation)


def step(options: Options, scenario: str, num_envs: int) -> Cell:
    """Frames per second of a step and of what makes its outcome the next input, with random actions, without resets.

    `make_vmas_env` adds a step counter, returns and per-agent dones to what `VmasEnv` does.
    """
    policy = Team(scenario, options.device).random_policy
    envs, compilation = environments(options, scenario, num_envs)
    blocks = {name: torchrl_loop(env, policy, []) for name, env in envs.items()}
    ratios = [(name, "VmasEnv") for name in blocks if name != "VmasEnv"] + [(COMPILED, "ours")]
    return finish(compare(blocks, num_envs, ratios, options), num_envs, compilation)


def environments(options: Options, scenario: str, num_envs: int, max_steps: int | None = None) -> tuple[Any, Cell]:
    """TorchRL's environment, ours, and ours compiled; the seconds that compiling took, or why it is left out."""
    settings = {"num_envs": num_envs, "device": options.device, "seed": 0, "max_steps": max_steps}
    envs = {"VmasEnv": VmasEnv(scenario, **settings), "ours": make_vmas_env(scenario, **settings)}
    if not options.compiled:
        return envs, {}
    env, compilation = compiled(scenario, **settings)
    return ({**envs, COMPILED: env} if env else envs), compilation


@functools.cache
def compiled(scenario: str, **settings: Any) -> tuple[EnvBase | None, Cell]:
    """Shared by the cells of one scenario and size. With a time limit it may come from Inductor's cache."""
    start = time.perf_counter()
    try:
        env = make_vmas_env(scenario, compile=True, **settings)
    except ValueError as error:
        return None, {"left_out": {COMPILED: str(error)}}
    return env, {"seconds_to_compile": time.perf_counter() - start}


def finish(cell: Cell, per_step: int, compilation: Cell) -> Cell:
    """The cell with what compiling cost, and the steps after which it was worth that; or why it is left out."""
    cell = compilation | cell | {"left_out": cell["left_out"] | compilation.get("left_out", {})}
    if {"ours", COMPILED} <= cell["per_second"].keys():
        saved = per_step / cell["per_second"]["ours"] - per_step / cell["per_second"][COMPILED]  # seconds of a step
        cell["steps_until_it_pays"] = cell["seconds_to_compile"] / saved if saved > 0 else None
    return cell


def collection(options: Options, scenario: str, num_envs: int) -> Cell:
    """Frames per second of collection with BiCNet and noise, in blocks of `collection_steps`; episodes end at any time.

    "bare loop": raw VMAS, the net, noise; no buffer, no resets. "net alone": its forward on one observation. "VmasEnv":
    TorchRL's Collector over it, with the options of `examples/train_vmas.py`, no buffer. "ours": the same over
    `make_vmas_env`, its transitions put into a replay buffer.
    """
    team = Team(scenario, options.device)
    envs, compilation = environments(options, scenario, num_envs, MAX_STEPS)
    keys = make_ddpg_loss(team.actor, BiCNetCritic.from_env(envs["ours"])).in_keys
    observation = envs["ours"].reset()[team.group, "observation"]
    blocks = {
        "bare loop": vmas_loop(scenario, num_envs, options.device, team.noisy, []),
        "net alone": lambda steps: [team.net(observation) for _ in range(steps)],
    }
    collectors = {name: collect(env, team, options.device) for name, env in envs.items()}
    for name, collector in collectors.items():
        storage = LazyTensorStorage(max(120_000, 10 * num_envs), device=options.device)
        buffer = None if name == "VmasEnv" else TensorDictReplayBuffer(storage=storage, batch_size=256)
        blocks[name] = collector_loop(iter(collector), buffer, keys)
    ratios = [(name, other) for name in envs for other in ("bare loop", "net alone")]
    ratios += [("ours", "VmasEnv"), (COMPILED, "VmasEnv"), (COMPILED, "ours")]
    cell = compare(blocks, num_envs, ratios, options, steps=options.collection_steps)
    for collector in collectors.values():
        collector.shutdown()
    return finish(cell, num_envs, compilation)


def collector_loop(batches: Iterator[TensorDictBase], buffer: TensorDictReplayBuffer | None, keys: list[Any]) -> Block:
    def block(steps: int) -> None:
        for batch in itertools.islice(batches, steps // 10):
            if buffer is not None:
                buffer.extend(batch.reshape(-1).select(*keys, strict=False))

    return block


def collect(env: EnvBase, team: Team, device: str) -> Collector:
    noise = AdditiveGaussianModule(
        team.actor.spec, sigma_init=SIGMA, sigma_end=SIGMA, action_key=team.actor.out_keys[-1], device=device
    )
    return Collector(  # as in train_vmas.py
        env,
        Staggered(env, team.actor, noise),
        frames_per_batch=10 * env.batch_size[0],
        total_frames=-1,
        device=device,
        track_traj_ids=False,
        return_same_td=True,
        auto_register_policy_transforms=False,  # VmasEnv as it is; make_vmas_env has their entries
    )


class Staggered(TensorDictSequential):
    """A policy that resets some environments before each of its first steps, so that they end one after another."""

    def __init__(self, env: EnvBase, *modules: Any) -> None:
        super().__init__(*modules)
        self.reset, self.masks = env.reset, iter(masks(staggered(env.batch_size[0], 1 / MAX_STEPS), env))

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        if (mask := next(self.masks, None)) is not None:
            td.update(self.reset(td.clone().set("_reset", mask)).exclude("_reset"))
        return super().forward(td)


class Team:
    """One net for every contender: as the actor of TorchRL's loops, and as plain tensors for VMAS alone."""

    def __init__(self, scenario: str, device: str) -> None:
        env = make_vmas_env(scenario, 1, device=device)
        (self.group,) = env.group_map
        spec = env.full_action_spec[self.group, "action"][0]  # (N, a)
        self.low, self.high = spec.space.low, spec.space.high
        observation = env.observation_spec[self.group, "observation"].shape[-1]
        self.net = BiCNet(observation, spec.shape[-1], device=device)
        self.actor = BiCNetActor(observation, env.full_action_spec, group=self.group, net=self.net)

    def act(self, observation: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * (self.net(observation).tanh() + 1) / 2

    def noisy(self, observation: Tensor) -> Tensor:
        action = self.act(observation)
        return (action + SIGMA * torch.randn_like(action)).clamp(self.low, self.high)

    def random(self, observation: Tensor) -> Tensor:
        shape = (len(observation), *self.low.shape)
        return self.low + (self.high - self.low) * torch.rand(shape, device=observation.device)

    def random_policy(self, td: TensorDictBase) -> TensorDictBase:
        return td.set((self.group, "action"), self.random(td[self.group, "observation"]))


def staggered(num_envs: int, fraction: float) -> list[Tensor]:
    """Disjoint sets of environments, each to be reset after one step; none for a fraction of 0."""
    count = max(round(fraction * num_envs), 1) if fraction else 0
    return [window for window in torch.randperm(num_envs).split(count) if len(window) == count] if count else []


def masks(windows: list[Tensor], env: EnvBase) -> list[Tensor]:
    """The same for TorchRL, (num_envs, 1), on the device."""
    none = torch.zeros(env.batch_size[0], 1, dtype=torch.bool)
    return [none.index_fill(0, window, True).to(env.device) for window in windows]


def vmas_loop(
    scenario: str, num_envs: int, device: str, choose: Callable[[Tensor], Tensor], windows: list[Tensor]
) -> Block:
    env = vmas.make_env(scenario, num_envs, device=device, seed=0)
    observation = torch.stack(env.reset(), 1)  # (num_envs, N, o)
    ended = itertools.cycle([window.tolist() for window in windows])

    def block(steps: int) -> None:
        nonlocal observation
        for _ in range(steps):
            observations = env.step(choose(observation).unbind(1))[0]
            if windows:
                for index in next(ended):
                    env.reset_at(index, return_observations=False)
                (observations,) = env.get_from_scenario(
                    get_observations=True, get_rewards=False, get_infos=False, get_dones=False
                )
            observation = torch.stack(observations, 1)

    return block


def torchrl_loop(env: EnvBase, policy: Policy | None, windows: list[Tensor]) -> Block:
    """Steps, each followed by a reset of a window, if there are any; without a policy resets alone."""
    td = env.reset()
    ended = itertools.cycle(masks(windows, env))

    def block(steps: int) -> None:
        nonlocal td
        for _ in range(steps):
            if policy is not None:
                td = env.step_mdp(env.step(policy(td)))
            if windows:
                td = env.reset(td.set("_reset", next(ended)))

    return block


@torch.no_grad()
def compare(
    blocks: dict[str, Block], per_unit: int, ratios: Any, options: Options, *, steps: int | None = None
) -> Cell:
    """Time the blocks in turns; a unit of work counts `per_unit`, such as the frames of a step.

    A turn has `steps` units, or as many as fit the budget, at most `turn_steps`; `ratios` are pairs of contenders.
    """
    share = options.budget / options.repeats
    units, left_out = {}, {}
    for name, block in blocks.items():
        if steps is not None:
            block(steps)
            units[name] = steps
            continue
        once = timed(block, 1, options.device)
        if once < 4 * options.budget:  # the first does what happens once, such as loading kernels
            once = timed(block, 1, options.device)
        if once > options.budget:
            left_out[name] = f"one step takes {once:.3g} s, more than the budget of {options.budget:.3g} s"
        else:
            units[name] = min(max(int(share / once), 1), options.turn_steps)
    seconds: dict[str, list[float]] = {name: [] for name in units}
    for _ in range(options.repeats):
        for name, count in units.items():
            seconds[name].append(timed(blocks[name], count, options.device))
    rates = {name: units[name] * per_unit / statistics.median(times) for name, times in seconds.items()}
    return {
        "counted_per_turn": {name: count * per_unit for name, count in units.items()},
        "seconds": seconds,
        "left_out": left_out,
        "per_second": rates,
        "ratios": {f"{a} / {b}": rates[a] / rates[b] for a, b in ratios if a in rates and b in rates},
    }


def timed(block: Block, units: int, device: str) -> float:
    def now() -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        return time.perf_counter()

    start = now()
    block(units)
    return now() - start


def draw(results: dict[str, Any]) -> Figure:
    """Frames per second over the number of environments, from what the JSON file holds."""
    cells = results.get("throughput") if isinstance(results, dict) else None
    if not cells:
        raise ValueError("The results hold no throughput to draw; measure it with --num-envs.")
    rows, columns = (list(dict.fromkeys(cell[name] for cell in cells)) for name in ("scenario", "policy"))
    fractions = list(dict.fromkeys(cell["done_fraction"] for cell in cells))
    figure = Figure(figsize=(6 * len(columns), 3.6 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for (i, scenario), (j, policy) in itertools.product(enumerate(rows), enumerate(columns)):
        axes = grid[i, j]
        for (colour, name), fraction in itertools.product(enumerate(("vmas", "VmasEnv", "ours", COMPILED)), fractions):
            points = [
                (cell["num_envs"], cell["per_second"][name])
                for cell in cells
                if (cell["scenario"], cell["policy"], cell["done_fraction"]) == (scenario, policy, fraction)
                and name in cell["per_second"]
            ]
            if not points:
                continue
            style = {"color": f"C{colour}", "linestyle": ("-", "--", ":", "-.")[fractions.index(fraction) % 4]}
            axes.plot(*zip(*sorted(points)), marker="o", markersize=3, label=f"{name}, {fraction:.0%} reset", **style)
        axes.set(xlabel="environments", ylabel="frames per second", title=f"{scenario}, {policy} actions")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
    grid[0, 0].legend(fontsize="small")
    where = results["about"]
    figure.suptitle(f"{where['machine']}, {where['threads']} threads", fontsize="small")
    return figure


def check(options: Options) -> None:
    """Fail before anything is measured or written, with what was found and what is expected."""
    sizes = (getattr(options, f"{name}_envs") for name in ("num", "reset", "step", "collection"))
    turns = (("repeats", options.repeats), ("turn_steps", options.turn_steps))
    for name, value in (*turns, *(("environments", size) for size in itertools.chain(*sizes))):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, found {value}.")
    if not options.budget > 0:
        raise ValueError(f"budget must be above 0 seconds, found {options.budget}.")
    if options.collection_steps < 10 or options.collection_steps % 10:
        raise ValueError(f"collection_steps must be a multiple of 10, found {options.collection_steps}.")
    for fraction in options.done_fractions:
        if not 0 <= fraction <= 1:
            raise ValueError(f"done_fractions must be between 0 and 1, found {fraction}.")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", options.device):
        raise ValueError(f"device must be cpu, cuda or cuda:INDEX, found {options.device!r}.")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={options.device} was asked for, but torch finds no CUDA device.")
    for scenario in (*options.scenarios, *options.reset_scenarios, *options.step_scenarios):
        groups = make_vmas_env(scenario, 1).group_map
        if len(groups) > 1:
            raise ValueError(f"A scenario must have one group of agents; {scenario} has {', '.join(groups)}.")


if __name__ == "__main__":
    torchrl_logger.setLevel("WARNING")  # its notes would break the progress bar
    try:
        with fresh_cache():  # for the time that it takes to compile
            main(tyro.cli(Options, description=__doc__))
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
