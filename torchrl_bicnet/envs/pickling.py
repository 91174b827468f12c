"""Environments that are pickled as the arguments they were made from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any


class MadeFromArguments:
    """Pickled, for another process, as a function and its arguments; copies keep the state.

    What is unpickled is a new environment, with the seed that was given when the first one was made.
    """

    made_from: tuple[Callable[..., Any], tuple[Any, ...]] | None = None

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if self.made_from is None:
            raise TypeError(
                f"{type(self).__name__} cannot be pickled: it was not made by make_vmas_env, or of a "
                "scenario that was in another environment before."
            )
        return self.made_from

    def __copy__(self) -> Any:
        copied = object.__new__(type(self))
        copied.__dict__.update(vars(self))
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo[id(self)] = object.__new__(type(self))
        copied.__dict__.update(copy.deepcopy(vars(self), memo))
        return copied
