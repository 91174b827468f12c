"""The places of a VMAS environment that hold its tensors, as a flat list, and everything else that it holds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor
from vmas.simulator.environment import Environment

from torchrl_bicnet.vmas_state.object_graph import (
    SCALARS,
    Node,
    ObjectGraph,
    is_under,
    name_of,
    stream_paths,
    traverse,
)

# Of the environment; says how it is reset, which no step depends on.
_NOT_OF_STEPS = "shared_state"


class TensorPlaces:
    """Each place where an object of an environment holds a tensor, in a fixed order.

    Two environments of equal ``signature`` differ in the values of tensors alone, and in which of their places hold one
    and the same tensor.

    Attributes:
        tensors (list of Tensor): one for each place.
        places (list of tuple): the container, to write to by ``container[key]``, and the key.
        paths (list of str): for messages.
        signature (dict): the path of each item to what it is, without the values of tensors.

    Raises:
        TypeError: for an object whose state cannot be seen, or a tensor in a tuple, a set, a slot or a closure.
    """

    def __init__(self, environment: Environment) -> None:
        graph = traverse(environment)
        streams = stream_paths(graph, environment)
        self.tensors: list[Tensor] = []
        self.places: list[tuple[Any, Any]] = []
        self.paths: list[str] = []
        self.signature: dict[str, Any] = {}
        for node in graph.nodes.values():
            if is_under(node.path, streams):
                continue
            if node.obj is environment:
                node.contents.pop(_NOT_OF_STEPS, None)
            self.signature[node.path] = type(node.obj), len(node.contents)
            container, listed = _container(node), isinstance(node.contents, list)
            for index, (key, value) in enumerate(enumerate(node.contents) if listed else node.contents.items()):
                # Keys may be anything: those that do not read well go by their position.
                path = f"{node.path}.{key if isinstance(key, str) else index}"
                if isinstance(value, Tensor) and (isinstance(container, (list, deque)) or key in container):
                    self.places.append((container, key))
                    self.paths.append(path)
                self.signature[path] = _comparable([key, value], graph, self._note)
            if len(self.places) != len(self.tensors):
                raise TypeError(f"{node.path} holds a tensor in a tuple, a set, a slot or a closure")

    def difference(self, other: TensorPlaces) -> str:
        """The first difference but for the values of tensors; empty if there is none."""
        paths = dict.fromkeys((*self.signature, *other.signature))
        changed = (path for path in paths if self.signature.get(path) != other.signature.get(path))
        return next((f"{path} changes in more than values of tensors" for path in changed), "")

    def install(self, tensors: list[Tensor]) -> None:
        """Make the environment hold these tensors."""
        for (container, key), tensor in zip(self.places, tensors):
            container[key] = tensor

    def _note(self, tensor: Tensor) -> Any:
        self.tensors.append(tensor)
        return tensor.dtype, tensor.shape, tensor.device


def _container(node: Node) -> Any:
    """What holds the contents of an object so that items can be replaced one by one."""
    return node.obj if isinstance(node.obj, (dict, list, deque)) else getattr(node.obj, "__dict__", {})


def _comparable(value: Any, graph: ObjectGraph, describe: Callable[[Tensor], Any]) -> Any:
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
    parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    items = [_comparable(item, graph, describe) for item in parts]
    return sorted(items, key=str) if isinstance(value, (set, frozenset)) else items


def overlaps(tensors: list[Tensor]) -> list[tuple[int, int]]:
    """The pairs of tensors, earlier and later, that may have elements in common."""
    by_memory: dict[int, list[tuple[int, int, int]]] = {}
    found = []
    for i, tensor in enumerate(tensors):
        size, start = tensor.element_size(), int(tensor.storage_offset())
        extent = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride())) + 1 if tensor.numel() else 0
        first, end = start * size, (start + extent) * size
        users = by_memory.setdefault(tensor.untyped_storage()._cdata, [])
        found += [(j, i) for j, other_first, other_end in users if other_first < end and first < other_end]
        users.append((i, first, end))
    return found
