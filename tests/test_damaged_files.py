"""Files that anything may have happened to: refused by name and in whole, or read as if nothing had.

Hypothesis draws the damage, the same at every run. Nothing of a file runs, nothing is written elsewhere, and what a
refused file was to be loaded into stays as it was.
"""

import json
import pickle
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensordict import NonTensorData, TensorDict
from torchrl.checkpoint import CheckpointError
from torchrl.collectors import Collector

from torchrl_bicnet import BiCNetActor, Checkpoints, CollectorState, Run, make_vmas_env, restore, snapshot
from torchrl_bicnet.rendering import save_film
from torchrl_bicnet.runs import learning_curves, read_options, verify_checkpoint

SETTINGS = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # each example writes its file anew
)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUE = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
NO_JSON = st.sampled_from(["", "{", "[" * 9999, "\0"]).map(str.encode) | st.binary(max_size=40)


def message(errors, function, *arguments):
    """What the error of a call says; None without one."""
    try:
        function(*arguments)
    except errors as error:
        return str(error)
    return None


def same_world(first, second):
    tensors = all(torch.equal(first.tensors[key], value) for key, value in second.tensors.items())
    return tensors and first.tensors.keys() == second.tensors.keys() and first.plain == second.plain


class Payload:
    """A pickle that leaves a witness when it is loaded."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return Path.touch, (self.witness,)


class Saved:
    """A folder with two checkpoints of a small net; the newer one is what gets damaged."""

    def __init__(self, folder):
        self.net, self.counters = torch.nn.Linear(2, 1), {"frames": 1}
        self.checkpoints = Checkpoints(folder / "run", {"net": self.net, "counters": self.counters})
        self.older, self.path = self.checkpoints.save(1), self.checkpoints.save(2)
        self.whole, self.weights = self.path.read_bytes(), [value.clone() for value in self.net.parameters()]
        with zipfile.ZipFile(self.path) as archive:
            self.members = {name: archive.read(name) for name in archive.namelist()}
        self.witness, self.elsewhere = folder / "it_ran", folder / "elsewhere"
        self.payload = pickle.dumps(Payload(self.witness))
        pickle.loads(self.payload)
        self.witness.unlink()  # it was there: the payload works
        TensorDict({"a": NonTensorData(Payload(self.witness))}).memmap(self.elsewhere)

    def write(self, members):
        with zipfile.ZipFile(self.path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    def is_refused(self):
        """Whether loading is refused; if so by name, with the older one offered and nothing loaded or run."""
        with torch.no_grad():
            for value in self.net.parameters():
                value.fill_(7.0)
        self.counters["frames"] = 7
        said = message(CheckpointError, self.checkpoints.load, self.path)
        assert said is None or str(self.path) in said
        assert not self.witness.exists()
        return said is not None

    def is_untouched(self):
        return self.counters == {"frames": 7} and all((value == 7).all() for value in self.net.parameters())

    def is_loaded(self):
        return self.counters == {"frames": 1} and all(map(torch.equal, self.net.parameters(), self.weights))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return Saved(tmp_path_factory.mktemp("saved"))


def damaged_bytes(draw, whole):
    kind = draw(st.sampled_from(["truncated", "a bit flipped", "overwritten", "something else"]))
    at = draw(st.integers(0, len(whole) - 1))
    if kind == "truncated":
        return whole[:at]
    if kind == "a bit flipped":
        return whole[:at] + bytes([whole[at] ^ 1 << draw(st.integers(0, 7))]) + whole[at + 1 :]
    content = draw(st.binary(max_size=60))
    return whole[:at] + content + whole[at + len(content) :] if kind == "overwritten" else content


@settings(SETTINGS, max_examples=200)
@given(data=st.data())
def test_a_changed_checkpoint_is_refused_or_loads_the_same(saved, data):
    content = damaged_bytes(data.draw, saved.whole)
    saved.path.write_bytes(content)
    if saved.is_refused():
        assert saved.is_untouched()
        with pytest.raises(CheckpointError, match=f"older checkpoint is {saved.older}"):
            saved.checkpoints.load(saved.path)
    else:  # what changed is read by nobody, such as a member's date
        assert saved.is_loaded()


def test_flipped_bits_are_mostly_seen(saved):
    refused = 0
    for at in range(0, len(saved.whole), len(saved.whole) // 100):
        saved.path.write_bytes(saved.whole[:at] + bytes([saved.whole[at] ^ 4]) + saved.whole[at + 1 :])
        refused += saved.is_refused()
    assert refused > 50


@settings(SETTINGS)
@given(
    folder=st.sampled_from(
        ["", "components/", "components/0000-net/", "components/0000-net/state/", "../", "/absolute/"]
    ),
    name=st.sampled_from(["other.pickle", "pickle.pkl", "transform.t", "x.pt", "meta.json/x"])
    | st.text(min_size=1).map("{}~".format),
)
def test_a_foreign_member_is_refused_and_does_not_run(saved, folder, name):
    saved.write(saved.members | {folder + name.replace("\0", "0"): saved.payload})
    assert saved.is_refused()
    assert saved.is_untouched()
    assert "neither plain JSON nor a tensor" in message(CheckpointError, verify_checkpoint, saved.path)


def calls(elsewhere):
    """Descriptions by which tensordict would build something else than a plain tensordict."""
    call = {"_type": "<class 'tensordict._lazy._CustomOpTensorDict'>", "custom_op": "load_memmap", "inv_op": None}
    call |= {"custom_op_kwargs": {"prefix": str(elsewhere), "allow_pickle": True}, "inv_op_kwargs": {}}
    names = ["tensordict._lazy.LazyStackedTensorDict", "tensordict.tensorclass.NonTensorData", "tensordict.nn.Params"]
    return st.just(call) | st.sampled_from(names).map(lambda name: {"_type": f"<class '{name}'>", "type": name})


@settings(SETTINGS)
@given(data=st.data())
def test_json_in_a_checkpoint_calls_nothing(saved, data):
    """tensordict has lazy classes whose description in JSON is a call; one loads a pickle that lies elsewhere."""
    (meta,) = [name for name in saved.members if name.endswith("state/meta.json")]
    description = json.loads(saved.members[meta])
    place = data.draw(st.sampled_from([None, *description]))
    call = data.draw(calls(saved.elsewhere))
    changed = call if place is None else description | {place: call}
    extra = data.draw(st.sampled_from([{}, {meta.replace("meta.json", "_source/meta.json"): b"{}"}]))
    saved.write(saved.members | {meta: json.dumps(changed)} | extra)
    assert saved.is_refused()
    assert saved.is_untouched() or place is not None  # otherwise it is whole, but of other components


@settings(SETTINGS)
@given(data=st.data(), content=VALUE.map(json.dumps).map(str.encode) | NO_JSON)
def test_any_json_in_a_checkpoint_is_refused_or_plain(saved, data, content):
    names = [name for name in saved.members if name.endswith(".json")]
    saved.write(saved.members | {data.draw(st.sampled_from(names)): content})
    if not saved.is_refused():
        json.dumps(saved.counters)
        assert all(value.shape == weight.shape for value, weight in zip(saved.net.parameters(), saved.weights))


@pytest.fixture(scope="module")
def env():
    return make_vmas_env("ball_passage", 2, max_steps=3, seed=0)


def references(held):
    """The dictionaries inside the JSON of a snapshot that refer to an object, a tensor, an array or a constant."""
    for value in held.values() if isinstance(held, dict) else held if isinstance(held, list) else ():
        if isinstance(value, dict) and value.keys() & {"at", "tensor", "array", "constant", "fixed"}:
            yield value
        yield from references(value)


@settings(SETTINGS, max_examples=150)
@given(data=st.data())
def test_a_damaged_snapshot_is_refused_or_restored_in_whole(env, data):
    whole = snapshot(env)
    plain = json.loads(json.dumps(whole.plain))
    if data.draw(st.booleans()):
        path = data.draw(st.sampled_from(list(plain)))
        plain[path] = data.draw(
            st.sampled_from([{"is": "subprocess.Popen", "attributes": {}}, {"items": [{}]}]) | VALUE
        )
        if data.draw(st.booleans()):
            del plain[path]
    else:
        reference = data.draw(st.sampled_from(list(references(plain))))
        key = data.draw(st.sampled_from(list(reference)))
        reference[key] = data.draw(st.sampled_from(["nowhere", "subprocess.Popen", {"at": "nowhere"}, [["nowhere"]]]))
        if data.draw(st.booleans()):
            del reference[key]
    said = message(ValueError, restore, env, replace(whole, plain=plain))
    assert said is None or "snapshot" in said
    if said is None:  # what was changed is no more than the name of a constant's place or the form of a tensor
        restore(env, whole)
    assert same_world(snapshot(env), whole)


@settings(SETTINGS)
@given(data=st.data())
def test_a_snapshot_with_other_tensors_is_refused(env, data):
    whole = snapshot(env)
    key = data.draw(st.sampled_from(sorted(whole.tensors.keys())))
    other = data.draw(st.sampled_from([None, torch.zeros(7, 5), torch.zeros(2, 2, dtype=torch.int16)]))
    tensors = whole.tensors.exclude(key) if other is None else whole.tensors.clone().set(key, other)
    with pytest.raises(ValueError, match="snapshot") as refused:
        restore(env, replace(whole, tensors=tensors))
    assert key in str(refused.value)
    assert same_world(snapshot(env), whole)


@pytest.fixture(scope="module")
def collector_state(env):
    actor = BiCNetActor.from_env(env, hidden_size=4, num_cells=(8,))
    return CollectorState(Collector(env, actor, frames_per_batch=4, total_frames=8))


@settings(SETTINGS)
@given(
    name=st.sampled_from(["counters", "carrier", "tensors", "plain"]),
    value=st.sampled_from([..., "[]", "{}", "[" * 9999, {"agents": 3}, {"frames": "x"}]) | VALUE,
)
def test_a_damaged_state_of_a_collector_is_refused(env, collector_state, name, value):
    state, before = collector_state.state_dict(), snapshot(env)
    state = {key: part for key, part in (state | {name: value}).items() if part is not ...}
    with pytest.raises((TypeError, ValueError), match=f"{name}|snapshot"):
        collector_state.load_state_dict(state)
    assert same_world(snapshot(env), before)


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "run"
    (folder / "scalars").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"options": {"scenario": "navigation", "seed": 0}}))
    (folder / "scalars/evaluation_return.csv").write_text("0,-5.0\n600,1.0\n")
    return folder


@settings(SETTINGS)
@given(
    content=NO_JSON | VALUE.map(json.dumps).map(str.encode) | VALUE.map(lambda v: json.dumps({"options": v}).encode())
)
def test_damaged_options_are_refused(run_folder, content):
    (run_folder / "run.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"run\.json (is damaged|names no scenario)"):
        learning_curves([run_folder])
    said = message(ValueError, read_options, run_folder)
    assert said is None or str(run_folder / "run.json") in said


ROW = st.sampled_from(["", "x", "1", "1,2,3", "x,1.0", "1.5,2.0", "600;1.0", "1,,", "99999999999999999999,1", "\0"])


@settings(SETTINGS)
@given(
    frames=st.lists(st.integers(0, 2**62), min_size=1, max_size=5, unique=True).map(sorted),
    wrong=ROW | st.text(max_size=9).filter(lambda line: "," not in line and len(line.splitlines()) == 1),
    data=st.data(),
)
def test_a_damaged_metric_is_refused_by_its_line_and_a_whole_one_read(run_folder, frames, wrong, data):
    file = run_folder / "scalars/evaluation_return.csv"
    rows = [f"{frame},{data.draw(st.floats(-1e9, 1e9))}" for frame in frames]
    file.write_text("\n".join(rows) + "\n")
    (curve,) = learning_curves([run_folder])
    assert curve.frames.tolist() == frames
    assert curve.estimate.tolist() == [float(row.split(",")[1]) for row in rows]
    at = data.draw(st.integers(0, len(rows)))
    file.write_text("\n".join([*rows[:at], wrong, *rows[at:]]) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"evaluation_return.csv, line {at + 1}: "):
        learning_curves([run_folder])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with Run(tmp_path_factory.mktemp("around") / "run", {}) as run:
        run.start({}, total_frames=9)
        yield run


@settings(SETTINGS)
@given(
    name=st.lists(st.sampled_from(["..", ".", "", "a", "loss", "~", "*"]), min_size=1, max_size=4).map("/".join)
    | st.text(min_size=1, max_size=9),
    rows=st.just([[1, 2.0]]) | VALUE,
)
def test_metrics_of_a_checkpoint_stay_in_the_run_folder(run, name, rows):
    run.metrics.clear()
    run.metrics.update({name: rows})
    said = message(CheckpointError, run._rewind)
    assert said is None or "damaged" in said
    outside = [path for path in run.folder.parent.rglob("*") if run.folder / "scalars" not in (path, *path.parents)]
    assert sorted(outside) == [run.folder, run.folder / ".lock", run.folder / "run.json"]


@settings(SETTINGS)
@given(
    parts=st.lists(st.sampled_from(["..", "", "a", "folder.gif", "~", "x" * 300]) | st.text(max_size=5), max_size=3),
    suffix=st.sampled_from([".gif", ".GIF", ".avi", "", ".gif.", ".gif\0"]),
)
def test_a_film_is_written_to_its_path_or_nowhere(tmp_path, parts, suffix):
    folder = tmp_path / "up" / "to" / "three"
    shutil.rmtree(tmp_path)
    (folder / "folder.gif").mkdir(parents=True)
    path = folder / ("/".join(parts).lstrip("/") + suffix)
    try:
        save_film([np.zeros((4, 6, 3), dtype=np.uint8)], path)
        written = {path.resolve()}
    except (ValueError, OSError):
        written = set()
    assert {found for found in tmp_path.rglob("*") if found.is_file()} == written
