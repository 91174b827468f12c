import random
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch._inductor import config
from torchrl.collectors import Collector
from torchrl.envs import check_env_specs

from tests.helpers_vmas import (
    IGNORED_WARNINGS,
    Countdown,
    assert_close,
    assert_same,
    assert_same_world,
    play,
    simulator,
    steps,
    with_random_actions,
)
from torchrl_bicnet import make_vmas_env, restore, snapshot
from torchrl_bicnet.vmas_state.tensor_places import TensorPlaces

pytestmark = IGNORED_WARNINGS
B = 8  # everywhere, for Inductor's cache
TRACED = ["dispersion", "line_trajectory"]
REFUSED = {
    "discovery": "_local_scalar_dense reads a tensor on the host, in utils.py:",
    "het_mass": r"with a reset world._agents\[.\]._mass changes",
    "ball_passage": "with a reset .* changes in more than values of tensors",
    "simple_reference": "with a reset .*goal.* changes in more than values of tensors",
}
REFUSED_SLOWLY = {"road_traffic": "nonzero reads a tensor on the host, in road_traffic.py:"}
# The others take longer to compile, and the last ones minutes.
SLOW = [
    *("balance", "circle_trajectory", "diff_drive", "dropout", "goal", "navigation", "simple", "simple_adversary"),
    *("simple_crypto", "simple_push", "simple_speaker_listener", "simple_spread", "transport", "vel_control", "wheel"),
    "wind_flocking",
]
LONG = [
    *("asym_joint", "flocking", "football", "give_way", "reverse_transport", "simple_tag", "simple_world_comm"),
    "kinematic_bicycle",  # called in pieces
]
# A joint's force is a thousand times the distance that rounding moves: a last bit of a position has the same effect.
TOLERANCES = {"asym_joint": 1e-2}


def both(scenario="simple", **options):
    """An environment as it is and a compiled one, in one state."""
    options = {"max_steps": 20, "seed": 0, **options}
    # Compiled, football draws other random numbers: here the plain one does so too.
    plain = make_vmas_env(scenario, B, compile=scenario == "football", **options)
    plain.base_env.compiled_step = None
    return plain, make_vmas_env(scenario, B, compile=True, **options)


def count_uncompiled(env):
    """A list that grows by one with each step that runs uncompiled."""
    step, found = env.base_env.compiled_step, []
    plain = step.step
    step.step = lambda actions: found.append(1) or plain(actions)
    return found


def assert_each_step_is_close(plain, compiled, n_states, n_between, tolerance=1e-4):
    uncompiled = count_uncompiled(compiled)
    td = compiled.reset()
    generator = torch.Generator().manual_seed(0)
    for state in range(n_states):
        for _ in range(n_between):
            td = compiled.step(with_random_actions(compiled, td, generator))["next"]
        if state == n_states // 2:
            td = compiled.reset()
        restore(plain, snapshot(compiled))
        td = with_random_actions(compiled, td, generator)
        expected, td = plain.step(td.clone())["next"], compiled.step(td)["next"]
        assert_close(td, expected, tolerance)
        # Its objects hold what the step left.
        left, expected = TensorPlaces(simulator(compiled)), TensorPlaces(simulator(plain))
        assert left.paths == expected.paths
        assert_close(left.tensors, expected.tensors, tolerance)
    assert len(uncompiled) <= 1


@pytest.mark.parametrize(
    "scenario",
    [
        *TRACED,
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
        *(pytest.param(name, marks=pytest.mark.long) for name in LONG),
    ],
)
def test_each_step_and_a_hundred_with_resets_in_between_equal_the_uncompiled_ones(scenario):
    plain, compiled = both(scenario)
    tolerance = TOLERANCES.get(scenario, 1e-4)
    assert_each_step_is_close(plain, compiled, n_states=6, n_between=3, tolerance=tolerance)
    restore(plain, snapshot(compiled))
    uncompiled = count_uncompiled(compiled)
    _, expected = play(plain, plain.reset(), 100, seed=1)
    _, found = play(compiled, compiled.reset(), 100, seed=1)
    assert_close(found, expected, 10 * max(tolerance, 1e-3))
    assert not uncompiled


@pytest.mark.long
def test_discovery_without_targets_that_come_back():
    assert_each_step_is_close(*both("discovery", targets_respawn=False), n_states=6, n_between=3)


@pytest.mark.slow
def test_resets_that_choose_among_landmarks_have_a_function_each():
    plain, compiled = both("simple_speaker_listener", pad=True)
    _, expected = play(plain, plain.reset(), 60, seed=1)
    _, found = play(compiled, compiled.reset(), 60, seed=1)
    assert_close(found, expected, tolerance=1e-2)


def test_a_snapshot_goes_on_to_the_bit_here_and_elsewhere():
    _, compiled = both()
    td, _ = play(compiled, compiled.reset(), 5, seed=1)
    world = snapshot(compiled)
    _, first = play(compiled, td, 8, seed=2)
    restore(compiled, world)
    assert_same(play(compiled, td, 8, seed=2)[1], first)
    _, elsewhere = both(seed=7)
    play(elsewhere, elsewhere.reset(), 3, seed=5)
    restore(elsewhere, world)
    assert_same(play(elsewhere, td, 8, seed=2)[1], first)
    copy = deepcopy(compiled)
    restore(copy, world)
    assert_same(play(copy, td, 8, seed=2)[1], first)


def test_what_a_user_writes_between_steps_is_heard():
    outputs = []
    for env in both():
        td = play(env, env.reset(), 4, seed=1)[0]
        agents, world = simulator(env).agents, simulator(env).world
        for write in (
            lambda env=env: simulator(env).agents[0].set_pos(torch.zeros(B, 2), None),
            lambda env=env: simulator(env).agents[0].state.vel.fill_(0.5),
            # These ask for nothing: who was given an agent once may keep it.
            lambda agents=agents: agents[0].state.pos.fill_(0.25),
            lambda agents=agents: setattr(agents[0].state, "vel", torch.full((B, 2), 0.1)),
            lambda env=env: simulator(env).world.landmarks[0].set_pos(torch.ones(2), 3),
            lambda env=env: setattr(simulator(env).world, "_drag", 0.5),  # a number in the compiled function
            lambda world=world: world._gravity.fill_(0.3),  # which decides what operations there are
            lambda world=world: world._gravity.zero_(),
        ):
            write()
            outputs.append(steps(env, td, 3))
            td = outputs[-1][-1]
    half = len(outputs) // 2
    assert_close(outputs[half:], outputs[:half])


def test_what_a_user_keeps_is_up_to_date_and_not_written_to():
    outputs = []
    for env in both():
        environment, td = simulator(env), env.reset()
        generator, held, copies = torch.Generator().manual_seed(2), [], []
        for _ in range(6):
            td = env.step(with_random_actions(env, td.clone(), generator))["next"]
            agent = environment.agents[0]
            held.append([agent.state.pos, agent.state.vel, environment.steps, td])
            copies.append([part.clone() for part in held[-1]])
        outputs.append(copies)
    assert_same(held, copies)
    assert_close(*reversed(outputs))


def test_outputs_may_be_written_to():
    compiled = both("simple_spread")[1].base_env
    td = with_random_actions(compiled, compiled.reset(), torch.Generator().manual_seed(5))
    world = snapshot(compiled)
    expected = [compiled._step(td) for _ in range(5)]
    restore(compiled, world)
    for outputs in expected:
        found = compiled._step(td)
        for key in found.keys(True, True):
            torch.testing.assert_close(found[key], outputs[key], rtol=0, atol=0, msg=str(key))
            found[key].fill_(1)  # shared neither with the state nor with another


def test_making_it_leaves_no_trace():
    env = make_vmas_env("simple", B, seed=0)
    env.reset()
    before = snapshot(env)
    env.base_env.compile_step()
    assert_same_world(snapshot(env), before)


def test_two_environments_side_by_side():
    envs = [make_vmas_env("simple", B, seed=seed, compile=True) for seed in (0, 1)]
    start = [env.reset() for env in envs]
    worlds = [snapshot(env) for env in envs]
    apart = [steps(env, td, 6) for env, td in zip(envs, start)]
    for env, world in zip(envs, worlds):
        restore(env, world)
    together = [[], []]
    td, generators = list(start), [torch.Generator().manual_seed(5) for _ in envs]
    for _ in range(6):
        for i, env in enumerate(envs):
            td[i] = env.step(with_random_actions(env, td[i].clone(), generators[i]))["next"]
            together[i].append(td[i])
    assert_same(together, apart)


def test_torchrl_runs_it_without_asking_for_the_simulator():
    plain, compiled = both()
    check_env_specs(compiled)
    batches = []
    for env in (plain, compiled):
        env.set_seed(0)
        torch.manual_seed(0)
        batches.append(list(Collector(env, None, frames_per_batch=10 * B, total_frames=60 * B)))
    assert_close(*reversed(batches), tolerance=1e-2)
    step = compiled.base_env.compiled_step
    td = compiled.rand_step(compiled.rand_step(compiled.reset())["next"])["next"]
    for _ in range(3):  # a walk over all objects takes longer than a step
        td = compiled.rand_step(td)["next"]
        assert step._changed is False


def test_inference_mode_and_gradients():
    plain, compiled = both()
    outputs = []
    for env in (plain, compiled):
        with torch.inference_mode(env is compiled):
            td = steps(env, env.reset(), 3)[-1]
        td = steps(env, td.clone(), 3)[-1]
        td = with_random_actions(env, td, torch.Generator().manual_seed(3))
        td["agents", "action"].requires_grad_()
        td = env.step(td)["next"]
        outputs.append(td)
        assert not td["agents", "reward"].requires_grad
    assert_close(*outputs)


@pytest.mark.slow
def test_lidars_measure_the_present():
    plain, compiled = both("navigation")
    td = [steps(env, env.reset(), 5)[-1] for env in (plain, compiled)]
    assert_close(*td)
    measured = [[agent.sensors[0].measure() for agent in simulator(env).agents] for env in (plain, compiled)]
    assert_close(*measured)


class Drawing(Countdown):
    """Draws in many ways, of which the outputs tell."""

    def post_step(self):
        self.left = self.left - torch.rand(B)
        drawn = torch.zeros(B, 3)
        drawn.uniform_(-1, 2)
        drawn[:, 1] += torch.randint(0, 5, (B,)) + torch.randperm(B)
        self.drawn = drawn + torch.randn_like(drawn) * torch.empty(B, 3).normal_(1, 2)

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.drawn = torch.rand(B, 3)

    def observation(self, agent):
        return torch.cat([self.drawn, self.left[:, None] + torch.rand(B, 1)], -1)


class DrawingByTensor(Countdown):
    def post_step(self):
        self.left = self.left - torch.bernoulli(self.left.clamp(0, 1))


class DrawingInPython(Countdown):
    def post_step(self):
        self.left = self.left - random.random()


class Reading(Countdown):
    def post_step(self):
        self.left = self.left - (1 if self.left.sum() > 0 else 2)


class ReadingArrays(Countdown):
    def post_step(self):
        self.left = self.left - torch.as_tensor(np.asarray(self.left)).clamp(0, 1)


class ReadingSometimes(Reading):
    reads = False

    def post_step(self):
        super().post_step() if self.reads else Countdown.post_step(self)


class Counting(Countdown):
    count = 0

    def post_step(self):
        super().post_step()
        self.count += 1


class CountingResets(Countdown):
    count = 0

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.count += 1


class Paired(Countdown):
    """Holds a tensor where one cannot be replaced."""

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.pair = (self.left, 1)


class Sharing(Countdown):
    """Writes in place to a tensor that it holds twice, and keeps a part of one."""

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.count = self.again = torch.zeros(B, 2)
        self.first = self.left[:2]

    def post_step(self):
        super().post_step()
        self.count += 1
        self.first = self.left[:2]

    def observation(self, agent):
        return self.again * self.first.sum()


class SharingLater(Countdown):
    """Holds a tensor that it writes to twice after a step, but not after a reset."""

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.count, self.again, self.seen = torch.zeros(B, 2), torch.zeros(B, 2), torch.zeros(B, 2)

    def post_step(self):
        super().post_step()
        self.count += 1
        self.seen = self.again.clone()
        self.again = self.count

    def observation(self, agent):
        return self.seen


class Transposed(Countdown):
    """Holds a tensor whose rows are not together in memory."""

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.table = torch.arange(3.0 * B).view(3, B).T

    def post_step(self):
        super().post_step()
        self.table = self.table * 1.5

    def observation(self, agent):
        return self.table - 1


class Replacing(Countdown):
    """Its reset replaces a list by an equal one, and holds a part of a larger tensor."""

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.order, self.goal = [0], torch.rand(B, 4)[:, :2]

    def observation(self, agent):
        return self.goal


class SharingParts(Sharing):
    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.again = self.count[:, :1]


class Curriculum(Countdown):
    """A list of state per environment, `print`, and a number that a user changes."""

    speed = 1.0

    def make_world(self, batch_dim, device, **kwargs):
        self.history = [torch.zeros(batch_dim) for _ in range(3)]
        return super().make_world(batch_dim, device, **kwargs)

    def post_step(self):
        self.left = self.left - self.speed
        self.history = [*self.history[1:], self.left]
        self.history[0] += 1  # in place

    def observation(self, agent):
        return torch.stack(self.history, -1)


@pytest.mark.parametrize(
    ("scenario", "problem"),
    [
        (DrawingByTensor, r"aten::bernoulli draws random numbers that depend on tensors, in test_compiled_step.py:"),
        (DrawingInPython, r"DrawingInPython cannot be compiled: it draws random numbers from NumPy or Python"),
        (Reading, r"Reading cannot .* aten::_local_scalar_dense reads a tensor on the host, in test_compiled_step.py:"),
        (ReadingArrays, r"ReadingArrays cannot .* __array__ reads a tensor on the host, in test_compiled_step.py:"),
        (Counting, r"Counting cannot be compiled: scenario.count changes in more than values of tensors"),
        (CountingResets, r"CountingResets cannot be compiled: with a reset scenario.count changes"),
        (SharingParts, r"SharingParts cannot be compiled: it writes to memory of which scenario.count and scenario.ag"),
        (Paired, r"Paired cannot be compiled: scenario holds a tensor in a tuple"),
    ],
)
def test_scenarios_of_users_that_are_refused(scenario, problem):
    with pytest.raises(ValueError, match=problem):
        make_vmas_env(scenario(), B, compile=True)


def test_a_scenario_of_a_user_with_a_curriculum():
    outputs = []
    for options in ({}, {"compile": True}):
        scenario = Curriculum()
        env = make_vmas_env(scenario, B, seed=0, **options)
        simulator(env).hands_out_start_states = True  # uncompiled too, for the same start states
        td, found = env.reset(), []
        for speed in (1.0, 2.0, 1.0):
            scenario.speed = speed  # by the object that the user keeps
            td, more = play(env, td, 5, seed=3)
            found += more
        outputs.append(found)
    assert_close(*reversed(outputs))
    assert len(env.base_env.compiled_step.functions) <= 6


@pytest.mark.parametrize("scenario", [Sharing, SharingLater, Transposed, Replacing])
def test_a_scenario_of_a_user_that_holds_its_tensors_oddly(scenario):
    outputs = []
    for options in ({}, {"compile": True}):
        env = make_vmas_env(scenario(), B, seed=0, **options)
        simulator(env).hands_out_start_states = True
        outputs.append(play(env, env.reset(), 8, seed=3)[1])
    assert_close(*reversed(outputs))


def test_memory_that_is_shared_after_a_step_but_not_after_a_reset():
    outputs = []
    for options in ({}, {"compile": True}):
        env = make_vmas_env(SharingLater(), B, seed=0, **options)
        simulator(env).hands_out_start_states = True
        td = steps(env, env.reset(), 2)[-1]
        td = env.reset(td.set("_reset", (torch.arange(B) == 1).unsqueeze(-1)))
        outputs.append(steps(env, td, 4))
    assert_close(*reversed(outputs))
    assert [out["agents", "observation"][0, 0, 0].item() for out in outputs[0]] == [2, 4, 5, 6]


def test_random_numbers_are_those_of_the_uncompiled_step():
    """From the environment's own stream, in the same order, also after it was restored; and no other stream moves."""
    envs = [make_vmas_env(Drawing(), B, seed=0, max_steps=20, **options) for options in ({}, {"compile": True})]
    outside, worlds, outputs, again = torch.get_rng_state(), [], [], []
    for env in envs:
        td, first = play(env, env.reset(), 6, seed=3)
        worlds.append(snapshot(env))
        outputs.append([first, play(env, td, 6, seed=4)[1]])
        restore(env, worlds[-1])
        again.append([first, play(env, td, 6, seed=4)[1]])
    assert_close(*reversed(outputs), tolerance=1e-6)
    assert_same(again, outputs)
    assert torch.equal(torch.get_rng_state(), outside)
    compiled = make_vmas_env(Drawing(), B, seed=7, max_steps=20, compile=True)
    restore(compiled, worlds[1])
    assert_same(play(compiled, td, 6, seed=4)[1], outputs[1][1])


def test_noise_that_a_user_adds_later_is_compiled():
    plain, compiled = both()
    outputs = []
    for env in (plain, compiled):
        td = steps(env, env.reset(), 3)[-1]
        simulator(env).agents[0].action._u_noise = 0.1
        env.set_seed(3)
        outputs.append(steps(env, td, 4))
    assert_close(*reversed(outputs))
    assert compiled.base_env.compiled_step.current.draws


def test_what_turns_uncompilable_later_runs_as_it_is_with_a_warning():
    outputs = []
    for options in ({}, {"compile": True}):
        env = make_vmas_env(ReadingSometimes(), B, **options)
        td = steps(env, env.reset(), 3)[-1]
        simulator(env).scenario.reads = True
        if options:
            with pytest.warns(UserWarning, match="ReadingSometimes are not compiled for now: .*_local_scalar_dense"):
                outputs.append(steps(env, td, 4))
        else:
            outputs.append(steps(env, td, 4))
    assert_close(*outputs)


@pytest.mark.parametrize(
    "scenario", [*REFUSED, *(pytest.param(name, marks=pytest.mark.slow) for name in REFUSED_SLOWLY)]
)
def test_scenarios_that_are_refused(scenario):
    problem = (REFUSED | REFUSED_SLOWLY)[scenario]
    with pytest.raises(ValueError, match=f"A step of {scenario} cannot be compiled: .*{problem}"):
        make_vmas_env(scenario, 2, compile=True)


def test_without_a_compiler():
    missing = config.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False})
    message = r"compile=True needs a C\+\+ compiler, such as g\+\+, and none was found"
    with missing, pytest.raises(RuntimeError, match=message):
        make_vmas_env(Countdown(), 3, compile=True)


def test_what_excludes_it_and_another_device():
    with pytest.raises(ValueError, match="compile=True and check_actions=True exclude each other"):
        make_vmas_env("simple", B, compile=True, check_actions=True)
    compiled = both()[1]
    with pytest.raises(RuntimeError, match="A compiled step stays on cpu; make another environment for meta"):
        compiled.to("meta")
    td = compiled.reset()
    td["agents", "action"] = torch.zeros(B, 1, 1)
    with pytest.raises(ValueError, match=r"Expected .*agents.*action.* of shape .*8, 1, 2.*found .*8, 1, 1"):
        compiled.base_env._step(td)
