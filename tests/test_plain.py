"""The networks of the seed, written here from its definition, against what load_plain_bicnet makes of their weights."""

import copy
import math
import re

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded
from torchrl.objectives import SoftUpdate

from torchrl_bicnet import BiCNet, BiCNetActor, BiCNetCritic, load_plain_bicnet, make_ddpg_loss

N_OBSERVATIONS, N_ACTIONS = 7, 3
TEAMS = [(32, 4), (1, 5), (5, 1), (1, 1)]
networks = pytest.mark.parametrize("kind", ["actor", "critic"])


def fanin_init(module):
    bound = 1 / math.sqrt(module.weight.shape[1])
    nn.init.uniform_(module.weight, -bound, bound)


class DenseNet(nn.Module):
    def __init__(self, widths, norm_in=False):
        super().__init__()
        self.norm_in = norm_in
        for i in range(1, 5):
            if norm_in:
                self.add_module(f"norm{i}", nn.BatchNorm1d(widths[i - 1]))
            self.add_module(f"dense{i}", nn.Linear(widths[i - 1], widths[i]))
        fanin_init(self.dense1)
        fanin_init(self.dense2)
        fanin_init(self.dense3)  # +-0.003 in the seed, which would hide most of what the layers before it do

    def forward(self, x):
        use_norm = self.norm_in and x.shape[0] != 1
        if use_norm:
            x = self.norm1(x)
        x = torch.relu(self.dense1(x))
        if use_norm:
            x = self.norm2(x)
        x = torch.relu(self.dense2(x))
        if use_norm:
            x = self.norm3(x)
        x = torch.relu(self.dense3(x))
        if use_norm:
            x = self.norm4(x)
        return self.dense4(x)


class LSTMNet(nn.Module):
    def __init__(self, *args, **options):
        super().__init__()
        self.lstm = nn.LSTM(*args, **{"batch_first": True, "bidirectional": True, **options})

    def forward(self, x):
        return self.lstm(x)[0]


class Plain(nn.Module):
    """The seed's Actor before its tanh, and for ``n_actions`` more inputs its Critic."""

    def __init__(self, hidden_dim, n_actions, n_outputs, prev=None, post=None, comm=None):
        super().__init__()
        prev = prev or [hidden_dim] * 3 + [hidden_dim // 2]
        self.prev_dense = DenseNet([N_OBSERVATIONS + n_actions, *prev], norm_in=True)
        self.comm_net = comm or LSTMNet(prev[-1], hidden_dim // 2)
        lstm = self.comm_net.lstm
        n_messages = lstm.hidden_size * (1 + lstm.bidirectional)
        self.post_dense = DenseNet([n_messages + N_OBSERVATIONS, *(post or [hidden_dim // 2] * 3), n_outputs])
        for module in self.prev_dense.children():
            if isinstance(module, nn.BatchNorm1d):
                for tensor in (module.weight, module.running_var):
                    nn.init.uniform_(tensor, 0.5, 2.0)
                for tensor in (module.bias, module.running_mean):
                    nn.init.normal_(tensor)
                module.num_batches_tracked.fill_(17)

    def forward(self, observation, *action):
        n_agents = observation.shape[1]
        x = torch.cat((observation, *action), dim=-1)
        x = self.prev_dense(x.view(-1, x.shape[-1]))
        x = self.comm_net(x.reshape(-1, n_agents, x.shape[-1]))
        x = torch.cat((x, observation), dim=-1)
        x = self.post_dense(x.reshape(-1, x.shape[-1]))
        return x.view(-1, n_agents, x.shape[-1])


def make(kind, hidden_dim=12, **parts):
    torch.manual_seed(0)
    if kind == "actor":
        return Plain(hidden_dim, 0, N_ACTIONS, **parts)
    return Plain(hidden_dim, N_ACTIONS, 1, **parts)


def inputs(kind, *batch):
    torch.manual_seed(1)
    tensors = torch.randn(*batch, N_OBSERVATIONS), torch.randn(*batch, N_ACTIONS)
    return tensors[: 1 if kind == "actor" else 2]


def renamed(named):
    names = {"prev_dense": "encoder", "comm_net.lstm": "communication", "post_dense": "decoder"}
    return {re.sub("|".join(names), lambda match: names[match[0]], name): value for name, value in named}


def assert_equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def assert_same_network(plain, net, x):
    for mode in (False, True):  # train mode last, since it moves the running statistics
        plain.train(mode)
        net.train(mode)
        expected, found = plain(*x), net(*x)
        assert_equal(found, expected)
        gradients = []
        for module, out in ((plain, expected), (net, found)):
            module.zero_grad()
            out.square().mean().backward()
            gradients.append({name: parameter.grad for name, parameter in module.named_parameters()})
        expected_gradients = renamed(gradients[0].items())
        assert gradients[1].keys() == expected_gradients.keys()
        for name, gradient in gradients[1].items():
            # None on both sides: the norm that a single row skips
            assert (
                (gradient is None)
                == (expected_gradients[name] is None)
                == (".norm" in name and x[0][..., 0].numel() == 1)
            )
            if gradient is not None:
                assert_equal(gradient, expected_gradients[name])
    buffers, expected_buffers = dict(net.named_buffers()), renamed(plain.named_buffers())
    assert buffers.keys() == expected_buffers.keys()
    for name, buffer in buffers.items():
        assert_equal(buffer, expected_buffers[name])
        if name.endswith("num_batches_tracked"):
            assert buffer == (17 if x[0][..., 0].numel() == 1 else 18)


@networks
@pytest.mark.parametrize("hidden_dim", [12, 50, 300])
@pytest.mark.parametrize("team", TEAMS)
def test_same_outputs_gradients_and_statistics(kind, hidden_dim, team):
    plain = make(kind, hidden_dim)
    net = load_plain_bicnet(plain.state_dict())
    assert type(net) is BiCNet
    assert net.training
    assert_same_network(plain, net, inputs(kind, *team))


@networks
@pytest.mark.parametrize("options", [{"num_layers": 2}, {"bidirectional": False}, {"bias": False}])
def test_every_width_and_the_options_of_the_lstm_are_read_off(kind, options):
    parts = {"prev": [13, 17, 11, 9], "post": [15, 8, 10], "comm": LSTMNet(9, 6, **options)}
    plain = make(kind, **parts)
    assert_same_network(plain, load_plain_bicnet(plain.state_dict()), inputs(kind, 8, 3))


@networks
def test_double_precision(kind):
    plain = make(kind).double()
    net = load_plain_bicnet(plain.state_dict())
    assert_same_network(plain, net, [x.double() for x in inputs(kind, 8, 3)])
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float64}


@networks
@pytest.mark.parametrize("mode", [False, True])
def test_any_batch_shape_is_the_flat_batch(kind, mode):
    plain = make(kind).train(mode)
    net = load_plain_bicnet(plain.state_dict()).train(mode)
    x = inputs(kind, 2, 5, 4)
    assert_equal(net(*x), plain(*(part.flatten(0, 1) for part in x)).unflatten(0, (2, 5)))
    x = inputs(kind, 4)
    assert_equal(net(*x), plain(*(part.unsqueeze(0) for part in x)).squeeze(0))


def test_the_weights_are_copies_and_no_random_number_is_drawn():
    plain = make("actor")
    before = copy.deepcopy(plain.state_dict())
    state = torch.get_rng_state()
    net = load_plain_bicnet(plain.state_dict())
    assert torch.equal(torch.get_rng_state(), state)
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    net(*inputs("actor", 8, 3))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_in_the_actor_the_critic_and_the_loss():
    plain_actor, plain_critic = make("actor"), make("critic")
    actor = BiCNetActor(
        N_OBSERVATIONS, Bounded(-1.0, 1.0, (4, N_ACTIONS)), net=load_plain_bicnet(plain_actor.state_dict())
    )
    critic = BiCNetCritic(N_OBSERVATIONS, N_ACTIONS, net=load_plain_bicnet(plain_critic.state_dict()))
    loss = make_ddpg_loss(actor, critic, gamma=0.9)
    target_update = SoftUpdate(loss, tau=0.1)
    observation, action = inputs("critic", 16, 4)
    following, reward = torch.randn(16, 4, N_OBSERVATIONS), torch.randn(16, 4, 1)
    done = torch.rand(16, 4, 1) < 0.3
    agents = {"observation": following, "reward": reward, "done": done, "terminated": done}
    td = TensorDict({"agents": {"observation": observation, "action": action}, "next": {"agents": agents}}, [16])
    losses = loss(td)
    expected_actor = -plain_critic(observation, plain_actor(observation).tanh()).mean()
    assert_equal(losses["loss_actor"], expected_actor)
    with torch.no_grad():
        value = plain_critic(following, plain_actor(following).tanh())
    error = plain_critic(observation, action) - (reward + 0.9 * ~done * value)
    assert_equal(losses["loss_value"], error.square().mean())

    losses["loss_actor"].backward()
    expected_actor.backward()
    gradients = renamed(plain_actor.named_parameters())
    for name, parameter in actor.module.net.named_parameters():
        assert_equal(parameter.grad, gradients[name].grad)
    losses["loss_value"].backward()
    assert all(parameter.grad.isfinite().all() for parameter in critic.parameters())
    target_update.step()

    def n_batches(*modules):
        return [module.module.net.encoder.norm1.num_batches_tracked.item() - 17 for module in modules]

    # The actor ran once, the critic in both losses; in eval mode the statistics stand still, in the loss too.
    assert n_batches(actor, critic) == [1, 2]
    for module in (actor, critic):
        module.eval()
    actor(td.clone())
    assert loss(td)["loss_value"].isfinite()
    assert n_batches(actor, critic) == [1, 2]


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter:UserWarning")
def test_another_device():
    net = load_plain_bicnet(make("actor").state_dict(), device="meta")
    assert {tensor.device.type for tensor in net.state_dict().values()} == {"meta"}


def test_a_mask_is_an_error():
    net = load_plain_bicnet(make("actor").state_dict())
    (x,) = inputs("actor", 8, 3)
    mask = torch.ones(8, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="takes no mask"):
        net(x, mask=mask)
    actor = BiCNetActor(N_OBSERVATIONS, Bounded(-1.0, 1.0, (3, N_ACTIONS)), net=net, mask_key=("agents", "mask"))
    with pytest.raises(ValueError, match="takes no mask"):
        actor(TensorDict({"agents": {"observation": x, "mask": mask}}, [8]))


def test_a_batch_norm_of_ones_own_takes_no_mask_either():
    class Norm(nn.BatchNorm1d):
        out_features = 5

        def forward(self, x):
            return super().forward(x.flatten(0, -2)).reshape(x.shape)

    net = BiCNet(5, 2, encoder=Norm(5))
    x = torch.randn(8, 3, 5)
    assert net(x).shape == (8, 3, 2)
    with pytest.raises(ValueError, match="takes no mask"):
        net(x, mask=torch.ones(8, 3, dtype=torch.bool))


def test_another_state_dict_names_what_is_missing_and_unexpected():
    state_dict = make("critic").state_dict()
    del state_dict["prev_dense.norm2.running_var"]
    with pytest.raises(ValueError, match=r"missing: prev_dense.norm2.running_var; unexpected: nothing"):
        load_plain_bicnet(state_dict)
    state_dict = make("critic").state_dict()
    state_dict["post_dense.norm1.weight"] = torch.ones(3)
    with pytest.raises(ValueError, match=r"missing: nothing; unexpected: post_dense.norm1.weight"):
        load_plain_bicnet(state_dict)
    with pytest.raises(ValueError, match=r"missing: comm_net.lstm.weight_hh_l0, .* unexpected: actor\."):
        load_plain_bicnet({"actor": state_dict})
    state_dict = make("actor", comm=LSTMNet(6, 6, num_layers=2)).state_dict()
    del state_dict["comm_net.lstm.bias_hh_l1_reverse"]
    with pytest.raises(ValueError, match=r"missing: comm_net.lstm.bias_hh_l1_reverse; unexpected: nothing"):
        load_plain_bicnet(state_dict)


def test_other_shapes_name_what_does_not_fit():
    state_dict = make("actor").state_dict()
    state_dict["post_dense.dense1.weight"] = torch.ones(6, 12 + N_OBSERVATIONS + 1)
    with pytest.raises(ValueError, match=r"the 12 features of comm_net and up to 7 of .*, found 20 features"):
        load_plain_bicnet(state_dict)
    state_dict["post_dense.dense1.weight"] = torch.ones(6, 11)
    with pytest.raises(ValueError, match="found 11 features"):
        load_plain_bicnet(state_dict)
    state_dict = make("actor", comm=LSTMNet(5, 6)).state_dict()
    with pytest.raises(RuntimeError, match=r"size mismatch for communication.weight_ih_l0"):
        load_plain_bicnet(state_dict)
    # A GRU goes by the same names.
    gru = LSTMNet(6, 6)
    gru.lstm = nn.GRU(6, 6, batch_first=True, bidirectional=True)
    with pytest.raises(RuntimeError, match=r"size mismatch for communication.weight_ih_l0"):
        load_plain_bicnet(make("actor", comm=gru).state_dict())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@networks
def test_on_cuda(kind):
    plain = make(kind).double()
    net = load_plain_bicnet(plain.state_dict(), device="cuda")
    plain.cuda()
    x = [part.double().cuda() for part in inputs(kind, 8, 3)]
    plain.train()
    assert_equal(net(*x), plain(*x))
    assert_equal(net.eval()(*x), plain.eval()(*x))
    assert load_plain_bicnet(plain.state_dict()).encoder.dense1.weight.is_cuda
