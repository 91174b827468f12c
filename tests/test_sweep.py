"""The example that searches for options with Optuna."""

import json
import re
from dataclasses import replace

import optuna
import pytest

from examples import sweep
from torchrl_bicnet.runs import read_options

TINY = {"num_envs": 8, "max_steps": 10, "batch_size": 16, "updates_per_batch": 1, "frames_per_batch": 80}
TINY |= {"eval_episodes": 4, "test_episodes": 4, "scenario_options": {"n_agents": 2}}


@pytest.mark.slow
def test_a_search_is_of_the_last_evaluations_and_goes_on(tmp_path, monkeypatch, capsys):
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))

    # The start states are the same, so what differs is what was learned
    def suggest(trial):
        actor_lr = trial.suggest_float("actor_lr", 1e-4, 10, log=True)
        num_cells = {"small": [8], "two": [8, 6]}[trial.suggest_categorical("num_cells", ["two"])]
        of_other_types = {"num_cells": num_cells, "sigma": (0.1, 0.5), "share_params": False, "agent_id": True}
        of_other_types["scenario_options"] = {"n_agents": 3, "shared_rew": False}
        return {"actor_lr": actor_lr, **of_other_types}

    monkeypatch.setattr(sweep, "suggest", suggest)
    options = sweep.Options(trials=1, folder=tmp_path / "sweep", config=tmp_path / "tiny.json", total_frames=160)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for _ in range(2):
        sweep.main(options)
    last = [(options.folder / f"trial-00{i}/scalars/evaluation_return.csv").read_text().split()[-1] for i in (0, 1)]
    returns = [float(line.split(",")[1]) for line in last]
    found = re.findall(r"best of (\d): trial (\d), return (\S+),", capsys.readouterr().out)
    assert found[-1] == ("2", str(returns.index(max(returns))), f"{max(returns):.3f}")
    assert returns[0] != returns[1]
    first, second = (read_options(options.folder / f"trial-00{i}") for i in (0, 1))
    assert first["actor_lr"] != second["actor_lr"]  # the second draw is not the first again
    assert (second["num_envs"], second["total_frames"]) == (8, 160)
    assert (second["num_cells"], second["sigma"]) == ([8, 6], [0.1, 0.5])
    assert (second["share_params"], second["agent_id"]) == (False, True)
    assert second["scenario_options"] == {"n_agents": 3, "shared_rew": False}
    with pytest.raises(ValueError, match=r"found \{'total_frames': 320\}, expected \{'total_frames': 160\}"):
        sweep.main(replace(options, total_frames=320))


def test_a_search_without_its_config_is_not_begun(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.yaml"):
        sweep.main(sweep.Options(folder=tmp_path / "sweep", config=tmp_path / "missing.yaml"))
    assert not (tmp_path / "sweep").exists()
