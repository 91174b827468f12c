"""A saved state of a VMAS environment, and how the environment differs from it now."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from vmas.simulator.environment import Environment

from torchrl_bicnet.vmas_state.object_graph import SCALARS, is_under, name_of, set_contents, stream_paths, traverse

_Pair = tuple[int, int]  # the ids of two tensors


class SavedState:
    """The state of an environment as it is now, to restore all of it or some of its rows."""

    def __init__(self, environment: Environment) -> None:
        self.environment, self.graph = environment, traverse(environment)
        self.tensors = {
            identity: (_version(tensor), tensor.detach().clone())
            for identity, (_, tensor) in self.graph.tensors.items()
        }
        self.arrays = {identity: array.copy() for identity, (_, array) in self.graph.arrays.items()}

    def restore(self) -> None:
        """Restore everything, random streams too."""
        for _, tensor in self.graph.tensors.values():
            version, copy = self.tensors[id(tensor)]
            if _version(tensor) != version or version is None:
                for dimension in [d for d in range(tensor.ndim) if tensor.stride(d) == 0 and tensor.shape[d] > 1]:
                    tensor, copy = tensor.narrow(dimension, 0, 1), copy.narrow(dimension, 0, 1)
                tensor.detach().copy_(copy)
        for _, array in self.graph.arrays.values():
            array[...] = self.arrays[id(array)]
        for node in reversed(self.graph.nodes.values()):
            set_contents(node.obj, node.contents)


class StateDiff:
    """The differences between a saved state and the environment now.

    Tensors with one row for each environment (``rows``) are told from all other state, which the environments of the
    batch share. Random streams are left out: they are not rolled back.
    """

    def __init__(self, saved: SavedState) -> None:
        self.saved, self.now = saved, traverse(saved.environment)
        self.rows: dict[_Pair, tuple[str, Tensor, Tensor]] = {}  # path, tensor then and now
        self.shared: list[tuple[str, Tensor, Tensor]] = []
        self.shared_change = ""  # the first in anything but tensors
        self.changed_nodes: list[tuple[Any, Any, Any]] = []  # that hold rows: object, its contents then and now
        self._n_row_changes = 0
        nodes = {node.path: node for node in saved.graph.nodes.values()}
        streams = stream_paths(saved.graph, saved.environment)
        for node in self.now.nodes.values():
            old = nodes.get(node.path)
            # If nothing of the kind was there, then what leads here differs too.
            if old is not None and type(old.obj) is type(node.obj) and not is_under(node.path, streams):
                self._compare_contents(node.path, node.obj, old.contents, node.contents)

    def difference(self, mask: Tensor | None = None, *, shared: bool = True, skip: str = "") -> str:
        """The first difference in shared state, then in the rows that a mask picks; empty if there is none.

        The host waits for the device once, if there are tensors to compare.

        Args:
            mask (Tensor, optional): ``(num_envs,)``, the rows to compare. ``None``: none.

        Keyword Args:
            shared (bool): compares shared state. Defaults to ``True``.
            skip (str): leaves out tensors of rows whose path contains it. Defaults to none.
        """
        if shared and self.shared_change:
            return self.shared_change
        unchanged = [(path, self._equal(x, y)) for path, x, y in self.shared] if shared else []
        if mask is not None:
            for path, x, y in self.rows.values():
                if not skip or skip not in path:
                    equal = self._equal(x, y)
                    unchanged.append((path, equal | ~_as_rows(mask, equal)))
        if not unchanged:
            return ""
        answers = torch.stack([equal.all().to(self.saved.environment.device) for _, equal in unchanged]).tolist()
        return next((f"{path} changes" for (path, _), answer in zip(unchanged, answers) if not answer), "")

    def restore_unmasked_rows(self, mask: Tensor) -> None:
        """Keep the rows inside the mask as they are now, and restore those outside."""
        merged: dict[_Pair, Tensor] = {}
        by_memory: dict[_Pair, list[tuple[_Pair, Tensor, Tensor]]] = {}
        for pair, (_, x, y) in self.rows.items():
            rows = torch.where(_as_rows(mask, y), y, self.saved.tensors[id(x)][1])
            merged[pair] = y.copy_(rows) if x is y else rows
            if x is not y:
                key = x.untyped_storage()._cdata, y.untyped_storage()._cdata
                by_memory.setdefault(key, []).append((pair, x, y))
        for users in by_memory.values():
            # Views of one piece of memory, then and now, stay views of one.
            if len(users) > 1 and all(_geometry(x) == _geometry(y) for _, x, y in users):
                n_bytes = users[0][2].untyped_storage().nbytes()
                memory = torch.empty(n_bytes, dtype=torch.uint8, device=users[0][2].device)
                for pair, _, y in users:
                    merged[pair] = memory.view(y.dtype).as_strided(*_geometry(y)).copy_(merged[pair])
        for obj, x, y in self.changed_nodes:
            if isinstance(y, list):
                set_contents(obj, [_merge(merged, one, other) for one, other in zip(x, y)])
            else:
                set_contents(obj, {name: _merge(merged, x[name], value) for name, value in y.items()})

    def _compare_contents(self, path: str, obj: Any, x: Any, y: Any) -> None:
        if len(x) != len(y) or (isinstance(y, dict) and x.keys() != y.keys()):
            self._note(path, "changes its entries")
            return
        n_row_changes = self._n_row_changes
        for name, value in enumerate(y) if isinstance(y, list) else y.items():
            if type(value) not in SCALARS:
                self._compare(path, name, x[name], value)
            elif value != x[name] and value == value:
                self._note(f"{path}.{name}", "changes")
        if self._n_row_changes > n_row_changes:
            self.changed_nodes.append((obj, x, y))

    def _compare(self, path: str, name: Any, x: Any, y: Any) -> None:
        graph, now = self.saved.graph, self.now
        change = ""
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            version, _ = self.saved.tensors[id(x)]
            if x is not y or version is None or y._version != version:
                self._compare_tensors(f"{path}.{name}", x, y)
        elif isinstance(y, tuple) and type(x) is type(y) and len(x) == len(y):
            for index, (one, other) in enumerate(zip(x, y)):
                self._compare(f"{path}.{name}", index, one, other)
        elif isinstance(y, np.ndarray) and isinstance(x, np.ndarray):
            change = "" if np.array_equal(self.saved.arrays[id(x)], y) else "changes"
        elif id(x) in graph.opaque and id(y) in now.opaque:
            change = "" if x is y or name_of(x) == name_of(y) else "changes"
        elif id(x) in graph.nodes and id(y) in now.nodes:
            change = "" if graph.nodes[id(x)].path == now.nodes[id(y)].path else "becomes another"
        elif type(x) is not type(y) or x != y:
            change = "changes"
        if change:
            self._note(f"{path}.{name}", change)

    def _compare_tensors(self, path: str, x: Tensor, y: Tensor) -> None:
        if x.shape != y.shape or x.dtype != y.dtype:
            self._note(path, "gets another shape or dtype")
        elif y.ndim > 0 and y.shape[0] == self.saved.environment.num_envs and not (x is y and y.stride(0) == 0):
            self.rows[id(x), id(y)] = path, x, y
            self._n_row_changes += 1
        else:
            self.shared.append((path, x, y))

    def _note(self, path: str, change: str) -> None:
        self.shared_change = self.shared_change or f"{path} {change}"

    def _equal(self, x: Tensor, y: Tensor) -> Tensor:
        copy = self.saved.tensors[id(x)][1]
        return (copy == y) | ((copy != copy) & (y != y))  # NaN equals NaN


def _merge(merged: dict[_Pair, Tensor], x: Any, y: Any) -> Any:
    if isinstance(y, tuple) and isinstance(x, tuple):
        return type(y).__new__(type(y), [_merge(merged, one, other) for one, other in zip(x, y)])
    return merged.get((id(x), id(y)), y)


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _as_rows(mask: Tensor, rows: Tensor) -> Tensor:
    return mask.to(rows.device).view(-1, *[1] * (rows.ndim - 1))


def _geometry(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.storage_offset()
