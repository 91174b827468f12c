"""benchmarks/benchmarl_models.py: its grid, and the report of what BenchMARL writes."""

import json
from pathlib import Path

from benchmarks import benchmarl_models, report_benchmarl_models


def written(seed, returns):
    """As BenchMARL's JsonWriter leaves it."""
    steps = {f"step_{i}": {"step_count": 6000 * i, "return": each} for i, each in enumerate(returns, start=1)}
    return {"vmas": {"navigation": {"iddpg": {f"seed_{seed}": {"absolute_metrics": {"return": [9.0]}, **steps}}}}}


def test_every_model_is_trained_with_every_seed_by_the_python_given(tmp_path):
    options = benchmarl_models.Options(python=Path("bm/python"), seeds=(3, 4), frames=12_000, output=tmp_path)
    jobs = list(benchmarl_models.plan(options))
    assert [job.name for job in jobs] == [
        f"{model}-seed{seed}" for seed in (3, 4) for model in ("bicnet", "mlp", "gnn")
    ]
    arguments = dict(zip(jobs[-1].command[2::2], jobs[-1].command[3::2]))
    assert jobs[-1].command[0] == "bm/python"
    assert arguments == {"--model": "gnn", "--frames": "12000", "--seed": "4", "--output": str(jobs[-1].result)}


def test_the_report(tmp_path):
    """By hand: means of episodes 1 and 3, of seeds 2 with a standard error of 1; evaluations 1 and 2 of two."""
    (tmp_path / "about.json").write_text(
        json.dumps({"command": "a command", "machine": "m", "date": "d", "versions": {"benchmarl": "1.5.2"}})
    )
    for seed, last in ((0, [0.0, 2.0]), (1, [3.0, 3.0])):
        (tmp_path / f"bicnet-seed{seed}.json").write_text(json.dumps(written(seed, [[-2.0, 0.0], last])))
    results = report_benchmarl_models.read_benchmarl_models(tmp_path)
    text = report_benchmarl_models.benchmarl_models(results)
    assert "| bicnet | 2 | -1.00 ± 0.00 | " in text
    assert "| 2.00 ± 1.00 |\n" in text
    assert "12,000 frames |" in text
    (tmp_path / "mlp-seed0.json").write_text(json.dumps(written(0, [[1.0], [1.5]])))
    assert "| 1.50 |\n" in report_benchmarl_models.benchmarl_models(
        report_benchmarl_models.read_benchmarl_models(tmp_path)
    )
    assert "benchmarl 1.5.2" in text
    [line] = report_benchmarl_models.draw_benchmarl_models(results)["curves.png"].axes[0].lines
    assert line.get_xydata().tolist() == [[6000.0, -1.0], [12000.0, 2.0]]
    assert benchmarl_models.last_return(tmp_path / "bicnet-seed1.json") == "3.00"
