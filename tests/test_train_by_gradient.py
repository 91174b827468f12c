"""The example that trains through the simulator."""

import json

import pytest
import torch

from examples.train_by_gradient import ACTION, Options, main, roll_out, train
from torchrl_bicnet import BiCNetActor, make_vmas_env

TINY = {"num_envs": 8, "max_steps": 6, "eval_episodes": 4, "eval_interval": 2, "batch_size": 16}


def test_it_writes_what_it_evaluates(tmp_path, capsys):
    path = tmp_path / "results.json"
    main(Options(**TINY, total_frames=100, results=path))
    results = json.loads(path.read_text())
    assert [row["frames"] for row in results["evaluations"]] == [0, 64, 128]
    assert capsys.readouterr().out.count("return") == 3
    assert {"versions", "machine", "date", "commit", "options"} <= results.keys()
    assert results["options"]["num_envs"] == 8


def test_gradients_go_back_over_the_window_until_an_episode_ends():
    env = make_vmas_env("navigation", 8, max_steps=6, seed=0, grad_enabled=True)
    actor, actions = BiCNetActor.from_env(env), []

    def keep(module, inputs, td):
        actions.append(td[ACTION])

    actor.register_forward_hook(keep)
    batch, _ = roll_out(env, env.reset(), actor, Options(**TINY, window=8))
    assert batch["next", "done"][:, 5].all()  # the time limit
    rewards = batch["next", "agents", "reward"]
    for step, reached in ((5, [0, 1, 2, 3, 4, 5]), (7, [6, 7])):
        gradients = torch.autograd.grad(rewards[:, step].sum(), actions, retain_graph=True, materialize_grads=True)
        assert [i for i, gradient in enumerate(gradients) if gradient.abs().max() > 0] == reached


@pytest.mark.long
def test_it_learns_navigation():
    evaluations = train(Options(total_frames=40_000, eval_interval=1000))
    assert evaluations[-1]["evaluation_return"] > 1.5  # -5.9 before
