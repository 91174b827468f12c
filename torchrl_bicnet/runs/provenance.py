"""Where a result comes from: versions, machine, date and git commit."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torchrl_bicnet", "torch", "torchrl", "tensordict", "vmas", "numpy")


def provenance() -> dict[str, Any]:
    """The versions, machine, date and git commit of this process, as JSON values.

    Example:
        >>> list(provenance())
        ['versions', 'machine', 'date', 'commit']
    """
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads",
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The git commit of this package's sources, ``-dirty`` with changes, if they are in a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        described = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return None
    return described.stdout.strip() or None
