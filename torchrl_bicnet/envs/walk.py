"""Everything a VMAS environment is made of, found by following its attributes and containers."""

from __future__ import annotations

import enum
import random
import types
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vmas.simulator.environment import Environment

# What a window on the screen needs is no state of the simulation, and much of it lives outside of Python.
RENDERING = frozenset({"viewer", "headless", "visible_display", "text_lines"})
SCALARS = frozenset({bool, int, float, str, type(None)})
CONSTANTS = (
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    torch.device,
    torch.dtype,
    np.dtype,
    np.generic,
    enum.Enum,
)
GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


@dataclass(slots=True)
class Node:
    """Something whose contents can change: an object, a list, a dict, a set, a function's closure, a generator."""

    path: str
    thing: Any
    contents: dict[Any, Any] | list[Any]


@dataclass(slots=True)
class Walk:
    """What :func:`walk` found, each thing once, by its ``id``, under the first path that leads to it."""

    nodes: dict[int, Node]
    tensors: dict[int, tuple[str, Tensor]]
    arrays: dict[int, tuple[str, np.ndarray]]
    constants: dict[int, tuple[str, Any]]


def walk(environment: Environment) -> Walk:
    """Follow every attribute, slot and container from a VMAS environment, breadth first.

    The entities come first, so that their paths do not depend on what else points to them at the moment.

    Raises:
        TypeError: for something whose state cannot be seen from Python.
    """
    found = Walk({}, {}, {}, {})
    world = environment.world
    queue: deque[tuple[str, Any]] = deque([("world._agents", world._agents), ("world._landmarks", world._landmarks)])
    queue.extend((f"world._agents[{i}]", agent) for i, agent in enumerate(world._agents))
    queue.extend((f"world._landmarks[{i}]", landmark) for i, landmark in enumerate(world._landmarks))
    queue.extend((("world", world), ("scenario", environment.scenario), ("environment", environment)))
    while queue:
        path, thing = queue.popleft()
        if isinstance(thing, Tensor):
            found.tensors.setdefault(id(thing), (path, thing))
        elif isinstance(thing, np.ndarray):
            found.arrays.setdefault(id(thing), (path, thing))
        elif isinstance(thing, (tuple, frozenset)):  # immutable: part of what holds it
            if type(thing) not in (tuple, frozenset):
                found.constants.setdefault(id(type(thing)), (path, type(thing)))
            queue.extend((f"{path}[{i}]", item) for i, item in enumerate(thing) if type(item) not in SCALARS)
        elif isinstance(thing, CONSTANTS):
            if id(thing) not in found.constants:
                found.constants[id(thing)] = (path, thing)
                if isinstance(thing, types.MethodType):
                    queue.append((f"{path}.__self__", thing.__self__))
                elif isinstance(thing, types.FunctionType) and thing.__closure__:
                    node = Node(f"{path}.__closure__", thing, contents_of(thing, path))
                    found.nodes[id(thing)] = node
                    queue.extend(_children(node))
        elif id(thing) not in found.nodes:
            node = Node(path, thing, contents_of(thing, path))
            found.nodes[id(thing)] = node
            queue.extend(_children(node))
    return found


def contents_of(thing: Any, path: str) -> dict[Any, Any] | list[Any]:
    """A shallow copy of what a node holds: attributes by name, items of a dict by key, other items in order."""
    if isinstance(thing, dict):
        return dict(thing)
    if isinstance(thing, (list, deque, set)):
        return list(thing)
    if isinstance(thing, types.FunctionType):
        names = thing.__code__.co_freevars
        return {name: cell.cell_contents for name, cell in zip(names, thing.__closure__ or ()) if _is_filled(cell)}
    if isinstance(thing, torch.Generator):
        return {"state": thing.get_state()}
    if isinstance(thing, np.random.Generator):
        return {"state": thing.bit_generator.state}
    if isinstance(thing, np.random.RandomState):
        return {"state": thing.get_state(legacy=False)}
    if isinstance(thing, random.Random):
        return {"state": thing.getstate()}
    slots = _slots(type(thing))
    if not hasattr(thing, "__dict__") and not slots:
        raise TypeError(
            f"The state of {path} cannot be seen: expected numbers, strings, tensors, arrays, generators, containers "
            f"or Python objects, found {type(thing).__module__}.{type(thing).__qualname__}."
        )
    contents = dict(getattr(thing, "__dict__", ()))
    contents.update((name, getattr(thing, name)) for name in slots if hasattr(thing, name))
    if isinstance(thing, Environment):
        contents = {name: value for name, value in contents.items() if name not in RENDERING}
    return contents


def fill(thing: Any, contents: dict[Any, Any] | list[Any]) -> None:
    """Give a node, in place, the contents that :func:`contents_of` would then return."""
    if isinstance(thing, dict):
        thing.clear()
        thing.update(contents)
    elif isinstance(thing, (list, deque)):
        thing.clear()
        thing.extend(contents)
    elif isinstance(thing, set):
        thing.clear()
        thing.update(contents)
    elif isinstance(thing, types.FunctionType):
        cells = dict(zip(thing.__code__.co_freevars, thing.__closure__ or ()))
        for name, value in dict(contents).items():
            cells[name].cell_contents = value
    elif isinstance(thing, torch.Generator):
        thing.set_state(dict(contents)["state"])
    elif isinstance(thing, np.random.Generator):
        thing.bit_generator.state = dict(contents)["state"]
    elif isinstance(thing, np.random.RandomState):
        thing.set_state(dict(contents)["state"])
    elif isinstance(thing, random.Random):
        thing.setstate(dict(contents)["state"])
    else:
        _fill_object(thing, dict(contents))


def _fill_object(thing: Any, contents: dict[str, Any]) -> None:
    for name in _slots(type(thing)):
        if name in contents:
            # Past a frozen dataclass and past setters that check or convert.
            object.__setattr__(thing, name, contents.pop(name))
        elif hasattr(thing, name):
            object.__delattr__(thing, name)
    if not hasattr(thing, "__dict__"):
        return
    attributes = thing.__dict__
    kept = RENDERING if isinstance(thing, Environment) else frozenset()
    for name in [name for name in attributes if name not in contents and name not in kept]:
        del attributes[name]
    attributes.update(contents)


def _children(node: Node) -> Iterator[tuple[str, Any]]:
    contents, path = node.contents, node.path
    if isinstance(contents, list):
        for index, value in enumerate(contents):
            if type(value) not in SCALARS:
                yield f"{path}[{index}]", value
    elif isinstance(node.thing, dict):
        for index, (key, value) in enumerate(contents.items()):
            # Keys may be anything: those that do not read well go by their position.
            label = key if isinstance(key, str) and key.isidentifier() else index
            if type(key) not in SCALARS:
                yield f"{path}[{index}].key", key
            if type(value) not in SCALARS:
                yield f"{path}[{label}]", value
    else:
        for name, value in contents.items():
            if type(value) not in SCALARS:
                yield f"{path}.{name}", value


def _slots(kind: type) -> list[str]:
    found = []
    for base in kind.__mro__:
        names = base.__dict__.get("__slots__", ())
        found += [names] if isinstance(names, str) else list(names)
    return [name for name in found if name not in ("__dict__", "__weakref__")]


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a variable not assigned yet
        return False
