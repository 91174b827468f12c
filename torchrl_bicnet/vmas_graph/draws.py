"""The random numbers of a step, taken out of its graph: drawn before each step in the same order, and given to it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Draw = Callable[[], Tensor]
_IN_ADVANCE = frozenset(
    ("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "uniform_", "normal_")
)


def draws(function: Any) -> bool:
    """Whether an operation draws from a generator of torch."""
    return torch.Tag.nondeterministic_seeded in function.tags


def draw_in_advance(function: Any, args: Any, kwargs: dict[str, Any]) -> Draw | None:
    """A repetition of a draw that depends on no value of a tensor, with torch's own generator; ``None`` for others."""
    name = function.name().removeprefix("aten::").split(".")[0]
    tensors = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)]
    # Other than contiguous memory is filled in another order.
    in_advance = name in _IN_ADVANCE and kwargs.get("generator") is None and all(t.is_contiguous() for t in tensors)
    if not in_advance:
        return None
    empty = [_empty_like(arg) if isinstance(arg, Tensor) else arg for arg in args]
    return lambda: function(*(arg() if callable(arg) else arg for arg in empty), **kwargs)


def _empty_like(tensor: Tensor) -> Draw:
    return functools.partial(torch.empty, tensor.shape, dtype=tensor.dtype, device=tensor.device)


class GivenDraws(TorchDispatchMode):
    """Operations that draw take the next of some tensors instead."""

    def __init__(self, drawn: Iterable[Tensor]) -> None:
        super().__init__()
        self.drawn = iter(drawn)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not draws(function):
            return function(*args, **(kwargs or {}))
        drawn = next(self.drawn)
        return args[0].copy_(drawn) if function._schema.is_mutable else drawn.clone()
