"""`shuffle_agents`: random orders of the agents in a replayed batch."""

from dataclasses import replace

import pytest
import torch
from tensordict import TensorDict
from torchrl.objectives import SoftUpdate

from examples import train_vmas
from tests.quick import QUICK
from torchrl_bicnet import BiCNetActor, BiCNetCritic, make_ddpg_loss, make_vmas_env, shuffle_agents


def batch(rows, n_agents=3):
    """Transitions in which every number tells its row and its agent."""
    number = torch.arange(rows * n_agents).view(rows, n_agents)
    agents = {"observation": number[..., None].expand(-1, -1, 4).float(), "mask": number % 2 == 0}
    td = TensorDict({"agents": agents, "next": {"agents": {"reward": number[..., None].float()}}}, [rows])
    return td.set("untouched", number)


def test_all_entries_of_a_transition_are_put_in_the_same_order():
    torch.manual_seed(0)
    td = shuffle_agents(batch(5))
    number = td["agents", "observation"][..., 0].long()
    assert td["agents", "observation"].eq(number[..., None]).all()
    assert td["agents", "mask"].equal(number % 2 == 0)
    assert td["next", "agents", "reward"].squeeze(-1).equal(number.float())
    assert number.sort(-1).values.equal(td["untouched"])  # each row has its own agents


def test_every_order_is_as_likely_and_rows_have_their_own():
    torch.manual_seed(0)
    orders = shuffle_agents(batch(6000))["next", "agents", "reward"].squeeze(-1).long() % 3
    _, counts = orders.unique(dim=0, return_counts=True)
    assert len(counts) == 6
    assert (counts - 1000).abs().max() < 5 * (1000 * 5 / 6) ** 0.5  # standard errors


def test_sequences_and_nested_groups():
    td = batch(12).reshape(3, 4)
    td = TensorDict({"world": {"team": td["agents"]}, "next": {"world": {"team": td["next", "agents"]}}}, [3, 4])
    before = td["next", "world", "team", "reward"].clone()
    shuffle_agents(td, ("world", "team"))
    after = td["next", "world", "team", "reward"]
    assert not after.equal(before)
    assert after.sort(-2).values.equal(before)


def test_a_loss_without_communication_does_not_notice():
    """The mean over agents who do not hear each other is the same in any order; that of a recurrence is not."""
    env = make_vmas_env("navigation", 16, seed=0, n_agents=3)
    data = env.rollout(3).reshape(-1)
    for communication, same in (("none", True), ("mean", True), ("gru", False)):
        torch.manual_seed(0)
        options = {"communication": communication}
        loss = make_ddpg_loss(BiCNetActor.from_env(env, **options), BiCNetCritic.from_env(env, **options))
        SoftUpdate(loss, tau=0.01)
        values = [loss.loss_value(each)[0].mean() for each in (data.clone(), shuffle_agents(data.clone()))]
        assert torch.isclose(*values, rtol=1e-4).item() == same


def test_a_group_that_is_not_there():
    with pytest.raises(KeyError, match=r"no group 'team', only \['agents', 'next', 'untouched'\]"):
        shuffle_agents(batch(2), "team")


def test_the_script_shuffles_what_it_learns_from(monkeypatch, tmp_path):
    groups = []

    def spy(sample, group):
        groups.append(group)
        return shuffle_agents(sample, group)

    monkeypatch.setattr(train_vmas, "shuffle_agents", spy)
    for shuffle in (False, True):
        assert not groups
        options = replace(QUICK, shuffle_agents=shuffle, run_folder=tmp_path / str(shuffle))
        train_vmas.main(options)
    assert groups == ["agents"] * 6  # two updates after each of three batches
