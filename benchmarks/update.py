"""Updates per second: one optimisation step of DDPG over a sampled batch, ours in each form and as others write it.

A step is both losses, their gradients, clipping, Adam and the soft update of the targets; drawing the sample is left
out. The nets are BiCNet's with navigation's sizes, but BenchMARL's, which are its own. Contenders are timed in turns,
A B C A B C, each step on the same batch; times are medians over the turns, ratios those of the medians.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from torchrl.data import Bounded
from torchrl.modules import ProbabilisticActor, TanhDelta, ValueOperator
from torchrl.objectives import DDPGLoss, SoftUpdate, ValueEstimators

from torchrl_bicnet import BiCNetActor, BiCNetCritic, RecurrentCommunication, UpdateStep, make_ddpg_loss
from torchrl_bicnet.runs.provenance import command_line, provenance

ROOT = Path(__file__).resolve().parent.parent
OBSERVATION, ACTION = 18, 2  # of an agent in navigation
GAMMA, TAU, ACTOR_LR, CRITIC_LR, MAX_GRAD_NORM = 0.97, 0.01, 5e-4, 1e-3, 1.0
DIFFERENCE_STEPS = 100
SLOW_TURNS = 3  # of a contender whose step takes more than five times the budget of a turn

EAGER, COMPILED = "ours, eager", "ours, compiled"
FORMS: dict[str, dict[str, Any]] = {  # of UpdateStep
    EAGER: {},
    COMPILED: {"compile": True},
    f"{EAGER}, bf16": {"autocast": torch.bfloat16},
    f"{COMPILED}, bf16": {"compile": True, "autocast": torch.bfloat16},
}
PARTS, PLAIN, SCRIPT, BENCHMARL = "TorchRL's parts", "plain PyTorch", "TorchRL's script", "BenchMARL"
PRODUCTS = "matrix products"
CONTENDERS = {
    **{name: "UpdateStep" + "".join(f", {k}={v}" for k, v in form.items()) for name, form in FORMS.items()},
    PARTS: "make_ddpg_loss, clip_grad_norm_, one fused Adam, SoftUpdate",
    PLAIN: "as CleanRL writes DDPG: deepcopied targets, torch.optim.Adam twice, a loop over the target parameters",
    SCRIPT: "the inner loop of sota-implementations/multiagent/maddpg_iddpg.py in pytorch/rl, with its modules around "
    "our nets; it has no target actor",
    BENCHMARL: "Experiment._optimizer_loop of its MADDPG in an environment of its own, with its default MLPs",
    PRODUCTS: "the products of one step alone, forward and backward, with the sizes and strides of a step whose "
    "recurrence is a loop, into memory that is already there",
    f"{PRODUCTS}, bf16": "the same in bfloat16",
}
RATIOS = [
    *((name, PRODUCTS) for name in (COMPILED, EAGER)),
    *((name, COMPILED) for name in (EAGER, PARTS, PLAIN, SCRIPT, BENCHMARL)),
    *((name, EAGER) for name in (PARTS, PLAIN, SCRIPT, BENCHMARL)),
    *((name, f"{name}, bf16") for name in (EAGER, COMPILED, PRODUCTS)),
]
Update = Callable[[TensorDictBase], Any]
Product = tuple[Callable[..., Tensor], Tensor, Tensor]
Cell = dict[str, Any]


@dataclass
class Options:
    cells: tuple[Literal["lstm", "gru"], ...] = ("lstm", "gru")
    """recurrences of actor and critic"""
    batch_sizes: tuple[int, ...] = (256, 2048)
    """joint transitions of a sampled batch"""
    n_agents: int = 4
    """agents"""
    hidden_size: int = 64
    """size of a direction's hidden state"""
    turns: int = 7
    """turns of each contender"""
    budget: float = 0.3
    """seconds aimed at for a turn of a contender, one step at least"""
    threads: int = 1
    """threads of torch and of the compiled step"""
    device: str = "cpu"
    """where everything lives: cpu, cuda, cuda:1, ..."""
    compiled: bool = True
    """measure ours compiled too, from an empty cache of Inductor"""
    benchmarl_python: str | None = None
    """the Python of a virtual environment with BenchMARL, which is left out without it"""
    output: Path = ROOT / "benchmarks" / "results" / "update"
    """folder for one_thread.json, two_threads.json, ..."""
    quick: bool = False
    """a look in seconds, into runs/update-quick: an LSTM with batches of 32, uncompiled, two turns, whatever these
    options say"""
    inside: bool = False
    """compile the step of the first cell and batch size in this process and print the seconds"""


QUICK = {
    "cells": ("lstm",),
    "batch_sizes": (32,),
    "turns": 2,
    "budget": 0.02,
    "compiled": False,
    "output": Path("runs", "update-quick"),
}


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    if options.inside:
        sample = make_sample(options.batch_sizes[0], options)
        print(compile_step(options.cells[0], options, sample, FORMS[COMPILED])[1])
        return
    if options.quick:
        options = replace(options, **QUICK)
    names = {1: "one_thread", 2: "two_threads"}
    file = options.output / f"{names.get(options.threads, f'{options.threads}_threads')}.json"
    options.output.mkdir(parents=True, exist_ok=True)
    chosen = {name: value for name, value in asdict(options).items() if name not in ("output", "benchmarl_python")}
    capability = torch.backends.cpu.get_cpu_capability()  # whether it has products of bfloat16
    about = {"command": command_line(__file__), "options": chosen, "cpu_capability": capability, **provenance()}
    left_out = {} if options.compiled else {name: "--no-compiled" for name in FORMS if name.startswith(COMPILED)}
    if options.benchmarl_python is None:
        left_out[BENCHMARL] = "no --benchmarl-python"
    results: Cell = {"about": about, "contenders": CONTENDERS, "left_out": left_out, "cells": []}
    for cell in options.cells:
        for batch_size in options.batch_sizes:
            found = measure(cell, batch_size, options)
            results["cells"].append({"cell": cell, "batch_size": batch_size, **found})
            file.write_text(json.dumps(results, indent=2) + "\n")  # a stopped benchmark keeps the cells it has
            times = ", ".join(f"{name} {value:.1f}" for name, value in found["milliseconds"].items())
            print(f"{cell}, batch {batch_size}, milliseconds: {times}", flush=True)
    print(f"The raw repeats are in {file}")


def measure(cell: str, batch_size: int, options: Options) -> Cell:
    sample = make_sample(batch_size, options)
    updates, result = our_updates(cell, options, sample)
    updates[PARTS] = parts_update(cell, options)
    updates[PLAIN] = PlainUpdate(*(module.module for module in make_nets(cell, options)))
    updates[SCRIPT] = script_update(cell, options)
    products = matrix_products(cell, options, sample)
    result["products"] = {"count": len(products), "gflop": count_flops(products) / 1e9}
    updates[PRODUCTS] = replay(products)
    updates[f"{PRODUCTS}, bf16"] = replay(products, torch.bfloat16)
    timers = {name: timer(update, sample) for name, update in updates.items()}
    if options.benchmarl_python is None:
        return result | take_turns(timers, options)
    with benchmarl(batch_size, options) as (time_benchmarl, described):
        return result | take_turns({**timers, BENCHMARL: time_benchmarl}, options) | {"benchmarl": described}


def our_updates(cell: str, options: Options, sample: TensorDictBase) -> tuple[dict[str, Update], Cell]:
    """Each form of `UpdateStep`, the seconds to compile it, and how far a compiled one goes from the eager one.

    The latter for the smallest batch alone; bf16 is compiled where it does not slow down the eager form threefold.
    """
    updates: dict[str, Update] = {name: our_update(cell, options, **form) for name, form in FORMS.items()}
    if not options.compiled:
        return {name: update for name, update in updates.items() if not FORMS[name].get("compile")}, {}
    with fresh_cache():
        updates[COMPILED], seconds = compile_step(cell, options, sample, FORMS[COMPILED])
        again = compile_in_new_process(cell, options, len(sample))
    result: Cell = {"seconds_to_compile": {COMPILED: {"empty_cache": seconds, "from_cache": again}}}
    if len(sample) == min(options.batch_sizes):
        loop = loop_update(cell, options)
        result["difference"] = difference(updates[EAGER], updates[COMPILED], loop, sample, options)
    bf16 = f"{COMPILED}, bf16"
    slower = slowdown(updates[f"{EAGER}, bf16"], updates[EAGER], sample)
    if slower > 3:
        del updates[bf16]
        return updates, result | {"left_out": {bf16: "the eager form takes more than three times as long as fp32"}}
    with fresh_cache():
        updates[bf16], seconds = compile_step(cell, options, sample, FORMS[bf16])
    result["seconds_to_compile"][bf16] = {"empty_cache": seconds}
    return updates, result


def slowdown(update: Update, other: Update, sample: TensorDictBase) -> float:
    seconds = []
    for run in (timer(update, sample), timer(other, sample)):
        run(1)
        seconds.append(run(1))
    return seconds[0] / seconds[1]


def compile_step(cell: str, options: Options, sample: TensorDictBase, form: dict[str, Any]) -> tuple[UpdateStep, float]:
    """A compiled step that was taken once, and the seconds that it took to make and to take."""
    loss = make_loss(cell, options)
    start = time.perf_counter()
    update = make_step(loss, **form)
    update(sample)
    return update, time.perf_counter() - start


def compile_in_new_process(cell: str, options: Options, batch_size: int) -> float:
    """The seconds of `compile_step` in a new process, which finds the cache of Inductor that this one has."""
    same = {name: getattr(options, name) for name in ("n_agents", "hidden_size", "threads", "device")}
    settings = {"cells": cell, "batch_sizes": batch_size, **same}
    flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-W", "ignore", __file__, "--inside", *flags]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def difference(
    eager: UpdateStep, compiled: UpdateStep, loop: UpdateStep, sample: TensorDictBase, options: Options
) -> dict[str, float]:
    """Largest differences of a parameter after as many steps, each on a sample of its own, from the same parameters.

    Of the compiled from the eager step; of the eager step whose recurrence is a loop, which differs in rounding alone;
    and of the parameters from those before.
    """
    before = [parameter.detach().clone() for parameter in eager.loss.parameters()]
    for update in (eager, loop):
        update(sample)  # the compiled one has taken this step
    for seed in range(2, DIFFERENCE_STEPS + 1):
        sample = make_sample(len(sample), options, seed)
        for update in (eager, compiled, loop):
            update(sample)
    others = {"compiled": compiled.loss.parameters(), "rounding": loop.loss.parameters(), "change": before}
    largest = {name: _distance(eager.loss.parameters(), found) for name, found in others.items()}
    return {"steps": DIFFERENCE_STEPS, **largest}


def _distance(parameters: Iterable[Tensor], others: Iterable[Tensor]) -> float:
    return max((one - other).abs().max().item() for one, other in zip(parameters, others))


def take_turns(timers: dict[str, Callable[[int], float]], options: Options) -> Cell:
    """Seconds of a step of each contender in each turn, and what they give."""
    once = {}
    for name, run in timers.items():
        run(1)
        once[name] = run(1)
    counts = {name: max(1, int(options.budget / seconds)) for name, seconds in once.items()}
    slow = {name for name, seconds in once.items() if seconds > 5 * options.budget}
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for turn in range(options.turns):
        for name, run in timers.items():
            if turn < SLOW_TURNS or name not in slow:
                seconds[name].append(run(counts[name]) / counts[name])
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    return {
        "steps_per_turn": counts,
        "seconds_per_step": seconds,
        "milliseconds": {name: 1e3 * median for name, median in medians.items()},
        "updates_per_second": {name: 1 / median for name, median in medians.items()},
        "ratios_of_times": {f"{a} / {b}": medians[a] / medians[b] for a, b in RATIOS if {a, b} <= medians.keys()},
    }


def timer(update: Update, sample: TensorDictBase) -> Callable[[int], float]:
    def run(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            update(sample)
        if sample.device is not None and sample.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return run


def make_sample(batch_size: int, options: Options, seed: int = 1) -> TensorDictBase:
    torch.manual_seed(seed)
    shape = (batch_size, options.n_agents)
    ended = torch.zeros(*shape, 1, dtype=torch.bool)
    then = {
        "observation": torch.randn(*shape, OBSERVATION),
        "reward": torch.randn(*shape, 1),
        "done": ended,
        "terminated": ended.clone(),
    }
    now = {"observation": torch.randn(*shape, OBSERVATION), "action": 2 * torch.rand(*shape, ACTION) - 1}
    return TensorDict({"agents": now, "next": {"agents": then}}, [batch_size]).to(options.device)


def make_nets(cell: str, options: Options) -> tuple[BiCNetActor, BiCNetCritic]:
    torch.manual_seed(0)
    spec = Bounded(-1.0, 1.0, (options.n_agents, ACTION), device=options.device)
    net = {"communication": cell, "hidden_size": options.hidden_size, "device": options.device}
    return BiCNetActor(OBSERVATION, spec, **net), BiCNetCritic(OBSERVATION, ACTION, **net)


def make_loss(cell: str, options: Options) -> DDPGLoss:
    return make_ddpg_loss(*make_nets(cell, options), gamma=GAMMA)


def make_step(loss: DDPGLoss, **form: Any) -> UpdateStep:
    rates = {"actor_lr": ACTOR_LR, "critic_lr": CRITIC_LR}
    return UpdateStep(loss, **rates, tau=TAU, max_grad_norm=MAX_GRAD_NORM, **form)


def our_update(cell: str, options: Options, **form: Any) -> UpdateStep:
    return make_step(make_loss(cell, options), **form)


class PlainUpdate:
    """The step as one writes it with torch alone: an optimiser for each net, a loop over the targets."""

    def __init__(self, actor: nn.Module, critic: nn.Module) -> None:
        self.actor, self.critic = actor, critic
        self.targets = deepcopy(self.actor), deepcopy(self.critic)
        self.actor_optimiser = torch.optim.Adam(self.actor.parameters(), ACTOR_LR)
        self.critic_optimiser = torch.optim.Adam(self.critic.parameters(), CRITIC_LR)

    def __call__(self, sample: TensorDictBase) -> None:
        now, then = sample["agents"], sample["next", "agents"]
        with torch.no_grad():
            target_actor, target_critic = self.targets
            value = target_critic(then["observation"], target_actor(then["observation"])[1])
            target = then["reward"] + GAMMA * ~then["terminated"] * value
        loss = nn.functional.mse_loss(self.critic(now["observation"], now["action"]), target)
        self._step(loss, self.critic, self.critic_optimiser)
        loss = -self.critic(now["observation"], self.actor(now["observation"])[1]).mean()
        self._step(loss, self.actor, self.actor_optimiser)
        with torch.no_grad():
            for target_net, net in zip(self.targets, (self.actor, self.critic)):
                for old, new in zip(target_net.parameters(), net.parameters()):
                    old.mul_(1 - TAU).add_(TAU * new)

    def _step(self, loss: Tensor, net: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), MAX_GRAD_NORM)
        optimiser.step()


def loop_update(cell: str, options: Options) -> UpdateStep:
    """The eager step whose recurrence is a loop over the agents."""
    update = our_update(cell, options)
    for net in (update.loss.actor_network, update.loss.value_network):
        next(m for m in net.modules() if isinstance(m, RecurrentCommunication)).implementation = "loop"
    return update


def parts_update(cell: str, options: Options) -> Update:
    actor, critic = make_nets(cell, options)
    loss = make_ddpg_loss(actor, critic, gamma=GAMMA)
    target_update = SoftUpdate(loss, tau=TAU)
    trained = [*actor.parameters(), *critic.parameters()]
    groups = [{"params": list(net.parameters()), "lr": lr} for net, lr in ((actor, ACTOR_LR), (critic, CRITIC_LR))]
    optimiser = torch.optim.Adam(groups, fused=True)

    def update(sample: TensorDictBase) -> None:
        output = loss(sample)
        (output["loss_actor"] + output["loss_value"]).backward()
        nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
        optimiser.step()
        optimiser.zero_grad()
        target_update.step()

    return update


def script_update(cell: str, options: Options) -> Update:
    """The inner loop of TorchRL's multi-agent DDPG script, and its modules around nets of ours."""
    nets = [part.get_submodule("module.net") for part in make_nets(cell, options)]
    spec = Bounded(-1.0, 1.0, (options.n_agents, ACTION), device=options.device)
    observation, action = ("agents", "observation"), ("agents", "action")
    policy = ProbabilisticActor(
        module=TensorDictModule(nets[0], [observation], [("agents", "param")]),
        spec=spec,
        in_keys=[("agents", "param")],
        out_keys=[action],
        distribution_class=TanhDelta,
        distribution_kwargs={"low": spec.space.low, "high": spec.space.high},
        return_log_prob=False,
    )
    value = ("agents", "state_action_value")
    critic = ValueOperator(nets[1], in_keys=[observation, action], out_keys=[value])
    loss = DDPGLoss(policy, critic, delay_value=True)
    ended = {name: ("agents", name) for name in ("reward", "done", "terminated")}
    loss.set_keys(state_action_value=value, **ended)
    loss.make_value_estimator(ValueEstimators.TD0, gamma=GAMMA)
    target_update = SoftUpdate(loss, eps=1 - TAU)
    optimiser = torch.optim.Adam(loss.parameters(), CRITIC_LR)

    def update(sample: TensorDictBase) -> None:
        output = loss(sample)
        metrics = output.detach()
        (output["loss_actor"] + output["loss_value"]).backward()
        norm = nn.utils.clip_grad_norm_(loss.parameters(), MAX_GRAD_NORM)
        metrics.set("grad_norm", norm.mean())
        optimiser.step()
        optimiser.zero_grad()
        target_update.step()

    return update


class RecordedProducts(TorchDispatchMode):
    """Collects the operands of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Product] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in ("mm", "addmm", "bmm", "baddbmm"):
            product = torch.bmm if name in ("bmm", "baddbmm") else torch.mm
            first, second = (operand.detach().clone() for operand in args[-2:])  # which keeps the strides
            self.found.append((product, first, second))
        return function(*args, **kwargs or {})


def matrix_products(cell: str, options: Options, sample: TensorDictBase) -> list[Product]:
    """Those of an eager step whose recurrence is a loop."""
    update = loop_update(cell, options)
    with RecordedProducts() as products:
        update(sample)
    return products.found


def count_flops(products: list[Product]) -> int:
    update = replay(products)
    with FlopCounterMode(display=False) as flops:
        update(None)
    return flops.get_total_flops()


def replay(products: list[Product], dtype: torch.dtype = torch.float32) -> Callable[[Any], list[Tensor]]:
    """Calls the products one after the other, into one piece of memory for each shape."""
    run, outputs = [], {}
    for product, first, second in products:
        output = product(first, second).to(dtype)
        run.append((product, first.to(dtype), second.to(dtype), outputs.setdefault(output.shape, output)))

    def update(_: Any) -> list[Tensor]:
        return [product(first, second, out=output) for product, first, second, output in run]

    return update


@contextmanager
def benchmarl(batch_size: int, options: Options) -> Iterator[tuple[Callable[[int], float], Any]]:
    """A process of BenchMARL's environment that takes so many steps and says how long they took; and what it says."""
    script = ROOT / "benchmarks" / "rivals" / "benchmarl_update.py"
    sizes = {"--batch-size": batch_size, "--n-agents": options.n_agents, "--threads": options.threads}
    arguments = [str(part) for pair in sizes.items() for part in pair]
    with subprocess.Popen(
        [str(options.benchmarl_python), "-W", "ignore", str(script), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        described = json.loads(_line(process.stdout))

        def run(count: int) -> float:
            process.stdin.write(f"{count}\n")
            process.stdin.flush()
            return float(_line(process.stdout))

        yield run, described
        process.stdin.close()


def _line(stream: Any) -> str:
    """The next line that is a number or an object, past what a library prints."""
    while line := stream.readline():
        if line[0].isdigit() or line[0] == "{":
            return line
    raise RuntimeError("The process of BenchMARL ended early.")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
