"""A saved state of a VMAS environment, and how the environment differs from it now."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vmas.simulator.environment import Environment

from torchrl_bicnet.vmas_state.object_graph import GENERATORS, SCALARS, Walk, fill, name_of, walk


class Before:
    """An environment as it is now, to put back all of it or some of its rows."""

    def __init__(self, environment: Environment) -> None:
        self.environment, self.found = environment, walk(environment)
        self.copies = {
            identity: (_version(tensor), tensor.detach().clone())
            for identity, (_, tensor) in self.found.tensors.items()
        }
        self.arrays = {identity: array.copy() for identity, (_, array) in self.found.arrays.items()}
        self.nodes = {node.path: node for node in self.found.nodes.values()}
        # What is drawn is drawn.
        self.streams = tuple(
            node.path
            for node in self.found.nodes.values()
            if node.thing is environment.random_stream or isinstance(node.thing, GENERATORS)
        )

    def undo(self) -> None:
        """Put everything back, random streams too."""
        for _, tensor in self.found.tensors.values():
            version, copy = self.copies[id(tensor)]
            if _version(tensor) != version or version is None:
                for dimension in [d for d in range(tensor.ndim) if tensor.stride(d) == 0 and tensor.shape[d] > 1]:
                    tensor, copy = tensor.narrow(dimension, 0, 1), copy.narrow(dimension, 0, 1)
                tensor.detach().copy_(copy)
        for _, array in self.found.arrays.values():
            array[...] = self.arrays[id(array)]
        for node in reversed(self.found.nodes.values()):
            fill(node.thing, node.contents)

    def difference(self, mask: Tensor | None = None) -> str:
        """What has changed of all that is no row of an environment, and of the rows that a mask picks."""
        changes = _Changes(self, walk(self.environment))
        difference = changes.in_common()
        if difference or mask is None:
            return difference
        return changes.differing(changes.rows.values(), mask)

    def keep(self, mask: Tensor, *, strict: bool = True) -> str:
        """Put the rows outside of the mask back, or, if more than rows changed, do nothing and say what."""
        changes = _Changes(self, walk(self.environment))
        difference = changes.in_common() if strict else ""
        if not difference:
            changes.keep(mask)
        return difference


class _Changes:
    """What differs between an environment before and now."""

    def __init__(self, before: Before, now: Walk) -> None:
        self.before, self.now = before, now
        self.rows: dict[tuple[int, int], tuple[str, Tensor, Tensor]] = {}  # path, tensor before and now
        self.others: list[tuple[str, Tensor, Tensor]] = []
        self.plain = ""
        self.n_changed = 0
        self.touched: list[tuple[Any, Any, Any]] = []  # thing, its contents before and now
        for node in now.nodes.values():
            old = before.nodes.get(node.path)
            # If there was nothing of the kind, then what leads here differs too.
            if old is not None and type(old.thing) is type(node.thing) and not within(node.path, before.streams):
                self._compare_contents(node.path, node.thing, old.contents, node.contents)

    def _compare_contents(self, path: str, thing: Any, x: Any, y: Any) -> None:
        names, values = (range(len(y)), y) if isinstance(y, list) else (y, y.values())
        if len(x) != len(y) or (isinstance(y, dict) and x.keys() != y.keys()):
            self._note(path, "holds other things")
            return
        n_changed = self.n_changed
        for name, value in zip(names, values):
            if type(value) in SCALARS:
                if value != x[name] and value == value:
                    self._note(f"{path}.{name}", "changes")
            else:
                self._compare(path, name, x[name], value)
        if self.n_changed > n_changed:
            self.touched.append((thing, x, y))

    def _compare(self, path: str, name: Any, x: Any, y: Any) -> None:
        found, now = self.before.found, self.now
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            version, _ = self.before.copies[id(x)]
            if x is not y or version is None or y._version != version:
                self._compare_tensors(f"{path}.{name}", x, y)
        elif isinstance(y, tuple) and type(x) is type(y) and len(x) == len(y):
            for index, (one, other) in enumerate(zip(x, y)):
                self._compare(f"{path}.{name}", index, one, other)
        elif isinstance(y, np.ndarray) and isinstance(x, np.ndarray):
            if not np.array_equal(self.before.arrays[id(x)], y):
                self._note(f"{path}.{name}", "changes")
        elif id(x) in found.constants and id(y) in now.constants:
            if x is not y and name_of(x) != name_of(y):
                self._note(f"{path}.{name}", "changes")
        elif id(x) in found.nodes and id(y) in now.nodes:
            if found.nodes[id(x)].path != now.nodes[id(y)].path:
                self._note(f"{path}.{name}", "becomes another")
        elif type(x) is not type(y) or x != y:
            self._note(f"{path}.{name}", "changes")

    def _compare_tensors(self, path: str, x: Tensor, y: Tensor) -> None:
        if x.shape != y.shape or x.dtype != y.dtype:
            self._note(path, "gets another shape or dtype")
        elif y.ndim > 0 and y.shape[0] == self.before.environment.num_envs and not (x is y and y.stride(0) == 0):
            self.rows[id(x), id(y)] = path, x, y
            self.n_changed += 1
        else:
            self.others.append((path, x, y))

    def _note(self, path: str, what: str) -> None:
        self.plain = self.plain or f"{path} {what}"

    def in_common(self) -> str:
        """What has changed that is no row of an environment."""
        return self.plain or self.differing(self.others)

    def differing(self, changed: Iterable[tuple[str, Tensor, Tensor]], mask: Tensor | None = None) -> str:
        """The tensors whose values differ; the host waits for the device once, if there are any to compare."""
        paths, same, device = [], [], self.before.environment.device
        for path, x, y in changed:
            copy = self.before.copies[id(x)][1]
            equal = (copy == y) | ((copy != copy) & (y != y))
            paths.append(path)
            same.append((equal if mask is None else equal | ~_like(mask, equal)).all().to(device))
        differ = [] if not same else [path for path, one in zip(paths, torch.stack(same).tolist()) if not one]
        return f"{differ[0]} changes" if differ else ""

    def keep(self, mask: Tensor) -> None:
        """Rows of now inside the mask, of before outside."""
        kept: dict[tuple[int, int], Tensor] = {}
        shared: dict[tuple[int, int], list[tuple[tuple[int, int], Tensor, Tensor]]] = {}
        for pair, (_, x, y) in self.rows.items():
            rows = torch.where(_like(mask, y), y, self.before.copies[id(x)][1])
            kept[pair] = y.copy_(rows) if x is y else rows
            if x is not y:
                key = x.untyped_storage()._cdata, y.untyped_storage()._cdata
                shared.setdefault(key, []).append((pair, x, y))
        for users in shared.values():
            # Views of one piece of memory, before and now, stay views of one.
            if len(users) > 1 and all(_geometry(x) == _geometry(y) for _, x, y in users):
                n_bytes = users[0][2].untyped_storage().nbytes()
                memory = torch.empty(n_bytes, dtype=torch.uint8, device=users[0][2].device)
                for pair, _, y in users:
                    kept[pair] = memory.view(y.dtype).as_strided(*_geometry(y)).copy_(kept[pair])
        for thing, x, y in self.touched:
            if isinstance(y, list):
                fill(thing, [self._kept(kept, one, other) for one, other in zip(x, y)])
            else:
                fill(thing, {name: self._kept(kept, x[name], value) for name, value in y.items()})

    def _kept(self, kept: dict[tuple[int, int], Tensor], x: Any, y: Any) -> Any:
        if isinstance(y, tuple) and isinstance(x, tuple):
            return type(y).__new__(type(y), [self._kept(kept, one, other) for one, other in zip(x, y)])
        return kept.get((id(x), id(y)), y)


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _like(mask: Tensor, rows: Tensor) -> Tensor:
    return mask.to(rows.device).view(-1, *[1] * (rows.ndim - 1))


def within(path: str, places: tuple[str, ...]) -> bool:
    """Whether a path is one of some places, or leads through one."""
    return any(path == place or path.startswith((f"{place}.", f"{place}[")) for place in places)


def _geometry(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.storage_offset()
