"""The suite of coordination tasks: what is learned, for how long an episode, and which number is reported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor
from torchrl.envs import TransformedEnv

from torchrl_bicnet import make_vmas_env


@dataclass(frozen=True)
class Task:
    """A scenario with its options.

    Args:
        name (str): in results.
        scenario (str): of :func:`~torchrl_bicnet.make_vmas_env`.
        max_steps (int): time limit of an episode.
        needs_communication (bool): whether somebody must know what only another agent sees: then a team that does not
            communicate falls short of one that does, however it was trained.
        scenario_options (dict): options of the scenario.
        reported (str): what the number of an episode is; ``"foods eaten"`` is the sum of the agents' returns, each
            of which gets its share of a food, and ``"return"`` their mean.
    """

    name: str
    scenario: str
    max_steps: int
    needs_communication: bool
    scenario_options: dict[str, Any] = field(default_factory=dict)
    reported: str = "return"

    def make_env(self, num_envs: int, **options: Any) -> TransformedEnv:
        """The environment; options are those of :func:`~torchrl_bicnet.make_vmas_env`."""
        return make_vmas_env(self.scenario, num_envs, max_steps=self.max_steps, **options, **self.scenario_options)

    def score(self, returns: Tensor) -> Tensor:
        """The reported number of each episode, ``(E,)``, from the returns of its agents, ``(E, N)``."""
        return returns.sum(-1) if self.reported == "foods eaten" else returns.mean(-1)


SUITE = {
    task.name: task
    for task in (
        Task("guess_the_sum", "guess_the_sum", 1, True, {"n_agents": 3}),
        Task("hidden_goals_2", "hidden_goals", 50, True, {"n_agents": 2}),
        Task("hidden_goals_4", "hidden_goals", 50, True, {"n_agents": 4}),
        Task("hidden_goals_8", "hidden_goals", 50, True, {"n_agents": 8}),
        Task("hidden_goals_4_random_seers", "hidden_goals", 50, True, {"n_agents": 4, "random_seers": True}),
        Task("simple_spread_blind", "simple_spread", 100, True, {"n_agents": 3, "obs_agents": False}),
        Task("dispersion", "dispersion", 40, False, {"n_agents": 4, "share_reward": False}, "foods eaten"),
        Task("navigation", "navigation", 100, False, {"n_agents": 4}),
        # Nothing is tuned on these two.
        Task("speaker_listener", "speaker_listener", 50, True),
        Task("dropout", "dropout", 100, True, {"n_agents": 4}),
    )
}


class Private(NamedTuple):
    """Features of an agent's observation that tell what no other agent sees; constant where it knows no such thing."""

    what: str
    features: slice


# By scenario, with the options that it has in the suite.
PRIVATE = {
    "guess_the_sum": Private("its number", slice(0, 1)),
    "hidden_goals": Private("the goal that it sees", slice(4, 6)),
    "simple_spread": Private("its position", slice(0, 2)),
    "dispersion": Private("its position", slice(0, 2)),
    "navigation": Private("its position relative to its goal", slice(4, 6)),
    "speaker_listener": Private("which landmark is the goal (the speaker)", slice(8, 11)),
    "dropout": Private("its position", slice(0, 2)),
}
