"""What arguments have in common: each refused where it is given, with its name, what was found and what is expected."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor


def check_integer(name: str, value: Any, least: int = 1, most: float = math.inf) -> None:
    """Refuse what is no integer (a bool is none) or outside of ``[least, most]``.

    Raises:
        TypeError: for another type.
        ValueError: for another value.

    Example:
        >>> check_integer("num_envs", 0)
        Traceback (most recent call last):
        ...
        ValueError: num_envs must be at least 1, found 0.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, found {value!r}.")
    if not least <= int(value) <= most:
        expected = f"at least {least}" if most == math.inf else f"between {least} and {most}"
        raise ValueError(f"{name} must be {expected}, found {value}.")


def check_seed(value: Any) -> None:
    """Refuse what does not seed NumPy's generator too: an integer in ``[0, 2**32)``.

    Raises:
        TypeError, ValueError: for another type or value.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"seed must be an integer, found {value!r}.")
    if not 0 <= int(value) < 2**32:
        raise ValueError(f"seed must be in [0, 2**32), found {value}.")


def check_number(name: str, value: Any) -> None:
    """Refuse what is no real number, so that it can be compared; its range is the caller's.

    Raises:
        TypeError: for another type.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, found {value!r}.")


def check_type(name: str, value: Any, kind: type | tuple[type, ...], expected: str) -> None:
    """Refuse a value of another type; ``expected`` says in words what it must be.

    Raises:
        TypeError: for another type.

    Example:
        >>> check_type("bias", "no", bool, "a bool")
        Traceback (most recent call last):
        ...
        TypeError: bias must be a bool, found 'no'.
    """
    if not isinstance(value, kind):
        found = repr(value)
        raise TypeError(f"{name} must be {expected}, found {found if len(found) < 60 else type(value).__name__}.")


def check_key(name: str, key: Any) -> None:
    """Refuse what is no nested key: a string, or a tuple of them.

    Raises:
        TypeError: for anything else, which tensordict takes in part.
    """
    parts = key if isinstance(key, tuple) else (key,)
    if not parts or not all(isinstance(part, (str, tuple)) for part in parts):
        raise TypeError(f"{name} must be a string or a tuple of strings, found {key!r}.")
    for part in parts:
        if isinstance(part, tuple):
            check_key(name, part)


def check_device(device: Any, name: str = "device") -> None:
    """Refuse a device that torch does not know or does not find here; ``None`` is its default.

    Raises:
        ValueError: for such a device.

    Example:
        >>> check_device("gpu")
        Traceback (most recent call last):
        ...
        ValueError: device must be one that torch finds here, such as 'cpu', found 'gpu'.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"{name} must be one that torch finds here, such as 'cpu', found {device!r}.") from error


def check_dtype(dtype: Any) -> None:
    """Refuse a type of parameters that is not of floating point; ``None`` is torch's default.

    Raises:
        TypeError: for anything else.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype must be a floating type of torch, such as torch.float32, found {dtype!r}.")


def check_like(x: Tensor, weight: Tensor) -> None:
    """Refuse an input that a layer cannot take with this weight. It reads no values.

    Raises:
        TypeError: for another type than the weight's, unless autocast makes them one.
        ValueError: for another device.
    """
    if x.device != weight.device:
        raise ValueError(f"Expected an input on {weight.device}, where the weights are, found {x.device}.")
    if x.dtype != weight.dtype and not (x.is_floating_point() and torch.is_autocast_enabled(x.device.type)):
        raise TypeError(f"Expected an input of the weights' type {weight.dtype}, found {x.dtype}.")
