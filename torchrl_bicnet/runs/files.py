"""Files of a run folder: its options and metrics, written atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np


def read_options(folder: Path | str) -> dict[str, Any]:
    """The options in a run folder's ``run.json``.

    Args:
        folder (Path or str): of a :class:`~torchrl_bicnet.Run`, as ``examples/train_vmas.py`` leaves it.

    Returns:
        dict: name to value, as JSON has it.

    Raises:
        FileNotFoundError: without such a file.
        ValueError: if it is damaged.

    Example:
        >>> import json, tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "run.json").write_text(json.dumps({"options": {"scenario": "navigation"}}))
        >>> read_options(folder)
        {'scenario': 'navigation'}
    """
    file = Path(folder) / "run.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} is not a run folder: it has no run.json.")
    try:
        options = json.loads(file.read_text())["options"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged, it should be JSON with an object 'options': {error!r}.") from error
    if not isinstance(options, dict):
        raise ValueError(f"{file} is damaged, its options should be an object, found {options!r}.")
    return options


def write_atomically(file: Path, text: str) -> None:
    """Write a file that is there whole or not at all."""
    part = file.with_name(f".{file.name}.part")
    part.write_text(text)
    os.replace(part, file)


def read_scalars(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows ``frames,value`` of a metric, as TorchRL's ``CSVLogger`` writes them.

    Args:
        file (Path): the CSV file, without a header.

    Returns:
        tuple of ndarray: frames, rising integers, and values, floats, ``(T,)`` each.

    Raises:
        ValueError: for a file without rows, a row that is not of this form, or frames that do not rise; the message
            names file and line.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "loss_value.csv"
        >>> _ = file.write_text("600,0.5\\n1200,0.25\\n")
        >>> read_scalars(file)
        (array([ 600, 1200]), array([0.5 , 0.25]))
    """
    frames: list[int] = []
    values: list[float] = []
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            frame, value = line.split(",")
            frames.append(int(np.int64(frame)))
            values.append(float(value))
        except (ValueError, OverflowError):
            raise ValueError(f"{file}, line {number}: a row is frames,value, found {line[:80]!r}.") from None
        if frames[-2:-1] and frames[-1] <= frames[-2]:
            raise ValueError(f"{file}, line {number}: frames must rise, found {frames[-1]} after {frames[-2]}.")
    if not frames:
        raise ValueError(f"{file} is empty; it should hold rows frames,value.")
    return np.array(frames), np.array(values)
