"""A function of CUDA tensors as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchrl_bicnet.compiling.pieces import Function

Replay = Callable[[], object]


class ReplayedFunction:
    """A function of tensors, recorded once in memory of its own and replayed: the host launches it as one operation.

    Results are copied out of that memory, as tensors that have never been: whoever keeps those of an earlier call finds
    them as they were, and caches, which compare ``_version``, need not hear of replays, which do not bump it.

    Args:
        function (callable): of tensors to a list of tensors, which neither waits for the device nor draws random
            numbers. Called twice.
        inputs (list of Tensor): of the shapes that it will be called with.
        record (callable): from a function of nothing to one that repeats its operations, as :func:`capture`.
    """

    def __init__(
        self, function: Function, inputs: list[Tensor], record: Callable[[Callable[[], None]], Replay]
    ) -> None:
        self.function = function  # whose constants the recorded operations read
        self.inputs = [tensor.clone() for tensor in inputs]
        self.results: list[Tensor] = []
        self.replay = record(self._run)

    def _run(self) -> None:
        self.results = self.function(*self.inputs)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        torch._foreach_copy_(self.inputs, inputs)
        self.replay()
        results = [torch.empty_like(result) for result in self.results]
        torch._foreach_copy_(results, self.results)
        return results


def capture(run: Callable[[], None]) -> Replay:
    """Capture the operations of a function on the current CUDA device; what is returned launches them."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()  # what libraries make once is not captured
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    return graph.replay
