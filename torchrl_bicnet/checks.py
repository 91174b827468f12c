"""Argument checks: the message names the argument, what was found and what is expected."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import torch


def check_integer(name: str, value: Any, least: int = 1, most: float = math.inf) -> None:
    """Require an integer (a bool is none) in ``[least, most]``.

    Example:
        >>> check_integer("num_envs", 0)
        Traceback (most recent call last):
        ...
        ValueError: num_envs must be at least 1, found 0."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, found {value!r}.")
    if not least <= int(value) <= most:
        expected = f"at least {least}" if most == math.inf else f"between {least} and {most}"
        raise ValueError(f"{name} must be {expected}, found {value}.")


def check_seed(value: Any) -> None:
    """Require an integer in ``[0, 2**32)``, which seeds NumPy's generator too."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"seed must be an integer, found {value!r}.")
    if not 0 <= int(value) < 2**32:
        raise ValueError(f"seed must be in [0, 2**32), found {value}.")


def check_number(name: str, value: Any) -> None:
    """Require a real number, so that it can be compared; its range is the caller's."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, found {value!r}.")


def check_type(name: str, value: Any, kind: type | tuple[type, ...], expected: str) -> None:
    """Require a value of type ``kind``, which ``expected`` says in words.

    Example:
        >>> check_type("bias", "no", bool, "a bool")
        Traceback (most recent call last):
        ...
        TypeError: bias must be a bool, found 'no'."""
    if not isinstance(value, kind):
        found = repr(value)
        raise TypeError(f"{name} must be {expected}, found {found if len(found) < 60 else type(value).__name__}.")


def check_key(name: str, key: Any) -> None:
    """Require a nested key, a string or a tuple of them; tensordict itself ignores other entries of a tuple."""
    parts = key if isinstance(key, tuple) else (key,)
    if not parts or not all(isinstance(part, (str, tuple)) for part in parts):
        raise TypeError(f"{name} must be a string or a tuple of strings, found {key!r}.")
    for part in parts:
        if isinstance(part, tuple):
            check_key(name, part)


def check_device(device: Any, name: str = "device") -> None:
    """Require a device that torch knows and finds here; ``None`` is its default.

    Example:
        >>> check_device("gpu")
        Traceback (most recent call last):
        ...
        ValueError: device must be one that torch finds here, such as 'cpu', found 'gpu'."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"{name} must be one that torch finds here, such as 'cpu', found {device!r}.") from error
