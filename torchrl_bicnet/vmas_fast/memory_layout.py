"""How a VMAS environment holds its tensors: all but their values."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vmas.simulator.environment import Environment

from torchrl_bicnet.vmas_state.object_graph import GENERATORS, SCALARS, Node, Walk, contents_of, fill, name_of, walk
from torchrl_bicnet.vmas_state.state_diff import within


class Layout:
    """What an environment holds but for the values of its tensors, and the tensors themselves."""

    def __init__(self, environment: Environment) -> None:
        found = walk(environment)
        streams = [node.path for node in found.nodes.values() if node.thing is environment.random_stream]
        self.nodes: list[Node] = []
        self.streams: list[Node] = []
        for node in found.nodes.values():
            drawn = within(node.path, tuple(streams)) or isinstance(node.thing, GENERATORS)
            (self.streams if drawn else self.nodes).append(node)
        self.tensors: list[Tensor] = []  # in the order in which they are met
        self._places: dict[int, int] = {}
        self.plain = [
            (node.path, type(node.thing), _described(node.contents, found, self._place)) for node in self.nodes
        ]
        self.shapes = [(tensor.shape, tensor.dtype, tensor.device) for tensor in self.tensors]
        # Tensors by the memory they look at.
        self.memories: dict[int, list[Tensor]] = {}
        for tensor in self.tensors:
            self.memories.setdefault(tensor.untyped_storage()._cdata, []).append(tensor)
        order = {memory: i for i, memory in enumerate(self.memories)}
        self.signature = self.plain, self.shapes, [
            (order[t.untyped_storage()._cdata], t.untyped_storage().nbytes(), t.stride(), t.storage_offset())
            for t in self.tensors
        ]  # fmt: skip

        self.drawn = [
            _described(node.contents, found, lambda state: state.cpu().numpy().tobytes()) for node in self.streams
        ]

    def difference(self, other: Layout) -> str:
        """What, but for the values of tensors, is not the same; empty if there is nothing."""
        if self.drawn != other.drawn:
            return "it draws random numbers"
        for one, another in zip(self.plain, other.plain):
            if one != another:
                return f"{one[0]} holds other things afterwards"
        return "" if self.signature == other.signature else "its tensors share memory otherwise afterwards"

    def _place(self, tensor: Tensor) -> int:
        if id(tensor) not in self._places:
            self._places[id(tensor)] = len(self.tensors)
            self.tensors.append(tensor)
        return self._places[id(tensor)]

    def holds(self) -> bool:
        """Whether the environment still holds the very same things."""
        for node in self.nodes:
            now, then = contents_of(node.thing, node.path), node.contents
            if len(now) != len(then) or not all(map(operator.is_, _items(now), _items(then))):
                return False
        return True

    def put_back(self) -> None:
        for node in reversed(self.nodes):
            fill(node.thing, node.contents)

    def take(self, other: Layout) -> list[Tensor]:
        """Copy the values of another layout of the same signature; the tensors that are written to."""
        pairs = [(x, y) for x, y in zip(self.memories, other.memories) if x != y]
        # What a step keeps for the next one (the position before) is memory that the next one writes to.
        targets = [_bytes(self.memories[x][0]) for x, _ in pairs]
        sources = [_bytes(other.memories[y][0]) for _, y in pairs]
        sources = [s.clone() if y in self.memories else s for s, (_, y) in zip(sources, pairs)]
        for target, source in zip(targets, sources):
            target.copy_(source)
        return [tensor for x, _ in pairs for tensor in self.memories[x]]


def _items(contents: dict[Any, Any] | list[Any]) -> list[Any]:
    return contents if isinstance(contents, list) else [*contents.keys(), *contents.values()]


def _bytes(tensor: Tensor) -> Tensor:
    memory = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(memory, 0, (memory.nbytes(),), (1,))


def _described(value: Any, found: Walk, place: Callable[[Tensor], Any]) -> Any:
    """What a value is, comparable by ``==``, the same for things at the same path."""
    if type(value) in SCALARS:
        return value if value == value else "nan"
    if isinstance(value, Tensor):
        return Tensor, place(value)
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if id(value) in found.nodes:
        return found.nodes[id(value)].path
    if id(value) in found.constants:
        return name_of(value)
    items = [_described(item, found, place) for item in (_items(value) if isinstance(value, dict) else value)]
    return sorted(items, key=str) if isinstance(value, (set, frozenset)) else items
