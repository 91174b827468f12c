import itertools

import pytest
import torch
from torch import nn
from torchrl.data import Bounded
from torchrl.modules import MLP

from torchrl_bicnet import (
    AttentionCommunication,
    BiCNet,
    BiCNetActor,
    BiCNetCritic,
    MeanCommunication,
    NoCommunication,
    RecurrentAttentionCommunication,
    RecurrentCommunication,
)

NAMES = ("lstm", "gru", "rnn", "mean", "attention", "none")
communications = pytest.mark.parametrize("communication", NAMES)


def make(communication="lstm", **options):
    torch.manual_seed(0)
    return BiCNet(5, 2, **{"communication": communication, "hidden_size": 8, "num_cells": (12,), **options}).double()


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@communications
def test_a_masked_team_is_the_team_without_the_absent(communication):
    net = make(communication)
    mask = torch.tensor(list(itertools.product([True, False], repeat=3)))
    x = torch.randn(8, 3, 5, dtype=torch.float64)
    x = torch.where(mask.unsqueeze(-1), x, torch.nan).requires_grad_()
    out = net(x, mask=mask)
    out.sum().backward()
    masked_gradients = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    assert (out[~mask] == 0).all()
    assert (x.grad[~mask] == 0).all()
    for row in range(8):
        team = x.detach()[row, mask[row]]
        if len(team):
            torch.testing.assert_close(out[row, mask[row]], net(team))
            net(team).sum().backward()
    for masked, parameter in zip(masked_gradients, net.parameters()):
        torch.testing.assert_close(masked, parameter.grad)


@communications
def test_parameters_do_not_depend_on_the_number_of_agents(communication):
    net = make(communication)
    for n_agents in (1, 3, 5, 64):
        assert net(torch.randn(2, n_agents, 5, dtype=torch.float64)).shape == (2, n_agents, 2)
    assert count(make(communication, n_agents=64)) == count(net)


@communications
def test_separate_parameters_per_agent_slot(communication):
    nets = {n_agents: make(communication, share_params=False, n_agents=n_agents) for n_agents in (2, 3, 4)}
    # One encoder and decoder more for each agent, around one communication layer.
    per_agent = count(nets[3]) - count(nets[2])
    assert count(nets[4]) - count(nets[3]) == per_agent > 0
    shared = make(communication)
    assert per_agent == count(shared.encoder) + count(shared.decoder)
    assert count(nets[3].communication) == count(shared.communication)
    # Agents alone in their own team with equal inputs: only the slots' own weights can differ.
    out = make("none", share_params=False, n_agents=3)(torch.ones(3, 5, dtype=torch.float64))
    assert out.unique(dim=0).shape[0] == 3
    mask = torch.tensor([True, False, True])
    assert nets[3](torch.full((3, 5), torch.nan, dtype=torch.float64), mask=mask)[1].abs().sum() == 0
    with pytest.raises(ValueError, match=r"\(\*B, 3, F\).*found \(2, 5\)"):
        nets[3](torch.ones(2, 5, dtype=torch.float64))


def test_an_agent_id_tells_agents_apart_and_costs_a_weight_each():
    net = make("none", agent_id=True, n_agents=3)
    out = net(torch.ones(3, 5, dtype=torch.float64))
    assert out.unique(dim=0).shape[0] == 3
    # The encoder's first layer and the decoder's get a column for each agent.
    assert count(net) - count(make("none")) == 3 * (12 + 12)
    mask = torch.tensor([True, False, True])
    x = torch.ones(3, 5, dtype=torch.float64)
    torch.testing.assert_close(net(x, mask=mask), torch.where(mask.unsqueeze(-1), out, 0.0))
    with pytest.raises(ValueError, match=r"\(\*B, 3, F\).*found \(2, 5\)"):
        net(torch.ones(2, 5, dtype=torch.float64))
    with pytest.raises(TypeError, match="n_agents, with share_params=False or agent_id=True"):
        make("none", agent_id=True)


@pytest.mark.parametrize(("skip", "n_seen"), [(True, 5), (False, 0), (0, 0), (1, 1), (3, 3), (5, 5)])
def test_skip_is_what_the_decoder_sees_of_its_own_input(skip, n_seen):
    class Deaf(nn.Module):
        in_features, out_features = 12, 4

        def forward(self, x, mask=None):
            return x.new_zeros(*x.shape[:-1], 4)

    net = make(Deaf(), skip=skip)
    x = torch.randn(3, 5, dtype=torch.float64)
    influence = torch.autograd.functional.jacobian(net, x).abs().sum((0, 1, 2)) > 0
    assert influence.tolist() == [True] * n_seen + [False] * (5 - n_seen)


def test_it_is_its_parts():
    """The decoder sees what the agent heard and then its own input: weights of a state dict depend on the order."""
    net = make(skip=3)
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    heard = net.communication(net.encoder(x))
    expected = net.decoder(torch.cat([heard, x[..., :3]], -1))
    torch.testing.assert_close(net(x), expected)
    torch.testing.assert_close(net(x[..., :2], x[..., 2:]), expected)


@pytest.mark.parametrize("base", [nn.Module, NoCommunication])
def test_a_layer_of_ones_own_may_leave_anything_in_the_absent_slots(base):
    class Careless(base):
        def __init__(self):
            nn.Module.__init__(self)
            self.in_features, self.out_features = 12, 4

        def forward(self, x, mask=None):
            return x[..., :4] if mask is None else x[..., :4].masked_fill(~mask.unsqueeze(-1), torch.nan)

    net = make(Careless())
    x, mask = torch.randn(2, 5, dtype=torch.float64), torch.tensor([True, False])
    out = net(x, mask=mask)
    torch.testing.assert_close(out[:1], net(x[:1]))
    assert (out[1] == 0).all()
    out.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def test_modules_of_ones_own():
    encoder, decoder = MLP(5, 7, num_cells=[9]), nn.Linear(2 * 8 + 5, 2)
    net = BiCNet(5, 2, encoder=encoder, decoder=decoder, communication="gru", hidden_size=8)
    assert net.encoder is encoder
    assert net.decoder is decoder
    assert net.communication.in_features == 7
    assert net(torch.randn(3, 5)).shape == (3, 2)
    # The communication's in_features is the encoder's width.
    net = BiCNet(5, 2, communication=NoCommunication(11), num_cells=(13, 17))
    assert net.encoder(torch.randn(3, 5)).shape == (3, 11)
    plain = nn.Sequential(nn.Linear(5, 7), nn.Tanh())
    assert BiCNet(5, 2, encoder=plain, communication=NoCommunication(7))(torch.randn(3, 5)).shape == (3, 2)
    with pytest.raises(TypeError, match="Sequential needs an integer attribute out_features, found None"):
        BiCNet(5, 2, encoder=plain)


@communications
@pytest.mark.parametrize("share_params", [True, False])
def test_everything_is_on_the_device(communication, share_params):
    net = BiCNet(5, 2, communication=communication, share_params=share_params, n_agents=3, device="meta")
    assert {tensor.device.type for tensor in net.state_dict().values()} == {"meta"}


@pytest.mark.parametrize(
    ("communication", "width"),
    [
        ("lstm", 16),
        ("gru", 16),
        ("rnn", 16),
        ("recurrent_attention", 16),
        ("mean", 16),
        ("attention", 16),
        ("none", 12),
    ],
)
def test_the_layer_is_the_one_named_and_as_wide_as_a_bidirectional_recurrence(communication, width):
    layer = make(communication).communication
    assert layer.out_features == width
    kinds = {
        "recurrent_attention": RecurrentAttentionCommunication,
        "mean": MeanCommunication,
        "attention": AttentionCommunication,
        "none": NoCommunication,
    }
    assert type(layer) is kinds.get(communication, RecurrentCommunication)
    assert getattr(layer, "cell", communication) == communication


@pytest.mark.parametrize("num_cells", [(), (12,), (12, 10, 9)])
@pytest.mark.parametrize("norm_class", [None, nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("share_params", [True, False])
def test_widths_norms_and_activations(num_cells, norm_class, share_params):
    net = make(
        num_cells=num_cells, norm_class=norm_class, activation_class=nn.Tanh, share_params=share_params, n_agents=3
    )
    assert net(torch.randn(2, 3, 5, dtype=torch.float64)).shape == (2, 3, 2)
    n_activations = max(len(num_cells), 1) + len(num_cells)
    if share_params:
        assert sum(isinstance(module, nn.Tanh) for module in net.modules()) == n_activations
        linear = [module.out_features for module in net.modules() if isinstance(module, nn.Linear)]
        assert linear == [*(num_cells or (8,)), *num_cells, 2]
        if norm_class is not None:
            assert sum(isinstance(module, norm_class) for module in net.modules()) == n_activations
        assert norm_class is nn.LayerNorm or not any(isinstance(module, nn.LayerNorm) for module in net.modules())


@communications
@pytest.mark.parametrize("masked", [False, True])
def test_compiles_in_one_graph(communication, masked):
    torch.compiler.reset()
    net = make(communication)
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    mask = torch.tensor([[True, False, True], [True, True, True]]) if masked else None
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, mask=mask), net(x, mask=mask))


@communications
def test_vmap_over_parameters(communication):
    twins = [BiCNet(5, 2, communication=communication, hidden_size=8) for _ in range(2)]
    parameters, buffers = torch.func.stack_module_state(twins)
    x = torch.randn(3, 4, 5)
    out = torch.vmap(lambda p, b: torch.func.functional_call(twins[0], (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(out, torch.stack([twin(x) for twin in twins]))


def test_inputs_of_another_shape_are_refused():
    net = make()
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"agents on dimension -2 and 5 features in all, found \(3, 5, 4\)"):
        net(x.mT)
    with pytest.raises(ValueError, match=r"found \(3, 4, 2\), \(3, 2, 3\)"):
        net(x[..., :2], x[:, :2, 2:])
    with pytest.raises(ValueError, match=r"found \(5,\)"):
        net(x[0, 0])
    with pytest.raises(ValueError, match="found no input"):
        net()
    with pytest.raises(TypeError, match="boolean"):
        net(x, mask=torch.ones(3, 4))


def test_the_state_dict_is_that_of_version_1():
    """Names and shapes that checkpoints have, with the default options."""

    def shapes(module):
        return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}

    def linear(name, n_outputs, n_inputs):
        return {f"{name}.weight": (n_outputs, n_inputs), f"{name}.bias": (n_outputs,)}

    def norm(name):
        return {f"{name}.weight": (128,), f"{name}.bias": (128,)}

    dense = linear("encoder.0", 128, 18) | norm("encoder.1")
    dense |= linear("decoder.0", 128, 2 * 64 + 18) | norm("decoder.1") | linear("decoder.3", 2, 128)
    lstm = {f"communication.{name}": shape for name, shape in shapes(nn.LSTM(128, 64, bidirectional=True)).items()}
    others = {"communication.others.weight": (128, 128)}
    own = linear("communication.own", 128, 128)
    attention = linear("communication.query_key_value", 3 * 128, 128) | linear("communication.output", 128, 128)
    assert BiCNet(18, 2)._version == 1
    assert type(BiCNet(18, 2).encoder[-1]) is nn.ReLU
    assert shapes(BiCNet(18, 2)) == dense | lstm
    assert shapes(BiCNet(18, 2, communication="mean")) == dense | own | others
    assert shapes(BiCNet(18, 2, communication="attention")) == dense | attention
    assert BiCNet(18, 2, communication="attention").communication.num_heads == 4
    separate = shapes(BiCNet(18, 2, share_params=False, n_agents=3))
    assert separate["encoder.params.0.weight"] == (3, 128, 18)
    assert separate["decoder.params.3.weight"] == (3, 2, 128)
    actor = BiCNetActor(18, Bounded(-1.0, 1.0, (3, 2)))
    expected = {f"module.net.{name}": shape for name, shape in (dense | lstm).items()}
    assert shapes(actor) == expected | {"module.low": (2,), "module.high": (2,)}


def test_a_state_dict_of_a_newer_version_is_refused_by_name(tmp_path, monkeypatch):
    actor = BiCNetActor(5, Bounded(-1.0, 1.0, (3, 2)), hidden_size=8)
    with monkeypatch.context() as newer:
        newer.setattr(BiCNet, "_version", 2)
        torch.save(actor.state_dict(), tmp_path / "newer.pt")
    torch.save(actor.state_dict(), tmp_path / "today.pt")
    actor.load_state_dict(torch.load(tmp_path / "today.pt", weights_only=True))
    with pytest.raises(RuntimeError, match="newer torchrl_bicnet: its BiCNet is of version 2, this one reads up to 1"):
        actor.load_state_dict(torch.load(tmp_path / "newer.pt", weights_only=True))


def test_a_state_dict_with_an_unknown_or_a_missing_entry_is_refused():
    net = BiCNet(5, 2)
    state = net.state_dict()
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "more"'):
        net.load_state_dict(state | {"more": torch.zeros(1)})
    del state["decoder.0.weight"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "decoder.0.weight"'):
        net.load_state_dict(state)


class TestFourierFeatures:
    def test_what_the_encoder_and_the_decoder_see(self):
        """By hand: of 1/4 sin and cos of 45 and 90 degrees, of 1 they are 0 and -1, 0 and 1; halved, and a quarter."""
        seen = []
        net = BiCNet(2, 1, communication="none", n_frequencies=2, num_cells=(4,))
        net.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        net.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][..., 4:]))
        net(torch.tensor([[0.25, 1.0]]))
        root = 0.5**0.5
        expected = torch.tensor([[0.25, 1.0, root / 2, 0.0, root / 2, -0.5, 0.25, 0.0, 0.0, 0.25]])
        for found in seen:
            torch.testing.assert_close(found, expected)
        assert len(seen) == 2

    def test_an_agents_name_and_smooth_inputs_have_none(self):
        """By hand: the sine of 45 degrees and its cosine, halved, of the first of two inputs; the rest is left."""
        seen = []
        net = BiCNet(2, 1, communication="none", n_frequencies=1, n_smooth_inputs=1, agent_id=True, n_agents=1)
        net.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        net(torch.tensor([[0.25]]), torch.tensor([[0.3]]))
        root = 0.5**0.5
        torch.testing.assert_close(seen[0], torch.tensor([[0.25, 0.3, 1.0, root / 2, root / 2]]))

    def test_a_critics_are_of_observations(self):
        critic = BiCNetCritic(3, 2, n_frequencies=2)
        assert critic.module.net.encoder[0].in_features == 3 + 2 + 2 * 2 * 3
        critic = BiCNetCritic(3, 2, n_frequencies=2, n_smooth_inputs=0)
        assert critic.module.net.encoder[0].in_features == 3 + 2 + 2 * 2 * 5

    def test_what_an_agent_may_skip_is_its_own_input(self):
        net = BiCNet(3, 1, communication="none", n_frequencies=2, num_cells=(4,), skip=2)
        assert net.decoder[0].in_features == 4 + 2

    def test_absent_agents_show_none(self):
        """The cosine of the zero in an absent slot is 1: neither it nor a NaN reaches anybody, nor a gradient."""
        seen = []
        net = BiCNet(2, 1, n_frequencies=2)
        net.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        x = torch.tensor([[0.25, 1.0], [float("nan"), 3.0]], requires_grad=True)
        net(x, mask=torch.tensor([True, False])).sum().backward()
        assert not seen[0][1].any()
        assert x.grad[0].all()
        assert not x.grad[1].any()

    def test_narrow_functions_are_learned_with_them(self):
        """A bump of the width of VMAS's agents: what a critic must know of a food."""
        torch.manual_seed(0)
        x = torch.empty(2048, 1, 2).uniform_(-1, 1)
        y = (-(x.square().sum(-1, keepdim=True) / 0.1**2)).exp()
        left = {}
        for n_frequencies in (0, 3):
            net = BiCNet(2, 1, communication="none", n_frequencies=n_frequencies, num_cells=(64, 64))
            optimiser = torch.optim.Adam(net.parameters(), 2e-3)
            for _ in range(150):
                loss = (net(x) - y).square().mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            left[n_frequencies] = loss.item() / y.var().item()
        assert left[3] < 0.5 * left[0], left
