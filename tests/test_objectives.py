import copy
import math
import pickle

import pytest
import torch
from tensordict import TensorDict
from tensordict.utils import unravel_key
from torch import nn
from torchrl.data import Bounded
from torchrl.data.postprocs import MultiStep
from torchrl.objectives import DDPGLoss, SoftUpdate

from torchrl_bicnet import BiCNet, BiCNetActor, BiCNetCritic, UpdateStep, make_ddpg_loss

SMALL = {"hidden_size": 8, "num_cells": (12,)}
MASK = ("agents", "mask")
pytestmark = pytest.mark.filterwarnings("ignore:No target network updater:UserWarning")


def transitions(batch=6, n_agents=3, group="agents"):
    agents = TensorDict(
        {"observation": torch.randn(batch, n_agents, 5), "action": torch.rand(batch, n_agents, 2) * 2 - 1}, [batch]
    )
    after = TensorDict(
        {
            "observation": torch.randn(batch, n_agents, 5),
            "reward": torch.randn(batch, n_agents, 1),
            "done": torch.rand(batch, n_agents, 1) < 0.3,
            "terminated": torch.rand(batch, n_agents, 1) < 0.3,
        },
        [batch],
    )
    group = (group,) if isinstance(group, str) else group
    return TensorDict({group: agents, ("next", *group): after}, [batch])


def double(td):
    return td.apply(lambda x: x.double() if x.is_floating_point() else x)


def modules(communication="lstm", **keywords):
    options = {"communication": communication, **SMALL, **keywords}
    return BiCNetActor(5, Bounded(-1.0, 1.0, (3, 2)), **options), BiCNetCritic(5, 2, **options)


def gradients(loss, td):
    loss.zero_grad()
    losses = loss(td)
    (losses["loss_actor"] + losses["loss_value"]).backward()
    return losses.detach(), {name: p.grad.clone() for name, p in loss.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("communication", ["lstm", "mean", "none"])
def test_actor_gradient_is_theorem_1(communication):
    """sum_i sum_j dQ_i/da_j da_j/dtheta, each factor by itself, against the loss, in float64."""
    torch.manual_seed(0)
    actor, critic = (module.double() for module in modules(communication))
    batch, n_agents = 4, 3
    td = double(transitions(batch))
    theta = dict(actor.module.net.named_parameters())
    make_ddpg_loss(actor, critic)(td)["loss_actor"].backward()

    def q(action):  # (N, a) -> (N)
        agents = {"observation": td["agents", "observation"][sample], "action": action}
        return critic(TensorDict({"agents": agents}))["agents", "state_action_value"].squeeze(-1)

    expected = {name: torch.zeros_like(parameter) for name, parameter in theta.items()}
    for sample in range(batch):
        td_actor = actor(TensorDict({"agents": {"observation": td["agents", "observation"][sample]}}))
        action = td_actor["agents", "action"]
        dq_da = torch.autograd.functional.jacobian(q, action.detach())  # (i, j, a)
        for i in range(n_agents):
            for j in range(n_agents):
                grads = torch.autograd.grad(action[j], list(theta.values()), dq_da[i, j], retain_graph=True)
                for name, grad in zip(theta, grads):
                    expected[name] += grad
        off_diagonal = dq_da[~torch.eye(n_agents, dtype=torch.bool)].abs().max()
        assert (off_diagonal == 0) == (communication == "none")

    # DDPG minimises -Q and averages over samples and agents.
    for name, parameter in theta.items():
        torch.testing.assert_close(parameter.grad, -expected[name] / (batch * n_agents), rtol=0, atol=1e-14)


class TeamSum(nn.Module):
    """Q of agent i is the sum of what all agents see and do."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, observation, action, mask=None):
        return self.scale * (observation + action).sum(-2, keepdim=True).expand(*observation.shape[:-1], 1)


class Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, observation, mask=None):
        return (self.weight * observation).atanh()


@pytest.mark.parametrize("mask_key", [None, MASK])
@pytest.mark.parametrize("options", [{}, {"gamma": 0.5}])
def test_td_target_by_hand(options, mask_key):
    # mu(s) = 0.5 s;  Q_i(s, a) = sum over agents of s + a, so Q_i(s', mu(s')) = 1.5 (s'_1 + s'_2).
    actor = BiCNetActor(1, Bounded(-1.0, 1.0, (2, 1)), net=Weighted(), mask_key=mask_key)
    critic = BiCNetCritic(1, 1, net=TeamSum(), mask_key=mask_key)
    loss = make_ddpg_loss(actor, critic, **options)
    observation = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]).unsqueeze(-1)
    action = torch.tensor([[0.0, 0.1], [0.0, 0.1], [0.0, 0.1]]).unsqueeze(-1)
    next_observation = torch.tensor([[0.2, 0.4], [0.2, 0.4], [0.2, 0.4]]).unsqueeze(-1)
    reward = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]).unsqueeze(-1)
    # First: goes on. Second: terminated. Third: truncated, so done but not terminated.
    flags = torch.tensor([[False, False], [True, True], [False, False]]).unsqueeze(-1)
    done = torch.tensor([[False, False], [True, True], [True, True]]).unsqueeze(-1)
    td = TensorDict(
        {
            "agents": {"observation": observation, "action": action},
            "next": {"agents": {"observation": next_observation, "reward": reward, "terminated": flags, "done": done}},
        },
        [3],
    )
    td[MASK] = td["next", *MASK] = torch.ones(3, 2, dtype=torch.bool)
    losses = loss(td)
    bootstrap = options.get("gamma", 0.99) * 0.9  # 1.5 * (0.2 + 0.4)
    target = torch.tensor([[1 + bootstrap, 2 + bootstrap], [1.0, 2.0], [1 + bootstrap, 2 + bootstrap]])
    torch.testing.assert_close(losses["target_value"], target)
    pred = torch.tensor([[0.4, 0.4], [0.8, 0.8], [1.2, 1.2]])
    torch.testing.assert_close(losses["pred_value"], pred)
    torch.testing.assert_close(losses["loss_value"], (pred - target).square().mean())
    # -(1.5 * (0.3, 0.7, 1.1)) on average
    torch.testing.assert_close(losses["loss_actor"], torch.tensor(-1.05))


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_penalty_by_hand(compile):
    """Of two agents the second is absent in the second state; 0.4 is squashed from less than 3, the others not."""
    actor = BiCNetActor(1, Bounded(-1.0, 1.0, (2, 1)), net=Weighted(), mask_key=MASK)
    critic = BiCNetCritic(1, 1, net=TeamSum(), mask_key=MASK)
    plain, penalised = (make_ddpg_loss(actor, critic, saturation_penalty=weight) for weight in (0.0, 0.25))
    observation = torch.tensor([[1.992, 0.4], [-1.996, float("nan")]]).unsqueeze(-1)
    flags = {"done": torch.zeros(2, 2, 1, dtype=torch.bool), "terminated": torch.zeros(2, 2, 1, dtype=torch.bool)}
    agents = {"observation": observation, "action": torch.zeros(2, 2, 1)}
    td = TensorDict({"agents": agents, "next": {"agents": {**agents, "reward": torch.ones(2, 2, 1), **flags}}}, [2])
    td[MASK] = td["next", *MASK] = torch.tensor([[True, True], [True, False]])
    expected = plain(td)["loss_actor"] + 0.25 * ((math.atanh(0.996) - 3) ** 2 + (math.atanh(0.998) - 3) ** 2) / 3
    torch.testing.assert_close(penalised(td)["loss_actor"], expected)
    torch.testing.assert_close(penalised(td)["loss_value"], plain(td)["loss_value"])
    update = UpdateStep(penalised, actor_lr=0.0, critic_lr=0.0, tau=0.0, compile=compile)
    torch.testing.assert_close(update(td)["loss_actor"], expected.detach())


def test_the_penalty_is_refused_below_zero():
    with pytest.raises(ValueError, match="saturation_penalty must not be negative, found -1"):
        make_ddpg_loss(
            BiCNetActor(1, Bounded(-1.0, 1.0, (2, 1)), net=Weighted()),
            BiCNetCritic(1, 1, net=TeamSum()),
            saturation_penalty=-1.0,
        )


@pytest.mark.parametrize("mask_key", [None, MASK])
def test_n_step_targets_by_hand(mask_key):
    """Rewards of TorchRL's MultiStep, and a value discounted by as many steps, for each agent."""
    actor = BiCNetActor(1, Bounded(-1.0, 1.0, (2, 1)), net=Weighted(), mask_key=mask_key)
    critic = BiCNetCritic(1, 1, net=TeamSum(), mask_key=mask_key)
    loss = make_ddpg_loss(actor, critic, gamma=0.5)
    # An episode of three steps that terminates, of two agents; Q(s') = 1.5 (s'_1 + s'_2) = 0.3, 0.6, 0.9.
    reward = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]]).view(1, 3, 2, 1)
    after = torch.tensor([[0.1, 0.1], [0.2, 0.2], [0.3, 0.3]]).view(1, 3, 2, 1)
    ended = torch.tensor([False, False, True]).view(1, 3, 1, 1).expand(1, 3, 2, 1)
    flags = {"done": ended, "terminated": ended}
    td = TensorDict(
        {
            "agents": {"observation": after - 0.1, "action": torch.zeros(1, 3, 2, 1)},
            "next": {"agents": {"observation": after, "reward": reward, **flags}, "done": ended[..., 0, :]},
        },
        [1, 3],
    )
    td[MASK] = td["next", *MASK] = torch.ones(1, 3, 2, dtype=torch.bool)
    multi_step = MultiStep(gamma=0.5, n_steps=2)
    multi_step.reward_keys = (("agents", "reward"),)
    sample = multi_step(td).reshape(-1)
    read = sample.select(*loss.in_keys, MASK, ("next", *MASK), strict=False)
    # The first two of two steps: r_1 + r_2 / 2 + Q(s_3) / 4, and r_2 + r_3 / 2, which terminates; the third of one.
    expected = torch.tensor([[1 + 1 + 0.15, 10 + 10 + 0.15], [2 + 2, 20 + 20], [4, 40]])
    torch.testing.assert_close(loss(read)["target_value"], expected)
    loss.set_keys(priority=("agents", "priority"))  # which makes TorchRL's list of the keys that are read anew
    update = UpdateStep(loss, actor_lr=0.0, critic_lr=0.0, tau=0.0)
    torch.testing.assert_close(update(read)["loss_value"], loss(read)["loss_value"].detach())


def test_target_networks_are_used_frozen_and_updated():
    torch.manual_seed(0)
    actor, critic = modules()
    loss = make_ddpg_loss(actor, critic)
    update = SoftUpdate(loss, tau=0.25)
    td = transitions()
    td["next", "agents", "terminated"].zero_()
    before = loss(td)["target_value"]
    for name in ("actor", "value"):
        # Training the online networks leaves the target as it was; moving a target network moves it.
        with torch.no_grad():
            for parameter in getattr(loss, f"{name}_network_params").parameters():
                parameter.add_(0.1)
        torch.testing.assert_close(loss(td)["target_value"], before, atol=1e-4, rtol=0)
        target = [p.data for p in getattr(loss, f"target_{name}_network_params").values(True, True)]
        for tensor in target:
            tensor.add_(0.1)
        assert not torch.allclose(loss(td)["target_value"], before)
        for tensor in target:
            tensor.sub_(0.1)
        assert not any(p.requires_grad for p in getattr(loss, f"target_{name}_network_params").values(True, True))
    targets = {key: value.clone() for key, value in loss.state_dict().items() if key.startswith("target_")}
    _, grads = gradients(loss, td)
    assert not any("target" in name for name in grads)
    update.step()
    after = loss.state_dict()
    for key, old in targets.items():
        online = after[key.removeprefix("target_")]
        torch.testing.assert_close(after[key], old + 0.25 * (online - old))
    assert sum(not torch.equal(after[key], old) for key, old in targets.items()) > 20


@pytest.mark.parametrize("masked", [False, True])
def test_without_a_target_actor_the_target_takes_the_actor(masked):
    actor, critic = modules(mask_key=MASK if masked else None)
    loss = make_ddpg_loss(actor, critic, delay_actor=False)
    assert isinstance(loss, DDPGLoss)
    td = transitions()
    td["next", "agents", "terminated"].zero_()
    td[MASK] = td["next", *MASK] = torch.ones(6, 3, dtype=torch.bool)
    before = loss(td)["target_value"]
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.add_(0.1)
    assert not torch.allclose(loss(td)["target_value"], before)


@pytest.mark.parametrize("loss_function", ["l1", "l2", "smooth_l1"])
def test_loss_functions(loss_function):
    losses = make_ddpg_loss(*modules(), loss_function=loss_function)(transitions())
    error = losses["pred_value"] - losses["target_value"]
    expected = {
        "l1": error.abs(),
        "l2": error.square(),
        "smooth_l1": torch.where(error.abs() < 1, error.square() / 2, error.abs() - 0.5),
    }
    torch.testing.assert_close(losses["loss_value"], expected[loss_function].mean())


@pytest.mark.parametrize("communication", ["lstm", "gru", "mean", "attention", "none"])
def test_garbage_in_absent_slots_changes_nothing(communication):
    torch.manual_seed(0)
    actor, critic = modules(communication, mask_key=MASK)
    loss = make_ddpg_loss(actor, critic, gamma=0.9)
    td = transitions(batch=8)
    mask, next_mask = torch.rand(8, 3) < 0.6, torch.rand(8, 3) < 0.6
    mask[0], next_mask[1] = False, False
    td[MASK], td["next", *MASK] = mask, next_mask
    losses, grads = gradients(loss, td.clone())

    dirty = td.clone()
    for name in ("observation", "action"):
        dirty["agents", name][~mask] = torch.nan
    dirty["next", "agents", "observation"][~next_mask] = torch.inf
    dirty["next", "agents", "reward"][~mask] = torch.nan
    for name in ("done", "terminated"):
        dirty["next", "agents", name][~mask] ^= True
    dirty_losses, dirty_grads = gradients(loss, dirty)
    for name in sorted(losses.keys()):
        assert torch.equal(losses[name], dirty_losses[name]), name
    assert grads.keys() == dirty_grads.keys()
    for name in grads:
        assert torch.equal(grads[name], dirty_grads[name]), name
    assert torch.equal(td["agents", "observation"].isnan(), torch.zeros(8, 3, 5, dtype=torch.bool))
    # The metrics of absent agents are zero, and the reward given is left as it was.
    for name in ("td_error", "pred_value", "target_value"):
        assert (dirty_losses[name][~mask] == 0).all()
    assert dirty["next", "agents", "reward"][~mask].isnan().all()


def test_masked_losses_average_over_the_agents_present():
    torch.manual_seed(0)
    actor, critic = modules(mask_key=MASK)
    td = transitions(batch=8)
    mask = torch.rand(8, 3) < 0.6
    td[MASK] = td["next", *MASK] = mask
    losses = make_ddpg_loss(actor, critic)(td)
    errors = (losses["pred_value"] - losses["target_value"]).square()
    torch.testing.assert_close(losses["loss_value"], errors[mask].mean())
    # A team of which one agent is always absent is the team without it.
    td[MASK] = td["next", *MASK] = torch.tensor([True, True, False]).expand(8, 3)
    pair = make_ddpg_loss(*modules())
    whole = make_ddpg_loss(actor, critic)
    pair.load_state_dict({key: value for key, value in whole.state_dict().items() if key in pair.state_dict()})
    small = td.apply(lambda x: x[:, :2] if x.ndim > 1 else x)
    for name in ("loss_actor", "loss_value"):
        torch.testing.assert_close(whole(td)[name], pair(small)[name])


def test_an_agent_that_leaves_has_no_value_afterwards():
    torch.manual_seed(0)
    actor, critic = modules(mask_key=MASK)
    td = transitions()
    td["next", "agents", "terminated"].zero_()
    td[MASK] = torch.ones(6, 3, dtype=torch.bool)
    td["next", *MASK] = torch.tensor([True, False, True]).expand(6, 3)
    target = make_ddpg_loss(actor, critic)(td)["target_value"]
    torch.testing.assert_close(target[:, 1], td["next", "agents", "reward"][:, 1, 0])
    assert not torch.isclose(target[:, 0], td["next", "agents", "reward"][:, 0, 0]).any()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("group", ["team", ("league", "north", "team")])
def test_nested_groups(group, masked):
    path = (group,) if isinstance(group, str) else group
    mask_key = (*path, "mask") if masked else None
    loss = make_ddpg_loss(*modules(group=group, mask_key=mask_key))
    td = transitions(group=group)
    td[*path, "mask"] = td["next", *path, "mask"] = torch.rand(6, 3) < 0.5
    td = td.select(*loss.in_keys, strict=False)
    losses, grads = gradients(loss, td)
    assert losses.isfinite().all()
    # Written beside the group's entries, so that the losses of several groups share a batch.
    torch.testing.assert_close(td[*path, "td_error"].squeeze(-1), losses["td_error"])
    assert len(grads) > 20


@pytest.mark.parametrize("masked", [False, True])
def test_copies_and_state_dicts(masked):
    mask_key = MASK if masked else None
    first = make_ddpg_loss(*modules(mask_key=mask_key), gamma=0.7)
    second = make_ddpg_loss(*modules(mask_key=mask_key), gamma=0.7)
    td = transitions()
    td[MASK] = td["next", *MASK] = torch.rand(6, 3) < 0.5
    second.load_state_dict(first.state_dict())
    copied = copy.deepcopy(first)
    for other in (second, copied, pickle.loads(pickle.dumps(first))):
        for name, value in first(td.clone()).items():
            assert torch.equal(value, other(td.clone())[name])
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(1)
    assert not torch.equal(first(td.clone())["loss_value"], copied(td.clone())["loss_value"])
    losses = first.to(torch.float64)(double(td))
    assert losses["loss_value"].dtype == torch.float64


@pytest.mark.parametrize("where", [MASK, ("next", *MASK)])
def test_a_missing_mask_is_an_error_not_everybody(where):
    td = transitions()
    td[where] = torch.ones(6, 3, dtype=torch.bool)
    with pytest.raises(KeyError, match='key "mask" not found'):
        make_ddpg_loss(*modules(mask_key=MASK))(td)


@pytest.mark.parametrize(("one", "other"), [(("agents",), "agents"), (("a", ("b",)), ("a", "b"))])
def test_groups_are_compared_as_keys(one, other):
    spec = Bounded(-1.0, 1.0, (3, 2))
    loss = make_ddpg_loss(BiCNetActor(5, spec, group=one), BiCNetCritic(5, 2, group=other))
    assert loss(transitions(group=other)).isfinite().all()
    nested = [BiCNetActor(5, spec, mask_key=("agents", ("mask",))), BiCNetCritic(5, 2, mask_key=MASK)]
    assert make_ddpg_loss(*nested).loss_mask_key == MASK
    with pytest.raises(ValueError, match="share one group, found"):
        make_ddpg_loss(BiCNetActor(5, spec, group=one), BiCNetCritic(5, 2, group="others"))


def test_an_actor_and_a_critic_that_do_not_fit_are_refused():
    actor, critic = modules()
    with pytest.raises(ValueError, match="share one mask_key, found None and"):
        make_ddpg_loss(actor, BiCNetCritic(5, 2, mask_key=MASK))
    move = BiCNetActor(5, Bounded(-1.0, 1.0, (3, 2)), out_keys=["raw", ("agents", "move")])
    with pytest.raises(ValueError, match=r"reads? the action that the actor writes at .*'move'"):
        make_ddpg_loss(move, critic)


def test_a_net_of_ones_own_serves_in_the_loss():
    actor = BiCNetActor(5, Bounded(-1.0, 1.0, (3, 2)), net=nn.Linear(5, 2))
    losses, grads = gradients(make_ddpg_loss(actor, BiCNetCritic(5, 2, net=BiCNet(7, 1))), transitions())
    assert losses.isfinite().all()
    assert sum("actor" in name for name in grads) == 2


@pytest.mark.parametrize("group", ["agents", ("teams", "blue")])
def test_every_key_is_that_of_the_group(group):
    spec = Bounded(-1.0, 1.0, (3, 2))
    loss = make_ddpg_loss(BiCNetActor(4, spec, group=group), BiCNetCritic(4, 2, group=group))
    expected = {"reward": "reward", "done": "done", "terminated": "terminated", "priority": "td_error"}
    for name, entry in (expected | {"state_action_value": "state_action_value"}).items():
        assert getattr(loss.tensor_keys, name) == unravel_key((group, entry)), name
