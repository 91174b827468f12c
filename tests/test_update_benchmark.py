"""benchmarks/update.py: what it leaves behind, and that every contender does the step that it says."""

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro

from benchmarks import update as benchmark
from benchmarks.report_update import update as report
from benchmarks.update import (
    BENCHMARL,
    COMPILED,
    CONTENDERS,
    EAGER,
    FORMS,
    PARTS,
    PRODUCTS,
    Options,
    PlainUpdate,
    count_flops,
    main,
    make_nets,
    make_sample,
    make_step,
    matrix_products,
    parts_update,
    replay,
    script_update,
    take_turns,
)
from torchrl_bicnet import make_ddpg_loss

TINY = Options(cells=("gru",), batch_sizes=(3,), n_agents=2, hidden_size=4, turns=3, budget=0.001, compiled=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("update")
    main(replace(TINY, output=folder, threads=torch.get_num_threads()))
    (file,) = folder.iterdir()
    return json.loads(file.read_text())


def test_quick_leaves_its_results_in_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(Options(quick=True, threads=torch.get_num_threads()))
    (file,) = Path("runs", "update-quick").iterdir()
    assert [cell["batch_size"] for cell in json.loads(file.read_text())["cells"]] == [32]


def test_the_raw_turns_give_the_times_and_ratios(results):
    (cell,) = results["cells"]
    compiled = {name for name in FORMS if name.startswith(COMPILED)}
    assert cell["milliseconds"].keys() == CONTENDERS.keys() - compiled - {BENCHMARL}
    assert results["left_out"].keys() == {*compiled, BENCHMARL}
    for name, seconds in cell["seconds_per_step"].items():
        assert len(seconds) == 3
        assert min(seconds) > 0
        assert cell["milliseconds"][name] == pytest.approx(1e3 * statistics.median(seconds))
        assert cell["updates_per_second"][name] == pytest.approx(1 / statistics.median(seconds))
    for pair, ratio in cell["ratios_of_times"].items():
        first, second = pair.split(" / ")
        assert ratio == pytest.approx(cell["milliseconds"][first] / cell["milliseconds"][second])


def test_no_path_of_the_machine_is_in_the_results(results):
    assert results["about"].keys() >= {"options", "versions", "machine", "threads", "date", "commit"}
    assert str(Path.cwd()) not in json.dumps(results)


def test_the_report_has_a_row_for_each_contender(results):
    text = report(results)
    for name, milliseconds in results["cells"][0]["milliseconds"].items():
        assert f"| {name} | {milliseconds:.1f} (" in text
    assert f"{BENCHMARL} is left out: no --benchmarl-python." in text


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_ours_and_torchrls_parts_take_the_same_step(cell, monkeypatch):
    made = []

    def make_loss(*nets, **options):
        made.append(nets)
        return make_ddpg_loss(*nets, **options)

    monkeypatch.setattr(benchmark, "make_ddpg_loss", make_loss)
    sample, ours = make_sample(5, TINY), make_step(benchmark.make_loss(cell, TINY))
    parts = parts_update(cell, TINY)
    for _ in range(3):
        ours(sample)
        parts(sample)
    for one, other in zip(*([*actor.parameters(), *critic.parameters()] for actor, critic in made)):
        torch.testing.assert_close(one, other)


def test_plain_pytorch_takes_the_same_critic_step(monkeypatch):
    """Without clipping, which it does for each net alone. Its actor's step follows, with the critic after its own."""
    monkeypatch.setattr(benchmark, "MAX_GRAD_NORM", math.inf)
    sample, plain = make_sample(5, TINY), PlainUpdate(*(net.module for net in make_nets("gru", TINY)))
    ours = make_step(benchmark.make_loss("gru", TINY))
    targets = [parameter.detach().clone() for parameter in plain.targets[1].parameters()]
    plain(sample)
    ours(sample)
    for name, old in plain.critic.named_parameters():
        torch.testing.assert_close(old, ours.loss.value_network_params.get(("module", *name.split("."))).data)
    for old, target, new in zip(targets, plain.targets[1].parameters(), plain.critic.parameters()):
        torch.testing.assert_close(target, old.lerp(new, benchmark.TAU))


@pytest.mark.parametrize("make", [script_update, parts_update])
def test_torchrls_updates_lower_the_critics_loss(make, monkeypatch):
    losses = []
    forward = benchmark.DDPGLoss.forward

    def recorded(self, sample):
        losses.append(forward(self, sample))
        return losses[-1]

    monkeypatch.setattr(benchmark.DDPGLoss, "forward", recorded)
    sample, update = make_sample(64, TINY), make("gru", TINY)
    for _ in range(50):
        update(sample)
    assert losses[-1]["loss_value"] < 0.9 * losses[0]["loss_value"]


def test_the_products_are_those_of_the_step():
    """Counted by hand, for an LSTM of H a direction, N agents, B samples, encoder and decoder of 128."""
    b, n, h = 3, TINY.n_agents, TINY.hidden_size
    rows, gates = b * n, 4 * h
    hidden = 2 * b * h * gates  # of one agent but the first, both directions

    def encode(inputs):
        return rows * inputs * 128

    def forward(inputs, outputs):
        return encode(inputs) + rows * (128 * 2 * gates + (2 * h + inputs) * 128 + 128 * outputs) + (n - 1) * hidden

    actor, critic = forward(18, 2), forward(20, 1)
    targets = actor + critic
    critic_loss = 3 * critic - encode(20)  # no gradient of observation and action
    actor_loss = 3 * actor - encode(18) + 2 * critic  # no gradient of the critic's weights
    products = matrix_products("lstm", TINY, make_sample(b, TINY))
    assert count_flops(products) == 2 * (targets + critic_loss + actor_loss)


def test_products_are_replayed_as_they_were_recorded():
    products = matrix_products("gru", TINY, make_sample(3, TINY))
    assert {product for product, *_ in products} == {torch.mm, torch.bmm}
    for product, *operands in products:
        (output,) = replay([(product, *operands)])(None)
        assert torch.equal(output, product(*operands))
    assert {output.dtype for output in replay(products, torch.bfloat16)(None)} == {torch.bfloat16}


def test_contenders_take_turns(monkeypatch):
    now, calls = [0.0], []

    def run(name, seconds):
        def work(count):
            calls.append((name, count))
            now[0] += count * seconds
            return count * seconds

        return work

    timers = {EAGER: run(EAGER, 0.02), PRODUCTS: run(PRODUCTS, 0.01), PARTS: run(PARTS, 9.0)}
    found = take_turns(timers, replace(TINY, turns=4, budget=0.1))
    assert calls[-11:] == 3 * [(EAGER, 5), (PRODUCTS, 10), (PARTS, 1)] + [(EAGER, 5), (PRODUCTS, 10)]
    assert found["milliseconds"] == pytest.approx({EAGER: 20, PRODUCTS: 10, PARTS: 9000})
    assert found["ratios_of_times"][f"{EAGER} / {PRODUCTS}"] == pytest.approx(2)


def test_the_command_line():
    assert tyro.cli(Options, args=["--cells", "gru", "--no-compiled"]) == Options(cells=("gru",), compiled=False)


@pytest.mark.long
def test_compiled_forms_are_compiled_once_from_an_empty_cache_and_compared(tmp_path):
    main(replace(TINY, output=tmp_path, compiled=True, threads=torch.get_num_threads()))
    (file,) = tmp_path.iterdir()
    results = json.loads(file.read_text())
    (cell,) = results["cells"]
    assert cell["milliseconds"].keys() == CONTENDERS.keys() - {BENCHMARL} - cell.get("left_out", {}).keys()
    assert cell["seconds_to_compile"][COMPILED]["from_cache"] < cell["seconds_to_compile"][COMPILED]["empty_cache"]
    assert cell["difference"]["compiled"] < 1e-2 * cell["difference"]["change"]
    assert cell["difference"]["rounding"] < 1e-2 * cell["difference"]["change"]
    assert "compiled with an empty cache of Inductor in" in report(results)
