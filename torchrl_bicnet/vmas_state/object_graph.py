"""The object graph of a VMAS environment: everything reached from it by attributes, slots, containers and closures."""

from __future__ import annotations

import enum
import functools
import logging
import random
import types
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vmas.simulator.core import World
from vmas.simulator.environment import Environment

# The attribute of a world that caches what was computed from its present state (vmas_fast/distances.py).
SENSING = "_sensing"
# The attribute of an environment that keeps the places of its tensors (tensor_places.py).
PLACES = "_places"
# Attributes of VMAS's environment and world that are no state: the window on the screen, much of which lives outside of
# Python, the spaces, which only describe, how an environment was made, and the caches.
NO_STATE = frozenset(
    [
        *("viewer", "headless", "visible_display", "text_lines", "action_space", "observation_space"),
        *("check_actions", "draws_from_torch_alone", "hands_out_start_states", SENSING, PLACES),
    ]
)
SCALARS = frozenset({bool, int, float, str, type(None)})
# Known by name only, never looked into.
OPAQUE = (
    *(type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, logging.Logger),
    *(torch.device, torch.dtype, np.dtype, np.generic, enum.Enum, bytes, complex, range, slice, functools.partial),
)
GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


@dataclass(slots=True)
class Node:
    """An object whose contents can change: also a list, dict or set, a function's closure, a random generator."""

    path: str
    obj: Any
    contents: Any  # as contents_of gives them


@dataclass(slots=True)
class ObjectGraph:
    """The objects that :func:`traverse` found, each once, by its ``id``, under the first path that leads to it."""

    nodes: dict[int, Node]
    tensors: dict[int, tuple[str, Tensor]]
    arrays: dict[int, tuple[str, np.ndarray]]
    opaque: dict[int, tuple[str, Any]]


def traverse(environment: Environment) -> ObjectGraph:
    """Follow every attribute, slot and container from a VMAS environment, breadth first.

    The entities come first, so that their paths do not depend on what else points to them at the moment.

    Raises:
        TypeError: for an object whose state cannot be seen from Python.
    """
    graph = ObjectGraph({}, {}, {}, {})
    world = environment.world
    queue: deque[tuple[str, Any]] = deque([("world._agents", world._agents), ("world._landmarks", world._landmarks)])
    queue.extend((f"world._agents[{i}]", agent) for i, agent in enumerate(world._agents))
    queue.extend((f"world._landmarks[{i}]", landmark) for i, landmark in enumerate(world._landmarks))
    queue.extend((("world", world), ("scenario", environment.scenario), ("environment", environment)))
    while queue:
        path, obj = queue.popleft()
        kind = _kind(obj.__class__)
        if kind is Tensor:
            graph.tensors.setdefault(id(obj), (path, obj))
        elif kind is np.ndarray:
            graph.arrays.setdefault(id(obj), (path, obj))
        elif kind is tuple:  # immutable: part of what holds it
            if type(obj) not in (tuple, frozenset):
                graph.opaque.setdefault(id(type(obj)), (path, type(obj)))
            queue.extend((f"{path}[{i}]", item) for i, item in enumerate(obj) if type(item) not in SCALARS)
        elif kind is OPAQUE:
            if id(obj) not in graph.opaque:
                graph.opaque[id(obj)] = path, obj
                if isinstance(obj, types.MethodType):
                    queue.append((f"{path}.__self__", obj.__self__))
                elif isinstance(obj, types.FunctionType) and obj.__closure__:
                    _add_node(graph, queue, f"{path}.__closure__", obj)
        elif id(obj) not in graph.nodes:
            _add_node(graph, queue, path, obj)
    return graph


def _add_node(graph: ObjectGraph, queue: deque[tuple[str, Any]], path: str, obj: Any) -> None:
    contents = contents_of(obj, path)
    graph.nodes[id(obj)] = Node(path, obj, contents)
    if isinstance(contents, list):
        queue.extend((f"{path}[{index}]", value) for index, value in enumerate(contents) if type(value) not in SCALARS)
    elif isinstance(obj, dict):
        for index, (key, value) in enumerate(contents.items()):
            if type(key) not in SCALARS:
                queue.append((f"{path}[{index}].key", key))
            if type(value) not in SCALARS:
                # Keys may be anything: those that do not read well go by their position.
                label = key if isinstance(key, str) and key.isidentifier() else index
                queue.append((f"{path}[{label}]", value))
    else:
        queue.extend((f"{path}.{name}", value) for name, value in contents.items() if type(value) not in SCALARS)


# Bounded, since VMAS makes new classes for every environment it loads.
@functools.lru_cache(maxsize=1024)
def _kind(cls: Any) -> Any:
    """The way to treat objects of a class: as the first of these that it is a subclass of, else as plain objects."""
    for kind in (Tensor, np.ndarray, tuple, dict, OPAQUE, GENERATORS):
        if issubclass(cls, kind):
            return kind
    if issubclass(cls, frozenset):
        return tuple
    return list if issubclass(cls, (list, deque, set)) else object


def contents_of(obj: Any, path: str) -> dict[Any, Any] | list[Any]:
    """A shallow copy of what a node holds: attributes by name, items of a dict by key, other items in order."""
    kind = _kind(obj.__class__)
    if kind is object:
        return _attributes(obj, path)
    if kind in (dict, list):
        return kind(obj)
    if kind is OPAQUE:  # a function
        names = obj.__code__.co_freevars
        return {name: cell.cell_contents for name, cell in zip(names, obj.__closure__) if _is_filled(cell)}
    if isinstance(obj, np.random.Generator):
        return {"state": obj.bit_generator.state}
    if isinstance(obj, np.random.RandomState):
        return {"state": obj.get_state(legacy=False)}
    return {"state": obj.getstate() if isinstance(obj, random.Random) else obj.get_state()}


def _attributes(obj: Any, path: str) -> dict[str, Any]:
    slots = _slots(obj.__class__)
    if not hasattr(obj, "__dict__") and not slots:
        raise TypeError(
            f"The state of {path} cannot be seen: expected numbers, strings, tensors, arrays, generators, containers "
            f"or Python objects, found {type(obj).__module__}.{type(obj).__qualname__}."
        )
    contents = dict(getattr(obj, "__dict__", ()))
    contents.update((name, getattr(obj, name)) for name in slots if hasattr(obj, name))
    for name in _no_state(obj):
        contents.pop(name, None)
    return contents


def set_contents(obj: Any, contents: Any) -> None:
    """Give a node, in place, the contents that :func:`contents_of` would then return."""
    if isinstance(obj, (dict, set, list, deque)):
        obj.clear()
        (obj.update if isinstance(obj, (dict, set)) else obj.extend)(contents)
    elif isinstance(obj, types.FunctionType):
        cells = dict(zip(obj.__code__.co_freevars, obj.__closure__ or ()))
        for name, value in contents.items():
            cells[name].cell_contents = value
    elif isinstance(obj, np.random.Generator):
        obj.bit_generator.state = contents["state"]
    elif isinstance(obj, random.Random):
        obj.setstate(contents["state"])
    elif isinstance(obj, (torch.Generator, np.random.RandomState)):
        obj.set_state(contents["state"])
    else:
        _set_attributes(obj, dict(contents))


def _set_attributes(obj: Any, contents: dict[str, Any]) -> None:
    for name in _slots(obj.__class__):
        if name in contents:
            # Past a frozen dataclass and past setters that check or convert.
            object.__setattr__(obj, name, contents.pop(name))
        elif hasattr(obj, name):
            object.__delattr__(obj, name)
    if hasattr(obj, "__dict__"):
        attributes = obj.__dict__
        for name in attributes.keys() - contents.keys() - _no_state(obj):
            del attributes[name]
        attributes.update(contents)


def name_of(obj: Any) -> str:
    """The name of an opaque object, the same in every process."""
    if isinstance(obj, enum.Enum):
        return f"{name_of(type(obj))}.{obj.name}"
    if isinstance(obj, (type, types.FunctionType, types.MethodType)):
        return f"{obj.__module__}.{obj.__qualname__}"
    if isinstance(obj, functools.partial):
        return f"partial of {name_of(obj.func)}, {obj.args}, {obj.keywords}"
    return obj.__name__ if isinstance(obj, types.ModuleType) else str(obj)


def is_under(path: str, roots: tuple[str, ...]) -> bool:
    """Whether a path is one of the roots or leads through one."""
    return any(path == root or path.startswith((f"{root}.", f"{root}[")) for root in roots)


def stream_paths(graph: ObjectGraph, environment: Environment) -> tuple[str, ...]:
    """The paths of random generators, and of the environment's own random stream."""
    return tuple(
        node.path
        for node in graph.nodes.values()
        if node.obj is environment.random_stream or isinstance(node.obj, GENERATORS)
    )


def _no_state(obj: Any) -> frozenset[str]:
    return NO_STATE if isinstance(obj, (Environment, World)) else frozenset()


@functools.lru_cache(maxsize=1024)
def _slots(cls: Any) -> list[str]:
    found: list[str] = []
    for base in cls.__mro__:
        names = base.__dict__.get("__slots__", ())
        found += [names] if isinstance(names, str) else list(names)
    return [name for name in found if name not in ("__dict__", "__weakref__")]


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a variable not assigned yet
        return False
