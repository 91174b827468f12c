"""Milliseconds of the communication layer, forward and with backward, beside torch's layers and those of its rivals.

Contenders take turns in one process. `matrix products` is the products that a recurrence of both directions needs,
alone, and so a floor for the recurrences.
"""

from __future__ import annotations

import json
import statistics
import sys
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
from torchrl_bicnet.runs.provenance import provenance

ROOT = Path(__file__).resolve().parent.parent
IN_FEATURES = 128  # the width of BiCNet's encoder
GATES = {"lstm": 4, "gru": 3}
Layer = Callable[[Tensor], Any]


@dataclass
class Options:
    cells: tuple[Literal["lstm", "gru"], ...] = ("lstm", "gru")
    """recurrences"""
    sizes: tuple[tuple[int, int], ...] = ((256, 4), (256, 8), (256, 32), (256, 128), (256, 256), (2048, 4))
    """pairs of a batch size and a number of agents"""
    hidden_size: int = 64
    """size of a direction's hidden state"""
    max_compiled_agents: int = 8
    """the compiled loop is left out for larger teams: compiling takes minutes, since it is unrolled"""
    turns: int = 7
    """turns of all contenders"""
    budget: float = 0.3
    """seconds of a contender in a turn, one call at least"""
    threads: int = 1
    """threads of torch"""
    device: str = "cpu"
    """cpu or cuda"""
    output: Path = ROOT / "benchmarks" / "results" / "communication_layer" / "one_thread.json"
    """where the results go"""
    quick: bool = False
    """two small teams in seconds, to runs/communication-layer-quick.json"""

    def __post_init__(self) -> None:
        if self.quick:
            self.cells, self.sizes, self.hidden_size, self.max_compiled_agents = ("gru",), ((8, 2), (8, 4)), 8, 0
            self.turns, self.budget = 2, 0.01
            self.output = ROOT / "runs" / "communication-layer-quick.json"


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    about = {**provenance(), "command": " ".join(sys.argv), "options": asdict(options)}
    found: list[dict[str, Any]] = []
    for cell in options.cells:
        for batch_size, n_agents in options.sizes:
            found.append(measure(cell, batch_size, n_agents, options))
            print(f"{cell} {batch_size} x {n_agents}: {json.dumps(found[-1]['milliseconds'])}", flush=True)
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps({"about": about, "cells": found}, indent=1, default=str) + "\n")
    print(f"Written to {options.output}")


def measure(cell: str, batch_size: int, n_agents: int, options: Options) -> dict[str, Any]:
    torch.manual_seed(0)
    layers = make_layers(cell, n_agents, options)
    parameters = {name: sum(p.numel() for p in net.parameters()) for name, net in layers.items()}
    x = torch.randn(batch_size, n_agents, IN_FEATURES, device=options.device, requires_grad=True)
    calls: dict[str, Callable[[], Any]] = {}
    for name, layer in layers.items():
        calls[f"{name}, forward"] = lambda layer=layer: forward(layer, x)
        calls[f"{name}, forward and backward"] = lambda layer=layer: backward(layer, x)
    calls["matrix products, forward and backward"] = matrix_products(cell, batch_size, n_agents, options)
    seconds = take_turns(calls, options)
    milliseconds = {name: round(1e3 * statistics.median(times), 4) for name, times in seconds.items()}
    sizes = {"cell": cell, "batch_size": batch_size, "n_agents": n_agents}
    return {**sizes, "parameters": parameters, "milliseconds": milliseconds, "seconds": seconds}


def make_layers(cell: str, n_agents: int, options: Options) -> dict[str, nn.Module]:
    hidden_size, out_features = options.hidden_size, 2 * options.hidden_size
    recurrences = {
        implementation: RecurrentCommunication(IN_FEATURES, hidden_size, cell=cell, implementation=implementation)
        for implementation in ("fused", "loop")
    }
    layers: dict[str, nn.Module] = {**recurrences}
    if n_agents <= options.max_compiled_agents:
        layers["loop, compiled"] = torch.compile(recurrences["loop"], fullgraph=True, dynamic=False)
    torchs = nn.LSTM if cell == "lstm" else nn.GRU
    layers[f"torch.nn.{cell.upper()}"] = torchs(IN_FEATURES, hidden_size, batch_first=True, bidirectional=True)
    layers["mean"] = MeanCommunication(IN_FEATURES, out_features)
    layers["attention"] = AttentionCommunication(IN_FEATURES, out_features)
    n_parameters = sum(p.numel() for p in recurrences["loop"].parameters())
    width = n_parameters // (IN_FEATURES + out_features)
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


def _output(result: Any) -> Tensor:
    return result[0] if isinstance(result, tuple) else result  # of torch.nn.LSTM, beside its state


def matrix_products(cell: str, batch_size: int, n_agents: int, options: Options) -> Callable[[], None]:
    """Gates of the inputs in one product, of the hidden states in one per agent; for each two more going backward."""
    hidden_size, gates = options.hidden_size, GATES[cell] * options.hidden_size
    inputs = torch.randn(batch_size * n_agents, IN_FEATURES, device=options.device)
    weight = torch.randn(IN_FEATURES, 2 * gates, device=options.device)
    hidden = torch.randn(2, batch_size, hidden_size, device=options.device)
    recurrent = torch.randn(2, hidden_size, gates, device=options.device)
    gradient, step_gradient = inputs @ weight, torch.bmm(hidden, recurrent)

    def run() -> None:
        inputs @ weight, gradient @ weight.T, inputs.T @ gradient
        for _ in range(n_agents):
            torch.bmm(hidden, recurrent)
            torch.bmm(step_gradient, recurrent.mT)
            torch.bmm(hidden.mT, step_gradient)

    return run


def take_turns(calls: dict[str, Callable[[], Any]], options: Options) -> dict[str, list[float]]:
    def run(call: Callable[[], Any], count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            call()
        if options.device != "cpu":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / count

    counts = {}
    for name, call in calls.items():
        run(call, 3)
        counts[name] = max(1, int(options.budget / run(call, 2)))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(options.turns):
        for name, call in calls.items():
            seconds[name].append(run(call, counts[name]))
    return seconds


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
