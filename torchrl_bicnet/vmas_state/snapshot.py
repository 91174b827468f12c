"""Snapshots of a VMAS environment: everything that changes in an episode, as tensors and JSON values."""

from __future__ import annotations

import enum
import json
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase
from vmas.simulator.environment import Environment

from torchrl_bicnet.checks import check_type
from torchrl_bicnet.vmas_state.object_graph import SCALARS, Walk, fill, name_of, walk
from torchrl_bicnet.vmas_state.unwrap import environment_of

MADE_BY = "made by"


@dataclass(frozen=True)
class WorldSnapshot:
    """What :func:`snapshot` took of an environment; independent of it, and saved without pickle.

    Args:
        tensors (TensorDict): copies of the tensors and arrays, without batch size, under the path of the first place
            that holds them, such as ``world._agents[0]._state._pos``. ``tensors.memmap(folder)`` saves them.
        plain (dict): JSON values: for each object, list, dict and set, by its path, what it holds, and under
            ``"made by"`` which environment it was. ``json.dump`` saves it.
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
        TypeError: for another kind of environment; for one that holds something whose state cannot be seen from
            Python or saved, the message names its path.

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
    environment = environment_of(env)
    return _Encoder(environment, walk(environment)).snapshot()


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
        TypeError: as :func:`snapshot`, or for something else than a snapshot.

    Example:
        >>> from torchrl_bicnet import make_vmas_env, restore, snapshot
        >>> env = make_vmas_env("balance", num_envs=4)
        >>> restore(make_vmas_env("balance", num_envs=4), snapshot(env))
        >>> restore(make_vmas_env("balance", num_envs=8), snapshot(env))
        Traceback (most recent call last):
        ...
        ValueError: The snapshot is of another environment: num_envs is 4 in the snapshot and 8 here.
    """
    environment = environment_of(env)
    check_type("snapshot", snapshot, WorldSnapshot, "a WorldSnapshot")
    check_type("snapshot.plain", snapshot.plain, dict, "a dict")
    check_type("snapshot.tensors", snapshot.tensors, TensorDictBase, "a TensorDict")
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
    here = walk(environment)
    contents = _Decoder(environment, snapshot, here).contents()
    try:
        # What holds another thing comes before it, and a generator takes a copy of what holds its state.
        for thing, held in reversed(contents):
            fill(thing, held)
    except Exception as error:
        for node in reversed(here.nodes.values()):
            fill(node.thing, node.contents)
        raise ValueError(f"The snapshot is damaged: {error!r}.") from error


def _like(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _made_by(environment: Environment) -> dict[str, Any]:
    scenario = type(environment.scenario)
    # VMAS loads its scenarios as modules without a name.
    file = Path(scenario.make_world.__code__.co_filename).stem
    options = json.loads(json.dumps(environment.options, default=lambda value: name_of(type(value))))
    return {
        "scenario": f"{file}.{scenario.__qualname__}",
        "num_envs": environment.num_envs,
        "device": str(environment.device),
        "agents": [agent.name for agent in environment.agents],
        **{f"option {name}": value for name, value in options.items()},
    }


class _Encoder:
    """Turns what a walk found into tensors and JSON values."""

    def __init__(self, environment: Environment, found: Walk) -> None:
        self.environment, self.found = environment, found
        self.tensors: dict[str, Tensor] = {}
        self.references: dict[int, dict[str, Any]] = {}

    def snapshot(self) -> WorldSnapshot:
        self._copy_tensors()
        self._copy_arrays()
        for identity, node in self.found.nodes.items():
            if identity not in self.found.constants:
                self.references[identity] = {"at": node.path}
        for identity, (path, constant) in self.found.constants.items():
            self.references[identity] = {"constant": name_of(constant), "at": path}
        plain: dict[str, Any] = {MADE_BY: _made_by(self.environment)}
        for node in self.found.nodes.values():
            plain[node.path] = {"is": name_of(type(node.thing)), **self._encode_contents(node.thing, node.contents)}
        return WorldSnapshot(TensorDict(self.tensors, batch_size=[]), plain)

    def _copy_tensors(self) -> None:
        storages: dict[int, list[tuple[str, Tensor]]] = {}
        for path, tensor in self.found.tensors.values():
            storages.setdefault(tensor.untyped_storage()._cdata, []).append((path, tensor))
        for users in storages.values():
            key, first = users[0]
            n_bytes = first.untyped_storage().nbytes()
            # Tensors saved to files forget their device.
            device = {} if first.device.type == self.environment.device.type else {"device": first.device.type}
            if len(users) == 1 and first.is_contiguous() and first.numel() * first.itemsize == n_bytes:
                self.tensors[key] = first.detach().clone()
                self.references[id(first)] = {"tensor": key, "like": _like(self.tensors[key]), **device}
                continue
            # Strides are kept, since sums over other strides round otherwise, and memory that tensors share is copied
            # once, as the flat piece that all of them look at.
            same = len({tensor.dtype for _, tensor in users}) == 1 and n_bytes % first.itemsize == 0
            flat = torch.empty(0, dtype=first.dtype if same else torch.uint8, device=first.device)
            self.tensors[key] = flat.set_(first.untyped_storage(), 0, (n_bytes // flat.itemsize,), (1,)).clone()
            like = _like(self.tensors[key])
            for path, tensor in users:
                view = [str(tensor.dtype), list(tensor.shape), list(tensor.stride()), tensor.storage_offset()]
                self.references[id(tensor)] = {"tensor": key, "view": view, "like": like, "at": path, **device}

    def _copy_arrays(self) -> None:
        for identity, (path, array) in self.found.arrays.items():
            if array.dtype.kind not in "biufc":
                raise TypeError(f"Cannot save the array {path}: expected numbers, found dtype {array.dtype}.")
            self.tensors[path] = torch.from_numpy(array.copy())
            self.references[identity] = {"array": path, "like": _like(self.tensors[path])}

    def _encode_contents(self, thing: Any, contents: dict[Any, Any] | list[Any]) -> dict[str, Any]:
        encode = self._encode
        if isinstance(contents, list):
            return {"items": self._encode_items(thing, contents)}
        if isinstance(thing, dict):
            return {"entries": [[encode(key), encode(value)] for key, value in contents.items()]}
        return {"attributes": {name: encode(value) for name, value in contents.items()}}

    def _encode_items(self, thing: Any, items: Iterable[Any]) -> list[Any]:
        encoded = [self._encode(item) for item in items]
        # A set's order is that of addresses and of hashes, which differ between processes.
        return sorted(encoded, key=json.dumps) if isinstance(thing, (set, frozenset)) else encoded

    def _encode(self, value: Any) -> Any:
        kind = type(value)
        if kind in SCALARS:
            return value if kind is not float or math.isfinite(value) else {"float": str(value)}
        if isinstance(value, (tuple, frozenset)):
            return {"fixed": self._encode_items(value, value), "is": name_of(kind)}
        if isinstance(value, np.generic):
            return {"number": value.item(), "dtype": str(value.dtype)}
        return self.references[id(value)]


class _Decoder:
    """Turns tensors and JSON values into contents for an environment's own objects, changing none of them."""

    def __init__(self, environment: Environment, snapshot: WorldSnapshot, here: Walk) -> None:
        self.snapshot, self.device = snapshot, environment.device
        self.here = {node.path: node.thing for node in here.nodes.values()}
        self.things: dict[str, Any] = {}
        self.kinds: dict[str, Any] = {name_of(kind): kind for kind in (list, dict, set, deque, tuple, frozenset)}
        self.kinds.update((name_of(type(node.thing)), type(node.thing)) for node in here.nodes.values())
        self.constants: dict[str, dict[str, Any]] = {}  # by name and by path
        for path, constant in here.constants.values():
            for alike in type(constant) if isinstance(constant, enum.Enum) else [constant]:
                self.constants.setdefault(name_of(alike), {})[path] = alike
            if isinstance(constant, type):
                self.kinds[name_of(constant)] = constant
        self.tensors: dict[str, Tensor] = {}
        self.arrays: dict[str, np.ndarray] = {}
        self.memory: dict[str, Tensor] = {}

    def contents(self) -> list[tuple[Any, Any]]:
        """Each thing of the snapshot, and what it is to hold."""
        plain = {path: held for path, held in self.snapshot.plain.items() if path != MADE_BY}
        # Nothing refers to these; all else that is missing is missed by what holds it.
        missing = [root for root in ("world", "scenario", "environment") if root not in plain]
        if missing:
            raise ValueError(f"The snapshot is damaged: it lacks {', '.join(missing)}.")
        path, contents = "", []
        try:
            for path, held in plain.items():
                self.things[path] = self._thing(path, held["is"])
            for path, held in plain.items():
                contents.append((self.things[path], self._decode_contents(held)))
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"The snapshot is damaged or of another environment, at {path}: {error!r}.") from error
        return contents

    def _thing(self, path: str, kind: str) -> Any:
        thing = self.here.get(path)
        if name_of(type(thing)) == kind:
            return thing
        return self.kinds[kind].__new__(self.kinds[kind])

    def _decode_contents(self, held: dict[str, Any]) -> dict[Any, Any] | list[Any]:
        decode = self._decode
        if "items" in held:
            return [decode(value) for value in held["items"]]
        if "entries" in held:
            return {decode(key): decode(value) for key, value in held["entries"]}
        return {name: decode(value) for name, value in held["attributes"].items()}

    def _decode(self, value: Any) -> Any:
        if type(value) in SCALARS:
            return value
        if "tensor" in value:
            return self._tensor(value)
        if "constant" in value:
            return self._constant(value["constant"], value["at"])
        if "at" in value:
            return self.things[value["at"]]
        if "fixed" in value:
            kind = self.kinds[value["is"]]
            return kind.__new__(kind, [self._decode(item) for item in value["fixed"]])
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

    def _constant(self, name: str, path: str) -> Any:
        candidates = self.constants[name]
        if path in candidates:
            return candidates[path]
        if len({id(constant) for constant in candidates.values()}) > 1:
            raise LookupError(f"found {len(candidates)} of {name} and none at {path}")
        return next(iter(candidates.values()))

    def _copy(self, key: str, like: str) -> Tensor:
        # Loaded from files they are tensors of a kind of their own.
        tensor = self.snapshot.tensors[key].as_subclass(Tensor)
        if _like(tensor) != like:
            raise ValueError(f"expected {like} at {key}, found {_like(tensor)}")
        return tensor.clone()
