"""MADDPG in the loop of `examples/train_vmas.py`: nets of TorchRL's `MultiAgentMLP`, all else as for BiCNet.

Lowe et al., 2017, https://arxiv.org/abs/1706.02275: an actor per agent that sees its own observation alone, and a
critic per agent that sees all observations and actions. Fourier features, layer norm and activation are BiCNet's, and
each net has two hidden layers as wide as BiCNet's widest: together they have about as many parameters.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchrl.envs import EnvBase
from torchrl.modules import MultiAgentMLP

from examples.train_vmas import Learner, Options
from torchrl_bicnet import BiCNetActor, BiCNetCritic
from torchrl_bicnet.net import fourier_features
from torchrl_bicnet.specs import agent_spec


class MADDPGLearner(Learner):
    """An actor per agent, which hears no other, and a critic per agent, which sees everything."""

    def make_networks(self, env: EnvBase, group: str, options: Options) -> tuple[BiCNetActor, BiCNetCritic]:
        *_, n_agents, n_inputs = agent_spec(env, (group, "observation")).shape
        n_actions = agent_spec(env, (group, "action")).shape[-1]
        mlp = partial(_mlp, n_agents=n_agents, activation=getattr(nn, options.activation_class), device=env.device)
        n_features = n_inputs * (1 + 2 * options.n_frequencies)
        actor = mlp(n_features, n_actions, width=max(options.num_cells), centralized=False)
        critic = mlp(n_features + n_actions, 1, width=max(options.critic_num_cells), centralized=True)
        return (
            BiCNetActor.from_env(env, group=group, net=_WithFeatures(actor, options.n_frequencies)),
            BiCNetCritic.from_env(env, group=group, net=_WithFeatures(critic, options.n_frequencies)),
        )


class _WithFeatures(nn.Module):
    """A net of one input called with observations, which get Fourier features, and perhaps actions."""

    def __init__(self, net: nn.Module, n_frequencies: int) -> None:
        super().__init__()
        self.net, self.n_frequencies = net, n_frequencies

    def forward(self, observation: Tensor, *actions: Tensor) -> Tensor:
        features = [fourier_features(observation, self.n_frequencies)] if self.n_frequencies else []
        return self.net(torch.cat([observation, *features, *actions], -1))


def _mlp(
    n_inputs: int, n_outputs: int, *, n_agents: int, width: int, activation: type[nn.Module], **options: Any
) -> MultiAgentMLP:
    return MultiAgentMLP(
        n_inputs,
        n_outputs,
        n_agents,
        share_params=False,
        depth=2,
        num_cells=width,
        activation_class=activation,
        norm_class=nn.LayerNorm,
        norm_kwargs={"normalized_shape": width},
        **options,
    )
