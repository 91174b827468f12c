"""Options of a script, checked against the types and ranges that their fields name."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

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


def options_of_file(kind: type[Options], path: Path | str) -> Options:
    """The options of a script from a file, as defaults for its command line.

    Args:
        kind (type): a dataclass, as for :func:`validated`. What its ``__post_init__`` derives is not derived yet.
        path (Path or str): a YAML or JSON file of name to value, or a run's ``run.json``. Of a run, options with
            the values that would follow from the others are left out, so that they follow from changed ones.

    Raises:
        ValueError: names the file, and every option that is unknown, or of another type or range.

    Example:
        >>> import tempfile
        >>> from dataclasses import make_dataclass
        >>> kind = make_dataclass("Options", [("num_envs", int, 60), ("seed", int, 0)])
        >>> path = Path(tempfile.mkdtemp()) / "options.yaml"
        >>> _ = path.write_text("num_envs: 8192")
        >>> options_of_file(kind, path)
        Options(num_envs=8192, seed=0)
    """
    import yaml
    from pydantic import TypeAdapter
    from pydantic_core import to_json

    class Loader(yaml.SafeLoader):
        """With the numbers of YAML 1.2, such as 1e-4."""

    number = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    try:
        text = Path(path).read_text()
        values = json.loads(text) if Path(path).suffix == ".json" else yaml.load(text, Loader)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is neither YAML nor JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold names and values of options, found {values!r}.")
    of_run = isinstance(values.get("options"), dict)
    if of_run:  # which another one does not go on with
        values = {k: v for k, v in values["options"].items() if k not in ("run_folder", "resume", "config")}
    try:
        options = validated(kind, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for name in list(values) if of_run else ():
        others = {other: value for other, value in values.items() if other != name}
        with contextlib.suppress(ValueError):
            if validated(kind, others) == options:
                values = others
    hints = get_type_hints(kind, include_extras=True)
    plain = copy.copy(options)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name in values:
            value = TypeAdapter(hints[field.name]).validate_json(to_json(values[field.name]))
        else:
            factory = field.default_factory
            value = field.default if factory is dataclasses.MISSING else factory()
        setattr(plain, field.name, value)
    return plain
