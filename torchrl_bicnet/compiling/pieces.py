"""A long graph of tensor operations, called piece by piece: the substeps of a world are one piece, compiled once."""

from __future__ import annotations

import itertools
import operator
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

Function = Callable[..., list[Tensor]]

# Compiling takes longer than in proportion to the operations of a piece, and each border costs time in every call.
MAX_OPERATIONS = 2000
MIN_PERIOD = 64


def compile_in_pieces(
    graph: GraphModule,
    inputs: list[Tensor],
    compile_piece: Callable[[GraphModule, list[Tensor]], Function],
    *,
    functional: bool = False,
) -> Function:
    """The graph as a function that calls its pieces, of which equal ones are compiled once.

    Args:
        graph (GraphModule): from ``make_fx``, of tensors to a list of tensors.
        inputs (list of Tensor): of the shapes that it will be called with.
        compile_piece (callable): from a piece and its inputs to a function that returns a list.

    Keyword Args:
        functional (bool): gives no piece, not even a short graph as a whole, operations that write in place, or inputs
            that it does not read. Defaults to ``False``.
    """
    if len(graph.graph.nodes) <= MAX_OPERATIONS and not functional:
        return compile_piece(graph, inputs)
    # A piece that wrote to a value of another one would have to know what else shares its memory. Of constants,
    # `functionalize` knows only those that it is given.
    constants = _lift_constants(graph)
    inputs = [*inputs, *constants]
    graph = make_fx(torch.func.functionalize(graph, remove="mutations"))(*inputs)
    graph.graph.eliminate_dead_code()
    values = dict(zip(graph.graph.find_nodes(op="placeholder"), inputs))
    places = {node: place for place, node in enumerate(values)}
    functions: dict[Any, Function] = {}
    calls = []
    for operations, results in pieces(graph.graph):
        read = list(dict.fromkeys(value for node in operations for value in node.all_input_nodes if value in places))
        piece = GraphModule(graph, _graph(read, operations, results))
        given = [values[node] for node in read]
        key = piece.code, tuple((tensor.dtype, tensor.shape, tensor.stride()) for tensor in given)
        if key not in functions:
            functions[key] = compile_piece(piece, given)
        calls.append((functions[key], [places[node] for node in read]))
        values |= zip(results, functions[key](*given))
        places |= {node: len(places) + i for i, node in enumerate(results)}
    (output,) = graph.graph.find_nodes(op="output")
    returned = [places[node] for node in output.args[0]]

    def call(*inputs: Tensor) -> list[Tensor]:
        values = [*inputs, *constants]
        for function, read in calls:
            values += function(*[values[place] for place in read])
        return [values[place] for place in returned]

    return call


def _lift_constants(graph: GraphModule) -> list[Tensor]:
    """Make inputs of the tensors that a graph holds, after the others, and return them."""
    constants = graph.graph.find_nodes(op="get_attr")
    first = next(node for node in graph.graph.nodes if node.op != "placeholder")
    for node in constants:
        with graph.graph.inserting_before(first):
            node.replace_all_uses_with(graph.graph.placeholder(f"constant_{node.name}"))
    graph.recompile()
    return [getattr(graph, str(node.target)) for node in constants]


def pieces(graph: Graph) -> list[tuple[list[Node], list[Node]]]:
    """Operations in a row, and those that are read later, in this piece or in one of the same operations."""
    operations = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    kinds = _kinds(operations)
    found = [slice(*span) for span in itertools.pairwise(_borders(operations, kinds))]
    read: dict[tuple[int, ...], set[int]] = defaultdict(set)
    for span in found:
        piece = set(operations[span])
        read[tuple(kinds[span])] |= {i for i, node in enumerate(operations[span]) if not piece.issuperset(node.users)}
    return [(operations[span], [operations[span][i] for i in sorted(read[tuple(kinds[span])])]) for span in found]


def _graph(read: list[Node], operations: list[Node], results: list[Node]) -> Graph:
    """The operations on their own, named alike for pieces that do the same to other values."""
    graph = Graph()
    copies = {node: graph.placeholder(f"input_{i}") for i, node in enumerate(read)}
    for node in operations:
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), copies.__getitem__)
        copies[node] = graph.create_node(node.op, node.target, args, kwargs)
    graph.output([copies[node] for node in results])
    return graph


def _kinds(operations: list[Node]) -> list[int]:
    """Numbers that are equal for operations that do the same to other values."""
    numbers: dict[str, int] = {}
    kinds = []
    for node in operations:
        arguments = torch.fx.map_arg((node.args, node.kwargs), lambda _: None)
        kinds.append(numbers.setdefault(f"{node.target} {arguments}", len(numbers)))
    return kinds


def _borders(operations: list[Node], kinds: list[int]) -> list[int]:
    """Where pieces begin, and the end: each period of what repeats, and nothing too long."""
    n = len(operations)
    periods = _periods(operations, kinds) if n > MAX_OPERATIONS else []
    borders = [0, *periods, n]
    parts = []
    for start, end in itertools.pairwise(borders):
        count = -(-(end - start) // MAX_OPERATIONS)
        parts += [start + (end - start) * i // count for i in range(count)]
    # A list of tensors, of `unbind`, stays with its elements.
    return [next(i for i in range(part, n) if operations[i].target is not operator.getitem) for part in parts] + [n]


def _periods(operations: list[Node], kinds: list[int]) -> list[int]:
    """Where each repetition of the operations that repeat most often begins, and the end of the last one."""
    numbers = torch.tensor(kinds)
    matches = [int((numbers[p:] == numbers[:-p]).sum()) for p in range(MIN_PERIOD, len(kinds) // 3)]
    period = MIN_PERIOD + matches.index(max(matches))
    runs, position = [], 0
    for same, run in itertools.groupby((numbers[period:] == numbers[:-period]).tolist()):
        length = len(list(run))
        runs.append((length * same, position))
        position += length
    length, first = max(runs)
    count, spare = divmod(length + period, period)
    if count < 3:
        return []
    # As few values as possible cross the borders.
    place = {node: i for i, node in enumerate(operations)}
    last = [max((place.get(user, len(kinds)) for user in node.users), default=0) for node in operations]
    first = min(range(first, first + spare + 1), key=lambda start: sum(use >= start for use in last[:start]))
    return [first + i * period for i in range(count + 1)]
