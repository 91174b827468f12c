import torch
import vmas

from tests.helpers_vmas import IGNORED_WARNINGS, assert_close
from torchrl_bicnet.vmas_fast.batched_world import use_batched_world

pytestmark = IGNORED_WARNINGS
B = 3


def test_players_of_football_act_as_in_vmas_given_the_same_random_numbers(monkeypatch):
    """Those of the masked policy are drawn for all environments: here each draw is one number everywhere."""
    drawn = []
    monkeypatch.setattr(torch, "randn", lambda *size, device: torch.full([], next(drawn[-1])).expand(*size).clone())
    outputs = []
    for never_wait in (True, False):
        environment = vmas.make_env("football", B, seed=0, n_red_agents=4)
        use_batched_world(environment, never_wait=never_wait)
        generator = torch.Generator().manual_seed(0)
        environment.scenario.ball.set_pos(torch.rand(B, 2, generator=generator) - 0.5, batch_index=None)
        drawn.append(iter(torch.normal(0.0, 1.0, (10_000,), generator=generator).tolist()))
        steps, had_ball = [], []
        for _ in range(12):
            actions = [torch.rand(B, 2, generator=generator) * 2 - 1 for _ in environment.agents]
            steps.append(environment.step(actions))
            steps[-1].append([agent.action.u for agent in environment.world.agents])
            had_ball += environment.scenario.red_controller.agent_possession.values()
        outputs.append(steps)
    assert_close(*outputs, tolerance=1e-5)
    had_ball = torch.stack(had_ball)
    assert had_ball[:, 0].any()  # others look at another environment then
    assert not had_ball.any(1).all()
