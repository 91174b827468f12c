"""The memory layout of a VMAS environment: how its objects hold its tensors, without their values."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vmas.simulator.environment import Environment

from torchrl_bicnet.vmas_state.object_graph import (
    SCALARS,
    Node,
    ObjectGraph,
    contents_of,
    is_under,
    name_of,
    set_contents,
    stream_paths,
    traverse,
)


class MemoryLayout:
    """The contents of an environment but for the values of its tensors, and the tensors themselves.

    Two layouts of equal ``signature`` differ in values of tensors alone: objects hold equal numbers and the same
    tensors at the same places, and the tensors share memory in the same way.
    """

    def __init__(self, environment: Environment) -> None:
        graph = traverse(environment)
        paths = stream_paths(graph, environment)
        self.nodes: list[Node] = []
        streams: list[Node] = []
        for node in graph.nodes.values():
            (streams if is_under(node.path, paths) else self.nodes).append(node)
        self.tensors: list[Tensor] = []  # in the order in which they are met
        self._positions: dict[int, int] = {}
        self._contents = [
            (node.path, type(node.obj), comparable(node.contents, graph, self._position)) for node in self.nodes
        ]
        self._drawn = [
            comparable(node.contents, graph, lambda state: state.cpu().numpy().tobytes()) for node in streams
        ]
        self.by_memory: dict[int, list[Tensor]] = {}
        for tensor in self.tensors:
            self.by_memory.setdefault(tensor.untyped_storage()._cdata, []).append(tensor)
        order = {memory: i for i, memory in enumerate(self.by_memory)}
        views = [(t.shape, t.dtype, t.device, t.stride(), t.storage_offset()) for t in self.tensors]
        memories = [t.untyped_storage() for t in self.tensors]
        self.signature = self._contents, views, [(order[memory._cdata], memory.nbytes()) for memory in memories]

    def difference(self, other: MemoryLayout) -> str:
        """The first difference but for the values of tensors; empty if there is none."""
        if self._drawn != other._drawn:
            return "it draws random numbers"
        for one, another in zip(self._contents, other._contents):
            if one != another:
                return f"{one[0]} changes in more than values of tensors"
        return "" if self.signature == other.signature else "its tensors share memory in another way afterwards"

    def is_current(self) -> bool:
        """Whether the environment still holds the same objects, by identity."""
        for node in self.nodes:
            now, then = contents_of(node.obj, node.path), node.contents
            if len(now) != len(then) or not all(map(operator.is_, _items(now), _items(then))):
                return False
        return True

    def install(self) -> None:
        """Make the environment hold these objects again."""
        for node in reversed(self.nodes):
            set_contents(node.obj, node.contents)

    def copy_values_from(self, other: MemoryLayout) -> list[Tensor]:
        """Copy the values of the tensors of a layout of equal signature; the tensors that were written to."""
        pairs = [(x, y) for x, y in zip(self.by_memory, other.by_memory) if x != y]
        targets = [_bytes(self.by_memory[x][0]) for x, _ in pairs]
        # The memory that a step keeps for the next one (the position before) is memory that the next one writes to.
        sources = [_bytes(other.by_memory[y][0]) for _, y in pairs]
        sources = [s.clone() if y in self.by_memory else s for s, (_, y) in zip(sources, pairs)]
        for target, source in zip(targets, sources):
            target.copy_(source)
        return [tensor for x, _ in pairs for tensor in self.by_memory[x]]

    def _position(self, tensor: Tensor) -> int:
        if id(tensor) not in self._positions:
            self._positions[id(tensor)] = len(self.tensors)
            self.tensors.append(tensor)
        return self._positions[id(tensor)]


def _items(contents: dict[Any, Any] | list[Any]) -> list[Any]:
    return contents if isinstance(contents, list) else [*contents.keys(), *contents.values()]


def _bytes(tensor: Tensor) -> Tensor:
    memory = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(memory, 0, (memory.nbytes(),), (1,))


def comparable(value: Any, graph: ObjectGraph, describe: Callable[[Tensor], Any]) -> Any:
    """A description to compare by ``==``, equal for equal contents at the same path."""
    if type(value) in SCALARS:
        return value if value == value else "nan"
    if isinstance(value, Tensor):
        return Tensor, describe(value)
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if id(value) in graph.nodes:
        return graph.nodes[id(value)].path
    if id(value) in graph.opaque:
        return name_of(value)
    items = [comparable(item, graph, describe) for item in (_items(value) if isinstance(value, dict) else value)]
    return sorted(items, key=str) if isinstance(value, (set, frozenset)) else items
