"""Milliseconds of one optimisation step of DDPG over a sampled batch: ours in each form, and what others do.

All but BenchMARL train the same nets on the same batch, drawing it from a replay buffer left out; contenders take turns
in one process. `matrix products` is the products of such a step alone, of the same shapes, and so a floor.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from torchrl.data import Bounded
from torchrl.objectives import DDPGLoss, SoftUpdate

from torchrl_bicnet import BiCNetActor, BiCNetCritic, RecurrentCommunication, UpdateStep, make_ddpg_loss
from torchrl_bicnet.runs.provenance import provenance

ROOT = Path(__file__).resolve().parent.parent
OBSERVATION, ACTION = 18, 2  # of an agent in navigation
GAMMA, TAU, ACTOR_LR, CRITIC_LR, MAX_GRAD_NORM = 0.97, 0.01, 5e-4, 1e-3, 1.0
FORMS: dict[str, dict[str, Any]] = {
    "UpdateStep": {},
    "UpdateStep, compiled": {"compile": True},
    "UpdateStep, bfloat16": {"autocast": torch.bfloat16},
    "UpdateStep, bfloat16, compiled": {"autocast": torch.bfloat16, "compile": True},
}
Update = Callable[[TensorDictBase], object]
Cell = dict[str, Any]


@dataclass
class Options:
    cells: tuple[Literal["lstm", "gru"], ...] = ("lstm", "gru")
    """recurrences of actor and critic"""
    batch_sizes: tuple[int, ...] = (256, 2048)
    """joint transitions of a batch"""
    n_agents: int = 4
    """agents"""
    hidden_size: int = 64
    """size of a direction's hidden state"""
    turns: int = 9
    """turns of all contenders"""
    budget: float = 0.5
    """seconds of a contender in a turn, one step at least"""
    threads: int = 1
    """threads of torch"""
    device: str = "cpu"
    """cpu or cuda"""
    benchmarl_python: str = ""
    """Python of an environment with BenchMARL, which is left out without it"""
    output: Path = ROOT / "benchmarks" / "results" / "update" / "one_thread.json"
    """where the results go"""
    quick: bool = False
    """one small cell in seconds, to runs/update-quick.json"""

    def __post_init__(self) -> None:
        if self.quick:
            self.cells, self.batch_sizes, self.n_agents, self.hidden_size = ("lstm",), (8,), 2, 8
            self.turns, self.budget, self.output = 2, 0.01, ROOT / "runs" / "update-quick.json"


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    about = {**provenance(), "command": " ".join(sys.argv), "options": asdict(options)}
    cells: list[Cell] = []
    for cell in options.cells:
        for batch_size in options.batch_sizes:
            cells.append(measure(cell, batch_size, options))
            print(f"{cell} {batch_size}: {json.dumps(cells[-1]['milliseconds'])}", flush=True)
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps({"about": about, "cells": cells}, indent=1, default=str) + "\n")
    print(f"Written to {options.output}")


def measure(cell: str, batch_size: int, options: Options) -> Cell:
    sample = make_sample(batch_size, options.n_agents).to(options.device)
    updates: dict[str, Update] = {}
    compiling: Cell = {}
    for name, form in FORMS.items():
        updates[name] = our_update(cell, options, **form)
        if form.get("compile"):
            compiling[name] = time_to_compile(cell, options, sample, form)
    updates["plain PyTorch"] = PlainUpdate(*(module.module for module in make_nets(cell, options)))
    updates["body of TorchRL's script"] = torchrl_update(make_loss(cell, options))
    products, result = matrix_products(cell, options, sample)
    updates["matrix products"] = products
    result |= {"cell": cell, "batch_size": batch_size, "compiling": compiling}
    result["difference_after_100_steps"] = difference(cell, options, sample)
    timers: dict[str, Callable[[int], float]] = {name: timer(update, sample) for name, update in updates.items()}
    with benchmarl(batch_size, options) as (time_benchmarl, described):
        if time_benchmarl is not None:
            timers["BenchMARL's MADDPG, its MLPs"] = time_benchmarl
        result["benchmarl"] = described
        seconds = take_turns(timers, options)
    result["seconds"] = seconds
    result["milliseconds"] = {name: round(1e3 * statistics.median(found), 3) for name, found in seconds.items()}
    return result


def take_turns(timers: dict[str, Callable[[int], float]], options: Options) -> dict[str, list[float]]:
    counts = {}
    for name, run in timers.items():
        run(2)
        counts[name] = max(1, int(options.budget / run(1)))
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(options.turns):
        for name, run in timers.items():
            seconds[name].append(run(counts[name]) / counts[name])
    return seconds


def timer(update: Update, sample: TensorDictBase) -> Callable[[int], float]:
    def run(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            update(sample)
        if sample.device is not None and sample.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return run


def make_sample(batch_size: int, n_agents: int) -> TensorDict:
    torch.manual_seed(1)
    shape = (batch_size, n_agents)
    ended = torch.zeros(*shape, 1, dtype=torch.bool)
    then = {
        "observation": torch.randn(*shape, OBSERVATION),
        "reward": torch.randn(*shape, 1),
        "done": ended,
        "terminated": ended.clone(),
    }
    now = {"observation": torch.randn(*shape, OBSERVATION), "action": torch.rand(*shape, ACTION)}
    return TensorDict({"agents": now, "next": {"agents": then}}, [batch_size])


def make_nets(cell: str, options: Options) -> tuple[BiCNetActor, BiCNetCritic]:
    torch.manual_seed(0)
    spec = Bounded(-1.0, 1.0, (options.n_agents, ACTION), device=options.device)
    net = {"communication": cell, "hidden_size": options.hidden_size, "device": options.device}
    return BiCNetActor(OBSERVATION, spec, **net), BiCNetCritic(OBSERVATION, ACTION, **net)


def make_loss(cell: str, options: Options) -> DDPGLoss:
    return make_ddpg_loss(*make_nets(cell, options), gamma=GAMMA)


def our_update(cell: str, options: Options, **form: Any) -> UpdateStep:
    return UpdateStep(
        make_loss(cell, options),
        actor_lr=ACTOR_LR,
        critic_lr=CRITIC_LR,
        tau=TAU,
        max_grad_norm=MAX_GRAD_NORM,
        **form,
    )


def time_to_compile(cell: str, options: Options, sample: TensorDictBase, form: dict[str, Any]) -> dict[str, float]:
    """Wall-clock seconds of the first call with an empty cache of Inductor, and with one that has the step."""
    seconds = {}
    with fresh_cache():
        for cache in ("cold", "warm"):
            update = our_update(cell, options, **form)
            start = time.perf_counter()
            update(sample)
            seconds[cache] = time.perf_counter() - start
    return seconds


def difference(cell: str, options: Options, sample: TensorDictBase) -> float:
    """The largest of any parameter after a hundred steps, compiled and not."""
    eager, compiled = our_update(cell, options), our_update(cell, options, compile=True)
    for _ in range(100):
        eager(sample)
        compiled(sample)
    pairs = zip(eager.loss.parameters(), compiled.loss.parameters())
    return max((one - other).abs().max().item() for one, other in pairs)


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


def torchrl_update(loss: DDPGLoss) -> Update:
    """What TorchRL's multi-agent DDPG script does with a sample: one optimiser for the loss, and a target updater."""
    optimiser, targets = torch.optim.Adam(loss.parameters(), CRITIC_LR), SoftUpdate(loss, tau=TAU)

    def update(sample: TensorDictBase) -> None:
        output = loss(sample)
        (output["loss_actor"] + output["loss_value"]).backward()
        nn.utils.clip_grad_norm_(loss.parameters(), MAX_GRAD_NORM)
        optimiser.step()
        optimiser.zero_grad()
        targets.step()

    return update


class _Products(TorchDispatchMode):
    """Collects the operands of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Any, list[Tensor]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in ("mm", "addmm", "bmm", "baddbmm"):
            product = torch.bmm if name in ("bmm", "baddbmm") else torch.mm
            self.found.append((product, [operand.detach().clone() for operand in args[-2:]]))
        return function(*args, **kwargs or {})


def matrix_products(cell: str, options: Options, sample: TensorDictBase) -> tuple[Update, Cell]:
    """The matrix products of a step whose recurrence is a loop, on their own."""
    update = our_update(cell, options)
    for net in (update.loss.actor_network, update.loss.value_network):
        next(m for m in net.modules() if isinstance(m, RecurrentCommunication)).implementation = "loop"
    with _Products() as products:
        update(sample)

    def run(_: TensorDictBase) -> None:
        for product, operands in products.found:
            product(*operands)

    with FlopCounterMode(display=False) as flops:
        run(sample)
    return run, {"matrix_products": len(products.found), "gflop": flops.get_total_flops() / 1e9}


@contextmanager
def benchmarl(batch_size: int, options: Options) -> Iterator[tuple[Callable[[int], float] | None, Any]]:
    """A process of BenchMARL's environment that takes so many steps and says how long they took."""
    if not options.benchmarl_python:
        yield None, "left out: no --benchmarl-python"
        return
    script = ROOT / "benchmarks" / "rivals" / "benchmarl_update.py"
    sizes = {"--batch-size": batch_size, "--n-agents": options.n_agents, "--threads": options.threads}
    arguments = [str(part) for pair in sizes.items() for part in pair]
    with subprocess.Popen(
        [options.benchmarl_python, str(script), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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
