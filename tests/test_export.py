"""Actors as graphs without this package: by torch alone, and by ONNX."""

import runpy
import subprocess
import sys
from pathlib import Path
from typing import get_args

import onnxruntime
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded

from examples import drive_with_onnx, export_onnx
from torchrl_bicnet import BiCNet, BiCNetActor, RecurrentCommunication
from torchrl_bicnet.export import export_actor, save_onnx
from torchrl_bicnet.net import CommunicationName

# Of torch's own code, when a graph is run
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
ROOT = Path(__file__).resolve().parent.parent
N_FEATURES = 5
SIZES = [(1, 1), (1, 9), (7, 2), (4096, 3), (2, 64)]  # of batch and team


def make_actor(masked=False, **options):
    torch.manual_seed(0)
    spec = Bounded(torch.tensor([-1.0, 2.0]).expand(3, 2), torch.tensor([1.0, 5.0]).expand(3, 2), (3, 2))
    mask_key = ("agents", "mask") if masked else None
    return BiCNetActor(N_FEATURES, spec, mask_key=mask_key, hidden_size=8, num_cells=(16,), **options)


def example(n_agents=3, batch=1):
    agents = {"observation": torch.zeros(batch, n_agents, N_FEATURES)}
    return TensorDict({"agents": agents | {"mask": torch.ones(batch, n_agents, dtype=torch.bool)}}, [batch])


def inputs_of(size, masked):
    torch.manual_seed(1)
    observation, mask = torch.randn(*size, N_FEATURES), torch.rand(size) < 0.7
    if masked:
        observation[~mask] = float("nan")
    return (observation, mask) if masked else (observation,)


def assert_same(action, actor, inputs):
    with torch.no_grad():
        expected = actor.module(*inputs)[1]
    assert expected.std() > 0
    torch.testing.assert_close(action, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("communication", "masked"),
    [("lstm", False), *(pytest.param(name, True, marks=pytest.mark.slow) for name in get_args(CommunicationName))],
)
def test_the_graph_is_the_actor_for_any_batch_and_team(communication, masked, tmp_path):
    actor = make_actor(masked, communication=communication, n_frequencies=2)
    torch.export.save(export_actor(actor, example()), tmp_path / "actor.pt2")
    act = torch.export.load(tmp_path / "actor.pt2").module()
    for size in SIZES:
        inputs = inputs_of(size, masked)
        assert_same(act(*inputs), actor, inputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"num_layers": 2}, {"bidirectional": False}, {"bias": False}, {"implementation": "fused"}]
)
def test_recurrences_of_every_kind(options):
    communication = RecurrentCommunication(16, 8, cell="lstm", **options)
    actor = make_actor(communication=communication)
    act = export_actor(actor, example()).module()
    for size in SIZES:
        inputs = inputs_of(size, False)
        assert_same(act(*inputs), actor, inputs)


@pytest.mark.slow
@pytest.mark.parametrize(("communication", "masked"), [("lstm", True), ("gru", False), ("attention", True)])
def test_onnx_is_the_actor_for_any_batch_and_team(communication, masked, tmp_path, capfd):
    actor = make_actor(masked, communication=communication)
    save_onnx(actor, example(), tmp_path / "actor.onnx")
    assert capfd.readouterr() == ("", "")
    session = onnxruntime.InferenceSession(tmp_path / "actor.onnx", providers=["CPUExecutionProvider"])
    for size in SIZES:
        inputs = inputs_of(size, masked)
        named = dict(zip(("observation", "mask"), (x.numpy() for x in inputs)))
        (action,) = session.run(["action"], named)
        assert_same(torch.from_numpy(action), actor, inputs)
    assert [file.name for file in tmp_path.iterdir()] == ["actor.onnx"]  # its weights are in it


def test_an_id_of_each_agent_fixes_the_size_of_the_team():
    actor = make_actor(agent_id=True, n_agents=3)
    act = export_actor(actor, example()).module()
    inputs = inputs_of((9, 3), False)
    assert_same(act(*inputs), actor, inputs)
    with pytest.raises(AssertionError, match="Guard failed"):
        act(*inputs_of((9, 4), False))


def test_the_mode_of_the_actor_stays():
    actor = make_actor()
    for training in (True, False):
        actor.train(training)
        export_actor(actor, example())
        assert actor.training == actor.module.net.encoder.training == training


def test_misuse():
    with pytest.raises(TypeError, match="actor must be a BiCNetActor, found BiCNet"):
        export_actor(BiCNet(5, 2), example())
    with pytest.raises(ValueError, match="actor must share its parameters"):
        export_actor(make_actor(share_params=False, n_agents=3), example())
    with pytest.raises(ValueError, match=r"example must be a tensordict \(B,\) .* of shape \(3, 5\) in one of \(\)"):
        export_actor(make_actor(), example()[0])


def test_without_onnx_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"install the extra, torchrl_bicnet\[onnx\]"):
        save_onnx(make_actor(), example(), "actor.onnx")


@pytest.mark.slow
def test_a_run_drives_vmas_without_torchrl(tmp_path, capsys):
    """The trained team reaches with teams of its own size what it does in the test, and acts in others."""
    model = tmp_path / "actor.onnx"
    export_onnx.main(ROOT / "benchmarks/results/navigation/seed0", model)
    assert str(model) in capsys.readouterr().out
    code = f"""import runpy, sys
runpy.run_path({drive_with_onnx.__file__!r}, run_name="__main__")
assert "torchrl" not in sys.modules"""
    for n_agents, least in ((4, 4.0), (2, 1.0)):
        command = [sys.executable, "-c", code, model]
        done = subprocess.run([*command, "--n-agents", str(n_agents)], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert float(done.stdout.split()[3]) > least
    other = subprocess.run(
        [*command, "--scenario", "simple_spread", "--n-agents", "3"], capture_output=True, text=True, cwd=tmp_path
    )
    assert other.returncode == 2
    assert other.stderr.strip().endswith("the model takes 18 numbers of each agent, these simple_spread agents see 14")


def test_no_run_is_an_error_without_a_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["export_onnx.py", str(tmp_path / "missing"), str(tmp_path / "actor.onnx")])
    with pytest.raises(SystemExit, match=r"error: .*missing"):
        runpy.run_path(export_onnx.__file__, run_name="__main__")
