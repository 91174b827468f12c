"""The example that trains with memories, and the report of its results."""

import json

import pytest

from benchmarks import report_memory
from examples.train_with_memory import Options, main, train

TINY = {"num_envs": 8, "updates_per_batch": 2, "batch_size": 4, "total_frames": 160}


@pytest.mark.parametrize("options", [{}, {"memory_size": 0}, {"slice_steps": 4, "burn_in": 3}])
def test_the_example_writes_what_it_evaluates(options, tmp_path, capsys):
    path = tmp_path / "results.json"
    main(Options(**TINY, **options, results=path))
    results = json.loads(path.read_text())
    assert [row["frames"] for row in results["evaluations"]] == [0, 160]
    assert capsys.readouterr().out.count("of the best") == 2
    assert {"versions", "machine", "date", "commit", "options"} <= results.keys()


@pytest.mark.long
def test_a_task_that_needs_memory():
    """At least 90 % of the way from the best without memory, which is all that a team without memory gets, to 0."""
    with_memory, without = (
        train(Options(total_frames=frames, memory_size=size, seed=4))[-1]["share_of_the_best"]
        for size, frames in ((32, 30_720), (0, 5_120))
    )
    assert with_memory > 0.9
    assert without < 0.02


def test_the_report_of_the_example(tmp_path):
    about = {"date": "2026-11-27", "commit": "abc", "machine": "a machine", "threads": 1}
    for size, seed, shares in ((8, 101, (0.5, 0.75)), (8, 100, (0.25, 0.9)), (0, 100, (-0.01, 0.0))):
        evaluations = [{"frames": 10 * i, "share_of_the_best": share} for i, share in enumerate((-3.0, *shares))]
        run = {**about, "options": {"memory_size": size, "seed": seed}, "evaluations": evaluations}
        (tmp_path / f"memory{size}-seed{seed}.json").write_text(json.dumps(run))
    rows = [
        line for line in report_memory.memory(report_memory.read_memory(tmp_path)).split("\n") if line.startswith("|")
    ]
    assert rows[0] == "| memory | seed | 10 frames | 20 frames |"
    assert rows[2:] == [
        "| 8 numbers | 100 | 25.0 % | 90.0 % |",
        "| 8 numbers | 101 | 50.0 % | 75.0 % |",
        "| none | 100 | -1.0 % | 0.0 % |",
    ]
