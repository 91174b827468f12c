"""Options of a script, checked against the types and ranges that their fields name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

Options = TypeVar("Options")


def validated(kind: type[Options], values: Mapping[str, Any]) -> Options:
    """The options of a dataclass from their values; an option without a value has its default.

    Args:
        kind (type): a dataclass whose fields are annotated with types and, by pydantic, with ranges.
        values (mapping): name to value, as Python or JSON has it.

    Raises:
        ValueError: names every option that is unknown, or of another type or range, and what was found.

    Example:
        >>> from dataclasses import make_dataclass
        >>> from pydantic import PositiveInt
        >>> kind = make_dataclass("Options", [("num_envs", PositiveInt, 60)])
        >>> validated(kind, {})
        Options(num_envs=60)
        >>> validated(kind, {"num_envs": 0})
        Traceback (most recent call last):
        ...
        ValueError: num_envs: Input should be greater than 0, found 0
    """
    from pydantic import TypeAdapter, ValidationError
    from pydantic_core import to_json

    try:
        # By way of JSON, in which a list is a tuple and a string a path.
        return TypeAdapter(kind).validate_json(to_json(values))
    except ValidationError as error:
        wrong = []
        for problem in error.errors():
            place = ".".join(map(str, problem["loc"]))
            found = f", found {problem['input']!r}" if place else ""
            wrong.append(f"{place}: {problem['msg']}{found}" if place else problem["msg"].removeprefix("Value error, "))
        raise ValueError("; ".join(wrong)) from None
