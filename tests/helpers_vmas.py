"""Scenarios, plays and comparisons that the tests of VMAS environments share."""

import json

import pytest
import torch
import vmas
from tensordict import TensorDict, TensorDictBase
from vmas.simulator.core import Agent, World
from vmas.simulator.scenario import BaseScenario
from vmas.simulator.utils import ScenarioUtils

from torchrl_bicnet import make_vmas_env
from torchrl_bicnet.vmas_graph.device_syncs import SyncGuard
from torchrl_bicnet.vmas_state.snapshot import WorldSnapshot

SCENARIOS = sorted([*vmas.scenarios, *vmas.mpe_scenarios, *vmas.debug_scenarios])
# By default; tests/test_examples.py trains each of them.
SEVERAL_GROUPS = {
    "diff_drive": {"diff_drive": 1, "holo_rot": 1},
    "kinematic_bicycle": {"bicycle": 1, "holo_rot": 1},
    "simple_adversary": {"adversary": 1, "agent": 2},
    "simple_crypto": {"eve": 1, "bob": 1, "alice": 1},
    "simple_push": {"adversary": 1, "agent": 1},
    "simple_speaker_listener": {"speaker": 1, "listener": 1},
    "simple_tag": {"adversary": 3, "agent": 1},
    "simple_world_comm": {"lead_adversary": 1, "adversary": 3, "agent": 2},
}
# The scenarios whose step never waits, with the options that it takes.
SYNC_FREE = {
    "navigation": {},
    "simple_spread": {},
    "balance": {},
    "dispersion": {},
    "transport": {},
    "discovery": {"targets_respawn": False},  # else places are drawn until they are free
}
IGNORED_WARNINGS = [
    pytest.mark.filterwarnings("ignore:Force limits not specified:UserWarning"),  # VMAS's, of vel_control
    pytest.mark.filterwarnings("ignore:Environments of this scenario are reset one by one:UserWarning"),
    pytest.mark.filterwarnings("ignore:A partial `'_reset'` key:UserWarning"),  # TorchRL's
]
needs_cuda = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


class Countdown(BaseScenario):
    """An agent that goes nowhere; environment i terminates after i + 1 steps. The reward is 1."""

    def make_world(self, batch_dim, device, **kwargs):
        ScenarioUtils.check_kwargs_consumed(kwargs)
        world = World(batch_dim, device)
        world.add_agent(Agent("agent_0"))
        world.add_agent(Agent("agent_1"))
        self.left = torch.zeros(batch_dim, device=device)
        return world

    def reset_world_at(self, env_index=None):
        limits = torch.arange(1, self.world.batch_dim + 1, device=self.world.device).float()
        if env_index is None:
            self.left = limits
        else:
            self.left[env_index] = limits[env_index]

    def post_step(self):
        self.left = self.left - 1

    def observation(self, agent):
        return self.left.unsqueeze(-1)

    def reward(self, agent):
        return torch.ones_like(self.left)

    def done(self):
        return self.left <= 0


def simulator(env):
    return env.base_env._env


def with_random_actions(env, td, generator):
    for group in env.group_map:
        spec = env.full_action_spec[group, "action"]
        share = torch.rand(spec.shape, generator=generator)
        td[group, "action"] = spec.space.low + (spec.space.high - spec.space.low) * share
    return td


def steps(env, td, n, seed=5):
    td, generator, outputs = td.clone(), torch.Generator().manual_seed(seed), []
    for _ in range(n):
        td = env.step(with_random_actions(env, td, generator))["next"]
        outputs.append(td.clone())
    return outputs


def play(env, td, steps, seed):
    """The outputs of some steps, with actions, partial resets and a full reset drawn from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    td, outputs = td.clone(), []
    for step in range(steps):
        td = env.step(with_random_actions(env, td, generator))["next"]
        outputs.append(td.clone())
        reset = torch.rand(env.batch_size, generator=generator) < (1 if step == steps // 2 else 0.4)
        if reset.any():
            td = env.reset(td.set("_reset", reset.unsqueeze(-1)))
            outputs.append(td.clone())
    return td, outputs


def partly_reset(env, mask):
    return env.reset(TensorDict({"_reset": mask.unsqueeze(-1)}, env.batch_size))


def waits(function, *arguments):
    """The operations of a call that wait for the device."""
    with SyncGuard() as guard:
        function(*arguments)
    return [problem for problem in guard.problems if "waits" in problem]


def leaves(data, path=""):
    if isinstance(data, torch.Tensor):
        yield path, data
    elif isinstance(data, TensorDictBase):
        yield from ((f"{path}.{key}", data[key]) for key in data.keys(True, True))
    else:
        for name, part in data.items() if isinstance(data, dict) else enumerate(data):
            yield from leaves(part, f"{path}.{name}")


def assert_same(found, expected):
    """Tensors in any lists, dictionaries and tensordicts are equal to the bit."""
    found, expected = dict(leaves(found)), dict(leaves(expected))
    assert found.keys() == expected.keys()
    for path, tensor in found.items():
        torch.testing.assert_close(tensor, expected[path], rtol=0, atol=0, equal_nan=True, msg=f"{path} differs")
        if tensor.is_floating_point():
            assert torch.equal(tensor.signbit(), expected[path].signbit()), path


def assert_close(found, expected, tolerance=1e-4):
    """Floats up to rounding, dones and counters to the bit."""
    found, expected = dict(leaves(found)), dict(leaves(expected))
    assert found.keys() == expected.keys()
    for path, tensor in found.items():
        tolerances = dict.fromkeys(("rtol", "atol"), tolerance if tensor.is_floating_point() else 0)
        torch.testing.assert_close(
            tensor, expected[path], **tolerances, equal_nan=True, msg=lambda text, path=path: f"{path}: {text}"
        )


def assert_same_world(found, expected):
    assert found.plain == expected.plain
    assert_same(found.tensors, expected.tensors)


def saved_and_loaded(world, folder):
    world.tensors.memmap(folder / "tensors")
    (folder / "plain.json").write_text(json.dumps(world.plain, allow_nan=False))
    return loaded(folder)


def loaded(folder):
    return WorldSnapshot(TensorDict.load_memmap(folder / "tensors"), json.loads((folder / "plain.json").read_text()))


def assert_plays_like_vmas(ours, stock, n_steps, reset_every):
    """Observations, rewards, dones and infos of VMAS from the same stream state, with resets in between."""
    ours.seed(5), stock.seed(5)
    generator = torch.Generator().manual_seed(1)
    for step in range(n_steps):
        if step % reset_every == 0:
            assert_same(ours.reset(), stock.reset())
        actions = []
        for agent in stock.agents:
            u = torch.rand(stock.num_envs, agent.action_size, generator=generator) * 2 - 1
            c = torch.rand(stock.num_envs, 0 if agent.silent else stock.world.dim_c, generator=generator)
            actions.append(torch.cat([u * agent.action.u_range_tensor, c], dim=-1))
        assert_same(ours.step([a.clone() for a in actions]), stock.step([a.clone() for a in actions]))


def ours_and_stock(scenario):
    """A simulator of make_vmas_env and VMAS's own, reset from one seed; 32 rows make `logaddexp` round alike."""
    ours, stock = simulator(make_vmas_env(scenario, 32)), vmas.make_env(scenario, 32)
    ours.seed(0), stock.seed(0)
    assert_same(ours.reset(), stock.reset())
    return ours, stock


def assert_same_step(ours, stock):
    actions = stock.get_random_actions()
    assert_same(ours.step([a.clone() for a in actions]), stock.step(actions))
