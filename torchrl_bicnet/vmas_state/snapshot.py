"""Snapshots of a VMAS environment: everything that changes in an episode, as tensors and JSON values."""

from __future__ import annotations

import enum
import json
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase
from vmas.simulator.environment import Environment

from torchrl_bicnet.checks import check_type
from torchrl_bicnet.vmas_state.object_graph import SCALARS, ObjectGraph, name_of, set_contents, traverse
from torchrl_bicnet.vmas_state.unwrap import environments_of, scenario_file

MADE_BY = "made by"
TEAMS = "teams"
_OURS = "torchrl_bicnet."


@dataclass(frozen=True)
class WorldSnapshot:
    """The state of a VMAS environment, as taken by :func:`snapshot`; independent of it, and saved without pickle.

    Args:
        tensors (TensorDict): copies of the tensors and arrays, without batch size, under the path of the first place
            that holds them, such as ``world._agents[0]._state._pos``. ``tensors.memmap(folder)`` saves them.
        plain (dict): JSON values: the contents of each object, list, dict and set by its path, and under ``"made by"``
            the scenario, options and sizes of the environment. ``json.dump`` saves it. For teams of several sizes it
            is a list of such dicts under ``"teams"``, and their tensors are under ``"0"``, ``"1"`` and so on.
    """

    tensors: TensorDict
    plain: dict[str, Any]


def snapshot(env: EnvBase) -> WorldSnapshot:
    """Copy everything of a VMAS environment that changes during an episode.

    That is what can be reached from the simulator's environment, its world and its scenario by attributes, slots,
    containers and closures: batched tensors, flags and counters, references between entities, NumPy arrays, generators,
    and the random stream of the environment. It moves no stream, reads no tensor's values on the host, and the copies
    share no memory with the environment. Tensors that share memory with each other still do after :func:`restore`.
    TorchRL's wrapper and the transforms of :func:`~torchrl_bicnet.make_vmas_env` hold no such state: theirs
    (``step_count``, ``is_init``, ``episode_reward``) travels in the tensordict of the rollout, which whoever steps the
    environment has to keep. Windows that VMAS opened to render are left out, and so are module globals and attributes
    of classes.

    Args:
        env (EnvBase): made by :func:`~torchrl_bicnet.make_vmas_env`, also inside further
            :class:`~torchrl.envs.TransformedEnv`, or the wrapper in it.

    Returns:
        WorldSnapshot: for :func:`restore`.

    Raises:
        TypeError: for another kind of environment; for one that holds an object whose state cannot be seen from Python
            or saved, the message names its path.

    Example:
        >>> from torchrl_bicnet import make_vmas_env, restore, snapshot
        >>> env = make_vmas_env("navigation", num_envs=4, seed=0)
        >>> td = env.rand_action(env.reset())
        >>> world = snapshot(env)
        >>> world.tensors["world._agents[0]._state._pos"].shape
        torch.Size([4, 2])
        >>> first = env.step(td.clone())["next"]
        >>> restore(env, world)
        >>> bool((env.step(td)["next"] == first).all())
        True
    """
    parts = [_Encoder(environment, traverse(environment)).snapshot() for environment in environments_of(env)]
    if len(parts) == 1:
        return parts[0]
    tensors = TensorDict({str(k): part.tensors for k, part in enumerate(parts)}, batch_size=[])
    return WorldSnapshot(tensors, {TEAMS: [part.plain for part in parts]})


def restore(env: EnvBase, snapshot: WorldSnapshot) -> None:
    """Put an environment into the state that a snapshot was taken of.

    The environment may be the same one at a later time or another one made with the same arguments, also in another
    process. The snapshot can be restored any number of times. Nothing is unpickled and no class is looked up outside
    of the environment: objects of the snapshot are objects of the environment, or new ones of classes found in it.

    Args:
        env (EnvBase): of the same scenario, options, number of environments and device.
        snapshot (WorldSnapshot): from :func:`snapshot`; its parts may have been saved and loaded.

    Raises:
        ValueError: if the snapshot is of another environment or damaged; the message says what differs. The
            environment is unchanged then.
        TypeError: as :func:`snapshot`, or for another type of snapshot.

    Example:
        >>> from torchrl_bicnet import make_vmas_env, restore, snapshot
        >>> env = make_vmas_env("balance", num_envs=4)
        >>> restore(make_vmas_env("balance", num_envs=4), snapshot(env))
        >>> restore(make_vmas_env("balance", num_envs=8), snapshot(env))
        Traceback (most recent call last):
        ...
        ValueError: The snapshot is of another environment: num_envs is 4 in the snapshot and 8 here.
    """
    environments = environments_of(env)
    check_type("snapshot", snapshot, WorldSnapshot, "a WorldSnapshot")
    check_type("snapshot.plain", snapshot.plain, dict, "a dict")
    check_type("snapshot.tensors", snapshot.tensors, TensorDictBase, "a TensorDict")
    parts = [snapshot] if len(environments) == 1 else _by_size(snapshot, len(environments))
    for environment, part in zip(environments, parts):
        _check_origin(environment, part)
    graphs = [traverse(environment) for environment in environments]
    decoded = [_Decoder(*each).decode() for each in zip(environments, parts, graphs)]
    try:
        # An object comes before those it holds, and a generator copies the contents of the array that holds its state.
        for obj, contents in reversed([*chain(*decoded)]):
            set_contents(obj, contents)
    except Exception as error:
        for node in reversed([node for here in graphs for node in here.nodes.values()]):
            set_contents(node.obj, node.contents)
        raise ValueError(f"The snapshot is damaged: {error!r}.") from error


def _by_size(snapshot: WorldSnapshot, n_sizes: int) -> list[WorldSnapshot]:
    """The snapshot of the environments of each size of teams."""
    plains, found = snapshot.plain.get(TEAMS), list(snapshot.tensors.keys())
    if not isinstance(plains, list) or len(plains) != n_sizes or sorted(found) != sorted(map(str, range(n_sizes))):
        sizes = len(plains) if isinstance(plains, list) else 1
        raise ValueError(f"The snapshot is of another environment, with teams of {sizes} sizes, here are {n_sizes}.")
    parts = [WorldSnapshot(snapshot.tensors[str(k)], plain) for k, plain in enumerate(plains)]
    for part in parts:
        check_type("snapshot.plain", part.plain, dict, "a dict")
        check_type("snapshot.tensors", part.tensors, TensorDictBase, "a TensorDict")
    return parts


def _check_origin(environment: Environment, snapshot: WorldSnapshot) -> None:
    if TEAMS in snapshot.plain:
        raise ValueError("The snapshot is of another environment, with teams of several sizes, here they are of one.")
    expected, found = snapshot.plain.get(MADE_BY), _made_by(environment)
    if not isinstance(expected, dict):
        raise ValueError(f"Not a snapshot of a world: expected what made it under {MADE_BY!r}, found {expected!r}.")
    differences = [
        f"{name} is {expected.get(name, 'not given')!r} in the snapshot and {found.get(name, 'not given')!r} here"
        for name in dict.fromkeys((*expected, *found))
        if expected.get(name, ...) != found.get(name, ...)
    ]
    if differences:
        raise ValueError(f"The snapshot is of another environment: {'; '.join(differences)}.")


def _dtype_and_shape(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _made_by(environment: Environment) -> dict[str, Any]:
    options = json.loads(json.dumps(environment.options, default=lambda value: name_of(type(value))))
    return {
        "scenario": f"{scenario_file(environment)}.{type(environment.scenario).__qualname__}",
        "num_envs": environment.num_envs,
        "device": str(environment.device),
        "agents": [agent.name for agent in environment.agents],
        **{f"option {name}": value for name, value in options.items()},
    }


class _Encoder:
    """Turns an object graph into tensors and JSON values."""

    def __init__(self, environment: Environment, graph: ObjectGraph) -> None:
        self.environment, self.graph = environment, graph
        self.tensors: dict[str, Tensor] = {}
        self.references: dict[int, dict[str, Any]] = {}

    def snapshot(self) -> WorldSnapshot:
        self._copy_tensors()
        self._copy_arrays()
        self.references.update((identity, {"at": node.path}) for identity, node in self.graph.nodes.items())
        for identity, (path, obj) in self.graph.opaque.items():
            self.references[identity] = {"constant": name_of(obj), "at": path}
        plain: dict[str, Any] = {MADE_BY: _made_by(self.environment)}
        for node in self.graph.nodes.values():
            plain[node.path] = {"is": name_of(type(node.obj)), **self._encode_contents(node.obj, node.contents)}
        return WorldSnapshot(TensorDict(self.tensors, batch_size=[]), plain)

    def _copy_tensors(self) -> None:
        by_memory: dict[int, list[tuple[str, Tensor]]] = {}
        for path, tensor in self.graph.tensors.values():
            by_memory.setdefault(tensor.untyped_storage()._cdata, []).append((path, tensor))
        for users in by_memory.values():
            key, first = users[0]
            n_bytes = first.untyped_storage().nbytes()
            # Tensors saved to files forget their device.
            device = {} if first.device.type == self.environment.device.type else {"device": first.device.type}
            if len(users) == 1 and first.is_contiguous() and first.numel() * first.itemsize == n_bytes:
                self.tensors[key] = first.detach().clone()
                self.references[id(first)] = {"tensor": key, "like": _dtype_and_shape(first), **device}
                continue
            # Strides are kept, since sums over other strides round otherwise, and memory that tensors share is copied
            # once, as the flat piece that all of them look at.
            same = len({tensor.dtype for _, tensor in users}) == 1 and n_bytes % first.itemsize == 0
            flat = torch.empty(0, dtype=first.dtype if same else torch.uint8, device=first.device)
            self.tensors[key] = flat.set_(first.untyped_storage(), 0, (n_bytes // flat.itemsize,), (1,)).clone()
            like = _dtype_and_shape(self.tensors[key])
            for path, tensor in users:
                view = [str(tensor.dtype), list(tensor.shape), list(tensor.stride()), tensor.storage_offset()]
                self.references[id(tensor)] = {"tensor": key, "view": view, "like": like, "at": path, **device}

    def _copy_arrays(self) -> None:
        for identity, (path, array) in self.graph.arrays.items():
            if array.dtype.kind not in "biufc":
                raise TypeError(f"Cannot save the array {path}: expected numbers, found dtype {array.dtype}.")
            self.tensors[path] = torch.from_numpy(array.copy())
            self.references[identity] = {"array": path, "like": _dtype_and_shape(self.tensors[path])}

    def _encode_contents(self, obj: Any, contents: dict[Any, Any] | list[Any]) -> dict[str, Any]:
        encode = self._encode
        if isinstance(contents, list):
            return {"items": self._encode_items(obj, contents)}
        if isinstance(obj, dict):
            return {"entries": [[encode(key), encode(value)] for key, value in contents.items()]}
        return {"attributes": {name: encode(value) for name, value in contents.items()}}

    def _encode_items(self, obj: Any, items: Iterable[Any]) -> list[Any]:
        encoded = [self._encode(item) for item in items]
        # A set's order is that of addresses and of hashes, which differ between processes.
        return sorted(encoded, key=json.dumps) if isinstance(obj, (set, frozenset)) else encoded

    def _encode(self, value: Any) -> Any:
        cls = type(value)
        if cls in SCALARS:
            return value if cls is not float or math.isfinite(value) else {"float": str(value)}
        if isinstance(value, (tuple, frozenset)):
            return {"fixed": self._encode_items(value, value), "is": name_of(cls)}
        if isinstance(value, np.generic):
            return {"number": value.item(), "dtype": str(value.dtype)}
        return self.references[id(value)]


class _Decoder:
    """Turns tensors and JSON values into contents for an environment's own objects, changing none of them."""

    def __init__(self, environment: Environment, snapshot: WorldSnapshot, here: ObjectGraph) -> None:
        self.snapshot, self.device = snapshot, environment.device
        self.here = {node.path: node.obj for node in here.nodes.values()}
        self.objects: dict[str, Any] = {}
        self.classes: dict[str, Any] = {name_of(cls): cls for cls in (list, dict, set, deque, tuple, frozenset)}
        self.classes.update((name_of(type(obj)), type(obj)) for obj in self.here.values())
        self.opaque: dict[str, dict[str, Any]] = {}  # by name and by path
        for path, obj in here.opaque.values():
            for member in type(obj) if isinstance(obj, enum.Enum) else [obj]:
                self.opaque.setdefault(name_of(member), {})[path] = member
            if isinstance(obj, type):
                self.classes[name_of(obj)] = obj
        self.tensors: dict[str, Tensor] = {}
        self.arrays: dict[str, np.ndarray] = {}
        self.memory: dict[str, Tensor] = {}

    def decode(self) -> list[tuple[Any, Any]]:
        """Each object of the snapshot and its contents."""
        plain = {path: encoded for path, encoded in self.snapshot.plain.items() if path != MADE_BY}
        # Nothing refers to these; any other object that is missing is found missing by the one that holds it.
        missing = [root for root in ("world", "scenario", "environment") if root not in plain]
        if missing:
            raise ValueError(f"The snapshot is damaged: it lacks {', '.join(missing)}.")
        path, decoded = "", []
        try:
            for path, encoded in plain.items():
                self.objects[path] = self._find_or_make(path, encoded["is"])
            for path, encoded in plain.items():
                decoded.append((self.objects[path], self._decode_contents(encoded)))
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"The snapshot is damaged or of another environment, at {path}: {error!r}.") from error
        return decoded

    def _find_or_make(self, path: str, class_name: str) -> Any:
        obj = self.here.get(path)
        here = name_of(type(obj))
        # A class of this package may have had another name when the snapshot was taken.
        if here == class_name or (here.startswith(_OURS) and class_name.startswith(_OURS)):
            return obj
        return self.classes[class_name].__new__(self.classes[class_name])

    def _decode_contents(self, encoded: dict[str, Any]) -> dict[Any, Any] | list[Any]:
        decode = self._decode
        if "items" in encoded:
            return [decode(value) for value in encoded["items"]]
        if "entries" in encoded:
            return {decode(key): decode(value) for key, value in encoded["entries"]}
        return {name: decode(value) for name, value in encoded["attributes"].items()}

    def _decode(self, value: Any) -> Any:
        if type(value) in SCALARS:
            return value
        if "tensor" in value:
            return self._tensor(value)
        if "constant" in value:
            return self._opaque(value["constant"], value["at"])
        if "at" in value:
            return self.objects[value["at"]]
        if "fixed" in value:
            cls = self.classes[value["is"]]
            return cls.__new__(cls, [self._decode(item) for item in value["fixed"]])
        if "array" in value:
            key = value["array"]
            if key not in self.arrays:
                self.arrays[key] = self._copy(key, value["like"]).numpy()
            return self.arrays[key]
        if "number" in value:
            return np.dtype(value["dtype"]).type(value["number"])
        return float(value["float"])

    def _tensor(self, reference: dict[str, Any]) -> Tensor:
        name = json.dumps(reference)
        if name not in self.tensors:
            key = reference["tensor"]
            if key not in self.memory:
                self.memory[key] = self._copy(key, reference["like"]).to(reference.get("device", self.device))
            tensor = self.memory[key]
            if "view" in reference:
                dtype, *geometry = reference["view"]
                tensor = tensor.view(getattr(torch, dtype.removeprefix("torch."))).as_strided(*geometry)
            self.tensors[name] = tensor
        return self.tensors[name]

    def _opaque(self, name: str, path: str) -> Any:
        candidates = self.opaque[name]
        if path in candidates:
            return candidates[path]
        if len({id(obj) for obj in candidates.values()}) > 1:
            raise LookupError(f"found {len(candidates)} of {name} and none at {path}")
        return next(iter(candidates.values()))

    def _copy(self, key: str, like: str) -> Tensor:
        # Tensors loaded from files are of a subclass.
        tensor = self.snapshot.tensors[key].as_subclass(Tensor)
        if _dtype_and_shape(tensor) != like:
            raise ValueError(f"expected {like} at {key}, found {_dtype_and_shape(tensor)}")
        return tensor.clone()
