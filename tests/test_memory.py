"""`AgentMemory`: a recurrence over time, step by step and in one piece."""

import copy
import pickle

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torchrl.collectors import Collector
from torchrl.data.postprocs import MultiStep
from torchrl.modules import set_recurrent_mode
from torchrl.modules.utils import get_primers_from_module
from torchrl.objectives import SoftUpdate

from torchrl_bicnet import AgentMemory, BiCNetActor, BiCNetCritic, UpdateStep, make_ddpg_loss, make_vmas_env

B, T, N, F, H = 4, 7, 3, 5, 6
OBSERVATION, MEMORY = ("agents", "observation"), ("agents", "memory")


def make_memory(cell="gru", **options):
    torch.manual_seed(0)
    return AgentMemory(F, H, n_agents=N, cell=cell, **options)


def sequences(memory, generator_seed=1):
    """Random ones, with resets in the middle and, should the memory read it, agents that come and go."""
    generator = torch.Generator().manual_seed(generator_seed)
    td = TensorDict({OBSERVATION: torch.randn(B, T, N, F, generator=generator)}, [B, T])
    td["is_init"] = torch.rand(B, T, 1, generator=generator) < 0.3
    if memory.mask_key is not None:
        td[memory.mask_key] = torch.rand(B, T, N, generator=generator) < 0.7
    for state in memory.state_keys:
        td[state] = torch.zeros(B, T, N, 1, H)
        if memory.mask_key is None:  # from earlier steps of episodes that go on; who was absent remembers nothing
            td[state][:, 0] = torch.randn(B, N, 1, H, generator=generator) * ~td["is_init"][:, 0, :, None, None]
    return td


def step_by_step(memory, td):
    """Each step by itself, its state handed to the next."""
    steps = []
    for t in range(T):
        step = td[:, t].clone()
        if steps:
            step.update({state: steps[-1]["next"][state] for state in memory.state_keys})
        steps.append(memory(step))
    return torch.stack(steps, 1)


@pytest.mark.parametrize("mask_key", [None, ("agents", "mask")])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_sequence_in_one_piece_is_the_same_as_step_by_step(cell, mask_key):
    memory = make_memory(cell, mask_key=mask_key)
    td = sequences(memory)
    with set_recurrent_mode(True):
        whole = memory(td.clone())
    apart = step_by_step(memory, td)
    assert whole[MEMORY].std() > 0.05
    torch.testing.assert_close(whole[MEMORY], apart[MEMORY])
    for state in memory.out_keys[1:]:  # what comes after the sequence goes on from there
        torch.testing.assert_close(whole[state][:, -1], apart[state][:, -1])


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_it_starts_from_zero_where_an_episode_does(cell):
    memory = make_memory(cell)
    td = TensorDict({OBSERVATION: torch.randn(B, N, F), "is_init": torch.ones(B, 1, dtype=torch.bool)}, [B])
    zero, garbage = (
        td.clone().update({state: torch.full((B, N, 1, H), value) for state in memory.state_keys})
        for value in (0.0, torch.nan)
    )
    assert memory(garbage)[MEMORY].equal(memory(zero)[MEMORY])


def test_it_is_the_gru_of_torch():
    memory = make_memory()
    gru = torch.nn.GRU(F, H, batch_first=True)
    gru.load_state_dict(memory.cell.state_dict())
    td = sequences(memory)
    td["is_init"].zero_()
    with set_recurrent_mode(True):
        found = memory(td)[MEMORY]
    for agent in range(N):
        expected, _ = gru(td[OBSERVATION][:, :, agent], td["agents", "memory_hidden"][:, 0, agent].transpose(0, 1))
        torch.testing.assert_close(found[:, :, agent], expected)


def test_what_an_agent_remembers_is_its_own_and_of_its_episode():
    memory = make_memory()
    td = sequences(memory)
    td["is_init"].zero_()
    td["is_init"][:, 4] = True
    observation = td[OBSERVATION].requires_grad_()
    with set_recurrent_mode(True):
        found = memory(td)[MEMORY]

    def reaches(t):
        (gradient,) = torch.autograd.grad(found[:, t, 0].sum(), observation, retain_graph=True)
        return gradient.abs().sum((0, -1)) > 0  # (T, N)

    steps = torch.arange(T)
    assert reaches(3)[:, 0].equal(steps <= 3)
    assert reaches(5)[:, 0].equal((steps >= 4) & (steps <= 5))
    assert not reaches(5)[:, 1:].any()


@pytest.mark.parametrize("recurrent", [False, True])
def test_an_absent_agent_remembers_nothing(recurrent):
    memory = make_memory(mask_key=("agents", "mask"))
    td = sequences(memory)
    mask = td["agents", "mask"]
    td[OBSERVATION][~mask] = float("nan")
    with set_recurrent_mode(recurrent):
        found = memory(td if recurrent else td[:, 0])
    absent = ~(mask if recurrent else mask[:, 0])
    assert absent.any()
    assert found[MEMORY].isfinite().all()
    assert found["next", "agents", "memory_hidden"].isfinite().all()
    assert found[MEMORY][absent].eq(0).all()
    assert found[MEMORY][~absent].ne(0).all()
    assert found["next", "agents", "memory_hidden"][absent].eq(0).all()


def make_env(num_envs=4, seed=0):
    return make_vmas_env("navigation", num_envs, max_steps=6, seed=seed, n_agents=N)


def make_networks(env):
    """Actor and critic, each with a memory of its own, the environment that carries both and what collects."""
    torch.manual_seed(0)
    memories = [AgentMemory.from_env(env, H, name=f"{name}_memory") for name in ("actor", "critic")]
    for memory in memories:
        env = env.append_transform(memory.make_tensordict_primer())
    n_inputs = env.full_observation_spec[OBSERVATION].shape[-1] + H
    actor = BiCNetActor(n_inputs, env.full_action_spec, in_keys=[OBSERVATION, memories[0].out_keys[0]])
    critic_keys = [OBSERVATION, memories[1].out_keys[0], ("agents", "action")]
    critic = BiCNetCritic(n_inputs, 2, in_keys=critic_keys)
    return env, TensorDictSequential(memories[0], actor), TensorDictSequential(memories[1], critic), memories


def test_the_environment_passes_it_on():
    env, actor, critic, memories = make_networks(make_env())
    with torch.no_grad():
        for td in Collector(env, TensorDictSequential(actor, critic), frames_per_batch=4 * 18, total_frames=4 * 18):
            again = td.exclude("next")
            assert again["is_init"].sum() == 4 * 3  # three episodes, in one batch
            with set_recurrent_mode(True):
                again = critic(actor(again))
            for key in [*memories[0].out_keys[:1], *memories[1].out_keys[:1], ("agents", "state_action_value")]:
                torch.testing.assert_close(again[key], td[key], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_torchrl_finds_its_primer(cell):
    env = make_env()
    policy = TensorDictSequential(AgentMemory.from_env(env, H, cell=cell), BiCNetActor.from_env(env))
    td = env.append_transform(get_primers_from_module(policy)).rollout(3, policy)
    assert td["agents", "memory_hidden"].shape == (4, 3, N, 1, H)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda():
    env = make_vmas_env("navigation", 4, max_steps=6, seed=0, n_agents=N, device="cuda")
    env, actor, critic, _ = make_networks(env)
    update = UpdateStep(make_ddpg_loss(actor, critic), actor_lr=1e-3, critic_lr=1e-3, tau=0.01)
    with torch.no_grad():
        td = env.rollout(6, TensorDictSequential(actor, critic))
    assert all(value.isfinite() for value in update(td).values())


@pytest.mark.parametrize("n_steps", [1, 3])
def test_targets_are_those_of_the_steps(n_steps):
    """Of the critic run step by step: its value of the next state is that which it gave when it came there.

    Over three episodes, of which two batches hold one and a half each.
    """
    env, actor, critic, _ = make_networks(make_env())
    loss = make_ddpg_loss(actor, critic, gamma=0.9)
    SoftUpdate(loss, tau=0.01)
    policy = TensorDictSequential(actor, critic)
    with torch.no_grad():
        (td,) = Collector(env, policy, frames_per_batch=4 * 18, total_frames=4 * 18)
        value, reward = td["agents", "state_action_value"].squeeze(-1), td["next", "agents", "reward"].squeeze(-1)
        last = policy(td["next"][:, 5::6].clone())  # of the episodes
        last = last["agents", "state_action_value"].squeeze(-1)  # (B, 3, N)
        multi_step = MultiStep(0.9, n_steps)
        multi_step.reward_keys = (("agents", "reward"),)
        output = loss(torch.cat([multi_step(part.exclude(("agents", "param"))) for part in td.split(9, 1)], 1))
    torch.testing.assert_close(output["pred_value"], value, atol=1e-5, rtol=1e-5)
    for t in range(18):
        end = min(t + n_steps, t - t % 6 + 6, t - t % 9 + 9)  # of the episode or of the batch
        expected = sum(0.9 ** (k - t) * reward[:, k] for k in range(t, end))
        expected = expected + 0.9 ** (end - t) * (value[:, end] if end % 6 else last[:, end // 6 - 1])
        torch.testing.assert_close(output["target_value"][:, t], expected, atol=1e-5, rtol=1e-5)


def test_burn_in_brings_stale_states_up_to_date():
    """Values and targets behind it are as if the stored states had been right, also where an episode starts there."""
    env, actor, critic, memories = make_networks(make_env())
    loss = make_ddpg_loss(actor, critic)
    SoftUpdate(loss, tau=0.01)
    with torch.no_grad():
        (td,) = Collector(env, TensorDictSequential(actor, critic), frames_per_batch=4 * 12, total_frames=4 * 12)
        for first, steps in ((0, 2), (4, 2)):  # to the middle of the first episode, and to the start of the second
            part = td[:, first : first + 6]
            expected = loss(part[:, steps:])
            stale = part.clone()
            for memory in memories:
                for state in (*memory.state_keys, *memory.out_keys[1:]):
                    for t in range(1, 6):  # the primer's zeros stay
                        noise = torch.randn_like(stale[state][:, t])
                        stale[state][:, t] = noise * (state[0] == "next" or first + t != 6)
                memory.burn_in(stale, steps)
            found = loss(stale[:, steps : steps + (4 if first == 0 else 1)])
            for key in ("pred_value", "target_value"):
                torch.testing.assert_close(found[key], expected[key][:, : found[key].shape[1]], atol=1e-5, rtol=1e-5)


def test_an_update_trains_memories_through_time():
    env, actor, critic, memories = make_networks(make_env())
    loss = make_ddpg_loss(actor, critic)
    update = UpdateStep(loss, actor_lr=1e-3, critic_lr=1e-3, tau=0.01)
    with torch.no_grad():
        td = env.rollout(6, TensorDictSequential(actor, critic))
    before = {id(memory): copy.deepcopy(memory.state_dict()) for memory in memories}
    assert all(value.isfinite() for value in update(td).values())
    for memory in memories:
        for name, value in memory.state_dict().items():
            assert not value.equal(before[id(memory)][name]), name


def test_it_is_an_ordinary_module():
    memory = make_memory("lstm")
    td = sequences(memory)[:, 0]
    expected = memory(td.clone())[MEMORY]
    for other in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        assert other(td.clone())[MEMORY].equal(expected)
    other = AgentMemory(F, H, n_agents=9, cell="lstm")  # parameters do not depend on the number of agents
    other.load_state_dict(memory.state_dict())
    assert other(td.clone())[MEMORY].equal(expected)


def test_misuse():
    env = make_env()
    memory = AgentMemory.from_env(env, H)
    with pytest.raises(KeyError, match=r"memory_hidden'\) of a memory is missing: append .*make_tensordict_primer"):
        memory(env.reset())
    with pytest.raises(ValueError, match=r"cell must be one of \('gru', 'lstm'\), found 'rnn'"):
        AgentMemory(F, H, n_agents=N, cell="rnn")
    with pytest.raises(ValueError, match="hidden_size must be at least 1, found 0"):
        AgentMemory.from_env(env, 0)
    with pytest.raises(
        ValueError, match=r"must have names of their own, found \[\('next', 'agents', 'memory_hidden'\)\]"
    ):
        make_ddpg_loss(*(TensorDictSequential(memory, cls.from_env(env)) for cls in (BiCNetActor, BiCNetCritic)))
    unread = TensorDictSequential(memory, BiCNetActor.from_env(env))
    with pytest.raises(
        ValueError, match=r"must be among the in_keys of the BiCNetActor behind it, found \[\('agents', 'ob"
    ):
        make_ddpg_loss(unread, BiCNetCritic.from_env(env))
    with pytest.raises(ValueError, match="steps must be between 0 and 5, found 6"):
        memory.burn_in(env.rollout(6), 6)
    with pytest.raises(TypeError, match="or sequences that end with them, found AgentMemory"):
        make_ddpg_loss(TensorDictSequential(memory), BiCNetCritic.from_env(env))
    env, actor, critic, _ = make_networks(env)
    update = UpdateStep(make_ddpg_loss(actor, critic), actor_lr=1e-3, critic_lr=1e-3, tau=0.01)
    with torch.no_grad():
        td = env.rollout(6, TensorDictSequential(actor, critic))
    with pytest.raises(ValueError, match=r"a batch is of sequences, \(\*B, T\), .* found one of \(24,\)"):
        update(td.reshape(-1))
    with pytest.raises(RuntimeError, match="give deactivate_vmap=True"):
        torch.vmap(actor)(td)
    with pytest.raises(ValueError, match="compile must be False with a memory"):
        UpdateStep(make_ddpg_loss(actor, critic), actor_lr=1e-3, critic_lr=1e-3, tau=0.01, compile=True)
