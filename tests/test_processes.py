"""Environments and policies in other processes: pickled, in TorchRL's collectors and ParallelEnv."""

import copy
import pickle
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from tensordict.nn import TensorDictSequential
from torchrl.collectors import MultiAsyncCollector, MultiSyncCollector
from torchrl.envs import ParallelEnv, RewardSum

from torchrl_bicnet import BiCNetActor, ExplorationNoise, make_vmas_env
from torchrl_bicnet.tasks import GuessTheSum

DOCS = Path(__file__).resolve().parent.parent / "docs"
CASES = {
    "one size": partial(make_vmas_env, "navigation", 4, max_steps=6, n_agents=3),
    "several sizes": partial(make_vmas_env, "navigation", 4, n_agents=(2, 3)),
    "own scenario": partial(make_vmas_env, GuessTheSum(), 4, n_agents=2),
    "padded groups": partial(make_vmas_env, "simple_speaker_listener", 4, pad=True),
    "discrete actions": partial(make_vmas_env, "simple_reference", 4, continuous_actions=False),
}


class Collects(GuessTheSum):
    """Counts how often its world was made, in a list that its instance brings."""

    def __init__(self):
        super().__init__()
        self.made = []

    def make_world(self, *args, **kwargs):
        self.made.append(1)
        return super().make_world(*args, **kwargs)

    def observation(self, agent):
        return torch.full((self.world.batch_dim, 1), float(len(self.made)))


def test_a_scenario_is_pickled_as_it_was_before_its_world_was_made():
    scenario = Collects()
    env = make_vmas_env(scenario, 2)
    assert pickle.loads(pickle.dumps(env)).reset()["agents", "observation"].eq(1).all()
    with pytest.raises(TypeError, match="of a scenario that was in another environment before"):
        pickle.dumps(make_vmas_env(scenario, 2))


def test_a_shallow_copy_is_of_the_same_simulator():
    base = CASES["one size"](seed=3).base_env
    assert copy.copy(base)._env is base._env


@pytest.mark.parametrize("name", CASES)
def test_an_environment_is_pickled_as_what_it_was_made_from(name):
    env = CASES[name](seed=3)
    expected = env.reset()
    env.rollout(2)  # its state does not go along
    again = pickle.loads(pickle.dumps(env))
    assert again.batch_size == env.batch_size
    assert again.full_action_spec == env.full_action_spec
    found = again.reset()
    for key in expected.keys(True, True):
        assert expected[key].equal(found[key]), key


def test_a_deep_copy_keeps_the_state():
    env = CASES["one size"](seed=3)
    actor, td = BiCNetActor.from_env(env), env.reset()
    for _ in range(3):
        td = env.step_mdp(env.step(actor(td)))
    twin = copy.deepcopy(env)
    steps = [each.step(actor(td.clone()))["next", "agents", "observation"] for each in (env, twin)]
    assert steps[0].equal(steps[1])
    assert not steps[0].equal(env.reset()["agents", "observation"])


def test_transforms_go_along():

    env = pickle.loads(
        pickle.dumps(CASES["one size"](seed=0).append_transform(RewardSum(in_keys=[("agents", "reward")])))
    )
    assert env.rollout(3)["next", "agents", "episode_reward"].shape == (4, 3, 3, 1)


def test_pickled_in_one_process_and_used_in_another(tmp_path):
    env = CASES["one size"](seed=3)
    (tmp_path / "env").write_bytes(pickle.dumps((env, BiCNetActor.from_env(env))))
    code = "import pickle, sys; env, actor = pickle.load(open(sys.argv[1], 'rb')); print(env.rollout(3, actor).shape)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "env"], capture_output=True, text=True)
    assert done.stdout.strip() == "torch.Size([4, 3])", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("collector_class", [MultiSyncCollector, MultiAsyncCollector])
def test_collectors_of_several_processes_and_their_weights(collector_class):
    """Each worker has its own environments; what they do follows the weights that are sent to them."""
    env = CASES["one size"](seed=0)
    actor = BiCNetActor.from_env(env)
    policy = TensorDictSequential(actor, ExplorationNoise(actor.spec, sigma=0.0))
    makers = [partial(CASES["one size"], seed=seed) for seed in (0, 1)]
    collector = collector_class(makers, policy, frames_per_batch=48, total_frames=48 * 6, device="cpu")
    try:
        starts, actions = [], []
        for i, batch in enumerate(collector):
            starts.append(batch.reshape(-1)["agents", "observation"][batch.reshape(-1)["is_init"].squeeze(-1)])
            actions.append(batch["agents", "action"])
            if i == 0:
                with torch.no_grad():
                    for parameter in actor.parameters():
                        parameter.zero_()
                collector.update_policy_weights_()
    finally:
        collector.shutdown()
    assert len(starts[0].unique(dim=0)) == len(starts[0])  # the workers' streams differ
    assert actions[0].abs().max() > 0.01
    assert actions[-1].abs().max() == 0  # the middle of the bounds


@pytest.mark.slow
def test_a_replay_buffer_that_workers_fill(tmp_path):
    """The script of docs/processes.md: both workers' transitions, each once."""
    [script] = re.findall(r"```python\n(.*?)```", (DOCS / "processes.md").read_text(), re.S)
    look = 'buffer[:]["agents", "observation"].flatten(1).unique(dim=0).shape'
    (tmp_path / "script.py").write_text(script.replace("print(", f"print({look}, "))
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=300)
    assert "torch.Size([1280, 54]) 1280 torch.Size([256])" in done.stdout, done.stderr


@pytest.mark.slow
def test_parallel_environments_of_torchrl():
    env = ParallelEnv(2, [partial(CASES["one size"], seed=seed) for seed in (0, 1)])
    try:
        td = env.rollout(4)
        assert td.shape == (2, 4, 4)
        assert not td[0]["agents", "observation"].equal(td[1]["agents", "observation"])
    finally:
        env.close()
