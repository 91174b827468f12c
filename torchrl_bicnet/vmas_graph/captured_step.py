"""A step of a VMAS environment that starts from and ends in the same memory, captured in a CUDA graph on a GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from vmas.simulator.environment import Environment

from torchrl_bicnet.vmas_fast.batched_world import BatchedWorld
from torchrl_bicnet.vmas_fast.distances import Sensing
from torchrl_bicnet.vmas_graph.device_syncs import CaptureGuard
from torchrl_bicnet.vmas_state.memory_layout import MemoryLayout
from torchrl_bicnet.vmas_state.state_diff import SavedState
from torchrl_bicnet.vmas_state.unwrap import scenario_file

# Steps after which an environment holds its tensors in the same way at the end of each.
N_SETTLING = 3
# Graphs that are kept for one environment: of a scenario that a reset changes in many ways, the last ones.
N_ENTRIES = 8
Actions = dict[str, Tensor]


@dataclass
class CapturedEntry:
    """A memory layout that steps start from, and how they go on."""

    layout: MemoryLayout
    weightless: bool = False
    next: CapturedEntry | None = None  # where a step from here ends
    written: list[Tensor] = field(default_factory=list)
    replay: Callable[[], None] | None = None
    outputs: TensorDictBase | None = None


class CapturedStep:
    """A step of an environment whose state, actions and outputs stay where they are, captured and replayed on CUDA.

    A step of VMAS puts new tensors where the old ones were, and so do resets and :func:`~torchrl_bicnet.restore`. Here
    an environment that holds its tensors in a way that was seen before (:class:`MemoryLayout`) gets the values copied
    into the tensors it held then, and gets these back. So a step starts from fixed memory and ends in fixed memory.
    After a reset that is often other memory than after a step, since other tensors share it: there is one graph for
    each layout that steps start from. The first step from a layout runs as usual, the second is captured.

    Args:
        environment (Environment): of VMAS, from :func:`~torchrl_bicnet.make_vmas_env`.
        step (callable): from the actions of each group, ``(num_envs, N, a)``, to the outputs; must pass
            :func:`check_capturable`.
        record (callable, optional): runs a function of no arguments and returns another that repeats what it had the
            device do, such as :func:`capture`. ``None``: every step runs as usual.
    """

    def __init__(
        self,
        environment: Environment,
        step: Callable[[Actions], TensorDictBase],
        record: Callable[[Callable[[], None]], Callable[[], None]] | None,
    ) -> None:
        self.environment, self.step, self.record = environment, step, record
        self.actions: Actions = {}
        self.entries: list[CapturedEntry] = []
        self.current: CapturedEntry | None = None

    def __call__(self, actions: Actions) -> TensorDictBase:
        if torch.is_inference_mode_enabled():
            raise RuntimeError("With cuda_graph=True an environment steps under torch.no_grad(), found inference mode.")
        for group, action in actions.items():
            fixed = self.actions.get(group)
            if fixed is None or (fixed.shape, fixed.dtype) != (action.shape, action.dtype):
                self.actions[group], self.entries, self.current = action.clone(), [], None
            else:
                fixed.copy_(action)
        if self.current is None or not self.current.layout.is_current():
            self.current = self._enter(MemoryLayout(self.environment))[0]
        entry, world = self.current, self.environment.world
        weightless = isinstance(world, BatchedWorld) and world.weightless()
        if entry.weightless != weightless:
            entry.weightless, entry.next, entry.replay = weightless, None, None
        outputs = self._run_aside(entry) if self.record is None or entry.next is None else self._replay(entry)
        self.current = entry.next
        # Caches compare `_version`; replays and raw copies do not bump it. Of other tensors it must stay: gravity, for
        # one, would be read from the device again.
        torch.autograd.graph.increment_version(entry.written)
        return outputs.clone()

    def _enter(self, layout: MemoryLayout) -> tuple[CapturedEntry, list[Tensor]]:
        """The entry of an equal layout, with the environment's state moved to its memory, and the tensors written."""
        for entry in self.entries:
            if entry.layout.signature == layout.signature:
                written = entry.layout.copy_values_from(layout)
                entry.layout.install()
                torch.autograd.graph.increment_version(written)
                return entry, written
        self.entries = [*self.entries[1 - N_ENTRIES :], CapturedEntry(layout)]
        return self.entries[-1], []

    def _run(self, entry: CapturedEntry) -> TensorDictBase:
        versions = [tensor._version for tensor in entry.layout.tensors]
        outputs = self.step(self.actions)
        in_place = [t for t, version in zip(entry.layout.tensors, versions) if t._version != version]
        entry.next, copied = self._enter(MemoryLayout(self.environment))
        entry.written = in_place + copied
        return outputs

    def _run_aside(self, entry: CapturedEntry) -> TensorDictBase:
        """On CUDA on a stream of its own, as captures ask for, so that libraries make what they make once."""
        if self.environment.device.type != "cuda":
            return self._run(entry)
        stream, current = torch.cuda.Stream(self.environment.device), torch.cuda.current_stream(self.environment.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            outputs = self._run(entry)
        current.wait_stream(stream)
        return outputs

    def _replay(self, entry: CapturedEntry) -> TensorDictBase:
        if entry.replay is None:
            try:
                entry.replay = self._record(entry)
            except RuntimeError as error:
                entry.layout.install()
                self.entries, self.current = [], None
                raise RuntimeError(f"The step of {scenario_name(self.environment)} was not captured.") from error
            entry.layout.install()
        entry.replay()
        if entry.next is not None and entry.next is not entry:
            entry.next.layout.install()
        assert entry.outputs is not None
        return entry.outputs

    def _record(self, entry: CapturedEntry) -> Callable[[], None]:
        def run() -> None:
            expected, entry.outputs = entry.next, self._run(entry)
            if entry.next is not expected:
                raise RuntimeError("It left the environment in another layout than the first time.")

        assert self.record is not None
        # Distances that were asked for before the step are computed in the graph again, not constants of it.
        Sensing.of(self.environment.world).forget()
        return self.record(run)

    def __getstate__(self) -> dict[str, Any]:
        """Without the graphs, for a copy: they are of the memory of this environment."""
        return {**self.__dict__, "actions": {}, "entries": [], "current": None}


def capture(device: torch.device, run: Callable[[], None]) -> Callable[[], None]:
    """Capture a function's operations on a CUDA device in a graph; calls of the result launch it."""
    graph, guard = torch.cuda.CUDAGraph(), CaptureGuard()
    with torch.cuda.device(device), torch.cuda.graph(graph, stream=torch.cuda.Stream(device)), guard:
        run()
    # Some of the tensors that the operations were given belong to caches, which would free them when they are full.
    return functools.partial(_launch, graph, guard.given)


def _launch(graph: torch.cuda.CUDAGraph, kept: list[Tensor]) -> None:
    graph.replay()


def check_capturable(environment: Environment, step: Callable[[Actions], TensorDictBase], actions: Actions) -> None:
    """Take some steps and undo them.

    Raises:
        ValueError: if a step waits for the device, draws random numbers, or changes anything but values of tensors.
    """
    saved = SavedState(environment)
    try:
        for _ in range(N_SETTLING):
            step(actions)
        first = MemoryLayout(environment)
        with CaptureGuard() as guard:
            step(actions)
        problem = guard.problems[0] if guard.problems else first.difference(MemoryLayout(environment))
    finally:
        saved.restore()
    if problem:
        name = scenario_name(environment)
        raise ValueError(f"A step of {name} cannot be captured in a CUDA graph: {problem}. Use cuda_graph=False.")


def scenario_name(environment: Environment) -> str:
    """The class of the scenario; for those that VMAS loads, which are all called Scenario, the file."""
    name = type(environment.scenario).__qualname__
    return scenario_file(environment) if name == "Scenario" else name
