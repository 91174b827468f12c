"""Checkpoints: whole or refused, nothing runs from them, and a run goes on from them as if it had never stopped."""

import errno
import json
import multiprocessing
import os
import pickle
import random
import shutil
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensordict import NonTensorData, TensorDict
from torchrl.checkpoint import CheckpointError
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from examples import train_vmas
from examples.train_vmas import Options
from tests.quick import QUICK, Result
from torchrl_bicnet import BiCNetActor, Checkpoints, CollectorState, make_vmas_env


def make_parts():
    env = make_vmas_env("navigation", 4, max_steps=6, seed=0)
    actor = BiCNetActor.from_env(env, hidden_size=8, num_cells=(12,))
    optimiser = torch.optim.Adam(actor.parameters())
    collector = Collector(env, actor, frames_per_batch=40, total_frames=400)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(100), batch_size=8)
    return {
        "actor": actor,
        "optimiser": optimiser,
        "collector": CollectorState(collector),
        "buffer": buffer,
        "metrics": {"loss": [[40, 0.5]]},
    }


@pytest.fixture
def checkpoints(tmp_path):
    parts = make_parts()
    batch = next(iter(parts["collector"].collector))
    parts["buffer"].extend(batch.reshape(-1))
    parts["actor"](batch.reshape(-1))["agents", "action"].sum().backward()
    parts["optimiser"].step()
    checkpoints = Checkpoints(tmp_path, parts, best_components=["actor"])
    checkpoints.save(40)
    checkpoints.save(80)
    return checkpoints


def values(component):
    state = component.state_dict()
    return state["state"] if "param_groups" in state else state


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_every_component_comes_back_to_the_bit(checkpoints):
    fresh = make_parts()
    fresh["metrics"].clear()
    assert not same(values(fresh["actor"]), values(checkpoints.components["actor"]))
    assert Checkpoints(checkpoints.folder, fresh).load(checkpoints.latest()) == 80
    for name in ("actor", "optimiser", "collector"):
        assert same(values(fresh[name]), values(checkpoints.components[name])), name
    assert same(fresh["buffer"][:].to_dict(), checkpoints.components["buffer"][:].to_dict())
    assert fresh["metrics"] == {"loss": [[40, 0.5]]}
    # The collectors go on alike, resets at the time limit included.
    ahead, again = (next(iter(parts["collector"].collector)) for parts in (checkpoints.components, fresh))
    assert ahead["next", "done"].any()
    assert same(ahead.to_dict(), again.to_dict())


def test_the_last_are_kept_and_the_best_apart(tmp_path):
    checkpoints = Checkpoints(tmp_path, {"net": torch.nn.Linear(1, 1)}, keep_last=2, best_components=["net"])
    weights = []
    for step, metric, best in ((1, 5.0, 1), (2, 7.0, 2), (3, 6.0, 2), (4, 7.0, 2)):
        torch.nn.init.normal_(checkpoints.components["net"].weight)
        weights.append(checkpoints.components["net"].weight.item())
        assert checkpoints.save_best(step, metric).name == f"checkpoint-{best:012d}.torchrl"
        checkpoints.save(step)
    assert [path.name for path in sorted(tmp_path.glob("*.torchrl"))] == [
        "checkpoint-000000000003.torchrl",
        "checkpoint-000000000004.torchrl",
    ]
    assert checkpoints.load(checkpoints.best()) == 2
    assert checkpoints.components["net"].weight.item() == weights[1]


def test_what_is_left_out_stays(tmp_path, checkpoints):
    parts = dict(checkpoints.components)
    small = Checkpoints(tmp_path / "small", parts, leave_out=["buffer"])
    path = small.save(80)
    assert path.stat().st_size < checkpoints.latest().stat().st_size
    fresh = make_parts()
    assert Checkpoints(tmp_path / "small", fresh, leave_out=["buffer"]).load(path) == 80
    assert len(fresh["buffer"]) == 0
    with pytest.raises(CheckpointError, match=r"missing=\['buffer'\].* It holds actor, collector, metrics, optimiser"):
        Checkpoints(tmp_path / "small", fresh).load(path)


def damage(path, kind):
    content = bytearray(path.read_bytes())
    if kind == "truncated":
        content = content[: len(content) // 2]
    elif kind == "bit-flipped":
        content[len(content) // 3] ^= 1
    elif kind == "empty":
        content = b""
    else:
        content = pickle.dumps({"a": 1})
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["truncated", "bit-flipped", "empty", "foreign"])
def test_a_damaged_one_is_refused_and_the_older_offered(checkpoints, kind):
    newest, older = checkpoints.latest(), checkpoints.folder / "checkpoint-000000000040.torchrl"
    damage(newest, kind)
    before = values(checkpoints.components["actor"])
    with pytest.raises(CheckpointError, match=f"not a whole checkpoint.*older checkpoint is {older}"):
        checkpoints.load(newest)
    assert same(values(checkpoints.components["actor"]), before)
    assert checkpoints.resume(older) == 40
    assert checkpoints.latest() == older  # the damaged one was set aside
    damage(older, kind)
    with pytest.raises(CheckpointError, match="There is no older checkpoint"):
        checkpoints.load(older)


def test_no_flipped_bit_goes_unseen(tmp_path):
    """Every bit of a small checkpoint: it is refused, or loads the same values."""
    net = torch.nn.Linear(1, 1)
    path = Checkpoints(tmp_path, {"net": net}).save(1)
    whole, expected = path.read_bytes(), [value.clone() for value in net.state_dict().values()]
    draw = random.Random(0)
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        target = torch.nn.Linear(1, 1)
        try:
            Checkpoints(tmp_path, {"net": target}).load(path)
        except CheckpointError:
            refused += 1
        else:
            assert all(map(torch.equal, target.state_dict().values(), expected))
    assert refused > 150


class Payload:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return Path.touch, (self.witness,)


@pytest.mark.parametrize(
    "place",
    ["0000-actor/state/other.pickle", "0001-buffer/storage/other.pickle", "0001-buffer/transform.t", "x/pickle.pkl"],
)
def test_a_planted_pickle_does_not_run(tmp_path, checkpoints, place):
    witness = tmp_path / "it_ran"
    pickle.loads(pickle.dumps(Payload(witness)))
    assert witness.exists()  # the payload works
    witness.unlink()
    with zipfile.ZipFile(checkpoints.latest(), "a") as archive:
        archive.writestr(f"components/{place}", pickle.dumps(Payload(witness)))
    with pytest.raises(CheckpointError, match=f"holds components/{place}, .* Nothing of it was loaded"):
        checkpoints.load(checkpoints.latest())
    assert not witness.exists()


def test_json_cannot_name_a_method_that_unpickles(tmp_path):
    """tensordict has lazy classes whose description in JSON is a call; one can load a pickle that lies elsewhere."""
    witness, elsewhere = tmp_path / "it_ran", tmp_path / "pictures"
    TensorDict({"a": NonTensorData(Payload(witness))}).memmap(elsewhere)
    checkpoints = Checkpoints(tmp_path / "checkpoints", {"net": torch.nn.Linear(2, 1)})
    path = checkpoints.save(1)
    call = {
        "_type": "<class 'tensordict._lazy._CustomOpTensorDict'>",
        "custom_op": "load_memmap",
        "inv_op": None,
        "custom_op_kwargs": {"prefix": str(elsewhere), "allow_pickle": True},
        "inv_op_kwargs": {},
    }
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    (meta,) = [name for name in contents if name.endswith("state/meta.json")]
    source = {meta.replace("meta.json", "_source/meta.json"): b"{}"}
    for planted in ({meta: json.dumps(call)}, source):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in (contents | planted).items():
                archive.writestr(name, content)
        with pytest.raises(CheckpointError, match="Nothing of it was loaded"):
            checkpoints.load(path)
    assert not witness.exists()


def test_a_full_disk_leaves_the_previous_one(checkpoints, monkeypatch):
    usage = shutil.disk_usage(checkpoints.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"needs about 17\.\d MB and 0\.0 MB are free") as caught:
        checkpoints.save(120)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert checkpoints.load(checkpoints.latest()) == 80


def test_the_state_of_another_environment_is_refused(checkpoints):
    state = checkpoints.components["collector"].state_dict()
    other = CollectorState(Collector(make_vmas_env("balance", 4), frames_per_batch=8, total_frames=8))
    with pytest.raises(ValueError, match="another environment"):
        other.load_state_dict(state)


RUN = replace(QUICK, total_frames=7200, buffer_size=1000, eval_interval=400, checkpoint_interval=120)


def result(folder):
    """All that a run leaves but what the clock says."""
    scalars = {
        file.relative_to(folder).as_posix(): file.read_text()
        for file in folder.rglob("*.csv")
        if file.name != "frames_per_second.csv"
    }
    return scalars, Result(folder).tests(), {which: Result(folder).weights(which) for which in ("last", "best")}


def train_deterministically(options):
    """On CUDA to the bit too: https://pytorch.org/docs/stable/notes/randomness.html. On CPU it is without this."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    train_vmas.main(options)


def start(folder, resume, device):
    """In a process that can be killed; the imports are done once, by the fork server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["examples.train_vmas"])
    options = Options(resume=folder) if resume else replace(RUN, run_folder=folder, device=device)
    process = context.Process(
        target=train_vmas.main if device == "cpu" else train_deterministically,
        args=(options,),
    )
    process.start()
    return process


def kill(process, folder, draw, while_writing, longest):
    """By SIGKILL, at a moment drawn by the clock or as soon as a checkpoint is being written; False if it ended."""
    limit = time.monotonic() + (60 if while_writing else draw.uniform(0.3, longest))
    while time.monotonic() < limit and process.is_alive():
        if while_writing and any(folder.glob("checkpoints/.checkpoint-*")):
            break
        time.sleep(0.0005)
    process.kill()
    process.join()
    return process.exitcode == -9


@pytest.mark.slow
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
            ],
        ),
    ],
)
def test_killed_at_ten_moments_and_resumed_it_ends_as_if_left_alone(tmp_path, device):
    draw = random.Random(0)
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    began = time.monotonic()
    start(alone, False, device).join()
    # Ten lives together are not to reach the end, on a fast machine either.
    longest = min(3.0, 0.3 + (time.monotonic() - began) / 5)
    kills = writing = 0
    while not (killed / "test_returns.json").exists():
        process = start(killed, (killed / "run.json").exists(), device)
        if kills < 10 or writing < 3:
            kills += kill(process, killed, draw, while_writing=kills % 3 == 0, longest=longest)
            writing += any(killed.glob("checkpoints/.checkpoint-*"))
        else:
            process.join()
            assert process.exitcode == 0
    assert kills >= 10
    assert writing >= 3
    assert same(list(result(alone)), list(result(killed)))
