import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import RewardScaling, TransformedEnv, VmasEnv
from vmas.simulator.utils import Color

from tests.helpers_vmas import (
    IGNORED_WARNINGS,
    Countdown,
    assert_same,
    assert_same_world,
    loaded,
    needs_cuda,
    play,
    saved_and_loaded,
)
from torchrl_bicnet import make_vmas_env, restore, snapshot
from torchrl_bicnet.vmas_state.object_graph import traverse
from torchrl_bicnet.vmas_state.snapshot import WorldSnapshot

pytestmark = IGNORED_WARNINGS


def play_on(folder):
    """In a process of its own: a new environment, brought to where the saved one was."""
    saved = json.loads((folder / "options.json").read_text())
    env = make_vmas_env(saved["scenario"], 3, max_steps=20, seed=7)
    restore(env, loaded(folder))
    _, outputs = play(env, TensorDict.load_memmap(folder / "td"), 3, seed=2)
    torch.stack(outputs).memmap(folder / "outputs")


def test_another_process_goes_on_to_the_bit(tmp_path):
    expected = {}
    for scenario in ("football", "simple_crypto", "ball_trajectory"):
        folder = tmp_path / scenario
        folder.mkdir()
        env = make_vmas_env(scenario, 3, max_steps=20, seed=0)
        td, _ = play(env, env.reset(), 3, seed=1)
        saved_and_loaded(snapshot(env), folder)
        td.memmap(folder / "td")
        (folder / "options.json").write_text(json.dumps({"scenario": scenario}))
        _, expected[folder] = play(env, td, 3, seed=2)
    program = "import sys, pathlib, tests.test_snapshot as t; [t.play_on(pathlib.Path(f)) for f in sys.argv[1:]]"
    root = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-c", program, *map(str, expected)], check=True, cwd=root, capture_output=True)
    for folder, outputs in expected.items():
        assert_same(outputs, TensorDict.load_memmap(folder / "outputs").unbind(0))


class Attic(Countdown):
    """Holds state of every kind."""

    class Slotted:
        __slots__ = ("partner", "value")

    def make_world(self, batch_dim, device, **kwargs):
        world = super().make_world(batch_dim, device, **kwargs)
        one, two = world.agents
        calls = [0]

        def count():
            calls[0] += 1
            return calls[0]

        self.count = count
        self.whole = torch.arange(6.0).reshape(3, 2)
        self.column, self.alias = self.whole[:, 1], self.whole
        self.numbers = np.arange(4, dtype=np.uint16)
        self.shared_list = [one, two, {"nested": (1, torch.ones(2))}]
        self.same_list = self.shared_list
        self.by_agent = {one: "first", ("a", 3): {two}}
        self.obj = self.Slotted()
        self.obj.partner, self.obj.value = two, float("-inf")
        self.half = np.float32(0.5)
        self.generators = [torch.Generator(), np.random.default_rng(0), np.random.RandomState(1), random.Random(2)]
        return world

    def change(self):
        """In place and by rebinding, everywhere."""
        one, two = self.world.agents
        self.count()
        self.whole.mul_(2)
        self.numbers += 1
        self.shared_list.append(one)
        self.shared_list[2]["nested"] = (2, torch.zeros(3))
        self.by_agent[two] = self.by_agent.pop(one, "again")
        self.by_agent["a", 3].add(one)
        self.obj.partner, self.obj.value = one, None
        del self.half
        self.added = Color.RED
        one.color = Color.RED
        one.state.pos = one.state.pos + 1
        two.state.pos = one.state.pos
        self.draw()

    def draw(self):
        tensor, array, old, plain = self.generators
        return [float(torch.rand(1, generator=tensor)), array.random(), old.rand(), plain.random()]


class TestEveryKindOfState:
    @staticmethod
    def make():
        env = make_vmas_env(Attic(), 3, seed=0)
        return env, env.base_env._env.scenario

    @pytest.mark.parametrize("elsewhere", [False, True])
    def test_is_put_back(self, elsewhere, tmp_path):
        env, attic = self.make()
        attic.change()
        attic.half = np.float32(0.25)
        del attic.added
        world = snapshot(env)
        drawn = attic.draw()
        if elsewhere:
            env, attic = self.make()
            world = saved_and_loaded(world, tmp_path)
        else:
            attic.change()
        restore(env, world)
        one, two = attic.world.agents
        assert attic.count() == 2
        assert attic.whole.tolist() == [[0, 2], [4, 6], [8, 10]]
        assert attic.alias is attic.whole
        assert attic.numbers.tolist() == [1, 2, 3, 4]
        assert attic.numbers.dtype == np.uint16
        attic.whole[1, 1] = -1
        assert attic.column.tolist() == [2, -1, 10]
        assert attic.same_list is attic.shared_list
        assert attic.shared_list[:2] + attic.shared_list[3:] == [one, two, one]
        number, tensor = attic.shared_list[2]["nested"]
        assert (number, tensor.tolist()) == (2, [0, 0, 0])
        assert attic.by_agent == {("a", 3): {one, two}, two: "first"}
        assert (attic.obj.partner, attic.obj.value) == (one, None)
        assert attic.half == 0.25
        assert type(attic.half) is np.float32
        assert not hasattr(attic, "added")
        assert one._color is Color.RED
        assert one.state.pos is two.state.pos
        assert one.state.pos.tolist() == [[1, 1]] * 3
        assert attic.draw() == drawn

    def test_the_snapshot_is_untouched_by_what_follows(self):
        env, attic = self.make()
        world = snapshot(env)
        tensors, plain = world.tensors.clone(), json.dumps(world.plain)
        attic.change()
        for _, tensor in traverse(env.base_env._env).tensors.values():
            tensor.zero_()
        restore(env, world)
        attic.change()
        assert_same(tensors, world.tensors)
        assert json.dumps(world.plain) == plain

    def test_taking_one_changes_nothing(self):
        env, attic = self.make()

        def held():
            # A generator gives a new tensor each time.
            tensors = traverse(env.base_env._env).tensors.values()
            return {path: tensor for path, tensor in tensors if not path.startswith("scenario.generators")}

        tensors = held()
        streams = attic.generators[3].getstate(), torch.get_rng_state().tolist(), random.getstate()
        first = snapshot(env)
        assert_same_world(first, snapshot(env))
        assert all(held()[path] is tensor for path, tensor in tensors.items())
        assert (attic.generators[3].getstate(), torch.get_rng_state().tolist(), random.getstate()) == streams
        memory = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
        assert not memory & {tensor.untyped_storage().data_ptr() for tensor in first.tensors.values()}

    def test_strides_are_kept(self, tmp_path):
        env, attic = self.make()
        attic.whole, attic.column = torch.rand(5, 3).T, torch.rand(1, 1).expand(3, 4)
        attic.alias = None
        world = saved_and_loaded(snapshot(env), tmp_path)
        assert world.tensors["scenario.column"].shape == (1,)
        restore(env, world)
        assert attic.whole.stride() == (1, 3)
        assert attic.column.stride() == (0, 0)

    def test_the_window_is_no_state(self):
        env, _ = self.make()
        world = snapshot(env)
        window = env.base_env._env.viewer = object()
        assert_same_world(snapshot(env), world)
        restore(env, world)
        assert env.base_env._env.viewer is window


def test_the_wrappers_hold_no_state():
    """What changes in TorchRL's wrapper and transforms over an episode is in the tensordict."""
    env = make_vmas_env("balance", 3, max_steps=5, seed=0)

    def held():
        objects = [env, env.base_env, *env.transform]
        return [
            {name: repr(value) for name, value in vars(obj).items() if name not in ("_env", "_cache")}
            for obj in objects
        ]

    td, _ = play(env, env.reset(), 6, seed=0)
    before = held()
    play(env, td, 6, seed=1)
    assert held() == before


def test_classes_of_the_package_may_have_been_renamed_since():
    env, other = (make_vmas_env("simple_speaker_listener", 3, seed=seed, pad=True) for seed in (0, 1))
    td, _ = play(env, env.reset(), 2, seed=1)
    world = snapshot(env)
    for path, name in (("environment", "Former"), ("environment.random_stream", "Old"), ("environment.padding", "Pad")):
        assert world.plain[path]["is"].startswith("torchrl_bicnet.")
        world.plain[path]["is"] = f"torchrl_bicnet.elsewhere.{name}"
    restore(other, world)
    assert_same(play(other, td, 3, seed=2)[1], play(env, td, 3, seed=2)[1])


def test_an_environment_inside_further_transforms():
    env = TransformedEnv(make_vmas_env("balance", 3, seed=0), RewardScaling(0.0, 2.0), auto_unwrap=False)
    assert_same_world(snapshot(env), snapshot(env.base_env))


class TestRefusals:
    @pytest.mark.parametrize(
        ("scenario", "num_envs", "options", "message"),
        [
            ("dispersion", 3, {}, "scenario is 'navigation.Scenario' in the snapshot and 'dispersion.Scenario' here"),
            ("navigation", 4, {"n_agents": 2}, "num_envs is 3 in the snapshot and 4 here"),
            ("navigation", 3, {}, r"option n_agents is 2 in the snapshot and 'not given' here"),
            (
                "navigation",
                3,
                {"n_agents": 3},
                r"agents is \['agent_0', 'agent_1'\] .*; option n_agents is 2 .* and 3 ",
            ),
        ],
    )
    def test_of_another_environment(self, scenario, num_envs, options, message):
        world = snapshot(make_vmas_env("navigation", 3, n_agents=2))
        other = make_vmas_env(scenario, num_envs, **options)
        before = snapshot(other)
        with pytest.raises(ValueError, match=message):
            restore(other, world)
        assert_same_world(snapshot(other), before)

    @pytest.mark.parametrize("seed", range(8))
    def test_of_a_damaged_snapshot_leaves_the_environment_alone(self, seed):
        draw = random.Random(seed)
        env = make_vmas_env("ball_passage", 2, seed=0)
        before = snapshot(env)
        world = WorldSnapshot(before.tensors.clone(), json.loads(json.dumps(before.plain)))
        holders = [held for name, held in world.plain.items() if name != "made by" and held.get("attributes")]
        damage = seed % 4
        if damage == 0:
            del world.tensors[draw.choice(list(world.tensors.keys()))]
        elif damage == 1:
            draw.choice(holders)["is"] = "subprocess.Popen"
        elif damage == 2:
            attributes = draw.choice(holders)["attributes"]
            attributes[draw.choice(list(attributes))] = {"at": "nowhere"}
        else:
            world.plain[draw.choice(list(world.plain))] = draw.choice([None, [], 3, {}, "text"])
        with pytest.raises(ValueError, match=r"snapshot"):
            restore(env, world)
        assert_same_world(snapshot(env), before)

    def test_of_a_stock_environment(self):
        with pytest.raises(TypeError, match="Expected an environment made by make_vmas_env, found VmasEnv"):
            snapshot(VmasEnv("balance", num_envs=2))

    def test_of_state_that_cannot_be_seen(self):
        env = make_vmas_env(Attic(), 3)
        env.base_env._env.scenario.secret = [iter([1])]
        with pytest.raises(TypeError, match=r"The state of scenario.secret\[0\] cannot be seen.*list_iterator"):
            snapshot(env)
        env.base_env._env.scenario.secret = np.array(["a"])
        with pytest.raises(
            TypeError, match=r"Cannot save the array scenario.secret: expected numbers, found dtype <U1"
        ):
            snapshot(env)


@pytest.mark.parametrize("scenario", [pytest.param(name, marks=needs_cuda) for name in ("navigation", "football")])
def test_on_cuda_without_waiting(scenario, tmp_path):
    env = make_vmas_env(scenario, 3, seed=0, device="cuda")
    td = env.rand_action(env.reset())
    torch.cuda.set_sync_debug_mode("error")
    try:
        world = snapshot(env)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    first = env.step(td.clone())["next"]
    other = make_vmas_env(scenario, 3, device="cuda")
    restore(other, saved_and_loaded(world, tmp_path))
    assert_same([first], [other.step(td)["next"]])
