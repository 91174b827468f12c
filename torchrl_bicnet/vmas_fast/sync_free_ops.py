"""Functions called by the rewritten source of VMAS, with the outputs of the forms that they replace."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def _write(
    new: Any,
    x: Any,
    index: Any,
    value: Callable[[], Any] | None,
    op: str | None,
    ungathered: tuple[tuple[Any, ...], Callable[[], Any]] | None,
    near: tuple[Tensor, ...],
) -> None:
    """``x[index] = new``, or ``x[index] op= value()``, in the environments where all of ``near`` are true.

    The arguments stand in the order in which Python evaluates the statement. ``value`` takes the place of ``new`` where
    it must be computed later: after the entry was read for ``op=``, or only if it cannot be computed ``ungathered``. Of
    a value like ``2 * y[index] + c`` these are the leaves ``2`` and ``c``, which must be numbers, and a function that
    computes ``2 * y + c`` for all entries. ``near`` are the answers of the ``world.collides`` around the statement.
    """
    if isinstance(x, Tensor) and isinstance(index, tuple) and index and _is_mask(index[0]) and _is_basic(index[1:]):
        x, index = x[_whole(index)], index[0]
    by_mask = isinstance(x, Tensor) and _is_mask(index)
    if by_mask and ungathered is not None and all(map(_is_number, ungathered[0])):
        _write_where(functools.reduce(operator.and_, near, index), x, op, ungathered[1]())
        return
    old = x[index] if op is not None and not by_mask else None
    new = new if value is None else value()
    if by_mask and (_is_number(new) or (isinstance(new, Tensor) and new.ndim <= x.ndim - index.ndim)):
        _write_where(functools.reduce(operator.and_, near, index), x, op, new)
    elif not all(near):
        return
    elif op is not None:
        x[index] = getattr(operator, f"i{op}")(x[index] if by_mask else old, new)
    elif _is_basic(index) and isinstance(x, Tensor) and isinstance(new, (bool, int, float)):
        x[index].fill_(new)
    else:
        x[index] = new


def _write_where(mask: Tensor, x: Tensor, op: str | None, new: Any) -> None:
    """``x[mask] = new[mask]``, or with ``op=``, without counting the rows of the mask."""
    mask = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
    if op is not None:
        new = getattr(operator, op)(x, new)
    elif not isinstance(new, Tensor):
        x.masked_fill_(mask, new)
        return
    # Without op, `new` may look at the memory of x. Dynamo takes no `out=` with gaps.
    plain = new.dtype == x.dtype and x.is_contiguous() and not x.requires_grad and not new.requires_grad
    if op is not None and plain:
        torch.where(mask, new, x, out=x)
    else:
        x.copy_(torch.where(mask, new, x))


def _whole(index: Any) -> Any:
    """``x[_whole((mask, 0))]`` is ``x[:, 0]``; other indices as they are."""
    first, *others = index
    return (*(slice(None),) * first.ndim, *others) if _is_mask(first) else index


def _part(x: Any, index: Any) -> Any:
    """``x[index]``, of which something is then set to a number: if that would be rows of a mask, another copy."""
    return x.clone() if isinstance(x, Tensor) and _is_mask(index) else x[index]


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool


def _is_basic(index: Any) -> bool:
    if isinstance(index, tuple):
        return all(_is_basic(part) for part in index)
    return index is Ellipsis or (isinstance(index, (int, slice)) and not isinstance(index, bool))


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) or (isinstance(value, Tensor) and value.ndim == 0)


def _where(condition: Tensor, *values: Any, **options: Any) -> Any:
    if len(values) == 2 and not options:
        for value, other, chosen in ((*values, True), (*values[::-1], False)):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if number and isinstance(other, Tensor) and other.is_floating_point():
                return other.masked_fill(condition if chosen else ~condition, value)
    return torch.where(condition, *values, **options)


def _tensor(data: Any, *, dtype: torch.dtype | None = None, device: Any = None, **options: Any) -> Tensor:
    """``torch.tensor`` that makes a constant once; each call returns a copy, which its caller may change."""
    frozen = _frozen(data)
    if frozen is None or options or torch.get_default_dtype() != torch.float32:
        return torch.tensor(data, dtype=dtype, device=device, **options)
    return _constant(*frozen, dtype, None if device is None else torch.device(device)).clone()


@functools.lru_cache(maxsize=4096)
def _constant(data: Any, kinds: Any, dtype: torch.dtype | None, device: torch.device | None) -> Tensor:
    return torch.tensor(data, dtype=dtype, device=device)


def _frozen(data: Any) -> tuple[Any, Any] | None:
    """The numbers in ``data`` and their types, hashable; ``None`` if it holds anything else."""
    if isinstance(data, (bool, int, float)):
        return data, str(data) if data == 0 else type(data)  # -0.0 is no 0.0, and False no 0
    if not isinstance(data, (list, tuple)):
        return None
    parts = [_frozen(part) for part in data]
    if any(part is None for part in parts):
        return None
    return tuple(part[0] for part in parts if part), tuple(part[1] for part in parts if part)


def _collides(world: Any, a: Any, b: Any) -> Tensor | None:
    """``world.collides(a, b)`` as a tensor; ``None`` if they can never collide."""
    if callable(near := getattr(world, "near", None)):
        return near(a, b)
    return torch.ones((), dtype=torch.bool) if world.collides(a, b) else None


HELPERS: dict[str, Any] = {
    "sync_free_write": _write,
    "sync_free_where": _where,
    "sync_free_tensor": _tensor,
    "sync_free_collides": _collides,
    "sync_free_whole": _whole,
    "sync_free_part": _part,
    "sync_free_index": np.s_,  # an index such as `1:, 0` as an expression of its own
}
