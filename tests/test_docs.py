"""The documentation builds without a warning, and its code blocks run as written."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.test_docstrings import PUBLIC

DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_the_site_builds_without_warnings_and_has_every_public_name(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", DOCS, tmp_path]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = "".join(page.read_text() for page in (tmp_path / "api").glob("*.html"))
    for name in PUBLIC:
        assert re.search(rf'id="torchrl_bicnet\.([a-z.]+\.)?{name}"', pages), name
    pictures = re.findall('<img .*?src="(.*?)"', (tmp_path / "benchmarks.html").read_text())
    assert {Path(picture).name for picture in pictures} >= {"seconds.png", "curves.png"}
    assert all((tmp_path / picture).exists() for picture in pictures)


# tests/test_recipes.py runs those of recipes.md.
PAGES = [page.name for page in DOCS.glob("*.md") if "```python" in page.read_text() and page.name != "recipes.md"]


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_run_as_written_one_after_the_other(page):
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.S)
    assert blocks
    namespace = {}
    for block in blocks:
        exec(compile(block, page, "exec"), namespace)


def test_what_the_table_of_tools_names_exists():
    found = re.findall(r"`((?:tests|examples)/\S+\.py)(?:::(\w+))?`", (DOCS / "ecosystem.md").read_text())
    assert len(found) > 15
    for file, name in found:
        assert not name or f"def {name}(" in (DOCS.parent / file).read_text(), (file, name)
        assert (DOCS.parent / file).is_file(), file


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom_and_learns():
    namespace = {}
    for cell in json.loads((DOCS / "quickstart.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            code = re.sub("(?m)^%.*", "", "".join(cell["source"]))
            exec(compile(code, "quickstart.ipynb", "exec"), namespace)
    returns = {n_agents: namespace["mean_return"](namespace["actor"], n_agents) for n_agents in (3, 5)}
    assert -0.05 < returns[3] <= 0
    assert -0.5 < returns[5] <= 0  # who says 0 has -5/3
