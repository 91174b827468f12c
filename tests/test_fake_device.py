"""Everything on a CUDA device that is not there: no tensor on the wrong device, no unknown waits, the CPU's values."""

import re
import warnings
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torchrl.data import Bounded, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import AdditiveGaussianModule

import torchrl_bicnet
from tests.fake_device import COPIES, COUNTS, READS, CudaTensor, DeviceSyncs, FakeCuda
from tests.helpers_vmas import IGNORED_WARNINGS, SCENARIOS, assert_same, leaves, partly_reset, simulator
from torchrl_bicnet import (
    BiCNetActor,
    BiCNetCritic,
    ExplorationNoise,
    RecurrentCommunication,
    UpdateStep,
    evaluate,
    make_ddpg_loss,
    make_vmas_env,
    tasks,
)
from torchrl_bicnet.net import CommunicationName

pytestmark = IGNORED_WARNINGS
KINDS = (READS, COUNTS, COPIES)
NUM_ENVS = 3


@pytest.fixture
def cuda():
    with FakeCuda():
        yield


# Operations of tensors on the device, x and mask, and a mask on the CPU: those that raise, and what others wait for.
MIXED = [
    lambda x, mask, on_cpu: x + torch.ones(3),
    lambda x, mask, on_cpu: torch.ones(3) * x[0],  # a number on the device is no number on the CPU
    lambda x, mask, on_cpu: torch.ones(()).add_(x[0]),
    lambda x, mask, on_cpu: torch.cat([x, torch.ones(3)]),
    lambda x, mask, on_cpu: torch.where(on_cpu, x, 0.0),
    lambda x, mask, on_cpu: x.masked_fill_(on_cpu, 0.0),
    lambda x, mask, on_cpu: torch.ones(3)[mask],
    lambda x, mask, on_cpu: x.index_select(0, torch.tensor([0])),
    lambda x, mask, on_cpu: x.index_put_((mask,), torch.ones(3)),
    lambda x, mask, on_cpu: x.clamp(max=torch.tensor(1.0)),
    lambda x, mask, on_cpu: torch.nn.Linear(3, 1)(x),
    lambda x, mask, on_cpu: torch.nn.GRU(3, 1, device="cuda")(x[None], torch.zeros(1, 1)),
]
OPERATIONS = [
    (lambda x, mask, on_cpu: x + torch.ones(()), []),
    (lambda x, mask, on_cpu: torch.where(mask, x, 0.5), []),
    (lambda x, mask, on_cpu: x.masked_fill_(mask, torch.ones(())), []),
    (lambda x, mask, on_cpu: x.index_put_((mask,), torch.ones(())), []),
    (lambda x, mask, on_cpu: torch.tensor(1.0) if torch.tensor(True) else None, []),  # all of it on the CPU
    (lambda x, mask, on_cpu: x.to("cuda"), []),
    (lambda x, mask, on_cpu: x[0].item(), [READS]),
    (lambda x, mask, on_cpu: bool(mask.all()), [READS]),
    (lambda x, mask, on_cpu: x.tolist(), [READS]),
    (lambda x, mask, on_cpu: x.cpu(), [READS]),
    (lambda x, mask, on_cpu: torch.tensor([x[0], 1.0]), [READS]),
    (lambda x, mask, on_cpu: torch.zeros(3).copy_(x), [READS]),
    (lambda x, mask, on_cpu: torch.equal(x, x), [READS]),
    (lambda x, mask, on_cpu: x[mask], [COUNTS]),
    (lambda x, mask, on_cpu: x.masked_select(mask), [COUNTS]),
    (lambda x, mask, on_cpu: mask.nonzero(), [COUNTS]),
    (lambda x, mask, on_cpu: x.unique(), [COUNTS]),
    (lambda x, mask, on_cpu: x.index_put_((mask,), x[0]), [COUNTS]),
    (lambda x, mask, on_cpu: x[torch.tensor([0])], [COPIES]),
    (lambda x, mask, on_cpu: x.index_put_((on_cpu,), torch.ones(())), [COPIES]),
    (lambda x, mask, on_cpu: x.copy_(torch.zeros(3)), [COPIES]),
    (lambda x, mask, on_cpu: torch.tensor(0.5, device="cuda"), [COPIES]),
    (lambda x, mask, on_cpu: torch.as_tensor([0.5], device="cuda"), [COPIES]),
]
# These wait too, but torch's debug mode does not say so.
UNTOLD = [
    (lambda x, mask, on_cpu: torch.cuda.synchronize(), [READS]),
    (lambda x, mask, on_cpu: TensorDict({"x": torch.zeros(3)}, device="cuda"), [COPIES]),
]


def operands():
    x = torch.zeros(3, device="cuda")
    return x, x == 0, torch.ones(3, dtype=torch.bool)


class TestFakeCuda:
    """The device itself."""

    def test_a_tensor_says_where_it_is_and_computes(self, cuda):
        x = torch.tensor([1.0, 2.0], device="cuda")
        assert x.is_cuda
        assert x.device == torch.ones(2).cuda().device == torch.ones(2).to("cuda").device == torch.device("cuda:0")
        assert x.to("cuda") is x
        x[:1].add_(1)
        assert x.cpu().tolist() == x.tolist() == [2.0, 2.0]
        assert type(x.cpu()) is torch.Tensor
        assert x.view(2, 1).untyped_storage()._cdata == x.untyped_storage()._cdata

    @pytest.mark.parametrize("mixed", MIXED)
    def test_two_devices_in_one_operation(self, cuda, mixed):
        with pytest.raises(RuntimeError, match="same device"):
            mixed(*operands())

    @pytest.mark.parametrize(("operation", "waits"), [*OPERATIONS, *UNTOLD])
    def test_what_waits(self, cuda, operation, waits):
        given = operands()
        with DeviceSyncs() as syncs:
            operation(*given)
        assert kinds(syncs.waits) == waits
        assert all(wait.split(", in ")[1].startswith(Path(__file__).name) for wait in syncs.waits)

    def test_gradients_are_those_of_the_cpu(self):
        def gradients(device):
            torch.manual_seed(0)
            net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.LSTM(4, 2)).to(device)
            x = torch.randn(5, 3).to(device).requires_grad_()
            outputs, (state, _) = net(x)
            (outputs.square().mean() + (x[1:] * x[:-1]).exp().sum() + 0 * state.sum()).backward()
            return [x.grad.cpu(), *(parameter.grad.cpu() for parameter in net.parameters())]

        with FakeCuda():
            found = gradients("cuda")
        assert_same(found, gradients("cpu"))

    def test_the_device_draws_from_its_own_generator(self, cuda):
        outside = torch.get_rng_state()
        torch.cuda.manual_seed(3)
        state = torch.cuda.get_rng_state()
        first = torch.rand(4, device="cuda")
        torch.cuda.set_rng_state(state)
        assert torch.equal(torch.rand(4, device="cuda"), first)
        assert torch.equal(first.cpu(), torch.rand(4, generator=torch.Generator().manual_seed(3)))
        assert torch.equal(torch.get_rng_state(), outside)

    def test_nothing_of_it_is_left(self):
        with FakeCuda():
            torch.zeros(3, device="cuda")
        assert not torch.cuda.is_available()
        with pytest.raises((RuntimeError, AssertionError), match="CUDA"):
            torch.zeros(3, device="cuda")
        x = torch.ones((), requires_grad=True)
        (2 * x).backward()
        assert x.grad == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestGPU:
    """A GPU does what FakeCuda does."""

    @pytest.mark.parametrize("mixed", MIXED)
    def test_two_devices_in_one_operation(self, mixed):
        with pytest.raises(RuntimeError, match=r"same device|expected device"):
            mixed(*operands())

    @pytest.mark.parametrize(("operation", "waits"), OPERATIONS)
    def test_what_waits(self, operation, waits):
        given = operands()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                operation(*given)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert any("synchroniz" in str(warning.message) for warning in told) == bool(waits)


def kinds(waits):
    return [kind for wait in waits for kind in KINDS if kind in wait]


def of_ours(waits):
    """Those whose line is in the package."""
    ours = {path.name for path in Path(torchrl_bicnet.__file__).parent.rglob("*.py")}
    return [wait for wait in waits if re.search(r", in (.*):", wait)[1] in ours]


# Scenarios that VMAS itself cannot step on a GPU, since they mix devices.
BROKEN_ON_CUDA = {"kinematic_bicycle": "clamp.Tensor", "road_traffic": "index_put_"}
OPTIONS = {
    "hidden_goals": {"random_seers": True},
    "sampling": {"grid_spacing": 0.5},
}  # it makes a tensor for each cell of its grid
# A reset reads state that resets of other environments change: whether it has changed is asked each time.
COMPARED_AT_EACH_RESET = {"joint_passage_size", "sampling"}
SLOW = [
    "asym_joint",
    "ball_trajectory",
    "buzz_wire",
    "discovery",
    "joint_passage",
    "joint_passage_size",
    "multi_give_way",
    "passage",
    "pollock",
    "reverse_transport",
    "road_traffic",
    "sampling",
    "simple_crypto",
    "simple_speaker_listener",
    "simple_tag",
    "simple_world_comm",
    "transport",
    "vel_control",
    "waterfall",
    "wheel",
    "wind_flocking",
]


def documented_waits():
    """How often a step of the scenarios in docs/api/envs.md waits, by kind; None where that is left to chance."""
    page = (Path(__file__).parents[1] / "docs" / "api" / "envs.md").read_text()
    rows = re.findall(r"^\| (\w+) \| (\S+) \| (\S+) \| (\S+) \|$", page, re.MULTILINE)
    waits = {scenario: [None if cell == "some" else int(cell) for cell in cells] for scenario, *cells in rows}
    assert waits.keys() < set(SCENARIOS)
    return waits


@pytest.mark.parametrize(
    "scenario", [pytest.param(s, marks=pytest.mark.slow if s in SLOW else ()) for s in (*SCENARIOS, *tasks.SCENARIOS)]
)
def test_every_scenario(scenario):
    with FakeCuda(own_generator=False):
        if scenario in BROKEN_ON_CUDA:
            with pytest.raises(RuntimeError, match=f"same device.*{BROKEN_ON_CUDA[scenario]}"):
                play(scenario, "cuda")
            return
        outputs, of_step, of_reset = play(scenario, "cuda")
        assert all(isinstance(tensor, CudaTensor) for _, tensor in leaves(outputs))
        outputs = [output.cpu() for output in outputs]
    if scenario != "football":  # on a GPU its scripted players draw other numbers
        assert_same(outputs, play(scenario, "cpu")[0])
    for kind, expected in zip(KINDS, documented_waits().get(scenario, (0, 0, 0))):
        found = kinds(of_step).count(kind)
        assert found > 0 if expected is None else found == expected, Counter(of_step)
    # Of ours only the question whether a row was handed out before.
    assert scenario in COMPARED_AT_EACH_RESET or kinds(of_ours(of_reset)) in ([], [READS]), of_reset


def play(scenario, device):
    """Outputs, the waits of a step, and those of a partial reset, unless it resets environments one by one."""
    torch.manual_seed(0)
    env = make_vmas_env(scenario, NUM_ENVS, max_steps=10, seed=0, device=device, **OPTIONS.get(scenario, {}))
    outputs = [env.reset()]
    outputs.append(env.rand_step(outputs[-1])["next"])  # makes the constants
    td = env.rand_action(outputs[-1])
    with DeviceSyncs() as of_step:
        outputs.append(env.step(td)["next"])
    # The first partial reset finds out how this scenario resets; the third has nothing new to ask.
    for index in range(NUM_ENVS):
        mask = (torch.arange(NUM_ENVS, device=device) == index).unsqueeze(-1)
        td = outputs[-1].copy().set("_reset", mask)
        with DeviceSyncs() as of_reset:
            outputs.append(env.reset(td))
    outputs.append(env.rand_step(outputs[-1])["next"])
    return outputs, of_step.waits, [] if simulator(env).shared_state else of_reset.waits


def on_both(play):
    """The results of ``play(device)`` on the device, copied, and on the CPU."""
    with FakeCuda(own_generator=False):
        found = [tensor.cpu() for tensor in play("cuda")]
    return found, play("cpu")


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("communication", get_args(CommunicationName))
def test_losses_and_updates(communication, masked):
    def learn(device):
        torch.manual_seed(0)
        mask_key = ("agents", "mask") if masked else None
        options = {"communication": communication, "hidden_size": 8, "num_cells": (8,), "mask_key": mask_key}
        actor = BiCNetActor(5, Bounded(-1, 1, (4, 2), device=device), device=device, **options)
        loss = make_ddpg_loss(actor, BiCNetCritic(5, 2, device=device, **options))
        update = UpdateStep(loss, actor_lr=1e-3, critic_lr=1e-3, tau=0.1, max_grad_norm=0.5)
        data = batch().to(device)
        for _ in range(2):
            with DeviceSyncs() as syncs:
                metrics = update(data)
        assert syncs.waits == []
        targets = loss.target_value_network_params.values(True, True)
        return [actor(data.clone()), *metrics.values(), *loss.parameters(), *targets]

    found, expected = (dict(leaves(results)) for results in on_both(learn))
    torch.testing.assert_close(found, expected)  # products of matrices may be folded differently


def batch():
    def at_one_time():
        shape = (16, 4)
        entries = {"observation": torch.randn(*shape, 5), "mask": torch.rand(shape) < 0.7}
        return entries | {"done": torch.rand(*shape, 1) < 0.5, "terminated": torch.rand(*shape, 1) < 0.3}

    agents = at_one_time() | {"action": torch.rand(16, 4, 2)}
    following = at_one_time() | {"reward": torch.randn(16, 4, 1)}
    return TensorDict({"agents": agents, "next": {"agents": following}}, [16])


def test_gradients_in_eval_mode(cuda):
    """cuDNN's recurrent backward needs train mode; the loop does not."""
    x = torch.randn(2, 3, 5, device="cuda")
    with pytest.raises(RuntimeError, match="training mode"):
        RecurrentCommunication(5, 4, implementation="fused", device="cuda").eval()(x).sum().backward()
    RecurrentCommunication(5, 4, device="cuda").eval()(x).sum().backward()


def test_exploration_and_replay():
    def collect(device):
        torch.manual_seed(0)
        env = make_vmas_env("navigation", NUM_ENVS, max_steps=3, seed=0, device=device)
        actor = BiCNetActor.from_env(env)
        white = AdditiveGaussianModule(actor.spec, action_key=("agents", "action"), device=device)
        noise = ExplorationNoise(actor.spec, sigma=(0.1, 0.5), correlation=0.5)
        policy = TensorDictSequential(actor, white, noise)
        replay = TensorDictReplayBuffer(storage=LazyTensorStorage(20, device=device), batch_size=8)
        with set_exploration_type(ExplorationType.RANDOM):
            frames = env.rollout(5, policy, break_when_any_done=False)
            with DeviceSyncs() as syncs:
                noise(actor(frames[:, 1].clone()))
                noise.step()
        replay.extend(
            frames.reshape(-1)
        )  # reads TorchRL's cursor, as `white` reads whether actions are in their bounds
        with syncs:
            sample = replay.sample()
        assert syncs.waits == []
        return frames, sample

    assert_same(*on_both(collect))


@pytest.mark.parametrize(("scenario", "options"), [("navigation", {}), ("simple_speaker_listener", {"pad": True})])
def test_evaluation(scenario, options):
    def results(device):
        torch.manual_seed(0)
        env = make_vmas_env(scenario, NUM_ENVS, device=device, **options)
        policy = BiCNetActor.from_env(env)
        with DeviceSyncs() as syncs:
            found = evaluate(env, policy, max_steps=4, seed=3)
        questions = [wait for wait in syncs.waits if ", in episodes.py:" in wait]  # whether an episode still runs
        assert kinds(questions) == (4 * [READS] if device == "cuda" else [])
        return [found.returns["agents"], found.lengths]

    assert_same(*on_both(results))


def test_the_generator_of_the_device_is_left_alone(cuda):
    starts = []
    for _ in range(2):
        env = make_vmas_env("navigation", NUM_ENVS, seed=3, device="cuda")
        starts.append(env.reset()["agents", "observation"])
        torch.rand(3, device="cuda")
    assert torch.equal(*starts)
    policy = BiCNetActor.from_env(env)
    before = torch.get_rng_state(), torch.cuda.get_rng_state()
    env.rollout(2, policy)
    evaluate(env, policy, max_steps=2, seed=1)
    env.set_seed(0)
    partly_reset(env, torch.arange(NUM_ENVS, device="cuda") == 1)
    assert_same([torch.get_rng_state(), torch.cuda.get_rng_state()], before)
