"""The examples in the docstrings run, and every public name has one."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import torchrl_bicnet

MODULES = [
    importlib.import_module(info.name)
    for info in pkgutil.walk_packages(torchrl_bicnet.__path__, f"{torchrl_bicnet.__name__}.")
]
EXAMPLES = [
    test for module in MODULES for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples
]


@pytest.mark.filterwarnings("ignore:No target network updater:UserWarning")
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_example(example):
    torch.manual_seed(0)
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, clear_globs=False)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", torchrl_bicnet.__all__)
def test_every_public_name_says_what_it_takes_raises_and_shows(name):
    documentation = getattr(torchrl_bicnet, name).__doc__
    for section in ("Args:", "Raises:", "Example:"):
        assert section in documentation
    assert any(example.name.endswith(f".{name}") for example in EXAMPLES)


def test_the_version_is_the_one_installed():
    assert importlib.metadata.version("torchrl_bicnet") == torchrl_bicnet.__version__
