"""The examples in the docstrings run, and every public name has one."""

import doctest
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torchrl_bicnet
from torchrl_bicnet import analysis, export, rendering, runs

WINGS = (torchrl_bicnet, analysis, export, rendering, runs)
PUBLIC = {name: getattr(wing, name) for wing in WINGS for name in wing.__all__ if not name.isupper()}  # no constants
MODULES = [
    importlib.import_module(info.name)
    for info in pkgutil.walk_packages(torchrl_bicnet.__path__, f"{torchrl_bicnet.__name__}.")
    if ".integrations." not in info.name  # of packages that are not installed here
]
EXAMPLES = [
    test for module in MODULES for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples
]


@pytest.mark.filterwarnings("ignore:No target network updater:UserWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_example(example):
    torch.manual_seed(0)
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, clear_globs=False)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_says_what_it_takes_and_shows_it(name):
    assert "Args:" in PUBLIC[name].__doc__
    assert any(example.name.endswith(f".{name}") for example in EXAMPLES)


def test_a_wing_is_found_without_an_import_of_its_own():
    code = "import torchrl_bicnet as b; print(b.analysis, b.export, b.rendering, b.runs, b.tasks)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(torchrl_bicnet.__file__).parent.parent)


def test_another_name_is_no_attribute():
    with pytest.raises(AttributeError, match="'torchrl_bicnet' has no attribute 'bicnet'"):
        torchrl_bicnet.bicnet  # noqa: B018


def test_the_version_is_the_one_installed():
    assert importlib.metadata.version("torchrl_bicnet") == torchrl_bicnet.__version__
