"""The places of a VMAS environment that hold its tensors, as a flat list, and everything else that it holds."""

from __future__ import annotations

import functools
import hashlib
import operator
import types
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vmas.simulator.environment import Environment

from torchrl_bicnet.vmas_state.object_graph import (
    PLACES,
    SCALARS,
    Node,
    ObjectGraph,
    contents_of,
    is_under,
    name_of,
    stream_paths,
    traverse,
)

# Attributes of the environment that say how it is reset, which no step depends on.
_NOT_OF_STEPS = ("shared_state", "start_states")


class TensorPlaces:
    """Each place where an object of an environment holds a tensor, in a fixed order.

    Two environments of equal ``signature`` differ in the values of tensors alone, and in which of their places hold one
    and the same tensor.

    Attributes:
        tensors (list of Tensor): one for each place.
        places (list of tuple): the container, to write to by ``container[key]``, and the key.
        paths (list of str): for messages, and to compare places of two environments.
        signature (dict): the path of each item to what it is, without the values of tensors.

    Raises:
        TypeError: for an object whose state cannot be seen, or a tensor in a tuple, a set, a slot or a closure.
    """

    def __init__(self, environment: Environment) -> None:
        graph = traverse(environment)
        left_out = (*stream_paths(graph, environment), *(f"environment.{name}" for name in _NOT_OF_STEPS))
        self.tensors: list[Tensor] = []
        self.places: list[tuple[Any, Any]] = []
        self.paths: list[str] = []
        self.signature: dict[str, Any] = {}
        self._nodes: list[tuple[Node, dict[Any, int]]] = []  # with the places among its contents
        self._arrays = [
            (array, array.tobytes()) for path, array in graph.arrays.values() if not is_under(path, left_out)
        ]
        self._held: dict[str, tuple[Tensor, int | None, Tensor]] = {}
        for node in graph.nodes.values():
            if is_under(node.path, left_out):
                continue
            _leave_out(node.obj, node.contents)
            self.signature[node.path] = type(node.obj), len(node.contents)
            container, places = _container(node), {}
            items = _items(node.contents)
            if isinstance(node.obj, set):  # in the order of addresses and of hashes, which differ between processes
                listed = sorted(str(_comparable(item, graph, self._note)) for _, item in items)
                self.signature[node.path], items = (type(node.obj), listed), ()
            for index, (key, value) in enumerate(items):
                # Keys may be anything: those that do not read well go by their position.
                path = f"{node.path}.{key if isinstance(key, str) else index}"
                if isinstance(value, Tensor) and (isinstance(container, (list, deque)) or key in container):
                    places[key] = len(self.places)
                    self.places.append((container, key))
                    self.paths.append(path)
                self.signature[path] = _comparable([key, value], graph, self._note)
            if len(self.places) != len(self.tensors):
                raise TypeError(f"{node.path} holds a tensor in a tuple, a set, a slot or a closure")
            self._nodes.append((node, places))
        self._note_others()

    def __deepcopy__(self, memo: Any) -> None:
        """A copy of an environment finds its own."""

    @classmethod
    def of(cls, environment: Environment) -> TensorPlaces:
        """Those of an environment now, without a walk over all objects if only tensors have changed since the last."""
        known = vars(environment).get(PLACES)
        if known is None or not known.refresh():
            known = vars(environment)[PLACES] = cls(environment)
        return known

    @functools.cached_property
    def digest(self) -> str:
        """Equal for equal signatures, in other processes too."""
        return hashlib.sha256(repr(self.signature).encode()).hexdigest()

    @functools.cached_property
    def index(self) -> dict[str, int]:
        """The position of each path."""
        return {path: i for i, path in enumerate(self.paths)}

    def refresh(self) -> bool:
        """Take the tensors that the places hold now; false if something else may have changed, to be looked at anew.

        Takes a tenth of the time of a new walk over all objects.
        """
        if any(array.tobytes() != before for array, before in self._arrays):
            return False
        contents = []
        for node, places in self._nodes:
            now, before = contents_of(node.obj, node.path), node.contents
            _leave_out(node.obj, now)
            if len(now) != len(before) or (isinstance(now, dict) and now.keys() != before.keys()):
                return False
            for key, value in _items(now):
                old = before[key]
                if value is old or (type(value) in SCALARS and type(value) is type(old) and value == old):
                    continue
                if key not in places or not isinstance(value, Tensor) or not _alike(value, old):
                    return False
            contents.append(now)
        for (node, places), now in zip(self._nodes, contents):
            node.contents = now
            for key, place in places.items():
                self.tensors[place] = now[key]
        self._note_others()
        return True

    def are_current(self) -> bool:
        """Whether the places hold these tensors, and world, scenario and its containers else what they held."""
        try:
            return all(map(operator.is_, (container[key] for container, key in self.places), self.tensors)) and all(
                len(container) == size and all(map(operator.is_, map(container.__getitem__, keys), values))
                for container, size, keys, values in self._others
            )
        except LookupError:  # something is shorter now
            return False

    def _note_others(self) -> None:
        self._others = []
        for node, places in self._nodes:
            if node.path in ("scenario", "world") or (node.path.startswith("scenario.") and _is_container(node.obj)):
                container = _container(node)
                held = container if isinstance(container, dict) else range(len(container))  # no slots
                others = {key: value for key, value in _items(node.contents) if key not in places and key in held}
                self._others.append((container, len(container), tuple(others), tuple(others.values())))

    def put(self, place: int, tensor: Tensor) -> None:
        """Make a place hold a tensor of the shape of the one that it holds."""
        container, key = self.places[place]
        self.tensors[place] = container[key] = tensor

    def install(self, tensors: list[Tensor]) -> None:
        """Make all places hold these tensors."""
        for place, tensor in enumerate(tensors):
            self.put(place, tensor)

    def hold(self, values: dict[str, Tensor]) -> bool:
        """Whether places, by path, hold equal values; remembered, so that a device is asked only after a change."""
        unknown = {}
        for path, value in values.items():
            tensor = self.tensors[self.index[path]]
            version = None if tensor.is_inference() else tensor._version
            known = self._held.get(path, (None, None, None))
            if version is None or known[0] is not tensor or known[1] != version or known[2] is not value:
                unknown[path] = tensor, version, value
        if not unknown:
            return True
        device = self.tensors[0].device
        equal = [same_values(tensor, value).all().to(device) for tensor, _, value in unknown.values()]
        held = bool(torch.stack(equal).all())
        if held:
            self._held.update(unknown)
        return held

    def difference(self, other: TensorPlaces) -> str:
        """The path of the first difference but for the values of tensors; empty if there is none."""
        paths = dict.fromkeys((*self.signature, *other.signature))
        return next((path for path in paths if self.signature.get(path) != other.signature.get(path)), "")

    def _note(self, tensor: Tensor) -> Any:
        self.tensors.append(tensor)
        return tensor.dtype, tensor.shape, tensor.device


def _leave_out(obj: Any, contents: Any) -> None:
    if isinstance(obj, Environment):
        for name in _NOT_OF_STEPS:
            contents.pop(name, None)


def _alike(tensor: Tensor, other: Any) -> bool:
    return (tensor.dtype, tensor.shape, tensor.device) == (other.dtype, other.shape, other.device)


def _items(contents: dict[Any, Any] | list[Any]) -> Any:
    return enumerate(contents) if isinstance(contents, list) else contents.items()


def _container(node: Node) -> Any:
    """What holds the contents of an object so that items can be replaced one by one."""
    return node.obj if _is_container(node.obj) else getattr(node.obj, "__dict__", {})


def _is_container(obj: Any) -> bool:
    return isinstance(obj, (dict, list, deque))


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
    if isinstance(value, types.FunctionType):
        numbers = (*value.__code__.co_consts, *(value.__defaults__ or ()))
        return name_of(value), value.__code__.co_code, [x for x in numbers if type(x) in SCALARS]
    if id(value) in graph.opaque:
        return name_of(value)
    parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    items = [_comparable(item, graph, describe) for item in parts]
    return sorted(items, key=str) if isinstance(value, (set, frozenset)) else items


def same_values(x: Tensor, y: Tensor) -> Tensor:
    """Element by element, NaN equal to NaN."""
    return (x == y) | ((x != x) & (y != y))


def memory_of(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for tensors with the same elements in the same order."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.dtype, tensor.shape, tensor.stride()
