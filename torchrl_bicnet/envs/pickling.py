"""Environments that are pickled as the arguments they were made from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any


class MadeFromArguments:
    """Pickled, for another process, as a function and its arguments; a deep copy keeps the state.

    What is unpickled is a new environment: with a seed it starts where the first one started.
    """

    made_from: tuple[Callable[..., Any], tuple[Any, ...]] | None = None

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if self.made_from is None:
            raise TypeError(f"{type(self).__name__} cannot be pickled: it was not made by make_vmas_env.")
        return self.made_from

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo[id(self)] = object.__new__(type(self))
        copied.__dict__.update(copy.deepcopy(vars(self), memo))
        return copied
