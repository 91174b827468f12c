"""What the README shows runs as it stands, and the numbers it names are those of the committed results."""

import json
import re
import statistics
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torchrl.envs import EnvBase

from benchmarks.report_training_time import pays
from examples import train_vmas
from tests import quick

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_code_blocks_run_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    quick.run(tmp_path / "runs", "first")
    namespace = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), namespace)
    assert isinstance(namespace["env"], EnvBase)
    assert len(namespace["buffer"]) == 960
    assert all(value.isfinite() for value in namespace["metrics"].values())
    assert namespace["evaluation"].returns["agents"].shape == (32, 4)


def test_a_layer_of_ones_own_is_masked_as_promised():
    namespace = {}
    exec("import torch\nfrom torchrl.data import Bounded\nfrom torchrl_bicnet import BiCNetActor", namespace)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/guide.md").read_text(), re.S)
    exec(next(block for block in blocks if "class LoudestAgent" in block), namespace)
    net = namespace["net"]
    x = torch.randn(2, 3, 18)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    x[~mask] = torch.nan
    out = net(x, mask=mask)
    torch.testing.assert_close(out[0, mask[0]], net(x[0, mask[0]]))
    out.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def test_commands():
    commands = re.findall(r"^pip install -c constraints.txt -e '\.\[\w+\]' && (.*)$", README, re.M)
    assert commands == ["python examples/train_vmas.py", "pytest"]
    assert (ROOT / "examples/train_vmas.py").exists()
    for page in (ROOT / "README.md", *ROOT.glob("docs/**/*.md")):
        for link in re.findall(r"\]\((?!http|#)([^)]+)\)", page.read_text()):
            file, _, anchor = link.partition("#")
            assert (page.parent / file).exists(), (page, link)
            if anchor and file.endswith(".md"):
                headings = re.findall(r"^#+ (.*)", (page.parent / file).read_text(), re.MULTILINE)
                anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in anchors, (page, link)


def test_numbers_are_those_of_the_committed_results():
    summary = json.loads((ROOT / "benchmarks/results/navigation/summary.json").read_text())
    runs = summary["runs"]
    assert f"return more than {summary['upper_bound']:.2f})" in README
    assert len(runs) >= 3
    shown = [f"{run['return_after']:.2f} ± {run['standard_error_after']:.2f}" for run in runs]
    assert f"{', '.join(shown[:-1])} and {shown[-1]}" in " ".join(README.split())
    frames = f"{train_vmas.Options().total_frames:,}"
    found = f"**{runs[0]['return_after']:.2f}** after {frames} frames, from {runs[0]['return_before']:.2f} before"
    assert found in README
    for run in runs:
        folder = ROOT / f"benchmarks/results/navigation/seed{run['seed']}"
        returns = json.loads((folder / "test_returns.json").read_text())["after"]
        assert_defaults(json.loads((folder / "run.json").read_text())["options"])
        assert len(returns) == run["episodes"] == 1000
        assert run["frames"] == train_vmas.Options().total_frames
        assert run["return_after"] == pytest.approx(sum(returns) / 1000, abs=6e-4)
        assert run["return_after"] >= 3.9


def test_what_communication_is_worth_is_what_was_measured():
    folder = ROOT / "benchmarks/results/learning"
    told = json.loads((folder / "references.json").read_text())["tasks"]["hidden_goals_4"]
    runs = {
        name: [json.loads(file.read_text()) for file in folder.glob(f"runs/hidden_goals_4/{name}-seed*.json")]
        for name in ("bicnet", "none_id", "maddpg", "mappo", "attention_id")
    }
    returns = {name: statistics.mean(run["test"]["after"][0] for run in each) for name, each in runs.items()}
    text = " ".join(README.split())
    assert f"can return more than {told['limits']['without_communication']:.1f} on average, a derived limit" in text
    assert f"told all goals gets {told['policies']['with_communication']['mean']:.1f}." in text
    seconds = statistics.median(run["curve"][-1][2] for run in runs["bicnet"])
    assert f"returns **{returns['bicnet']:.1f}** after six minutes, {seconds:.0f} seconds of them on one core" in text
    shown = [
        "{none_id:.1f} (with an agent id) and {maddpg:.1f} (MADDPG)",
        "nets {mappo:.1f}.",
        "Attention reaches {attention_id:.1f} if each agent is given an id",
    ]
    for part in shown:
        assert part.format(**returns) in text
    others = [run["analysis"]["order"]["another_order_difference"] for run in runs["bicnet"]]
    assert returns["bicnet"] + statistics.mean(others) == pytest.approx(-40, abs=0.5)
    ours, *rivals = (len(each) for each in runs.values())
    counts = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}
    assert set(rivals) == {min(rivals)}
    assert f"With {counts[ours]} seeds of BiCNet and {counts[min(rivals)]} of each rival so far" in text
    for task, rival, wording in (
        ("hidden_goals_2", "mean_id", "CommNet's mean with an id ({:.1f}, BiCNet {:.1f})"),
        ("hidden_goals_4_random_seers", "attention_id", "attention with an id ({:.1f}, BiCNet {:.1f})"),
    ):
        files = [folder.glob(f"runs/{task}/{name}-seed*.json") for name in (rival, "bicnet")]
        means = [statistics.mean(json.loads(file.read_text())["test"]["after"][0] for file in each) for each in files]
        assert wording.format(*means) in text
    dispersion = [json.loads(file.read_text()) for file in folder.glob("runs/dispersion/bicnet-*.json")]
    eaten = statistics.mean(run["test"]["after"][0] for run in dispersion)
    updates = dispersion[0]["curve"][-1][1]
    assert f"a team eats **{eaten:.2f}** of dispersion's 4 foods after {updates:,} updates, six minutes too." in text
    assert all(300 < run["curve"][-1][2] < 390 for run in dispersion)
    for run in [*dispersion, *runs["bicnet"]]:
        assert_defaults(run["options"], "scenario", "scenario_options", "max_steps", "compile", "total_frames")


def assert_defaults(options, *others):
    """What is told was made with today's defaults, but for others and what says where a run goes and what follows."""
    today = json.loads(json.dumps(asdict(train_vmas.Options())))
    left_out = {"seed", "run_folder", "eval_interval", "checkpoint_interval", "checkpoint_buffer", *others}
    differing = {name: value for name, value in options.items() if name not in left_out and value != today[name]}
    assert not differing


def rates(cell):
    """Units per second of each contender."""
    rates = {name: cell["counted_per_turn"][name] / statistics.median(s) for name, s in cell["seconds"].items()}
    assert rates == pytest.approx(cell["per_second"])
    return rates


def table(section, cells):
    """The rows of a table of docs/speed.md; a dash where the compiled step is refused."""
    for cell in cells:
        rate = rates(cell)

        def ratio(one, other, rate=rate):
            return f"{rate[one] / rate[other]:.2f}" if {one, other} <= rate.keys() else "-"

        ours, compiled, stock = "ours", "ours, compiled", "VmasEnv"
        row = [f"`{cell['scenario']}`", cell["num_envs"]]
        if section == "partial_reset":
            row += [ratio(f"{name}, reset", f"{stock}, reset") for name in (ours, compiled)]
            row += [ratio(name, f"{name}, reset") for name in (ours, compiled)]
        elif section == "few_resets":
            row += [cell["resets_per_step"], ratio(ours, stock), ratio(compiled, stock), ratio(ours, "vmas")]
        elif section == "step":
            row += [ratio(ours, stock), ratio(compiled, stock), ratio(compiled, ours)]
            row += [f"{cell['seconds_to_compile']:.0f}", f"{cell['steps_until_it_pays']:,.0f}"]
        else:
            row += [ratio(ours, stock), ratio(compiled, stock), ratio("net alone", compiled)]
        yield "| " + " | ".join(map(str, row)) + " |"


def test_speeds_are_those_of_the_committed_results():
    results = json.loads((ROOT / "benchmarks/results/ratios/cpu.json").read_text())
    speed = (ROOT / "docs/speed.md").read_text()
    for section in ("partial_reset", "few_resets", "step", "collection"):
        assert results[section]
        assert "\n".join(table(section, results[section])) in speed, section
    assert results["about"]["threads"] == 1
    two = json.loads((ROOT / "benchmarks/results/ratios_two_threads/cpu.json").read_text())
    assert two["about"]["threads"] == 2
    assert "\n".join(table("step", two["step"])) in speed
    assert f"medians of {results['about']['options']['repeats']} turns" in " ".join(speed.split())


def test_updates_take_as_long_as_measured():
    speed = (ROOT / "docs/speed.md").read_text()
    for threads, file in ((1, "one_thread"), (2, "two_threads")):
        results = json.loads((ROOT / f"benchmarks/results/update/{file}.json").read_text())
        assert results["about"]["threads"] == threads
        for cell in results["cells"][:2]:
            assert cell["cell"] == "lstm"
            times = {name: statistics.median(seconds) for name, seconds in cell["seconds_per_step"].items()}
            shown = ("ours, eager", "ours, compiled", "plain PyTorch", "TorchRL's script")
            ratios = " | ".join(f"{times[name] / times['matrix products']:.2f}" for name in shown)
            assert f"| batch {cell['batch_size']:,} | {threads} | {ratios} |" in speed


def test_trainings_take_as_long_as_measured():
    results = json.loads((ROOT / "benchmarks/results/training_time/cpu.json").read_text())
    runs = {run["contender"]: run for run in results["runs"]}
    ours, compiled = (runs[name]["reached"]["seconds"] for name in ("ours", "ours, compiled"))
    speed = " ".join((ROOT / "docs/speed.md").read_text().split())
    assert f"after {ours:.0f} seconds, and with `--compile` and Inductor's cache after {compiled:.0f};" in speed
    rivals = [runs[name] for name in ("TorchRL MADDPG", "BenchMARL MADDPG", "BenchMARL IDDPG")]
    assert not any(run["reached"] for run in rivals)
    assert "after {:.0f}, {:.0f} and {:.0f} seconds".format(*(run["seconds"] for run in rivals)) in speed
    frames = re.findall(r"from ([\d,]+)", pays(results["compiling"], runs))
    cold, warm = (f"{round(int(number.replace(',', '')), -3):,}" for number in frames)
    assert f"paid from {cold} frames on, and from {warm} when it was compiled before" in " ".join(speed.split())


def test_compiling_costs_and_gives_what_was_measured():
    """Of the scenarios whose step takes long to trace; the largest difference is relative, or absolute below 1."""
    results = json.loads((ROOT / "benchmarks/results/compiled/scenarios.json").read_text())["scenarios"]
    rows = []
    for name, found in results.items():
        if "left_out" in found:
            rows.append(f"| `{name}` | {found['left_out']} | | | |")
            continue
        milliseconds = [1e3 * statistics.median(found["seconds_per_step"][kind]) for kind in ("uncompiled", "compiled")]
        times = " | ".join(f"{time:.1f}" for time in milliseconds)
        rows.append(
            f"| `{name}` | {found['cpu_seconds_to_compile']:.0f} | {times} | {found['largest_difference']:.0e} |"
        )
        assert found["dones_and_counts_equal"]
        assert found["largest_difference"] < 1e-4
    assert "\n".join(rows) in (ROOT / "docs/speed.md").read_text()


def test_compiled_training_ends_where_uncompiled_does():
    folder = ROOT / "benchmarks/results"
    compiled, plain = (
        [run["return_after"] for run in json.loads((folder / name / "summary.json").read_text())["runs"]]
        for name in ("navigation_compiled", "navigation_compiled/uncompiled")
    )
    means = [statistics.mean(returns) for returns in (compiled, plain)]
    error = sum(statistics.variance(returns) / len(returns) for returns in (compiled, plain)) ** 0.5
    assert len(compiled) == len(plain) == 6
    assert abs(means[0] - means[1]) < error
    speed = " ".join((ROOT / "docs/speed.md").read_text().split())
    assert "a return of {:.3f}, the mean of six seeds, and {:.3f} uncompiled".format(*means) in speed


def test_workers_pay_what_was_measured():
    cells = json.loads((ROOT / "benchmarks/results/workers/cpu.json").read_text())["cells"]
    ratios = {(cell["num_envs"], cell["backend"], cell["workers"]): cell["ratios"].popitem()[1] for cell in cells}
    rows = [
        [num_envs, *(f"{ratios[num_envs, backend, n]:.2f}" for backend in ("processes", "ray") for n in (1, 2))]
        for num_envs in (64, 1024)
    ]
    text = (ROOT / "docs/processes.md").read_text()
    assert all(f"| {' | '.join(map(str, row))} |" in text for row in rows)
