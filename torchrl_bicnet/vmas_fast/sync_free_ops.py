"""Functions called by the rewritten source of VMAS, with the outputs of what they replace."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _write(
    place: Callable[[], tuple[Any, Any]],
    value: Callable[[], Any],
    op: str | None,
    whole: tuple[tuple[Any, ...], Callable[[], Any]] | None,
    near: tuple[Tensor, ...],
) -> None:
    """``x[index] = value()``, or with ``op`` ``x[index] op= value()``, in the environments of ``near``."""
    new = value() if op is None and whole is None else None  # Python's order
    x, index = place()
    masked = isinstance(index, Tensor) and index.dtype == torch.bool and isinstance(x, Tensor)
    mask = functools.reduce(operator.and_, near, index) if masked else index
    if masked and whole is not None and all(_is_number(leaf) for leaf in whole[0]):
        new = whole[1]()
    else:
        old = x[index] if op is not None and not masked else None  # Python's order again
        new = value() if op is not None or whole is not None else new
        if old is not None and all(near):
            x[index] = getattr(operator, f"i{op}")(old, new)
            return
        masked = masked and (_is_number(new) or (isinstance(new, Tensor) and new.ndim <= x.ndim - index.ndim))
    if not masked:
        if not all(near):
            return
        if op is None and _is_basic(index) and isinstance(x, Tensor) and isinstance(new, (bool, int, float)):
            x[index].fill_(new)
            return
        x[index] = new if op is None else getattr(operator, f"i{op}")(x[index], new)
        return
    if mask.ndim < x.ndim:
        mask = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
    if op is not None:
        new = getattr(operator, op)(x, new)
    elif not isinstance(new, Tensor):
        x.masked_fill_(mask, new)
        return
    fresh = op is not None and isinstance(new, Tensor)  # else it may look at the memory of x
    if fresh and new.dtype == x.dtype and not x.requires_grad and not new.requires_grad:
        torch.where(mask, new, x, out=x)
    else:
        x.copy_(torch.where(mask, new, x))


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
    """The numbers in ``data`` and their types, hashable; ``None`` if it holds something else."""
    if isinstance(data, (bool, int, float)):
        return data, str(data) if data == 0 else type(data)  # -0.0 is no 0.0, and False no 0
    if not isinstance(data, (list, tuple)):
        return None
    parts = [_frozen(part) for part in data]
    if any(part is None for part in parts):
        return None
    return tuple(part[0] for part in parts if part), tuple(part[1] for part in parts if part)


def _near(world: Any, a: Any, b: Any) -> Tensor | None:
    """Whether a and b are near in any environment; ``None`` if they cannot collide."""
    near = getattr(world, "near", None)
    if callable(near):
        return near(a, b)
    return torch.ones((), dtype=torch.bool) if world.collides(a, b) else None


HELPERS: dict[str, Any] = {
    "steady_write": _write,
    "steady_where": _where,
    "steady_tensor": _tensor,
    "steady_near": _near,
    "steady_slice": slice,
}
