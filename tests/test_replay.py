import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.helpers_vmas import assert_same, leaves, needs_cuda, play, simulator, with_random_actions
from torchrl_bicnet import make_vmas_env, restore, snapshot
from torchrl_bicnet.compiling.replay import ReplayedFunction
from torchrl_bicnet.vmas_graph import compiled_step


class Tape(TorchDispatchMode):
    """A CUDA graph without a GPU: the operations of a function, repeated on the memory that they were on."""

    def __init__(self, run):
        super().__init__()
        self.operations, self.before, self.played = [], {}, 0
        run()  # as a capture does, to warm up
        with self:
            run()
        for memory, copy in self.before.values():  # captures run nothing
            memory.copy_(copy)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)]
        for memory in (tensor.untyped_storage() for tensor in given):
            self.before.setdefault(memory._cdata, (memory, memory.clone()))
        outputs = function(*args, **(kwargs or {}))
        known = {tensor.untyped_storage()._cdata for tensor in given}
        new = [tensor for tensor in tree_leaves(outputs) if tensor.untyped_storage()._cdata not in known]
        self.operations.append((function, args, kwargs or {}, new))
        return outputs

    def __call__(self):
        self.played += 1
        for function, args, kwargs, new in self.operations:
            outputs = tree_leaves(function(*args, **kwargs))
            for old, output in zip(new, outputs):
                old.copy_(output)


def step(position, velocity, count):
    """A state and an output that equals a part of it; `count` comes back as it is, copied."""
    position = position + velocity
    return [position, velocity * 0.5, count + 1, position.abs(), count.clone()]


def test_results_go_in_again_and_those_that_are_kept_stay():
    state = [torch.randn(4, 2), torch.randn(4, 2), torch.zeros(4, dtype=torch.int32)]
    first = expected = state
    before = [tensor.clone() for tensor in state]
    replayed = ReplayedFunction(step, state, Tape)
    kept, copies = [], []
    for _ in range(5):
        results = replayed(*state)
        expected = step(*expected[:3])
        assert_same(results, expected)
        kept.append(results)
        copies.append([tensor.clone() for tensor in results])
        state = results[:3]
        results[3].fill_(7)  # the outputs are the caller's
        copies[-1][3].fill_(7)
    assert_same([first, *kept], [before, *copies])
    assert replayed.replay.played == 5


@pytest.mark.parametrize("scenario", ["simple_spread", "balance"])
def test_a_replayed_step_is_a_plain_step_to_the_bit(monkeypatch, scenario):
    made = []

    def replayed(graph, inputs, name):
        made.append(ReplayedFunction(graph, inputs, Tape))
        return made[-1]

    monkeypatch.setattr(compiled_step, "compile_graph", replayed)
    plain, compiled = (make_vmas_env(scenario, 4, max_steps=20, seed=0, compile=compile) for compile in (False, True))
    assert_same(play(compiled, compiled.reset(), 16, seed=1)[1], play(plain, plain.reset(), 16, seed=1)[1])
    assert sum(function.replay.played for function in made) == 15  # not the first


def on_cuda(scenario, compile):
    return make_vmas_env(scenario, 32, device="cuda", max_steps=20, seed=0, compile=compile)


class TestOnCuda:
    pytestmark = needs_cuda

    @pytest.mark.parametrize("scenario", ["navigation", "simple_spread", "balance"])
    def test_each_step_equals_the_uncompiled_one(self, scenario):
        plain, compiled = on_cuda(scenario, False), on_cuda(scenario, True)
        td, generator = compiled.reset(), torch.Generator().manual_seed(0)
        for _ in range(8):
            restore(plain, snapshot(compiled))
            td = with_random_actions(compiled, td.cpu(), generator).to("cuda")
            expected, td = plain.step(td.clone())["next"], compiled.step(td)["next"]
            torch.testing.assert_close(dict(leaves(td)), dict(leaves(expected)), rtol=1e-4, atol=1e-4)
        function = compiled.base_env.compiled_step.current.call
        assert isinstance(function, ReplayedFunction)
        assert function.inputs[0].device.type == "cuda"

    def test_what_is_kept_is_not_overwritten(self):
        env = on_cuda("simple_spread", True)
        td, generator, kept, copies = env.reset(), torch.Generator().manual_seed(0), [], []
        for _ in range(6):
            td = env.step(with_random_actions(env, td.cpu(), generator).to("cuda"))["next"]
            kept.append([simulator(env).agents[0].state.pos, td])
            copies.append([part.clone() for part in kept[-1]])
        assert_same(kept, copies)
