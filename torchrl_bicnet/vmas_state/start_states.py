"""Resets of some of the environments of a VMAS batch: start states drawn for all at once and handed out row by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from vmas.simulator.environment import Environment

from torchrl_bicnet.compiling.overlaps import overlaps
from torchrl_bicnet.vmas_state.origins import Origins
from torchrl_bicnet.vmas_state.saved_state import SavedState
from torchrl_bicnet.vmas_state.tensor_places import TensorPlaces, memory_of, same_values

# A reset that picks one of two landmarks for all environments changes nothing half of the time.
N_TRIALS = 8
# Reads what the environments observe of their state, in dictionaries and lists of tensors `(num_envs, ...)`.
Observe = Callable[[], Any]


class SharedStateError(Exception):
    """A reset of one environment changes state that all environments of the batch share; the message says which."""


@dataclass
class StartStates:
    """The state of all environments after a reset, of which each row is handed out once.

    Attributes:
        tensors (dict): the path of each place that a reset sets to what it sets it to. The others keep what they hold.
        observed: what is observed of it, ``None`` for what depends on none of these places.
        read (dict): the path of each place that it was computed from to what it held.
        digest (str): of everything but the values of tensors.
        used (Tensor): ``(num_envs,)``, the rows that were handed out.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    observed: Any = None
    read: dict[str, Tensor] = field(default_factory=dict)
    digest: str = ""
    used: Tensor | None = None

    def serve(self, places: TensorPlaces, mask: Tensor) -> bool:
        """Whether none of these rows was handed out yet, and a reset would still compute the same."""
        if self.used is None or self.digest != places.digest or bool((self.used & mask).any()):
            return False
        return places.hold(self.read)

    def hand_out(self, places: TensorPlaces, mask: Tensor, observed: Any) -> Any:
        """Put the rows that a mask picks into their places; what is observed, given what it was before."""
        assert self.used is not None
        self.used = self.used | mask
        by_dimension: dict[int, Tensor] = {}

        def merge(new: Tensor, old: Tensor) -> Tensor:
            if new.ndim not in by_dimension:
                by_dimension[new.ndim] = mask.view(-1, *[1] * (new.ndim - 1))
            return torch.where(by_dimension[new.ndim], new, old)

        n_places = Counter(map(id, self.tensors.values()))
        merged: dict[Any, Tensor] = {}  # one tensor at several places stays one
        for path, new in self.tensors.items():
            place = places.index[path]
            old = places.tensors[place]
            if n_places[id(new)] == 1:
                places.put(place, merge(new, old))
                continue
            pair = id(new), memory_of(old)
            if pair not in merged:
                merged[pair] = merge(new, old)
            places.put(place, merged[pair])
        return tree_map(lambda new, old: old if new is None else merge(new, old), self.observed, observed)


def reset_rows(
    environment: Environment,
    mask: Tensor,
    observe: Observe,
    observed: Any = None,
    places: TensorPlaces | None = None,
) -> Any:
    """Reset the environments of a batch that a mask picks; what all of them observe.

    All are reset, once, and their start states kept: those that the mask picks are handed out now, the others when
    they are wanted, and all are drawn again when one is wanted a second time, or when a reset may compute something
    else than before: state that it reads has changed, or anything that is no tensor. The environments outside of the
    mask go on to the bit as if nothing had happened, apart from the random numbers drawn meanwhile; those inside start
    as they would in a reset of all.

    Args:
        environment (Environment): VMAS's, with a random stream of its own and the attributes ``shared_state`` and
            ``start_states``, which are part of its state.
        mask (Tensor): ``(num_envs,)``, True for the environments to reset.
        observe (callable): reads what is observed, in dictionaries and lists of tensors ``(num_envs, ...)``.
        observed (optional): what was observed of the present state. ``None``: it is read, and what that writes undone.
        places (TensorPlaces, optional): with the tensors that the environment holds now. ``None``: they are looked up.

    Raises:
        SharedStateError: for a scenario with state shared by all environments of the batch that a reset changes (a
            mass, a landmark that is the goal of all), or whose start states depend on other environments' state.
    """
    try:
        if environment.shared_state is None:
            environment.shared_state = _find_shared_state(environment)
        if environment.shared_state:
            raise SharedStateError(environment.shared_state)
        places = TensorPlaces.of(environment) if places is None else places
        states = environment.start_states
        if states is None or not states.serve(places, mask):
            environment.start_states = draw(environment, observe)
            places = TensorPlaces.of(environment)
    except TypeError as error:  # an object whose state cannot be seen
        raise SharedStateError(str(error).rstrip(".")) from None
    if observed is None:
        saved = SavedState(environment)
        observed = observe()
        saved.restore()
    return environment.start_states.hand_out(places, mask, observed)


def draw(environment: Environment, observe: Observe) -> StartStates:
    """Start states of all environments from the environment's random stream; the environment itself stays as it is."""
    saved, before = SavedState(environment), _Look(environment)
    try:
        with torch.no_grad(), Origins(before.tensors) as sources:
            environment.reset(return_observations=False)
        start = _Look(environment, copy=False)
        with torch.no_grad(), Origins(start.tensors) as seen:
            observed = observe()
        after = _Look(environment, copy=False)
        if difference := before.difference(after) or before.difference(start, tensors=False):
            raise SharedStateError(difference)
        by_reset, changed = before.changed_rows(start), before.changed_rows(after)
        _check_views(before, after, changed)
        read = sources.read.union(*(sources.of(start.tensors[i]) for i in by_reset))
        read |= seen.read.union(*(seen.of(after.tensors[i]) for i in changed)) - by_reset

        def note(tensor: Tensor) -> Tensor | None:
            nonlocal read
            origins = seen.of(tensor)
            if origins and not origins & by_reset:
                return None
            read |= origins - by_reset
            return tensor.clone()

        copies: dict[Any, Tensor] = {}
        tensors = [after.tensors[i] for i in sorted(changed)]
        for tensor in tensors:
            copies.setdefault(memory_of(tensor), tensor.detach().clone())
        paths = before.places.paths
        return StartStates(
            {paths[i]: copies[memory_of(tensor)] for i, tensor in zip(sorted(changed), tensors)},
            tree_map(note, observed),
            {paths[i]: before.values[i] for i in sorted(read)},
            before.places.digest,
            torch.zeros(environment.num_envs, dtype=torch.bool, device=environment.device),
        )
    finally:
        saved.restore(streams=False)


def reset_one_by_one(environment: Environment, mask: Tensor) -> None:
    """Reset the environments that a mask picks as VMAS does."""
    rows = mask.nonzero().flatten().tolist()
    if len(rows) == environment.num_envs:
        environment.reset(return_observations=False)
        return
    for index in rows:
        environment.reset_at(index, return_observations=False)


class _Look:
    """The places of an environment's tensors, and copies of these, to compare."""

    def __init__(self, environment: Environment, *, copy: bool = True) -> None:
        self.num_envs = environment.num_envs
        self.places = TensorPlaces.of(environment)
        self.tensors = [*self.places.tensors]
        self.values = [tensor.detach().clone() for tensor in self.tensors] if copy else []
        self.versions = [None if tensor.is_inference() else tensor._version for tensor in self.tensors]

    def difference(
        self,
        after: _Look,
        mask: Tensor | None = None,
        *,
        shared: bool = True,
        tensors: bool = True,
        skip: str = "",
    ) -> str:
        """The first difference in what is no row of an environment, then in the rows that a mask picks.

        Args:
            after (_Look): later.
            mask (Tensor, optional): ``(num_envs,)``, the rows to compare. ``None``: none.

        Keyword Args:
            shared (bool): compares what is no row. Defaults to ``True``.
            tensors (bool): compares tensors too. Defaults to ``True``.
            skip (str): leaves out rows at paths that contain it. Defaults to none.
        """
        if shared and (path := self.places.difference(after.places)):
            return f"{path} changes"
        if not tensors:
            return ""
        unchanged, device = [], self.tensors[0].device
        for i, (path, x, y) in enumerate(zip(self.places.paths, self.values, after.tensors)):
            if not self._is_changed(i, after):
                continue
            if not self._is_rows(i, after):
                if shared:
                    unchanged.append((path, same_values(x, y).all().to(device)))
            elif mask is not None and not (skip and skip in path):
                unchanged.append((path, (same_values(x, y) | ~mask.view(-1, *[1] * (y.ndim - 1))).all()))
        answers = torch.stack([equal for _, equal in unchanged]).tolist() if unchanged else []
        return next((f"{path} changes" for (path, _), answer in zip(unchanged, answers) if not answer), "")

    def changed_rows(self, after: _Look) -> set[int]:
        """The places of rows that hold another tensor, or one that was written to."""
        return {i for i in range(len(self.values)) if self._is_changed(i, after) and self._is_rows(i, after)}

    def _is_changed(self, i: int, after: _Look) -> bool:
        same = self.tensors[i] is after.tensors[i] and self.versions[i] == after.versions[i]
        return not same or (self.versions[i] is None and not torch.equal(self.values[i], after.tensors[i]))

    def _is_rows(self, i: int, after: _Look) -> bool:
        x, y = self.tensors[i], after.tensors[i]
        return y.ndim > 0 and y.shape[0] == self.num_envs and not (x is y and y.stride(0) == 0)


def _find_shared_state(environment: Environment) -> str:
    """The state that keeps the environments of a batch from being reset independently; empty if there is none."""
    index = torch.arange(environment.num_envs, device=environment.device)
    half = index % 2 == 0
    first, beginning = SavedState(environment), _Look(environment)
    try:
        for _ in range(N_TRIALS):
            before = _Look(environment)
            environment.reset(return_observations=False)
            if difference := before.difference(_Look(environment, copy=False)):
                return difference
        # A tensor with as many rows as there are environments may hold something else, which a reset of one environment
        # changes as a whole. The states of entities do have rows, though in buzz_wire a reset of one moves a landmark
        # of all.
        before = _Look(environment)
        environment.reset_at(0, return_observations=False)
        if difference := before.difference(_Look(environment, copy=False), index > 0, shared=False, skip="._state."):
            return difference
        # Twice from one state of the stream, the second time with half of the environments in another state: that of
        # the beginning, since what observations and rewards write may not be what resets write.
        environment.get_from_scenario(get_observations=True, get_rewards=True, get_infos=True, get_dones=True)
        saved, here = SavedState(environment), _Look(environment)
        environment.reset(return_observations=False)
        expected = _Look(environment)
        saved.restore()
        for i, (path, tensor) in enumerate(zip(here.places.paths, here.values)):
            other = beginning.values[beginning.places.index[path]] if path in beginning.places.index else tensor
            if tensor.ndim > 0 and other.shape == tensor.shape and len(tensor) == environment.num_envs:
                here.places.put(i, torch.where(half.view(-1, *[1] * (tensor.ndim - 1)), tensor, other))
        environment.reset(return_observations=False)
        return expected.difference(_Look(environment, copy=False), half)
    finally:
        first.restore()


def _check_views(before: _Look, after: _Look, changed: set[int]) -> None:
    """Refuse a place that holds a part of what another holds: what is written to one would be missed by the other.

    A reset after which they are apart shows that nothing depends on it.
    """
    for i, j in overlaps(after.tensors):
        if {i, j} <= changed and all(_are_parts(look.tensors[i], look.tensors[j]) for look in (before, after)):
            paths = before.places.paths
            raise SharedStateError(f"{paths[i]} and {paths[j]} are parts of one tensor")


def _are_parts(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors have some, but not just the same, of their elements in common."""
    if memory_of(x) == memory_of(y) or x.untyped_storage()._cdata != y.untyped_storage()._cdata:
        return False
    element = torch.zeros(x.untyped_storage().nbytes(), dtype=torch.bool)  # one for each byte at most
    element.as_strided(x.shape, x.stride(), x.storage_offset()).fill_(True)
    return x.dtype != y.dtype or bool(element.as_strided(y.shape, y.stride(), y.storage_offset()).any())
