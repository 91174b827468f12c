"""Resets of some of the environments of a VMAS batch at once, without a loop over them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vmas.simulator.environment import Environment

from torchrl_bicnet.envs.walk import GENERATORS, SCALARS, Walk, fill, name_of, walk

# A reset that picks one of two landmarks for all environments changes nothing half of the time.
N_TRIALS = 8


def reset_rows(environment: Environment, mask: Tensor) -> list[Any]:
    """Reset the environments of a batch that a mask picks, and compute what all of them give.

    All are reset, and those outside of the mask are put back: they go on to the bit as if nothing had happened, apart
    from the random numbers that are drawn meanwhile; those inside start as they would in a reset of all from the same
    state of the random stream. Observations that write into the state, of sensors or noise, leave those outside as they
    were too. Nothing waits for the device, unless a reset makes tensors that do not have one row for each environment:
    whether they came out the same is asked once for all of them.

    A scenario that keeps something in common to its environments which a reset changes (a mass, a landmark that is the
    goal of all), or whose environments start differently if others are in another state, is reset as VMAS does it, one
    by one. The first partial reset of an environment finds that out, by some resets whose traces it removes, and warns.

    Args:
        environment (Environment): VMAS's, with a random stream of its own.
        mask (Tensor): ``(num_envs,)``, True for the environments to reset.

    Returns:
        list: observations, dones and infos as from ``get_from_scenario``.
    """
    in_common = environment.reset_in_common
    if in_common is None:
        try:
            in_common = _what_is_in_common(environment)
        except TypeError as error:  # something whose state cannot be seen
            in_common = str(error).rstrip(".")
    if not in_common:
        before = Before(environment)
        environment.reset(return_observations=False)
        in_common = before.keep(mask)
        if in_common:
            before.undo()
    if in_common:
        rows = mask.nonzero().flatten().tolist()
        if len(rows) == environment.num_envs:
            environment.reset(return_observations=False)
        else:
            for index in rows:
                environment.reset_at(index, return_observations=False)
    else:
        before = Before(environment)
    outputs = environment.get_from_scenario(get_observations=True, get_rewards=False, get_infos=True, get_dones=True)
    if not in_common:
        before.keep(mask, strict=False)
    if in_common != environment.reset_in_common:
        _remember(environment, in_common)
    return outputs


def _remember(environment: Environment, in_common: str) -> None:
    environment.reset_in_common = in_common
    if in_common:
        warnings.warn(
            "Environments of this scenario are reset one by one, and a partial reset may change others, as in VMAS, "
            f"since they have something in common: {in_common}.",
            UserWarning,
            stacklevel=2,
        )


def _what_is_in_common(environment: Environment) -> str:
    """What keeps the environments of a batch from being reset independently; empty if nothing does."""
    half = torch.arange(environment.num_envs, device=environment.device) % 2 == 0
    first = Before(environment)
    try:
        for _ in range(N_TRIALS):
            start = Before(environment)
            environment.reset(return_observations=False)
            difference = start.difference()
            if difference:
                return difference
        # What has as many rows as there are environments may be something else, which a reset of one changes whole. The
        # states of entities have rows, though in buzz_wire a reset of one moves a landmark of all.
        start = Before(environment)
        environment.reset_at(0, return_observations=False)
        changes = _Changes(start, walk(environment))
        others = torch.arange(environment.num_envs, device=environment.device) > 0
        kept = [change for change in changes.rows.values() if "._state." not in change[0]]
        difference = changes.differing(kept, others)
        if difference:
            return difference
        # Twice from one state of the stream, the second time with half of the environments in another state: that of
        # the beginning, and what observations and rewards write may not be what resets write.
        environment.get_from_scenario(get_observations=True, get_rewards=True, get_infos=True, get_dones=True)
        start = Before(environment)
        environment.reset(return_observations=False)
        expected = Before(environment)
        first.undo()
        elsewhere = Before(environment)
        start.undo()
        elsewhere.keep(half)
        environment.reset(return_observations=False)
        return expected.difference(half)
    finally:
        first.undo()


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
