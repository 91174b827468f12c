"""Actors that do not hear each other and a critic that does: centralised training alone, in BiCNet's own nets."""

from __future__ import annotations

from dataclasses import replace

from torchrl.envs import EnvBase

from examples.train_vmas import Learner, Options
from torchrl_bicnet import BiCNetActor, BiCNetCritic


class SilentActorsLearner(Learner):
    """Actors without communication but with an agent id; BiCNet's critic."""

    def make_networks(self, env: EnvBase, group: str, options: Options) -> tuple[BiCNetActor, BiCNetCritic]:
        silent = replace(options, communication="none", agent_id=True)
        return super().make_networks(env, group, silent)[0], super().make_networks(env, group, options)[1]
