import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from examples import evaluate_vmas
from examples.evaluate_vmas import Arguments, check, main, table
from tests.test_examples import run
from torchrl_bicnet import Evaluation

QUICK = Arguments(Path("set below"), episodes=4, film_episodes=2, film_width=60, film_steps=3, picture_episodes=2)
PICTURES = {"channel.png", "influence.png", "learning_curve.png", "order.png"}


def trained(tmp_path, **options):
    """The folder of a short run."""
    return run(tmp_path, total_frames=40, **options)[0]


@pytest.fixture(scope="module")
def navigation(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs"), scenario_options={"n_agents": 2})


def test_it_prints_a_table_and_leaves_a_film_and_pictures(navigation, capsys):
    main(replace(QUICK, run=navigation))
    out = capsys.readouterr().out
    for row in ("navigation: 4 episodes of at most 10 steps", "agents, return of the team", "agent_1", "success rate"):
        assert row in out
    with Image.open(navigation / "pictures" / "film.gif") as film:
        assert film.size == (60 + 2 + 60, 60)
    # The learning curve is there already once train_vmas.py draws it there.
    assert {path.name for path in (navigation / "pictures").iterdir()} == {*PICTURES, "film.gif"}


@pytest.mark.slow
def test_the_same_again_gives_the_same(navigation, tmp_path, capsys):
    for name in ("first", "second"):
        main(replace(QUICK, run=navigation, output=tmp_path / name))
    first, second = capsys.readouterr().out.replace("first", "second").split("navigation:")[1:]
    assert first == second
    for name in (*PICTURES, "film.gif"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_the_arrows_are_those_of_the_policy(navigation, tmp_path):
    quick = replace(QUICK, run=navigation, output=tmp_path, pictures=False)
    main(replace(quick, film="with.gif"))
    main(replace(quick, film="without.gif", film_arrows=False, film_columns=1))
    assert {path.name for path in tmp_path.iterdir()} == {"with.gif", "without.gif"}
    first = []
    for name in ("with.gif", "without.gif"):
        with Image.open(tmp_path / name) as film:
            first.append(np.asarray(film.convert("RGB")))
    assert [frame.shape for frame in first] == [(60, 122, 3), (122, 60, 3)]
    drawn, plain = (frame[:60, :60].astype(int) for frame in first)
    arrows = (drawn != plain).any(-1)
    red, green, blue = (plain - drawn)[arrows].mean(0)
    assert arrows.sum() > 10
    assert green > blue > red  # the arrows' colour takes most of the green away


@pytest.mark.slow
def test_several_groups_of_which_one_talks(tmp_path, capsys):
    folder = trained(tmp_path, scenario="simple_tag")
    main(replace(QUICK, run=folder, film="film.mp4"))
    out = capsys.readouterr().out
    assert "adversary, return of the team" in out
    assert "agent, return of the team" in out
    assert "success rate" not in out
    assert {path.name for path in (folder / "pictures").iterdir()} == {*PICTURES, "film.mp4"}


def test_agents_that_are_alone_have_no_channel(tmp_path):
    folder = trained(tmp_path, scenario="simple")
    main(replace(QUICK, run=folder))
    assert {path.name for path in (folder / "pictures").iterdir()} == {"learning_curve.png", "film.gif"}


def test_means_and_rates_have_their_intervals():
    returns = torch.tensor([[1.0, 3.0], [3.0, 5.0]])
    lengths = torch.tensor([10, 10])
    success, collisions = torch.tensor([True, False]), torch.tensor([2, 7])
    evaluation = Evaluation({"agents": returns}, lengths, success=success, collisions=collisions)
    lines = table(evaluation, {"agents": ["a", "b"]}).splitlines()[1:]
    # Two episodes with means 2 and 4: 3 with a standard error of 1, and Student's t of 1 degree of freedom is 12.706.
    expected = [
        ("agents, return of the team", "3.000", "[-9.706, 15.706]"),
        ("  a", "2.000", "[-10.706, 14.706]"),
        ("  b", "4.000", "[-8.706, 16.706]"),
        ("steps", "10.000", "[10.000, 10.000]"),
        # Wilson: z = 1.96, (p + z^2 / 4 ± z sqrt(p (1 - p) / 2 + z^2 / 16)) / (1 + z^2 / 2).
        ("success rate", "0.500", "[0.095, 0.905]"),
        ("collision rate", "1.000", "[0.342, 1.000]"),
    ]
    assert [(line[:26].rstrip(), *line[26:].split(maxsplit=1)) for line in lines] == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"episodes": 1}, "episodes must be at least 2, found 1"),
        ({"film_episodes": 0}, "film_episodes must be at least 1, found 0"),
        ({"film_width": 0}, "film_width must be at least 1, found 0"),
        ({"film_columns": 3}, "film_columns must be from 1 to film_episodes, 2, found 3"),
        ({"film_steps": 0}, "film_steps must be at least 1, found 0"),
        ({"picture_episodes": 1}, "picture_episodes must be at least 2, found 1"),
        ({"seed": -1}, r"seed must be in \[0, 2\*\*32\), found -1"),
        ({"film": "film.avi"}, "name of a .gif or an .mp4, found 'film.avi'"),
        ({"film": "folder/film.gif"}, "found 'folder/film.gif'"),
        ({"output": Path(__file__)}, "output must be a folder, found the file"),
        ({"device": "gpu"}, "device must be cpu, cuda or cuda:INDEX, found 'gpu'"),
    ],
)
def test_misuse_is_refused_at_once(change, message):
    with pytest.raises(ValueError, match=message):
        check(replace(QUICK, **change))


def test_no_run_is_an_error_without_a_traceback_or_a_folder(tmp_path):
    command = [sys.executable, evaluate_vmas.__file__, str(tmp_path / "missing")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.strip() == f"error: {tmp_path / 'missing'} is not a run folder: it has no run.json."
    assert list(tmp_path.iterdir()) == []
