"""benchmarks/learning_benchmarl.py: what BenchMARL's script writes becomes a run of the report, and is not repeated."""

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import learning_benchmarl


@pytest.fixture
def commands(monkeypatch):
    """BenchMARL's script replaced by one that writes two evaluations and a test."""
    started, run_for_real = [], subprocess.run

    def run(command, **keywords):
        if "--evaluations" not in command:  # git
            return run_for_real(command, **keywords)
        started.append(command)
        file = Path(command[command.index("--evaluations") + 1])
        file.write_text("0,0.5,0.25,0.0,0.0\n6000,0.75,0.125,20.0,30.0\n6000,0.5,0.0625,20.5,31.0\n")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(learning_benchmarl, "benchmarl_versions", lambda python: {"benchmarl": "1"})
    return started


def test_rows_are_in_the_units_of_the_task(tmp_path, commands):
    """Of dispersion the foods of four agents are reported, four times the mean; the test comes last."""
    options = learning_benchmarl.Options(Path("python"), ("dispersion",), ("iddpg",), (7,), output=tmp_path)
    learning_benchmarl.main(options)
    result = json.loads((tmp_path / "runs/dispersion/benchmarl_iddpg-seed7.json").read_text())
    assert result["curve"] == [[0, 0, 0.0, 2.0, 1.0], [6000, 1000, 20.0, 3.0, 0.5]]
    assert result["test"] == {"after": [2.0, 0.25]}
    assert (result["training_wall_seconds"], result["milliseconds_per_update"]) == (31.0, 20.0)
    assert (result["threads"], result["versions"]) == (1, {"benchmarl": "1"})
    [command] = commands
    arguments = dict(zip(command[2::2], command[3::2]))
    assert (arguments["--task"], arguments["--max-steps"], arguments["--seed"]) == ("dispersion", "40", "7")
    assert json.loads(arguments["--task-options"]) == {"n_agents": 4, "share_reward": False}
    learning_benchmarl.main(options)
    assert len(commands) == 1


def test_a_task_that_there_is_not(tmp_path, commands):
    with pytest.raises(ValueError, match=r"--tasks must be of guess_the_sum, .*, found nowhere"):
        learning_benchmarl.main(learning_benchmarl.Options(Path("python"), ("nowhere",), output=tmp_path))
    assert not commands
