import json
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from examples import evaluate_vmas
from examples.evaluate_vmas import Arguments, evaluation_intervals, main, table
from tests.quick import run
from torchrl_bicnet import Evaluation, evaluate, load_run
from torchrl_bicnet.analysis import influence_matrix, visited_states

QUICK = Arguments(Path("set below"), episodes=4, film_episodes=2, film_width=60, film_steps=3, picture_episodes=2)
RESULTS = {f"{name}.{kind}" for name in ("channel", "influence", "order") for kind in ("png", "json")}
ALWAYS = {"evaluation.json", "learning_curve.png"}


def test_it_leaves_a_table_a_film_pictures_and_their_numbers(finished_run, tmp_path, capsys):
    """Of a run from before ``compile``, as all run folders of earlier versions lack options."""
    folder = shutil.copytree(finished_run.folder, tmp_path / "run")
    written = json.loads((folder / "run.json").read_text())
    del written["options"]["compile"]
    (folder / "run.json").write_text(json.dumps(written))
    main(replace(QUICK, run=folder))
    out, pictures = capsys.readouterr().out, folder / "pictures"
    for row in ("navigation: 4 episodes of at most 10 steps", "agents, return of the team", "agent_1", "success rate"):
        assert row in out
    assert {path.name for path in pictures.iterdir()} == RESULTS | ALWAYS | {"film.gif"}
    with Image.open(pictures / "film.gif") as film:
        assert film.size == (60 + 2 + 60, 60)

    results = {path.stem: json.loads(path.read_text()) for path in pictures.glob("*.json")}
    loaded = load_run(folder)
    found = evaluate(loaded.make_env(4), loaded.policy, max_steps=10, seed=QUICK.seed)
    assert results["evaluation"]["results"]["agent_1"]["mean"] == found.returns["agents"].double()[:, 1].mean().item()
    few = loaded.make_env(2)
    plain = evaluate(few, loaded.policy, max_steps=10, seed=QUICK.seed).summary()
    assert results["channel"]["intact"] == plain
    assert results["order"]["order_return_trained"] == pytest.approx(plain["evaluation_return"])
    assert len(results["order"]["orders"]) == 24
    states = visited_states(few, loaded.policy, max_steps=10, seed=QUICK.seed)
    assert results["influence"]["influence"] == influence_matrix(loaded.actors["agents"], states).tolist()
    assert results["influence"]["agents"] == [f"agent_{i}" for i in range(4)]


@pytest.mark.slow
def test_the_same_again_gives_the_same(finished_run, tmp_path, capsys):
    for name in ("first", "second"):
        main(replace(QUICK, run=finished_run.folder, output=tmp_path / name))
    first, second = capsys.readouterr().out.replace("first", "second").split("navigation:")[1:]
    assert first == second
    for name in (*RESULTS, *ALWAYS, "film.gif"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_the_arrows_are_those_of_the_policy(finished_run, tmp_path):
    quick = replace(QUICK, run=finished_run.folder, output=tmp_path, pictures=False)
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
def test_several_groups_of_which_two_talk(tmp_path, capsys):
    folder = run(tmp_path, scenario="simple_world_comm", total_frames=40).folder
    main(replace(QUICK, run=folder, film="film.mp4"))
    out, pictures = capsys.readouterr().out, folder / "pictures"
    for group in ("lead_adversary", "adversary", "agent"):
        assert f"{group}, return of the team" in out
    assert "success rate" not in out
    names = ["channel", *(f"{name}_{group}" for name in ("influence", "order") for group in ("adversary", "agent"))]
    results = {f"{name}.{kind}" for name in names for kind in ("png", "json")}
    assert {path.name for path in pictures.iterdir()} == results | ALWAYS | {"film.mp4"}
    intact = json.loads((pictures / "channel.json").read_text())["intact"]
    trained = json.loads((pictures / "order_agent.json").read_text())["order_return_trained"]
    assert trained == pytest.approx(intact["agent/evaluation_return"])


def test_agents_that_are_alone_have_no_channel(tmp_path):
    folder = run(tmp_path, scenario="simple", total_frames=40).folder
    main(replace(QUICK, run=folder))
    assert {path.name for path in (folder / "pictures").iterdir()} == ALWAYS | {"film.gif"}


def test_means_and_rates_have_their_intervals():
    returns = torch.tensor([[1.0, 3.0], [3.0, 5.0]])
    lengths = torch.tensor([10, 10])
    success, collisions = torch.tensor([True, False]), torch.tensor([2, 7])
    evaluation = Evaluation({"agents": returns}, lengths, success=success, collisions=collisions)
    lines = table(evaluation_intervals(evaluation, {"agents": ["a", "b"]})).splitlines()[1:]
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


def test_no_run_is_an_error_without_a_traceback_or_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [evaluate_vmas.__file__, str(tmp_path / "missing")])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(evaluate_vmas.__file__, run_name="__main__")
    assert end.value.code == f"error: {tmp_path / 'missing'} is not a run folder: it has no run.json."
    assert list(tmp_path.iterdir()) == []
