"""The modules inside TorchRL's collectors, buffers and target updates, and what they learn."""

import pytest
import torch
from tensordict.nn import TensorDictSequential
from torchrl.collectors import Collector
from torchrl.data import Binary, LazyMemmapStorage, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import Transform
from torchrl.envs.utils import check_env_specs
from torchrl.modules import AdditiveGaussianModule
from torchrl.objectives import SoftUpdate

from tests.guess_the_sum import score, trained_actor
from torchrl_bicnet import BiCNetActor, BiCNetCritic, make_ddpg_loss, make_vmas_env


def train(seed, storage=LazyTensorStorage, communication="lstm", **storage_options):
    """A few iterations with every part of TorchRL that a training script takes; the parameters at the end."""
    torch.manual_seed(seed)
    env = make_vmas_env("navigation", 4, max_steps=6, seed=seed, n_agents=3)
    options = {"communication": communication, "hidden_size": 8, "num_cells": (12,)}
    actor, critic = BiCNetActor.from_env(env, **options), BiCNetCritic.from_env(env, **options)
    noise = AdditiveGaussianModule(actor.spec, action_key=actor.out_keys[-1])
    loss = make_ddpg_loss(actor, critic)
    target_update = SoftUpdate(loss, tau=0.1)
    optimiser = torch.optim.Adam(loss.parameters(), 1e-2)
    buffer = TensorDictReplayBuffer(storage=storage(100, **storage_options), batch_size=16)
    collector = Collector(env, TensorDictSequential(actor, noise), frames_per_batch=20, total_frames=100)
    initial = {key: value.clone() for key, value in loss.state_dict().items()}
    for i, batch in enumerate(collector, start=1):
        assert batch.shape == (4, 5)
        buffer.extend(batch.reshape(-1).select(*loss.in_keys, strict=False))
        assert len(buffer) == min(20 * i, 100)
        sample = buffer.sample()
        assert sample["agents", "observation"].shape == (16, 3, 18)
        losses = loss(sample)
        (losses["loss_actor"] + losses["loss_value"]).backward()
        optimiser.step()
        optimiser.zero_grad()
        target_update.step()
    collector.shutdown()
    return initial, loss.state_dict(), actor


@pytest.mark.parametrize("communication", ["lstm", "gru", "rnn", "mean", "attention", "none"])
def test_every_communication_trains_and_moves_every_parameter(communication):
    initial, final, _ = train(0, communication=communication)
    for key, value in final.items():
        moves = not key.endswith(("low", "high", "gamma"))
        assert (not torch.equal(value, initial[key])) == moves, key


def test_memory_mapped_replay_is_replay_in_memory(tmp_path):
    in_memory, on_disk = train(0), train(0, LazyMemmapStorage, scratch_dir=tmp_path)
    assert all(torch.equal(in_memory[1][key], on_disk[1][key]) for key in in_memory[1])


def test_one_seed_is_one_run_to_the_bit_and_another_seed_differs():
    first, again, other = train(0)[1], train(0)[1], train(1)[1]
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(*(run["actor_network_params.module.net.encoder.0.weight"] for run in (first, other)))


def test_an_actor_trained_on_three_agents_acts_on_seven():
    actor = train(0)[2]
    env = make_vmas_env("navigation", 4, n_agents=7)
    seven = BiCNetActor.from_env(env, hidden_size=8, num_cells=(12,))
    seven.load_state_dict(actor.state_dict())
    td = env.reset()
    action = actor(td.clone())["agents", "action"]
    assert action.shape == (4, 7, 2)
    assert torch.equal(seven(td.clone())["agents", "action"], action)


class Presence(Transform):
    """Writes who is present: in each environment another agent is absent at each step, with NaN in its slot."""

    key = ("agents", "mask")

    def _call(self, next_tensordict):
        observation = next_tensordict["agents", "observation"]
        clock = next_tensordict["step_count"] + torch.arange(4).unsqueeze(-1)  # (num_envs, 1)
        mask = clock % 3 != torch.arange(3)
        next_tensordict[self.key] = mask
        next_tensordict["agents", "observation"] = torch.where(mask.unsqueeze(-1), observation, torch.nan)
        return next_tensordict

    def _reset(self, tensordict, tensordict_reset):
        return self._call(tensordict_reset)

    def transform_observation_spec(self, observation_spec):
        observation_spec[self.key] = Binary(shape=(4, 3), dtype=torch.bool)
        return observation_spec


def test_masks_through_collector_and_replay():
    torch.manual_seed(0)
    env = make_vmas_env("navigation", 4, max_steps=6, seed=0, n_agents=3).append_transform(Presence())
    check_env_specs(env)
    options = {"mask_key": Presence.key, "hidden_size": 8, "num_cells": (12,)}
    actor, critic = BiCNetActor.from_env(env, **options), BiCNetCritic.from_env(env, **options)
    loss = make_ddpg_loss(actor, critic)
    SoftUpdate(loss, tau=0.1)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(100), batch_size=30)
    for batch in Collector(env, actor, frames_per_batch=40, total_frames=40):
        assert batch["agents", "action"].isfinite().all()
        assert (batch["agents", "action"][~batch[Presence.key]] == 0).all()
        buffer.extend(batch.reshape(-1).select(*loss.in_keys, strict=False))
    sample = buffer.sample()
    assert sample["agents", "observation"].isnan().any()
    assert (~sample[Presence.key]).any()
    losses = loss(sample)
    (losses["loss_actor"] + losses["loss_value"]).backward()
    assert losses.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in actor.parameters())


class TestGuessTheSum:
    def test_bicnet_learns_it(self):
        assert score(trained_actor("lstm", seed=0, steps=1200)) >= 0.95

    def test_without_communication_nobody_can(self):
        # It learns what can be learned alone, and no more (0.05 leaves room for the noise of the estimate).
        assert -0.2 < score(trained_actor("none", seed=0, steps=1200)) <= 0.05
