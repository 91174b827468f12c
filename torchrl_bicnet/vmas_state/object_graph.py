"""Everything a VMAS environment is made of, found by following its attributes and containers."""

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

# Of a world: what was computed of its present state.
SENSING = "_sensing"
# Beside that, of VMAS's environment: what a window on the screen needs, much of which lives outside of Python, and the
# spaces, which only describe.
NO_STATE = frozenset(
    {"viewer", "headless", "visible_display", "text_lines", "action_space", "observation_space", SENSING}
)
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
    bytes,
    complex,
    range,
    slice,
    logging.Logger,
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
        kind = _kind(thing.__class__)
        if kind is Tensor:
            found.tensors.setdefault(id(thing), (path, thing))
        elif kind is np.ndarray:
            found.arrays.setdefault(id(thing), (path, thing))
        elif kind is tuple:  # immutable: part of what holds it
            if type(thing) not in (tuple, frozenset):
                found.constants.setdefault(id(type(thing)), (path, type(thing)))
            queue.extend((f"{path}[{i}]", item) for i, item in enumerate(thing) if type(item) not in SCALARS)
        elif kind is CONSTANTS:
            if id(thing) not in found.constants:
                found.constants[id(thing)] = path, thing
                if isinstance(thing, types.MethodType):
                    queue.append((f"{path}.__self__", thing.__self__))
                elif isinstance(thing, types.FunctionType) and thing.__closure__:
                    _enter(found, queue, f"{path}.__closure__", thing)
        elif id(thing) not in found.nodes:
            _enter(found, queue, path, thing)
    return found


def _enter(found: Walk, queue: deque[tuple[str, Any]], path: str, thing: Any) -> None:
    contents = contents_of(thing, path)
    found.nodes[id(thing)] = Node(path, thing, contents)
    if isinstance(contents, list):
        queue.extend((f"{path}[{index}]", value) for index, value in enumerate(contents) if type(value) not in SCALARS)
    elif isinstance(thing, dict):
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
    """How things of a class are treated: as the first of these that it is a kind of, otherwise as an object."""
    for kind in (Tensor, np.ndarray, tuple, dict, CONSTANTS, GENERATORS):
        if issubclass(cls, kind):
            return kind
    if issubclass(cls, frozenset):
        return tuple
    return list if issubclass(cls, (list, deque, set)) else object


def contents_of(thing: Any, path: str) -> dict[Any, Any] | list[Any]:
    """A shallow copy of what a node holds: attributes by name, items of a dict by key, other items in order."""
    kind = _kind(thing.__class__)
    if kind is object:
        return _attributes(thing, path)
    if kind is dict:
        return dict(thing)
    if kind is list:
        return list(thing)
    if kind is CONSTANTS:  # a function
        names = thing.__code__.co_freevars
        return {name: cell.cell_contents for name, cell in zip(names, thing.__closure__) if _is_filled(cell)}
    if isinstance(thing, torch.Generator):
        return {"state": thing.get_state()}
    if isinstance(thing, np.random.Generator):
        return {"state": thing.bit_generator.state}
    if isinstance(thing, np.random.RandomState):
        return {"state": thing.get_state(legacy=False)}
    return {"state": thing.getstate()}


def _attributes(thing: Any, path: str) -> dict[str, Any]:
    slots = _slots(thing.__class__)
    if not hasattr(thing, "__dict__") and not slots:
        raise TypeError(
            f"The state of {path} cannot be seen: expected numbers, strings, tensors, arrays, generators, containers "
            f"or Python objects, found {type(thing).__module__}.{type(thing).__qualname__}."
        )
    contents = dict(getattr(thing, "__dict__", ()))
    contents.update((name, getattr(thing, name)) for name in slots if hasattr(thing, name))
    if isinstance(thing, (Environment, World)):
        for name in NO_STATE:
            contents.pop(name, None)
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


def name_of(thing: Any) -> str:
    """What a constant of a program is called, the same in every process."""
    if isinstance(thing, enum.Enum):
        return f"{name_of(type(thing))}.{thing.name}"
    if isinstance(thing, (type, types.FunctionType, types.MethodType)):
        return f"{thing.__module__}.{thing.__qualname__}"
    return thing.__name__ if isinstance(thing, types.ModuleType) else str(thing)


def _fill_object(thing: Any, contents: dict[str, Any]) -> None:
    for name in _slots(thing.__class__):
        if name in contents:
            # Past a frozen dataclass and past setters that check or convert.
            object.__setattr__(thing, name, contents.pop(name))
        elif hasattr(thing, name):
            object.__delattr__(thing, name)
    if not hasattr(thing, "__dict__"):
        return
    attributes = thing.__dict__
    kept = NO_STATE if isinstance(thing, (Environment, World)) else frozenset()
    for name in [name for name in attributes if name not in contents and name not in kept]:
        del attributes[name]
    attributes.update(contents)


@functools.lru_cache(maxsize=1024)
def _slots(kind: Any) -> list[str]:
    found: list[str] = []
    for base in kind.__mro__:
        names = base.__dict__.get("__slots__", ())
        found += [names] if isinstance(names, str) else list(names)
    return [name for name in found if name not in ("__dict__", "__weakref__")]


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a variable not assigned yet
        return False
