"""Provenance of a result: versions, machine, date and git commit."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import torchrl_bicnet

PACKAGES = ("torch", "torchrl", "tensordict", "vmas", "numpy")


def provenance() -> dict[str, Any]:
    """The versions, machine, date and git commit of this process, as JSON values.

    Example:
        >>> list(provenance())
        ['versions', 'machine', 'threads', 'date', 'commit']
    """
    cpu_info = Path("/proc/cpuinfo")  # on Linux
    model = re.search(r"model name\s*: (.*)", cpu_info.read_text()) if cpu_info.exists() else None
    machine = f"{model[1] if model else platform.machine()}, {os.cpu_count()} CPUs"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()}"
    return {
        "versions": {
            "python": platform.python_version(),
            "torchrl_bicnet": torchrl_bicnet.__version__,  # which need not be installed
            **{name: version(name) for name in PACKAGES},
        },
        "machine": machine,
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
    }


def command_line(script: str) -> str:
    """The command line of this process, for raw results, without where they go; of paths it has the last part alone.

    Settings of glibc's allocator are shown too: the speed of long teams depends on them.
    """
    allocator = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("MALLOC_")]
    given = [arg for before, arg in zip(["", *sys.argv[1:]], sys.argv[1:]) if "--output" not in (before, arg)]
    shown = [Path(arg).name.upper() if arg.startswith(os.sep) else arg for arg in given]
    file, module = Path(script), getattr(sys.modules["__main__"], "__spec__", None)
    if module is not None and module.name.rpartition(".")[-1] == file.stem:
        started = ["-m", module.name]
    else:
        started = [f"{file.parent.name}/{file.name}"]
    return shlex.join([*allocator, "python", *started, *shown])


def _commit() -> str | None:
    """The git commit of this package's sources, ``-dirty`` with changes, if they are in a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        described = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return None
    return described.stdout.strip() or None
