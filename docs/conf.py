"""Sphinx: ``sphinx-build -W docs site`` after ``pip install -c constraints.txt -e '.[docs]'``."""

from torchrl_bicnet import __version__

project = "torchrl_bicnet"
release = __version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
html_theme = "alabaster"
html_theme_options = {"description": "BiCNet for TorchRL", "page_width": "1080px", "sidebar_width": "240px"}
autodoc_mock_imports = ["benchmarl"]  # which needs an environment of its own
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings give types and shapes
napoleon_custom_sections = ["Shape"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # sections of the README start below its title
