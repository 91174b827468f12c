"""Tests side by side (``pytest -n 2``) have one thread each: more would spin on each other's cores."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported, and for the scripts that tests run
    os.environ.setdefault("OMP_NUM_THREADS", "1")


import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What is long is slow too, for ``-m "not slow"``."""
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A short run of examples/train_vmas.py for all tests that look at one: leave it as it is."""
    from tests.quick import run

    return run(tmp_path_factory.mktemp("finished"))
