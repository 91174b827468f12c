"""Tests side by side (``pytest -n 2``) have one thread each: more would spin on each other's cores."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported, and for the scripts that tests run
    os.environ.setdefault("OMP_NUM_THREADS", "1")
