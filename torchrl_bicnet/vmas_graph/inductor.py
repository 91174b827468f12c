"""A traced graph of tensor operations, compiled by Inductor."""

from __future__ import annotations

import functools
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchrl_bicnet.vmas_state.tensor_places import overlaps

Function = Callable[..., list[Tensor]]


def compile_graph(graph: torch.fx.GraphModule, inputs: list[Tensor], name: str) -> Function:
    """The graph as a compiled function, whose results share no memory with each other or with what it is given.

    Args:
        graph (GraphModule): from ``make_fx``, of tensors to a list of tensors.
        inputs (list of Tensor): of the shapes that it will be called with, sharing no memory.
        name (str): of what is compiled, for messages.

    Raises:
        RuntimeError: if it cannot be compiled here, as without a C++ compiler.
    """
    # Shapes are compared by whoever calls it: what Dynamo would ask of a hundred tensors takes as long as the step. It
    # joins inputs that are one tensor, of which there are none here, but perhaps when it compiles again after a reset.
    options: dict[str, Any] = {"guard_filter_fn": lambda guards: [g.guard_type == "DUPLICATE_INPUT" for g in guards]}
    if inputs[0].device.type == "cpu":
        options["cpp_wrapper"] = True  # without one line of Python for each of the hundred buffers
    compiled = torch.compile(graph, fullgraph=True, dynamic=False, options=options)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of its own code
            results = compiled(*inputs)
    except Exception as error:
        if "InvalidCxxCompiler" in "".join(traceback.format_exception(error)):
            raise RuntimeError("compile=True needs a C++ compiler, such as g++, and none was found.") from error
        raise RuntimeError(f"The step of {name} was not compiled.") from error
    # Inductor may give one piece of memory back twice, or what it was given.
    pairs = overlaps([*inputs, *results])
    shared = sorted({j - len(inputs) for _, j in pairs})
    return functools.partial(_call, compiled, shared) if shared else compiled


def _call(compiled: Function, shared: list[int], *inputs: Tensor) -> list[Tensor]:
    results = compiled(*inputs)
    for index in shared:
        results[index] = results[index].clone()
    return results
