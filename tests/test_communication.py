import itertools

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from torchrl_bicnet import (
    AttentionCommunication,
    MeanCommunication,
    NoCommunication,
    RecurrentAttentionCommunication,
    RecurrentCommunication,
)

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
FEATURES, HIDDEN = 5, 6

# Every layer kind, by a constructor from (in_features, dtype).
LAYERS = {
    "lstm": lambda dtype: RecurrentCommunication(FEATURES, HIDDEN, dtype=dtype),
    "gru_2_layers": lambda dtype: RecurrentCommunication(FEATURES, HIDDEN, cell="gru", num_layers=2, dtype=dtype),
    "rnn_forward": lambda dtype: RecurrentCommunication(FEATURES, HIDDEN, cell="rnn", bidirectional=False, dtype=dtype),
    "lstm_no_bias": lambda dtype: RecurrentCommunication(FEATURES, HIDDEN, bias=False, dtype=dtype),
    "mean": lambda dtype: MeanCommunication(FEATURES, 2 * HIDDEN, dtype=dtype),
    "attention": lambda dtype: AttentionCommunication(FEATURES, 2 * HIDDEN, num_heads=3, dtype=dtype),
    "recurrent_attention": lambda dtype: RecurrentAttentionCommunication(FEATURES, 12, num_heads=3, dtype=dtype),
    "none": lambda dtype: NoCommunication(FEATURES),
}
layers = pytest.mark.parametrize("kind", LAYERS)


def make(kind, dtype=torch.float64):
    torch.manual_seed(0)
    return LAYERS[kind](dtype)


class TestRecurrentCommunication:
    @pytest.mark.parametrize("cell", CELLS)
    @pytest.mark.parametrize("num_layers", [1, 2, 3])
    @pytest.mark.parametrize("bidirectional", [True, False])
    @pytest.mark.parametrize("bias", [True, False])
    def test_fused_loop_and_torch_agree(self, cell, num_layers, bidirectional, bias):
        torch.manual_seed(0)
        options = {"num_layers": num_layers, "bidirectional": bidirectional, "bias": bias, "dtype": torch.float64}
        reference = CELLS[cell](FEATURES, HIDDEN, batch_first=True, **options)
        x = torch.randn(3, 4, FEATURES, dtype=torch.float64)
        probe = torch.randn(3, 4, HIDDEN * (1 + bidirectional), dtype=torch.float64)

        def value_and_gradients(module):
            leaf = x.clone().requires_grad_()
            out = module(leaf)
            out = out[0] if isinstance(out, tuple) else out
            (out * probe).sum().backward()
            return out.detach(), [leaf.grad, *[p.grad for p in module.parameters()]]

        expected, expected_gradients = value_and_gradients(reference)
        for implementation in ("fused", "loop", "auto"):
            layer = RecurrentCommunication(FEATURES, HIDDEN, cell=cell, implementation=implementation, **options)
            layer.load_state_dict(reference.state_dict())
            assert layer.out_features == expected.shape[-1]
            value, gradients = value_and_gradients(layer)
            assert (value - expected).abs().max() < 1e-10
            for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
                assert (gradient - expected_gradient).abs().max() < 1e-8

    @pytest.mark.parametrize("cell", CELLS)
    def test_state_dicts_load_both_ways(self, cell):
        layer = RecurrentCommunication(FEATURES, HIDDEN, cell=cell, num_layers=2)
        reference = CELLS[cell](FEATURES, HIDDEN, num_layers=2, bidirectional=True, batch_first=True)
        reference.load_state_dict(layer.state_dict())
        x = torch.randn(2, 3, FEATURES)
        torch.testing.assert_close(layer(x), reference(x)[0])

    @pytest.mark.parametrize("cell", CELLS)
    @pytest.mark.parametrize("masked", [False, True])
    def test_double_backward_of_the_loop(self, cell, masked):
        torch.manual_seed(0)
        layer = RecurrentCommunication(2, 2, cell=cell, implementation="loop", dtype=torch.float64)
        x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
        mask = torch.tensor([[True, False, True], [False, True, True]]) if masked else None
        parameters = list(layer.parameters())
        names = [name for name, _ in layer.named_parameters()]

        def function(x, *parameters):
            arguments = (x,) if mask is None else (x, mask)
            return torch.func.functional_call(layer, dict(zip(names, parameters)), arguments)

        assert torch.autograd.gradcheck(function, (x, *parameters))
        assert torch.autograd.gradgradcheck(function, (x, *parameters))

    @pytest.mark.parametrize("cell", CELLS)
    @pytest.mark.parametrize("implementation", ["auto", "loop"])
    @pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0)])
    def test_vmap_over_parameters_and_inputs(self, cell, implementation, in_dims):
        twins = [RecurrentCommunication(FEATURES, HIDDEN, cell=cell, implementation=implementation) for _ in range(3)]
        if in_dims[0] is None:
            twins = twins[:1] * 3
        stacked, _ = torch.func.stack_module_state(twins)
        parameters = stacked if in_dims[0] == 0 else dict(twins[0].named_parameters())
        x = torch.randn(3, 2, 4, FEATURES) if in_dims[1] == 0 else torch.randn(2, 4, FEATURES).expand(3, -1, -1, -1)

        def call(parameters, x):
            return torch.func.functional_call(twins[0], parameters, (x,))

        out = torch.vmap(call, in_dims)(parameters, x if in_dims[1] == 0 else x[0])
        torch.testing.assert_close(out, torch.stack([twin(team) for twin, team in zip(twins, x)]))

    def test_reversing_agents_and_directions_reverses_the_output(self):
        layer, swapped = make("lstm"), make("lstm")
        weights = layer.state_dict()
        swapped.load_state_dict(
            {
                name: weights[name.removesuffix("_reverse") if name.endswith("_reverse") else f"{name}_reverse"]
                for name in weights
            }
        )
        x = torch.randn(2, 5, FEATURES, dtype=torch.float64)
        forward, backward = layer(x).chunk(2, -1)
        torch.testing.assert_close(swapped(x.flip(-2)).flip(-2), torch.cat([backward, forward], -1))

    def test_the_fused_kernel_takes_no_mask(self):
        layer = RecurrentCommunication(2, 2, implementation="fused")
        with pytest.raises(ValueError, match="cannot skip absent agents"):
            layer(torch.zeros(3, 2), torch.ones(3, dtype=torch.bool))

    @pytest.mark.parametrize("cell", CELLS)
    def test_runs_in_bfloat16_autocast(self, cell):
        layer = RecurrentCommunication(FEATURES, HIDDEN, cell=cell, implementation="loop")
        x = torch.randn(2, 3, FEATURES)
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x)
        torch.testing.assert_close(out.float(), layer(x), atol=0.03, rtol=0.03)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    @pytest.mark.parametrize("cell", CELLS)
    def test_implementations_agree_on_cuda_in_train_and_eval_mode(self, cell):
        layer = RecurrentCommunication(FEATURES, HIDDEN, cell=cell, device="cuda", dtype=torch.float64)
        x = torch.randn(3, 4, FEATURES, device="cuda", dtype=torch.float64)
        gradients = {}
        for implementation, training in itertools.product(("auto", "loop"), (True, False)):
            layer.implementation = implementation
            leaf = x.clone().requires_grad_()
            layer.train(training)(leaf).square().sum().backward()
            gradients[implementation, training] = leaf.grad
        for gradient in gradients.values():
            torch.testing.assert_close(gradient, gradients["loop", True])


@layers
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (0, 4), (2, 1), (2, 64)])
def test_any_batch_shape_and_number_of_agents(kind, shape):
    layer = make(kind)
    x = torch.randn(*shape, FEATURES, dtype=torch.float64)
    out = layer(x)
    assert out.shape == (*shape, layer.out_features)
    for team, alone in zip(x.reshape(-1, *x.shape[-2:]), out.reshape(-1, *out.shape[-2:])):
        torch.testing.assert_close(layer(team), alone)


@layers
def test_a_masked_team_is_the_team_without_the_absent(kind):
    layer = make(kind)
    # Every mask of 4 agents, nobody and everybody included, one per row.
    mask = torch.tensor(list(itertools.product([True, False], repeat=4)))
    x = torch.randn(16, 4, FEATURES, dtype=torch.float64)
    garbage = torch.where(torch.rand(x.shape) < 0.5, torch.nan, torch.inf).double()
    x = torch.where(mask.unsqueeze(-1), x, garbage).requires_grad_()
    probe = torch.randn(16, 4, layer.out_features, dtype=torch.float64)

    out = layer(x, mask)
    (out * probe).sum().backward()
    masked_gradients = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()

    assert (out[~mask] == 0).all()
    assert (x.grad[~mask] == 0).all()
    for row in range(15):
        team = x.detach()[row, mask[row]].requires_grad_()
        alone = layer(team)
        torch.testing.assert_close(out[row, mask[row]], alone)
        (alone * probe[row, mask[row]]).sum().backward()
        torch.testing.assert_close(x.grad[row, mask[row]], team.grad)
    for masked, parameter in zip(masked_gradients, layer.parameters()):
        torch.testing.assert_close(masked, parameter.grad)
    assert mask[15].sum() == 0
    assert out[15].abs().sum() == 0


@layers
def test_who_hears_whom(kind):
    layer = make(kind)
    x = torch.randn(4, FEATURES, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(layer, x)  # (N, out, N, in)
    influence = jacobian.abs().sum((1, 3)) > 1e-12
    expected = torch.ones(4, 4, dtype=torch.bool)
    if kind == "rnn_forward":
        expected = expected.tril()
    elif kind == "none":
        expected = torch.eye(4, dtype=torch.bool)
    assert torch.equal(influence, expected)


def test_mean_is_that_of_the_others_by_hand():
    layer = MeanCommunication(1, 1)
    with torch.no_grad():
        for parameter, value in zip(layer.parameters(), (2.0, 0.5, 10.0)):  # own weight, own bias, others' weight
            parameter.fill_(value)
    x = torch.tensor([[1.0], [2.0], [6.0]])
    # 2 x + 0.5 + 10 * (4, 3.5, 1.5)
    torch.testing.assert_close(layer(x), torch.tensor([[42.5], [39.5], [27.5]]))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_torchs_multi_head_attention(masked):
    layer, reference = AttentionCommunication(12, 12, num_heads=2), nn.MultiheadAttention(12, 2, batch_first=True)
    reference.load_state_dict(dict(zip(reference.state_dict(), layer.state_dict().values())))
    x = torch.randn(2, 4, 12)
    mask = torch.tensor([[True, False, True, True], [True, False, False, False]]) if masked else None
    expected, _ = reference(x, x, x, key_padding_mask=None if mask is None else ~mask)
    present = ... if mask is None else mask
    torch.testing.assert_close(layer(x, mask)[present], expected[present])


def test_attention_is_the_same_in_compiled_code():
    """There its products are sums of their terms."""
    layer, x = make("attention"), torch.randn(2, 4, FEATURES, dtype=torch.float64)
    graph = make_fx(layer)(x)
    assert not any("bmm" in str(node.target) for node in graph.graph.nodes)
    torch.testing.assert_close(graph(x), layer(x))


def test_a_joined_layer_is_its_recurrence_beside_attention_to_it():
    layer = make("recurrent_attention")
    x = torch.randn(2, 4, FEATURES, dtype=torch.float64)
    heard = layer.recurrence(x)
    torch.testing.assert_close(layer(x)[..., :6], heard)
    torch.testing.assert_close(layer(x)[..., 6:], layer.attention(torch.cat([x, heard], -1)))
    with pytest.raises(ValueError, match="out_features must be a multiple of 4 and of twice num_heads, found 10 and 4"):
        RecurrentAttentionCommunication(FEATURES, 10)


def test_equal_observations_are_told_apart_by_recurrence_only():
    x = torch.ones(3, FEATURES, dtype=torch.float64)
    for kind in ("lstm", "recurrent_attention"):
        assert make(kind)(x).unique(dim=0).shape[0] == 3
    for kind in ("mean", "attention"):
        out = make(kind)(x)
        torch.testing.assert_close(out, out[:1].expand_as(out))


@layers
def test_another_shape_and_another_mask_are_refused(kind):
    layer = make(kind)
    x = torch.randn(3, 4, FEATURES, dtype=torch.float64)
    with pytest.raises(ValueError, match=rf"\(\*B, N, {FEATURES}\) with the agents on dimension -2, found \(3, 5, 4\)"):
        layer(x.mT)
    with pytest.raises(ValueError, match="dimension -2, found"):
        layer(x[0, 0])
    with pytest.raises(ValueError, match="dimension -2, found"):
        layer(x[:, :0])
    with pytest.raises(TypeError, match=r"must be boolean .* found torch.float32"):
        layer(x, torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"shape \(3, 4\) .* found \(4,\)"):
        layer(x, torch.ones(4, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"must be boolean .* found list"):
        layer(x, [[True] * 4] * 3)
