"""benchmarks/messages.py: what agents alone know is what the suite says, and the results and the report of them."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from torchrl.data import Bounded

from benchmarks import messages, report_messages
from benchmarks.suite import PRIVATE, SUITE
from torchrl_bicnet import BiCNetActor
from torchrl_bicnet.runs.provenance import provenance


def places(entities):
    return torch.stack([entity.state.pos for entity in entities], 1)


def next_ones_goal(scenario):
    return places([agent.goal for agent in scenario.world.agents]).roll(-1, 1)


def own_position(scenario):
    return places(scenario.world.agents)


EXPECTED = {
    "guess_the_sum": lambda scenario: scenario.x.unsqueeze(-1),
    "hidden_goals_2": next_ones_goal,
    "hidden_goals_4": next_ones_goal,
    "hidden_goals_8": next_ones_goal,
    "hidden_goals_4_random_seers": lambda s: s.sees @ places([agent.goal for agent in s.world.agents]),
    "simple_spread_blind": own_position,
    "dispersion": own_position,
    "navigation": lambda s: own_position(s) - places([agent.goal for agent in s.world.agents]),
    "speaker_listener": lambda s: torch.stack([s.goal, torch.zeros_like(s.goal)], 1),
    "dropout": own_position,
}


@pytest.mark.parametrize("name", SUITE)
def test_what_an_agent_alone_knows(name):
    env = SUITE[name].make_env(6, seed=0)
    td = env.rollout(3, break_when_any_done=False)[:, -1]  # some have moved
    seen = td["next", "agents", "observation"][..., PRIVATE[SUITE[name].scenario].features]
    torch.testing.assert_close(seen, EXPECTED[name](env.scenario))


def test_a_team_is_probed_in_a_moment(tmp_path):
    team = "guess_the_sum"
    shutil.copytree(messages.RESULTS / "teams" / team, tmp_path / "teams" / team)
    output = tmp_path / "messages.json"
    options = messages.Options(tasks=(team, "dropout"), episodes=400, teams=tmp_path / "teams", output=output)
    messages.main(options)
    results = json.loads(options.output.read_text())
    [(name, task)] = results["tasks"].items()  # of dropout there is no team
    assert name == "guess_the_sum"
    assert results["about"]["episodes"] == 400
    for i, j in ((0, 1), (1, 0), (2, 0)):
        assert task["r2"][i][j] > 0.9
        assert task["own_r2"][i][j] < 0.1
        assert task["acted_r2"][i][j] > task["untrained_acted_r2"][i][j]
    assert len(task["truth"]) == len(task["readout"]) == len(task["own_readout"]) == options.readouts
    assert (tmp_path / "messages.png").read_bytes().startswith(b"\x89PNG")
    text = report_messages.messages(results)
    assert "in half of 400 episodes" in text
    assert "| guess_the_sum | its number |" in text


@pytest.mark.parametrize("communication", ["lstm", "gru", "mean", "attention", "recurrent_attention"])
def test_an_untrained_copy_has_weights_of_its_own(communication):
    actor = BiCNetActor(3, Bounded(-1.0, 1.0, (2, 2)), communication=communication)
    copies = [messages.untrained(actor, seed) for seed in (0, 0, 1)]
    matrices = [[p for p in net.parameters() if p.ndim > 1] for net in (actor, *copies)]
    for own, first, again, other in zip(*matrices):
        assert torch.equal(first, again)
        assert not torch.equal(first, own)
        assert not torch.equal(first, other)


def test_the_table_and_the_picture_of_results_with_nothing_to_know():
    """Who hears the first agent, by hand; of the second there is nothing to know."""
    task = {
        "private": "its number",
        "r2": [[1.0, None], [0.75, None]],
        "own_r2": [[1.0, None], [-0.001, None]],
        "acted_r2": [[1.0, None], [0.25, None]],
        "untrained_r2": [[1.0, None], [0.5, None]],
        "untrained_acted_r2": [[1.0, None], [None, None]],
        "receiver": 1,
        "knower": 0,
        "truth": [[0.0], [1.0]],
        "readout": [[0.1], [0.9]],
        "own_readout": [[0.5], [0.5]],
    }
    results = {"about": {"episodes": 9, "steps": 1, "command": "", **provenance()}, "tasks": {"a task": task}}
    last = report_messages.table(results).splitlines()[-1]
    assert last == "| a task | its number | 0.00 | 0.75 | 0.50 | 0.25 | - |"
    [axes] = report_messages.draw_messages(results).axes
    assert axes.get_xlabel() == "what agent 0 knows:\nits number"
    legend = [text.get_text() for text in axes.get_legend().texts]
    assert legend == ["own observation, $R^2$ = 0.00", "heard, $R^2$ = 0.75 (untrained 0.50)"]
    colours = [points.get_facecolor()[0].tolist() for points in axes.collections]
    assert [handle.get_facecolor()[0].tolist() for handle in axes.get_legend().legend_handles] == colours


def test_tasks_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"--tasks must be of guess_the_sum, .*, found chess"):
        messages.main(messages.Options(tasks=("chess",)))
    with pytest.raises(ValueError, match="--teams holds no team of dropout, found"):
        messages.main(messages.Options(tasks=("dropout",), teams=tmp_path))


def test_it_is_started_from_the_root_of_the_repository():
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-m", "benchmarks.messages", "--tasks", "chess"]
    root = messages.RESULTS.parent.parent.parent
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert result.stderr.startswith("error: --tasks must be of")
    assert result.returncode == 1
