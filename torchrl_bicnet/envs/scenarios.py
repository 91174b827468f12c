"""Scenarios by name: those of VMAS, those of this package, and a user's own by the place of their class."""

from __future__ import annotations

import inspect
import re
import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from vmas import debug_scenarios, mpe_scenarios, scenarios
from vmas.scenarios import load
from vmas.simulator.scenario import BaseScenario

from torchrl_bicnet.tasks import SCENARIOS


def load_shipped(name: str) -> BaseScenario:
    """A scenario of VMAS or of this package by its name."""
    if name in SCENARIOS:
        return SCENARIOS[name]()
    shipped = sorted([*scenarios, *mpe_scenarios, *debug_scenarios])
    if name not in shipped:
        raise ValueError(
            f"Unknown scenario {name!r}; this package has {', '.join(SCENARIOS)}, VMAS has {', '.join(shipped)}. One "
            f"of your own is named as path/to/file.py:ClassName."
        )
    return load(f"{name}.py").Scenario()


def load_own(name: str) -> BaseScenario:
    """A scenario from ``path/to/file.py:ClassName`` or ``package.module:ClassName``."""
    place, _, class_name = name.rpartition(":")
    file = place.endswith(".py")
    if not (Path(place).is_file() if file else find_spec(place.split(".")[0])):
        raise ValueError(f"scenario {name!r} is not found: there is no {'file' if file else 'package'} {place}.")
    module = _import_file(Path(place).resolve()) if file else import_module(place)
    scenario_class = getattr(module, class_name, None)
    if not isinstance(scenario_class, type) or not issubclass(scenario_class, BaseScenario):
        raise ValueError(f"scenario {name!r} must name a class derived from BaseScenario, found {scenario_class!r}.")
    return scenario_class()


def _import_file(path: Path) -> ModuleType:
    """A file as a module, which is run anew each time: a file that has changed is taken as it is."""
    spec = spec_from_file_location(f"scenario_of {path}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)  # where dataclasses look for it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


def option_names(scenario: BaseScenario) -> set[str]:
    """The names that a scenario takes from its keyword arguments, read off its source file."""
    return set(re.findall(r"kwargs\.(?:pop|get)\(\s*[\"'](\w+)[\"']", source_of(scenario)))


def source_of(scenario: BaseScenario) -> str:
    """The text of the file that a scenario is written in; empty if there is none."""
    file = inspect.getsourcefile(scenario.make_world)
    return Path(file).read_text() if file is not None and Path(file).exists() else ""
