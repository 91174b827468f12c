import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded

from torchrl_bicnet import BiCNet, BiCNetActor, MeanCommunication, RecurrentCommunication
from torchrl_bicnet.analysis import influence, influence_matrix

COMMUNICATIONS = ["lstm", "gru", "rnn", "mean", "attention"]


def make_actor(communication, n_agents=4, **options):
    options = {"communication": communication, "hidden_size": 8, "num_cells": (12,)} | options
    return BiCNetActor(3, Bounded(-1.0, 2.0, (n_agents, 2)), **options)


def make_states(*batch, n_agents=4):
    return TensorDict({"agents": {"observation": torch.randn(*batch, n_agents, 3)}}, batch)


@pytest.mark.parametrize("communication", COMMUNICATIONS)
def test_everybody_influences_everybody_where_all_talk(communication):
    assert (influence_matrix(make_actor(communication), make_states(16)) > 0).all()


def test_without_communication_exactly_diagonal():
    matrix = influence_matrix(make_actor("none"), make_states(16))
    assert torch.equal(matrix, matrix.diagonal().diag())
    assert (matrix.diagonal() > 0).all()
    separate = make_actor("none", share_params=False)
    matrix = influence_matrix(separate, make_states(16))
    assert torch.equal(matrix, matrix.diagonal().diag())


@pytest.mark.parametrize("implementation", ["fused", "loop"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_with_one_direction_exactly_triangular(cell, implementation):
    layer = RecurrentCommunication(12, 8, cell=cell, bidirectional=False, implementation=implementation)
    matrix = influence_matrix(make_actor(layer), make_states(16))
    assert torch.equal(matrix, matrix.tril())
    assert (matrix[torch.ones(4, 4).tril().bool()] > 0).all()


def test_by_hand():
    """y_i = w x_i + c mean of the others; all biases 0, so param_i = d y_i, and the action is 1 / 2 + 3 / 2 tanh."""
    encoder, decoder = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    encoder.out_features = 1
    layer = MeanCommunication(1, 1)
    net = BiCNet(1, 1, encoder=encoder, communication=layer, decoder=decoder, skip=False)
    with torch.no_grad():
        for parameter, value in ((encoder.weight, 2.0), (decoder.weight, 0.5), (layer.own.weight, 3.0)):
            parameter.fill_(value)
        layer.others.weight.fill_(-4.0)
        layer.own.bias.zero_()
    actor = BiCNetActor(1, Bounded(-1.0, 2.0, (3, 1)), net=net)
    states = TensorDict({"agents": {"observation": torch.tensor([[[0.0], [0.0], [0.0]], [[0.1], [0.2], [0.0]]])}}, [2])
    # d param_i / d x_i = .5 * 3 * 2 and d param_i / d x_j = .5 * -4 / 2 * 2.
    param_jacobian = torch.full((3, 3), 2.0) + torch.eye(3)
    param = torch.tensor([[0.0, 0.0, 0.0], [0.3 - 0.4, 0.6 - 0.2, -0.6]])
    expected = 1.5 * (1 - param.tanh().square()).unsqueeze(-1) * param_jacobian
    torch.testing.assert_close(influence(actor, states), expected)
    torch.testing.assert_close(influence_matrix(actor, states), expected.mean(0))


def test_it_is_the_frobenius_norm_of_torch_funcs_jacobian():
    actor, states = make_actor("lstm"), make_states(5)

    def action(observation):
        return actor.module(observation)[1]

    jacobian = torch.func.vmap(torch.func.jacrev(action))(states["agents", "observation"])  # (B, N, a, N, o)
    torch.testing.assert_close(influence(actor, states), jacobian.square().sum((2, 4)).sqrt())
    # Any batch shape, also none.
    torch.testing.assert_close(influence(actor, states.reshape(5, 1))[:, 0], influence(actor, states))
    torch.testing.assert_close(influence(actor, states[2]), influence(actor, states)[2])


def test_it_leaves_the_actor_as_it_was():
    actor = make_actor("gru")
    with torch.no_grad():
        influence_matrix(actor, make_states(4))
    assert actor.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in actor.parameters())
    states = make_states(4)
    influence_matrix(actor, states)
    assert list(states.keys(True, True)) == [("agents", "observation")]
    assert not states["agents", "observation"].requires_grad


@pytest.mark.parametrize("communication", [*COMMUNICATIONS, "none"])
def test_absent_agents_have_zero_rows_and_columns_and_do_not_dilute(communication):
    actor = make_actor(communication, mask_key=("agents", "mask"))
    states = make_states(3)
    mask = torch.tensor([[True, False, True, True], [True, False, True, False], [True, False, False, False]])
    states["agents", "mask"] = mask
    states["agents", "observation"][~mask] = torch.nan
    norms, matrix = influence(actor, states), influence_matrix(actor, states)
    assert (norms[~mask] == 0).all()
    assert (norms.mT[~mask] == 0).all()
    assert (matrix[1] == 0).all()
    assert (matrix[:, 1] == 0).all()
    torch.testing.assert_close(matrix[0, 0], norms[:, 0, 0].mean())
    # Agents 0 and 2 are together in two states, 0 and 3 in one.
    torch.testing.assert_close(matrix[0, 2], norms[:2, 0, 2].mean())
    torch.testing.assert_close(matrix[0, 3], norms[0, 0, 3])


def test_no_states_have_no_mean():
    with pytest.raises(ValueError, match=r"at least one state, found batch shape \(0,\)"):
        influence_matrix(make_actor("mean"), make_states(0))
