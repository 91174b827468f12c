"""Milliseconds of the communication layer, forward and with backward, beside torch's layers and those of its rivals.

Contenders take turns in one process. `matrix products` is the products that a recurrence of both directions needs,
alone. Forward is without autograd, as in a rollout.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn
from torchrl.modules import MultiAgentMLP

from torchrl_bicnet import AttentionCommunication, MeanCommunication, RecurrentCommunication
from torchrl_bicnet.runs.provenance import command_line, provenance

ROOT = Path(__file__).resolve().parent.parent
IN_FEATURES = 128  # the width of BiCNet's encoder
GATES = {"lstm": 4, "gru": 3}
GRID = (
    *(("lstm", 256, n_agents) for n_agents in (4, 8, 32, 128, 256)),
    ("lstm", 2048, 4),
    *(("gru", 256, n_agents) for n_agents in (4, 8, 128)),
)
FORWARD, BACKWARD, PRODUCTS, COMPILED = "forward", "forward and backward", "matrix products", "loop, compiled"
Layer = Callable[[Tensor], Any]
Calls = dict[str, Callable[[], Any]]


@dataclass
class Options:
    batch: tuple[int, ...] = ()
    """batch sizes; batch and agents together replace the default sizes by all their pairs, for each cell"""
    agents: tuple[int, ...] = ()
    """numbers of agents"""
    cells: tuple[Literal["lstm", "gru"], ...] = ("lstm", "gru")
    """recurrences"""
    hidden_size: int = 64
    """size of a direction's hidden state"""
    max_compiled_agents: int = 8
    """the compiled loop is left out for larger teams: it is unrolled, and the time to compile it grows with the team"""
    teams: tuple[int, int] = (8, 128)
    """teams whose times per agent are compared, at the first batch size: they take turns with each other"""
    repeats: int = 5
    """turns of all contenders"""
    budget: float = 0.1
    """seconds of a contender in a turn, one call at least"""
    threads: int = 1
    """threads of torch"""
    device: str = "cpu"
    """cpu or cuda"""
    output: Path = ROOT / "benchmarks" / "results" / "communication_layer" / "cpu.json"
    """where the results go"""
    quick: bool = False
    """two small teams in seconds, nothing compiled, to runs/communication_layer.json"""

    def __post_init__(self) -> None:
        if bool(self.batch) != bool(self.agents):
            raise ValueError("--batch and --agents go together")
        if self.quick:
            self.batch, self.agents, self.cells, self.hidden_size = (8,), (2, 4), ("lstm", "gru"), 8
            self.max_compiled_agents, self.teams, self.repeats, self.budget = 0, (2, 4), 2, 0.01
            if self.output == Options.output:
                self.output = ROOT / "runs" / "communication_layer.json"

    @property
    def grid(self) -> list[tuple[str, int, int]]:
        if not self.batch:
            return [size for size in GRID if size[0] in self.cells]
        return list(itertools.product(self.cells, self.batch, self.agents))


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    shown = {name: value for name, value in asdict(options).items() if name != "output"}  # no path of a machine
    results: dict[str, Any] = {"about": {**provenance(), "command": command_line(__file__), "options": shown}}
    results |= {"teams": [measure_teams(cell, options) for cell in options.cells], "cells": []}
    for size in options.grid:
        results["cells"].append(measure(*size, options))
        print(f"{size}: {json.dumps(results['cells'][-1]['milliseconds'])}", flush=True)
        results["about"]["seconds"] = round(time.perf_counter() - start, 1)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"Written to {options.output}")


def measure(cell: str, batch_size: int, n_agents: int, options: Options) -> dict[str, Any]:
    torch.manual_seed(0)
    layers = make_layers(cell, n_agents, options)
    parameters = {name: sum(p.numel() for p in net.parameters()) for name, net in layers.items()}
    x = torch.randn(batch_size, n_agents, IN_FEATURES, device=options.device, requires_grad=True)
    result: dict[str, Any] = {"cell": cell, "batch_size": batch_size, "n_agents": n_agents, "parameters": parameters}
    result["megabytes_kept"] = {name: round(megabytes_kept(layer, x), 3) for name, layer in layers.items()}
    if n_agents <= options.max_compiled_agents:
        torch.compiler.reset()
        layers[COMPILED] = torch.compile(layers["loop"], fullgraph=True, dynamic=False)
        result["seconds_to_compile"] = {
            FORWARD: round(seconds_of(lambda: forward(layers[COMPILED], x), options.device), 1),
            BACKWARD: round(seconds_of(lambda: backward(layers[COMPILED], x), options.device), 1),
        }
    else:
        why = f"{n_agents} agents are more than {options.max_compiled_agents}: an unrolled loop compiles for too long"
        result["left_out"] = {COMPILED: why}
    calls = calls_of(layers, x) | matrix_products(cell, batch_size, n_agents, options)
    seconds = take_turns(calls, options)
    return {**result, "milliseconds": medians(seconds), "seconds": seconds}


def measure_teams(cell: str, options: Options) -> dict[str, Any]:
    """Two sizes of teams in turns, since a machine that others use is not as fast a minute later."""
    torch.manual_seed(0)
    batch_size = options.grid[0][1]
    calls: Calls = {}
    for n_agents in options.teams:
        layers = make_layers(cell, n_agents, options)
        layers = {name: layers[name] for name in ("fused", "loop")}
        x = torch.randn(batch_size, n_agents, IN_FEATURES, device=options.device, requires_grad=True)
        of_team = calls_of(layers, x) | matrix_products(cell, batch_size, n_agents, options)
        calls |= {f"{n_agents} agents, {name}": call for name, call in of_team.items()}
    seconds = take_turns(calls, options)
    return {"cell": cell, "batch_size": batch_size, "milliseconds": medians(seconds), "seconds": seconds}


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(1e3 * statistics.median(times), 4) for name, times in seconds.items()}


def calls_of(layers: dict[str, nn.Module], x: Tensor) -> Calls:
    calls: Calls = {}
    for name, layer in layers.items():
        calls[f"{name}, {FORWARD}"] = lambda layer=layer: forward(layer, x)
        calls[f"{name}, {BACKWARD}"] = lambda layer=layer: backward(layer, x)
    return calls


def make_layers(cell: str, n_agents: int, options: Options) -> dict[str, nn.Module]:
    hidden_size, out_features = options.hidden_size, 2 * options.hidden_size
    recurrences = {
        implementation: RecurrentCommunication(IN_FEATURES, hidden_size, cell=cell, implementation=implementation)
        for implementation in ("fused", "loop")
    }
    layers: dict[str, nn.Module] = {**recurrences}
    torchs = nn.LSTM if cell == "lstm" else nn.GRU
    layers[f"torch.nn.{cell.upper()}"] = torchs(IN_FEATURES, hidden_size, batch_first=True, bidirectional=True)
    layers["mean"] = MeanCommunication(IN_FEATURES, out_features)
    layers["attention"] = AttentionCommunication(IN_FEATURES, out_features)
    n_parameters = sum(p.numel() for p in recurrences["loop"].parameters())
    width = round((n_parameters - out_features) / (IN_FEATURES + 1 + out_features))
    layers["MultiAgentMLP"] = MultiAgentMLP(
        IN_FEATURES, out_features, n_agents, centralized=False, share_params=True, num_cells=[width]
    )
    return {name: layer.to(options.device) for name, layer in layers.items()}


def forward(layer: Layer, x: Tensor) -> Tensor:
    with torch.no_grad():
        return _output(layer(x))


def backward(layer: Layer, x: Tensor) -> None:
    x.grad = None
    _output(layer(x)).sum().backward()


def megabytes_kept(layer: nn.Module, x: Tensor) -> float:
    """What autograd keeps from the forward pass for the backward pass, beside the input and the parameters."""
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = layer(x)  # which holds what is kept while it is counted
    for tensor in (x, *layer.parameters()):
        found.pop(tensor.untyped_storage().data_ptr(), None)
    del output
    return sum(found.values()) / 1e6


def _output(result: Any) -> Tensor:
    return result[0] if isinstance(result, tuple) else result  # of torch.nn.LSTM, beside its state


def matrix_products(cell: str, batch_size: int, n_agents: int, options: Options) -> Calls:
    """Gates of the inputs in one product, of the hidden states in one per agent; for each two more going backward."""
    hidden_size, gates = options.hidden_size, GATES[cell] * options.hidden_size
    inputs = torch.randn(batch_size * n_agents, IN_FEATURES, device=options.device)
    weight = torch.randn(IN_FEATURES, 2 * gates, device=options.device)
    hidden = torch.randn(2, batch_size, hidden_size, device=options.device)  # of both directions
    recurrent = torch.randn(2, hidden_size, gates, device=options.device)
    gradient, step_gradient = inputs @ weight, torch.bmm(hidden, recurrent)

    def run_forward() -> None:
        inputs @ weight
        for _ in range(n_agents):
            torch.bmm(hidden, recurrent)

    def run() -> None:
        run_forward()
        gradient @ weight.T, inputs.T @ gradient
        for _ in range(n_agents):
            torch.bmm(step_gradient, recurrent.mT)
            torch.bmm(hidden.mT, step_gradient)

    return {f"{PRODUCTS}, {FORWARD}": run_forward, f"{PRODUCTS}, {BACKWARD}": run}


def take_turns(calls: Calls, options: Options) -> dict[str, list[float]]:
    """Seconds of a call in each turn, after two calls to warm up."""
    counts = {}
    for name, call in calls.items():
        call()
        counts[name] = max(1, int(options.budget / seconds_of(call, options.device)))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(options.repeats):
        for name, call in calls.items():
            seconds[name].append(seconds_of(call, options.device, counts[name]))
    return seconds


def seconds_of(call: Callable[[], Any], device: str, count: int = 1) -> float:
    synchronize = torch.cuda.synchronize if device != "cpu" else lambda: None
    synchronize()
    start = time.perf_counter()
    for _ in range(count):
        call()
    synchronize()
    return (time.perf_counter() - start) / count


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
