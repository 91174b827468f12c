"""A step of a VMAS environment that starts from and ends in the same memory, captured in a CUDA graph on a GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from vmas.simulator.environment import Environment

from torchrl_bicnet.vmas_fast.batched_world import BatchedWorld
from torchrl_bicnet.vmas_fast.device_syncs import Watch
from torchrl_bicnet.vmas_fast.distances import Sensing
from torchrl_bicnet.vmas_fast.memory_layout import Layout
from torchrl_bicnet.vmas_state.state_diff import Before

# Steps after which an environment holds its tensors in the same way at the end of each.
N_SETTLING = 3
# Graphs that are kept for one environment: of a scenario that a reset changes in many ways, the last ones.
N_LAYOUTS = 8
Actions = dict[str, Tensor]


class FixedStep:
    """A step of an environment whose state, actions and outputs stay where they are, captured and replayed on CUDA.

    A step of VMAS puts new tensors where the old ones were, and so do resets and :func:`~torchrl_bicnet.restore`. Here
    an environment that holds its tensors in a way that was seen before (:class:`Layout`: all but their values) gets
    the values copied into the tensors it held then, and gets these back. So a step starts from fixed memory and ends in
    fixed memory. After a reset that is often other memory than after a step, since other tensors share it: there is one
    graph for each layout that steps start from. The first step from a layout runs as usual, the second is captured.

    Args:
        environment (Environment): of VMAS, from :func:`~torchrl_bicnet.make_vmas_env`.
        step (callable): from the actions of each group, ``(num_envs, N, a)``, to the outputs; must neither wait for the
            device nor draw random numbers, as :func:`refuse_what_cannot_be_captured` finds out.
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
        self.starts: list[Start] = []
        self.now: Start | None = None

    def __call__(self, actions: Actions) -> TensorDictBase:
        if torch.is_inference_mode_enabled():
            raise RuntimeError("With cuda_graph=True an environment steps under torch.no_grad(), found inference mode.")
        for group, action in actions.items():
            fixed = self.actions.get(group)
            if fixed is None or (fixed.shape, fixed.dtype) != (action.shape, action.dtype):
                self.actions[group], self.starts, self.now = action.clone(), [], None
            else:
                fixed.copy_(action)
        if self.now is None or not self.now.layout.holds():
            self.now = self._fixed(Layout(self.environment))[0]
        start, world = self.now, self.environment.world
        weightless = isinstance(world, BatchedWorld) and world.weightless()
        if start.weightless != weightless:
            start.weightless, start.end, start.replay = weightless, None, None
        outputs = self._run_aside(start) if self.record is None or start.end is None else self._replay(start)
        assert start.end is not None
        self.now = start.end
        # Whoever remembers something of a tensor asks for its version, which neither replays nor raw copies change.
        torch.autograd.graph.increment_version(start.written)
        return outputs.clone()

    def _fixed(self, layout: Layout) -> tuple[Start, list[Tensor]]:
        """What the environment holds now, moved to where a layout like it is kept; and the tensors written to."""
        for start in self.starts:
            if start.layout.signature == layout.signature:
                written = start.layout.take(layout)
                start.layout.put_back()
                torch.autograd.graph.increment_version(written)
                return start, written
        self.starts = [*self.starts[1 - N_LAYOUTS :], Start(layout)]
        return self.starts[-1], []

    def _run(self, start: Start) -> TensorDictBase:
        versions = [tensor._version for tensor in start.layout.tensors]
        outputs = self.step(self.actions)
        in_place = [t for t, version in zip(start.layout.tensors, versions) if t._version != version]
        end, copied = self._fixed(Layout(self.environment))
        start.end, start.written = end, in_place + copied
        return outputs

    def _run_aside(self, start: Start) -> TensorDictBase:
        """On CUDA on a stream of its own, as captures ask for, so that libraries make what they make once."""
        if self.environment.device.type != "cuda":
            return self._run(start)
        stream, current = torch.cuda.Stream(self.environment.device), torch.cuda.current_stream(self.environment.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            outputs = self._run(start)
        current.wait_stream(stream)
        return outputs

    def _replay(self, start: Start) -> TensorDictBase:
        end = start.end
        if start.replay is None:
            try:
                start.replay = self._recorded(start)
            except RuntimeError as error:
                start.layout.put_back()
                self.starts, self.now = [], None
                raise RuntimeError(f"The step of {name_of_scenario(self.environment)} was not captured.") from error
            start.layout.put_back()
        start.replay()
        if end is not None and end is not start:
            end.layout.put_back()
        assert start.outputs is not None
        return start.outputs

    def _recorded(self, start: Start) -> Callable[[], None]:
        def run() -> None:
            end, start.outputs = start.end, self._run(start)
            if start.end is not end:
                raise RuntimeError("It left the environment otherwise than the first time.")

        assert self.record is not None
        # What someone asked of this state before the step is computed in the graph again, not a constant of it.
        Sensing.of(self.environment.world).forget()
        return self.record(run)

    def __getstate__(self) -> dict[str, Any]:
        """Without the graphs, for a copy: they are of the memory of this environment."""
        return {**self.__dict__, "actions": {}, "starts": [], "now": None}


def capture(device: torch.device, run: Callable[[], None]) -> Callable[[], None]:
    """A function's operations on a CUDA device in a graph, which is what calls of the result launch."""
    graph, watch = torch.cuda.CUDAGraph(), Watch()
    with torch.cuda.device(device), torch.cuda.graph(graph, stream=torch.cuda.Stream(device)), watch:
        run()
    # Some of what the operations were given are constants of caches, which would free them when they are full.
    return functools.partial(_replay, graph, watch.given)


def _replay(graph: torch.cuda.CUDAGraph, kept: list[Tensor]) -> None:
    graph.replay()


@dataclass
class Start:
    """Fixed memory that steps start from, and how they go on."""

    layout: Layout
    weightless: bool = False
    end: Start | None = None
    written: list[Tensor] = field(default_factory=list)
    replay: Callable[[], None] | None = None
    outputs: TensorDictBase | None = None


def refuse_what_cannot_be_captured(
    environment: Environment, step: Callable[[Actions], TensorDictBase], actions: Actions
) -> None:
    """Take some steps and undo them.

    Raises:
        ValueError: if a step waits for the device, draws random numbers, or leaves anything but other values of
            tensors behind.
    """
    before = Before(environment)
    try:
        for _ in range(N_SETTLING):
            step(actions)
        first = Layout(environment)
        with Watch() as watch:
            step(actions)
        problem = watch.problems[0] if watch.problems else first.difference(Layout(environment))
    finally:
        before.undo()
    if problem:
        name = name_of_scenario(environment)
        raise ValueError(f"A step of {name} cannot be captured in a CUDA graph: {problem}. Use cuda_graph=False.")


def name_of_scenario(environment: Environment) -> str:
    """The file of a scenario that VMAS loads, whose class is always called Scenario."""
    scenario = type(environment.scenario)
    file = Path(scenario.make_world.__code__.co_filename).stem
    return file if scenario.__qualname__ == "Scenario" else scenario.__qualname__
