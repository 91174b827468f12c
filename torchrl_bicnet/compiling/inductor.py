"""A traced graph of tensor operations, compiled by Inductor."""

from __future__ import annotations

import functools
import traceback
import warnings
from typing import Any

import torch
from torch import Tensor
from torch._inductor import standalone_compile
from torch.fx import GraphModule

from torchrl_bicnet.compiling.overlaps import overlaps
from torchrl_bicnet.compiling.pieces import Function, compile_in_pieces
from torchrl_bicnet.compiling.replay import ReplayedFunction, capture

# On a CPU.
OPTIONS = {
    # No line of Python for each of the hundred buffers, and -O3 for the loops alone.
    "cpp_wrapper": True,
    "cpp_wrapper_build_separate": True,
    # Most innermost loops run over the two numbers of a position: as a masked vector they take three times as long.
    "cpp.enable_loop_tail_vec": False,
}


def compile_graph(graph: GraphModule, inputs: list[Tensor], name: str, *, gradients: bool = False) -> Function:
    """The graph as a compiled function, on CUDA as one CUDA graph; its results share no memory with anything.

    Args:
        graph (GraphModule): from ``make_fx``, of tensors to a list of tensors.
        inputs (list of Tensor): of the shapes that it will be called with, sharing no memory.
        name (str): what is compiled, the subject of error messages, such as ``The update``.

    Keyword Args:
        gradients (bool): compiles those to all inputs too; on CUDA it is no CUDA graph then. Defaults to ``False``.

    Raises:
        RuntimeError: if it cannot be compiled here, as without a C++ compiler.
    """
    options = OPTIONS if inputs[0].device.type == "cpu" else {}
    compile_piece = _compile_with_gradients if gradients else functools.partial(_compile_piece, options)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of its own code
            compiled = compile_in_pieces(graph, inputs, compile_piece, functional=gradients)
            results = compiled(*inputs)
        # Inductor may give one piece of memory back twice, or what it was given.
        shared = sorted({later - len(inputs) for _, later in overlaps([*inputs, *results])})
        function = functools.partial(_call, compiled, shared) if shared else compiled
        if gradients or inputs[0].device.type != "cuda":
            return function
        with torch.cuda.device(inputs[0].device):
            return ReplayedFunction(function, inputs, capture)
    except Exception as error:
        if "InvalidCxxCompiler" in "".join(traceback.format_exception(error)):
            raise RuntimeError("compile=True needs a C++ compiler, such as g++, and none was found.") from error
        raise RuntimeError(f"{name} was not compiled.") from error


def _compile_piece(options: dict[str, Any], graph: GraphModule, inputs: list[Tensor]) -> Function:
    # Without Dynamo, which would compare the shapes of a hundred tensors in each call, as whoever calls it does.
    settings = {"config_patches": options}
    return standalone_compile(graph, [*inputs], dynamic_shapes="from_example_inputs", options=settings)


def _compile_with_gradients(graph: GraphModule, inputs: list[Tensor]) -> Function:
    from torch._inductor.compile_fx import compile_fx  # which warns when it is imported

    leaves = [tensor.clone().requires_grad_(tensor.is_floating_point()) for tensor in inputs]
    return compile_fx(graph, leaves)  # type: ignore[return-value]


def _call(compiled: Function, shared: list[int], *inputs: Tensor) -> list[Tensor]:
    results = compiled(*inputs)
    for index in shared:
        results[index] = results[index].clone()
    return results
