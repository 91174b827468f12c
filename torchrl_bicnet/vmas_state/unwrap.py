"""VMAS's environment inside TorchRL's wrappers and transforms, and the name of its scenario."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import vmas
from torchrl.envs import EnvBase
from vmas.simulator.environment import Environment


def environments_of(env: EnvBase) -> list[Environment]:
    """The simulator's environments, one for each size of teams, with random streams of their own, inside TorchRL's."""
    environments = find_vmas(env) if isinstance(env, EnvBase) else []
    if not environments or not all(hasattr(environment, "random_stream") for environment in environments):
        raise TypeError(f"Expected an environment made by make_vmas_env, found {type(env).__name__}.")
    return environments


def find_vmas(env: Any) -> list[Environment]:
    """The VMAS environments inside TorchRL's transforms and wrappers, one for each size of teams, or VMAS's own."""
    while env is not None and not isinstance(env, Environment):
        if (several := getattr(env, "vmas_environments", None)) is not None:
            return several
        deeper = (getattr(env, name, None) for name in ("base_env", "_env", "env", "unwrapped"))
        env = next((layer for layer in deeper if layer is not None and layer is not env), None)
    return [] if env is None else [env]


def scenario_file(environment: Environment) -> str:
    """The stem of the file that the scenario is written in: VMAS loads its scenarios as modules without a name."""
    return Path(type(environment.scenario).make_world.__code__.co_filename).stem


def scenario_name(environment: Environment) -> str:
    """The class of the scenario; for those that VMAS loads, which are all called Scenario, the file."""
    name = type(environment.scenario).__qualname__
    return scenario_file(environment) if name == "Scenario" else name


def is_shipped(function: Callable) -> bool:
    """Whether a function, of a scenario for instance, is written in the files of VMAS or of this package."""
    code = getattr(function, "__code__", None)
    packages = Path(vmas.__file__).parent, Path(__file__).parent.parent
    return code is not None and any(Path(code.co_filename).is_relative_to(package) for package in packages)
