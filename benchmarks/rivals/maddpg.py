"""MADDPG in the loop of `examples/train_vmas.py`: nets of TorchRL's `MultiAgentMLP`, all else as for BiCNet.

Lowe et al., 2017, https://arxiv.org/abs/1706.02275: an actor per agent that sees its own observation alone, and a
critic that sees all observations and actions. The critic is one for the team, as its tasks ask for: its value is fitted
to every agent's target, so to their mean. Layers, layer norm and activation are BiCNet's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchrl.envs import EnvBase
from torchrl.modules import MultiAgentMLP

from examples.train_vmas import Learner, Options
from torchrl_bicnet import BiCNetActor, BiCNetCritic
from torchrl_bicnet.specs import agent_spec


class MADDPGLearner(Learner):
    """Actors that do not hear each other, and a critic that sees everything."""

    def make_networks(self, env: EnvBase, group: str, options: Options) -> tuple[BiCNetActor, BiCNetCritic]:
        *_, n_agents, n_inputs = agent_spec(env, (group, "observation")).shape
        n_actions = agent_spec(env, (group, "action")).shape[-1]
        # Two hidden layers each, as wide as BiCNet's are, the critic's twice that: it then has about as many parameters
        # as BiCNet's with its communication layer.
        narrow, wide = [
            2 * [times * max(cells)] for times, cells in ((1, options.num_cells), (2, options.critic_num_cells))
        ]
        activation = getattr(nn, options.activation_class)
        actor = mlp(
            n_inputs, n_actions, n_agents, narrow, activation, centralized=False, share_params=False, device=env.device
        )
        critic = mlp(
            n_inputs + n_actions, 1, n_agents, wide, activation, centralized=True, share_params=True, device=env.device
        )
        return (
            BiCNetActor.from_env(env, group=group, net=actor),
            BiCNetCritic.from_env(env, group=group, net=_Joined(critic)),
        )


class _Joined(nn.Module):
    """A net of one input called with several."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.net(torch.cat(inputs, -1))


def mlp(
    n_inputs: int, n_outputs: int, n_agents: int, cells: list[int], activation: type[nn.Module], **options: Any
) -> MultiAgentMLP:
    return MultiAgentMLP(
        n_inputs,
        n_outputs,
        n_agents,
        depth=len(cells),
        num_cells=cells,
        activation_class=activation,
        norm_class=nn.LayerNorm,
        norm_kwargs=[{"normalized_shape": width} for width in cells],
        **options,
    )
