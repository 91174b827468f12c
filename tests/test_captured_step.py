from copy import deepcopy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchrl.collectors import Collector
from vmas.scenarios.navigation import Scenario as Navigation

from tests.helpers_vmas import (
    IGNORED_WARNINGS,
    assert_same,
    assert_same_world,
    needs_cuda,
    play,
    simulator,
    waits,
    with_random_actions,
)
from torchrl_bicnet import make_vmas_env, restore, snapshot
from torchrl_bicnet.vmas_graph.captured_step import N_ENTRIES

REFUSED = {
    "asym_joint": "uniform_ draws random numbers, in asym_joint.py:",
    "circle_trajectory": "waits",
    "discovery": "draws",
    "flocking": "_local_scalar_dense waits for the device, in core.py:",
    "football": "waits",
    "give_way": "waits",
    "joint_passage": "waits",
    "line_trajectory": "draws",
    "multi_give_way": "waits",
    "road_traffic": "waits",
    "sampling": "waits",
    "simple_world_comm": "waits",
}
CAPTURED = ["navigation", "balance"]
pytestmark = IGNORED_WARNINGS


class Tape(TorchDispatchMode):
    """A CUDA graph without a GPU: the operations of a function, repeated on the memory that they were on."""

    def __init__(self, run):
        super().__init__()
        self.operations, self.before = [], {}
        with self:
            run()
        for memory, copy in self.before.values():  # captures run nothing
            memory.copy_(copy)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.before:
                memory = tensor.untyped_storage()
                self.before[memory._cdata] = memory, memory.clone()
        outputs = function(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        new = [t for t in tree_leaves(outputs) if t.untyped_storage()._cdata not in given]
        if not function.name().startswith(("aten::empty", "aten::set_")):
            self.operations.append((function, args, kwargs or {}, new))
        return outputs

    def __call__(self):
        for function, args, kwargs, new in self.operations:
            outputs = tree_leaves(function(*args, **kwargs))
            for old, output in zip(new, outputs):
                old.copy_(output)


class Recorder:
    def __init__(self):
        self.tapes, self.played = [], 0

    def __call__(self, run):
        self.tapes.append(Tape(run))
        return self.play_last(len(self.tapes) - 1)

    def play_last(self, index):
        def replay():
            self.played += 1
            self.tapes[index]()

        return replay


def captured(scenario, *arguments, record=None, **options):
    """As with ``cuda_graph=True``, on the CPU, where worlds of many substeps leave out far pairs: not of these."""
    env = make_vmas_env(scenario, *arguments, **options)
    env.base_env.capture()
    env.base_env.captured_step.record = record
    return env


def memory(env):
    """The tensors that the steps of an environment start from."""
    entries = env.base_env.captured_step.entries
    return [[(id(tensor), tensor.data_ptr()) for tensor in entry.layout.tensors] for entry in entries]


@pytest.mark.parametrize("scenario", CAPTURED)
def test_a_step_in_fixed_memory_is_a_plain_step_to_the_bit(scenario):
    plain, fixed = make_vmas_env(scenario, 2, max_steps=20, seed=0), captured(scenario, 2, max_steps=20, seed=0)
    td, expected = play(plain, plain.reset(), 16, seed=1)
    again, found = play(fixed, fixed.reset(), 16, seed=1)
    assert_same(expected, found)
    before = memory(fixed)
    _, expected = play(plain, td, 8, seed=2)
    _, found = play(fixed, again, 8, seed=2)
    assert_same(expected, found)
    # Whatever starts in the next steps, starts from where it did.
    assert memory(fixed)[: len(before)] == before
    assert len(before) < N_ENTRIES


@pytest.mark.parametrize("scenario", CAPTURED)
def test_what_was_recorded_is_a_plain_step_to_the_bit(scenario):
    record = Recorder()
    plain = make_vmas_env(scenario, 2, max_steps=20, seed=0)
    fixed = captured(scenario, 2, max_steps=20, seed=0, record=record)
    _, expected = play(plain, plain.reset(), 24, seed=1)
    _, found = play(fixed, fixed.reset(), 24, seed=1)
    assert_same(expected, found)
    assert record.played >= 12
    assert len(record.tapes) < N_ENTRIES


@pytest.mark.parametrize("scenario", ["simple_speaker_listener", "simple_push"])
def test_padded_groups(scenario):
    record = Recorder()
    plain = make_vmas_env(scenario, 4, max_steps=20, seed=0, pad=True)
    fixed = captured(scenario, 4, max_steps=20, seed=0, pad=True, record=record)
    assert_same(play(plain, plain.reset(), 12, seed=1)[1], play(fixed, fixed.reset(), 12, seed=1)[1])
    assert record.played > 0


def test_a_snapshot_is_taken_over():
    fixed = captured("navigation", 4, seed=0, record=Recorder())
    td, _ = play(fixed, fixed.reset(), 8, seed=1)
    world = snapshot(fixed)
    _, first = play(fixed, td, 6, seed=2)
    restore(fixed, world)
    assert_same(first, play(fixed, td, 6, seed=2)[1])


def test_what_is_written_from_outside_is_taken_over():
    envs = [make_vmas_env("navigation", 4, seed=0), captured("navigation", 4, seed=0, record=Recorder())]
    outputs = []
    for env in envs:
        td = play(env, env.reset(), 8, seed=1)[0]
        agent = simulator(env).agents[0]
        agent.set_pos(torch.zeros(4, 2), None)  # a new tensor
        agent.state.vel.fill_(0.5)  # in place
        simulator(env).world._drag = 0.5  # what a graph has inside
        outputs.append(play(env, td, 6, seed=2)[1])
    assert_same(*outputs)


def test_a_replay_never_waits():
    """Nor does what is asked before it: whether there is gravity is remembered while its tensor is not written to."""
    record = Recorder()
    fixed = captured("navigation", 4, seed=0, record=record)
    td = fixed.rand_action(play(fixed, fixed.reset(), 8, seed=1)[0])
    for _ in range(2):
        td = fixed.rand_action(fixed.step(td)["next"])
    n_played = record.played
    assert not waits(fixed.step, td)
    assert record.played == n_played + 1


def test_gravity_may_change():
    outputs = []
    for env in (make_vmas_env("navigation", 2, seed=0), captured("navigation", 2, seed=0, record=Recorder())):
        td = play(env, env.reset(), 6, seed=1)[0]
        for gravity in (0.3, 0.0):
            simulator(env).world._gravity.fill_(gravity)
            td, found = play(env, td, 4, seed=2)
            outputs.append(found)
    assert_same(outputs[0] + outputs[1], outputs[2] + outputs[3])


def test_sensing_after_a_replay():
    """Measurements are remembered for as long as no position changes, and a replay changes positions."""
    record = Recorder()
    fixed, plain = captured("navigation", 4, seed=0, record=record), make_vmas_env("navigation", 4, seed=0)
    td = {}
    for env in (fixed, plain):
        torch.manual_seed(0)
        td[env] = env.rand_action(env.reset())
        for _ in range(5):
            simulator(env).get_from_scenario(True, False, True, True)
            env.step(td[env])
    lidar, expected = (simulator(env).agents[0].sensors[0].measure() for env in (fixed, plain))
    assert record.played > 0
    assert torch.equal(lidar, expected)


def test_what_is_asked_between_steps_is_no_constant_of_the_graph():
    """The closest points of the present state are remembered, and the next step uses them."""
    record = Recorder()
    plain, fixed = make_vmas_env("balance", 4, seed=0), captured("balance", 4, seed=0, record=record)
    outputs = []
    for env in (plain, fixed):
        world, scenario = simulator(env).world, simulator(env).scenario
        td, found = env.reset(), []
        generator = torch.Generator().manual_seed(3)
        for _ in range(12):
            world.get_distance(scenario.line, scenario.floor), world.get_distance(scenario.package, scenario.line)
            td = env.step(with_random_actions(env, td, generator))["next"]
            found.append(td.clone())
        outputs.append(found)
    assert record.played > 5
    assert_same(*outputs)


def test_a_copy_records_anew():
    fixed = captured("navigation", 4, seed=0, record=Recorder())
    td, _ = play(fixed, fixed.reset(), 6, seed=1)
    copy = deepcopy(fixed)
    assert copy.base_env.captured_step.entries == []
    assert_same(play(fixed, td, 6, seed=2)[1], play(copy, td, 6, seed=2)[1])
    assert copy.base_env.captured_step.environment is copy.base_env._env


def test_inference_mode_and_another_device_are_refused():
    fixed = captured("navigation", 4, seed=0)
    td = fixed.rand_action(fixed.reset())
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"steps under .*no_grad.* found inference mode"):
        fixed.step(td)
    with pytest.raises(RuntimeError, match="A captured step stays on cpu; make another environment for meta"):
        fixed.to("meta")


def test_outputs_are_the_callers():
    fixed = captured("balance", 4, seed=0, record=Recorder())
    td = fixed.reset()
    outputs = []
    for _ in range(6):
        td = fixed.rand_step(td.clone())["next"]
        outputs.append((td, td.clone()))
    assert all((td == copy).all() for td, copy in outputs)


@pytest.mark.parametrize("scenario", ["navigation", "simple_spread"])
def test_looking_for_what_cannot_be_captured_leaves_no_trace(scenario):
    env = make_vmas_env(scenario, 4, seed=0)
    env.reset()
    before = snapshot(env)
    env.base_env.capture()
    after = snapshot(env)
    assert_same_world(after, before)


@pytest.mark.parametrize("scenario", REFUSED)
def test_scenarios_that_wait_are_refused(scenario):
    with pytest.raises(
        ValueError, match=f"A step of {scenario} cannot be captured in a CUDA graph: .*{REFUSED[scenario]}"
    ):
        captured(scenario, 2)


class Drawing(Navigation):
    def post_step(self):
        self.noise = torch.rand(self.world.batch_dim)


class Counting(Navigation):
    count = 0

    def post_step(self):
        self.count += 1


class Waiting(Navigation):
    def post_step(self):
        assert float(self.world.agents[0].state.pos.sum()) < 100


@pytest.mark.parametrize(
    ("scenario", "problem"),
    [
        (Drawing, r"Drawing cannot be .*: aten::rand draws random numbers, in test_captured_step.py:"),
        (Counting, "Counting cannot be .*: scenario changes in more than values of tensors"),
        (Waiting, r"Waiting cannot be .*: aten::_local_scalar_dense waits for the device, in test_captured_step.py:"),
    ],
)
def test_what_cannot_be_captured(scenario, problem):
    with pytest.raises(ValueError, match=problem):
        captured(scenario(), 2)


def test_noisy_actions_are_refused():
    env = make_vmas_env("balance", 2)
    for agent in simulator(env).agents:
        agent.action._u_noise = 0.1
    with pytest.raises(ValueError, match=r"randn.* draws random numbers"):
        env.base_env.capture()


@pytest.mark.parametrize("scenario", [pytest.param(name, marks=needs_cuda) for name in (*CAPTURED, "transport")])
def test_on_cuda(scenario):
    plain, graph = (
        make_vmas_env(scenario, 8, max_steps=20, seed=0, device="cuda", cuda_graph=on) for on in (False, True)
    )
    _, expected = play(plain, plain.reset(), 24, seed=1)
    _, found = play(graph, graph.reset(), 24, seed=1)
    assert_same(expected, found)
    starts = graph.base_env.captured_step.entries
    assert sum(start.replay is not None for start in starts) >= 2  # from resets, and from steps
    td = graph.rand_action(found[-1])
    for _ in range(2):
        td = graph.rand_action(graph.step(td)["next"])
    torch.cuda.set_sync_debug_mode("error")
    try:
        graph.step(td)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def collected(env):
    torch.manual_seed(0)
    return list(Collector(env, None, frames_per_batch=80, total_frames=240))


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=needs_cuda)])
def test_a_collector_on_cuda(device):
    plain, graph = (
        make_vmas_env("navigation", 8, max_steps=7, seed=0, device=device, cuda_graph=on) for on in (False, True)
    )
    assert_same(collected(graph), collected(plain))


def test_a_collector():
    record = Recorder()
    plain = make_vmas_env("navigation", 8, max_steps=7, seed=0)
    graph = captured("navigation", 8, max_steps=7, seed=0, record=record)
    assert_same(collected(graph), collected(plain))
    assert record.played > 10
