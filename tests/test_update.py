"""UpdateStep: the step of TorchRL's parts over flattened parameters, in every form of it."""

import math
import warnings
from copy import deepcopy

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded
from torchrl.objectives import DDPGLoss, SoftUpdate

from torchrl_bicnet import BiCNetActor, BiCNetCritic, UpdateStep, make_ddpg_loss
from torchrl_bicnet.flat_parameters import ALIGNMENT

OPTIONS = {"actor_lr": 1e-2, "critic_lr": 3e-2, "tau": 0.1, "max_grad_norm": 0.5}
SMALL = {"hidden_size": 8, "num_cells": (12,)}


def make_loss(communication="mean", masked=False, device=None, gamma=0.9, share_params=True, n_agents=None, **kwargs):
    torch.manual_seed(0)
    net = {"communication": communication, "mask_key": ("agents", "mask") if masked else None, "device": device}
    net |= {"share_params": share_params, "n_agents": n_agents}
    actor = BiCNetActor(5, Bounded(-1, 1, (3, 2), device=device), **SMALL, **net)
    return make_ddpg_loss(actor, BiCNetCritic(5, 2, **SMALL, **net), gamma=gamma, **kwargs)


def batch(seed=1, size=16):
    generator = torch.Generator().manual_seed(seed)

    def agents():
        observation = torch.randn(size, 3, 5, generator=generator)
        return {"observation": observation, "mask": torch.rand(size, 3, generator=generator) < 0.7}

    reward, action = torch.randn(size, 3, 1, generator=generator), torch.rand(size, 3, 2, generator=generator)
    terminated = torch.rand(size, 3, 1, generator=generator) < 0.2
    then = {"reward": reward, "done": terminated, "terminated": terminated}
    return TensorDict({"agents": {**agents(), "action": action}, "next": {"agents": {**agents(), **then}}}, [size])


class Parts:
    """The same step of TorchRL's and torch's parts, one parameter at a time."""

    def __init__(self, loss, actor_lr, critic_lr, tau, max_grad_norm):
        actor, critic = ([*p.parameters()] for p in (loss.actor_network_params, loss.value_network_params))
        self.loss, self.parameters, self.max_grad_norm = loss, actor + critic, max_grad_norm
        groups = [{"params": actor, "lr": actor_lr}, {"params": critic, "lr": critic_lr}]
        self.optimiser, self.targets = torch.optim.Adam(groups), SoftUpdate(loss, tau=tau)

    def __call__(self, sample):
        output = self.loss(sample)
        (output["loss_actor"] + output["loss_value"]).backward()
        grad_norm = nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.targets.step()
        return {"loss_actor": output["loss_actor"], "loss_value": output["loss_value"], "grad_norm": grad_norm}


@pytest.fixture
def double():
    """Adam divides by the size of a gradient: in single precision it makes steps of roundings."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_equal_steps(first, second, n_steps, **tolerance):
    for seed in range(n_steps):
        one, other = batch(seed), batch(seed)
        torch.testing.assert_close(first(one), second(other), check_dtype=False, **tolerance)
        torch.testing.assert_close(one["agents", "td_error"], other["agents", "td_error"], **tolerance)
    torch.testing.assert_close(dict(first.loss.state_dict()), dict(second.loss.state_dict()), **tolerance)


class TestEqualsTorchRLsParts:
    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("communication", ["lstm", "gru", "attention"])
    def test_a_hundred_steps(self, double, communication, masked):
        loss = make_loss(communication, masked)
        assert_equal_steps(UpdateStep(loss, **OPTIONS), Parts(make_loss(communication, masked), **OPTIONS), 100)

    def test_an_encoder_for_each_agent(self, double):
        """Its parameters lie in a tensordict of their own, with a dimension of agents."""
        own = {"share_params": False, "n_agents": 3}
        assert_equal_steps(UpdateStep(make_loss(**own), **OPTIONS), Parts(make_loss(**own), **OPTIONS), 5)

    @pytest.mark.parametrize(
        "options", [{"loss_function": "smooth_l1"}, {"delay_actor": False}, {"gamma": 0.0}], ids=str
    )
    def test_other_losses(self, double, options):
        assert_equal_steps(UpdateStep(make_loss(**options), **OPTIONS), Parts(make_loss(**options), **OPTIONS), 5)

    @pytest.mark.parametrize(
        "options",
        [{"actor_lr": 1e-3}, {"critic_lr": 1e-3}, {"tau": 0.4}, {"max_grad_norm": 1e-3}, {"max_grad_norm": math.inf}],
        ids=str,
    )
    def test_options(self, double, options):
        options = OPTIONS | options
        assert_equal_steps(UpdateStep(make_loss(), **options), Parts(make_loss(), **options), 5)

    @pytest.mark.parametrize("key", ["shifted_valid", ("collector", "mask"), "mine"])
    def test_transitions_that_the_loss_leaves_out(self, double, key):
        """Padding of sequences, of which the loss finds the mask by itself or by its key."""
        losses = make_loss(), make_loss()
        for loss in losses:
            loss.loss_mask_key = key if key == "mine" else "auto"
        first, second = (form(loss, **OPTIONS) for form, loss in zip((UpdateStep, Parts), losses))
        valid = torch.arange(16) < 11
        torch.testing.assert_close(first(batch().set(key, valid)), second(batch().set(key, valid)))
        assert first(batch())["loss_value"] != first(batch().set(key, valid))["loss_value"]

    def test_weights_of_transitions_are_those_of_all_their_agents(self, double):
        """As a prioritised replay buffer gives them; TorchRL's loss takes them for each agent alone."""
        weight = torch.linspace(0.1, 1, 16)
        first, second = UpdateStep(make_loss(), **OPTIONS), Parts(make_loss(), **OPTIONS)
        sample = batch().set("priority_weight", weight)
        of_agents = batch().set("priority_weight", weight.unsqueeze(-1).expand(16, 3))
        torch.testing.assert_close(first(sample), second(of_agents))
        torch.testing.assert_close(sample["agents", "td_error"], of_agents["agents", "td_error"])
        torch.testing.assert_close(sample["priority_weight"], weight)
        assert first(batch())["loss_value"] != second(of_agents)["loss_value"]

    def test_frozen_parameters_and_running_statistics(self, double):
        """What is not trained stays; batch norm counts in the networks that are called, the targets among them."""

        def make():
            torch.manual_seed(0)
            norm = nn.Sequential(nn.Flatten(0, -2), nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Unflatten(0, (-1, 3)))
            norm[1].bias.requires_grad_(False)
            actor = BiCNetActor(5, Bounded(-1, 1, (3, 2)), net=nn.Sequential(norm, nn.Linear(6, 2)))
            return make_ddpg_loss(actor, BiCNetCritic(5, 2, **SMALL))

        assert_equal_steps(UpdateStep(make(), **OPTIONS), Parts(make(), **OPTIONS), 5)


class TestCompiled:
    @pytest.mark.parametrize(
        ("communication", "masked"),
        [
            ("mean", True),
            pytest.param("lstm", False, marks=pytest.mark.slow),
            *(
                pytest.param(communication, masked, marks=pytest.mark.long)
                for communication, masked in (("lstm", True), ("gru", False), ("gru", True), ("attention", True))
            ),
        ],
    )
    def test_equals_the_eager_step_and_loads_its_state(self, double, communication, masked):
        eager = UpdateStep(make_loss(communication, masked), **OPTIONS)
        compiled = UpdateStep(make_loss(communication, masked), **OPTIONS, compile=True)
        assert_equal_steps(compiled, eager, 100)
        torch.testing.assert_close(compiled.state_dict(), eager.state_dict())
        eager(batch(100))
        compiled.loss.load_state_dict(eager.loss.state_dict())
        compiled.load_state_dict(eager.state_dict())
        assert_equal_steps(compiled, eager, 1)

    @pytest.mark.slow
    def test_batches_of_another_size_are_compiled_anew_in_single_precision(self):
        eager, compiled = (UpdateStep(make_loss("none"), **OPTIONS, compile=compile) for compile in (False, True))
        for size in (16, 7, 16):
            torch.testing.assert_close(compiled(batch(size=size)), eager(batch(size=size)), check_dtype=False)
        assert len(compiled._functions) == 2

    @pytest.mark.slow
    def test_running_statistics_move(self, double):
        def make(compile):
            torch.manual_seed(0)
            norm = nn.Sequential(nn.Flatten(0, -2), nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Unflatten(0, (-1, 3)))
            actor = BiCNetActor(5, Bounded(-1, 1, (3, 2)), net=nn.Sequential(norm, nn.Linear(6, 2)))
            return UpdateStep(make_ddpg_loss(actor, BiCNetCritic(5, 2, **SMALL)), **OPTIONS, compile=compile)

        assert_equal_steps(make(True), make(False), 3)

    @pytest.mark.gpu
    @pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk:UserWarning")
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_a_cuda_graph_equals_the_eager_step(self):
        forms = [UpdateStep(make_loss("lstm", device="cuda"), **OPTIONS, compile=compile) for compile in (True, False)]
        for seed in range(100):
            found, expected = (form(batch(seed, 256).cuda()) for form in forms)
            torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2, check_dtype=False)
        torch.testing.assert_close(*(dict(form.loss.state_dict()) for form in forms), rtol=1e-2, atol=1e-2)


class TestState:
    def test_stops_and_goes_on_to_the_bit(self):
        alone, stopped = (UpdateStep(make_loss("lstm"), **OPTIONS) for _ in range(2))
        for seed in range(3):
            alone(batch(seed)), stopped(batch(seed))
        resumed = UpdateStep(make_loss("lstm"), **OPTIONS)
        resumed.loss.load_state_dict(deepcopy(stopped.loss.state_dict()))
        resumed.load_state_dict(deepcopy(stopped.state_dict()))
        assert_equal_steps(alone, resumed, 3, rtol=0, atol=0)

    def test_modules_and_loss_keep_their_state_dicts(self):
        loss, untouched = make_loss("lstm"), make_loss("lstm")
        UpdateStep(loss, **OPTIONS)
        torch.testing.assert_close(dict(loss.state_dict()), dict(untouched.state_dict()), rtol=0, atol=0)

    def test_parameters_are_aligned_and_of_one_memory_per_network(self):
        loss = make_loss("lstm")
        UpdateStep(loss, **OPTIONS)
        for name in ("actor_network_params", "target_value_network_params"):
            tensors = [p for p in getattr(loss, name).values(True, True) if p.numel() > 2]  # the bounds stay
            assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
            first = tensors[0].untyped_storage().data_ptr()
            assert all((tensor.data_ptr() - first) % ALIGNMENT == 0 for tensor in tensors)

    def test_of_other_networks(self):
        step = UpdateStep(make_loss("lstm"), **OPTIONS)
        with pytest.raises(ValueError, match=r"Expected tensors .*exp_avg.*weight_hh_l0'.*, found .*exp_avg"):
            step.load_state_dict(UpdateStep(make_loss("gru"), **OPTIONS).state_dict())

    def test_it_is_that_of_torchs_adam(self, double):
        loss, parts = make_loss(), Parts(make_loss(), **OPTIONS)
        step = UpdateStep(loss, **OPTIONS)
        step(batch()), parts(batch())
        state = step.state_dict()
        for name in ("actor_network", "value_network"):
            parameters = getattr(parts.loss, f"{name}_params").items(True, True)
            for key, parameter in ((key, p) for key, p in parameters if p in parts.optimiser.state):
                for part in ("exp_avg", "exp_avg_sq"):
                    expected = parts.optimiser.state[parameter][part]
                    torch.testing.assert_close(state[f"{name}.{part}.{'.'.join(key)}"], expected)


class TestAutocast:
    def test_losses_are_of_bfloat16_and_parameters_are_not(self):
        full, half = (UpdateStep(make_loss(), **OPTIONS, autocast=dtype) for dtype in (None, torch.bfloat16))
        expected, found = full(batch()), half(batch())
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05, check_dtype=False)
        assert not torch.equal(found["grad_norm"], expected["grad_norm"])
        assert {p.dtype for p in half.loss.parameters()} == {torch.float32}


class TestMisuse:
    def test_a_loss_that_moved(self):
        loss = make_loss()
        step = UpdateStep(loss, **OPTIONS)
        loss.to(torch.float64)
        with pytest.raises(ValueError, match="Parameters of actor_network were moved after the UpdateStep was made"):
            step(batch())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"actor_lr": -1.0}, "actor_lr must be between 0 and inf, found -1.0"),
            ({"critic_lr": math.nan}, "critic_lr must be between 0 and inf, found nan"),
            ({"tau": 1.5}, r"tau must be between 0 and 1.0, found 1.5"),
            ({"max_grad_norm": -0.5}, "max_grad_norm must be between 0 and inf, found -0.5"),
        ],
    )
    def test_numbers(self, options, message):
        with pytest.raises(ValueError, match=message):
            UpdateStep(make_loss(), **OPTIONS | options)

    def test_something_else_than_a_loss(self):
        with pytest.raises(TypeError, match="loss must be a DDPGLoss, such as from make_ddpg_loss"):
            UpdateStep(nn.Linear(2, 1), **OPTIONS)

    def test_networks_without_parameters_to_train(self):
        loss = make_loss()
        loss.actor_network_params.requires_grad_(False)
        with pytest.raises(ValueError, match=r"actor_network must have trained parameters of one type .* found none"):
            UpdateStep(loss, **OPTIONS)

    def test_a_parameter_under_two_names(self):
        first, second = nn.Linear(5, 5), nn.Linear(5, 5)
        second.weight = first.weight
        actor = BiCNetActor(5, Bounded(-1, 1, (3, 2)), net=nn.Sequential(first, second, nn.Linear(5, 2)))
        with pytest.raises(ValueError, match="actor_network must not hold a parameter under two names"):
            UpdateStep(make_ddpg_loss(actor, BiCNetCritic(5, 2, **SMALL)), **OPTIONS)

    def test_networks_that_share_parameters(self):
        shared = nn.Linear(5, 5)
        actor = BiCNetActor(5, Bounded(-1, 1, (3, 2)), net=nn.Sequential(shared, nn.Linear(5, 2)))

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.shared, self.out = shared, nn.Linear(7, 1)

            def forward(self, observation, action):
                return self.out(torch.cat([self.shared(observation), action], -1))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss = DDPGLoss(actor, BiCNetCritic(5, 2, net=Net()))
        with pytest.raises(ValueError, match="parameters of their own, found 2 in both"):
            UpdateStep(loss, **OPTIONS)
