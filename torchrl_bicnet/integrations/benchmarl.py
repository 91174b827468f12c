"""BiCNet as a model of BenchMARL, and VMAS as its task.

BenchMARL 1.5 asks for torchrl 0.11 and this package for 0.14; what is needed here runs on both. docs/api/benchmarl.md
says how to install them together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from benchmarl.environments.vmas.common import VmasClass
from benchmarl.models import Model, ModelConfig
from tensordict import TensorDictBase
from torch import nn
from torchrl.data import Composite
from torchrl.envs import EnvBase

from torchrl_bicnet.envs import make_vmas_env
from torchrl_bicnet.net import BiCNet, CommunicationName


class Bicnet(Model):
    """BiCNet as a model of BenchMARL, for actors and critics that read something of each agent.

    The agents of a group communicate in it, in an actor too. A critic with one output for the whole group gives the
    mean over the agents. A critic of a global state has no agents to talk to each other and is refused. With IDDPG,
    whose critic has a value for each agent, it is the algorithm of the paper.

    Args:
        **kwargs: the fields of :class:`BicnetConfig`, and what BenchMARL's :class:`~benchmarl.models.Model` takes.

    Reference: Peng et al., *Multiagent Bidirectionally-Coordinated Nets*, 2017, https://arxiv.org/abs/1703.10069.
    """

    def __init__(self, **kwargs: Any) -> None:
        net_options = {field.name: kwargs.pop(field.name) for field in fields(BicnetConfig)}
        super().__init__(**kwargs)
        self.net = BiCNet(
            sum(spec.shape[-1] for spec in self.input_spec.values(True, True)),
            self.output_leaf_spec.shape[-1],
            share_params=self.share_params,
            n_agents=self.n_agents,
            device=self.device,
            **net_options,
        )

    def _perform_checks(self) -> None:
        super()._perform_checks()
        for key, spec in self.input_spec.items(True, True):
            if not self.input_has_agent_dim or spec.ndim != 2 or spec.shape[0] != self.n_agents:
                raise ValueError(
                    f"BiCNet reads the features of each of {self.n_agents} agents, found {key!r} of shape "
                    f"{tuple(spec.shape)}."
                )

    def _forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        output = self.net(*(tensordict.get(key) for key in self.in_keys))
        return tensordict.set(self.out_key, output if self.output_has_agent_dim else output.mean(-2))


@dataclass
class BicnetConfig(ModelConfig):
    """Options of :class:`Bicnet`, those of :class:`~torchrl_bicnet.BiCNet`.

    ``BicnetConfig.get_from_yaml()`` gives the defaults, ``get_from_yaml(path)`` those of a YAML file with these names
    and ``name: bicnet``.

    Example::

        experiment = Experiment(
            task=VmasTask.NAVIGATION.get_from_yaml(),
            algorithm_config=IddpgConfig.get_from_yaml(),
            model_config=BicnetConfig(communication="gru"),
            critic_model_config=BicnetConfig(communication="gru"),
            seed=0,
            config=ExperimentConfig.get_from_yaml(),
        )
    """

    communication: CommunicationName = "gru"
    hidden_size: int = 64
    num_cells: Sequence[int] = (128,)
    norm_class: type[nn.Module] | None = nn.LayerNorm
    activation_class: type[nn.Module] = nn.ReLU
    skip: bool | int = True
    agent_id: bool = False
    n_frequencies: int = 0

    @staticmethod
    def associated_class() -> type[Model]:
        return Bicnet

    @classmethod
    def get_from_yaml(cls, path: str | None = None) -> BicnetConfig:
        return cls() if path is None else super().get_from_yaml(path)


class CompiledVmas(VmasClass):
    """A task of VMAS or of :mod:`torchrl_bicnet.tasks`, stepped by :func:`~torchrl_bicnet.make_vmas_env`.

    Time limits are truncated, so that a target goes on beyond them; BenchMARL's own VMAS terminates episodes there.

    Args:
        name (str): of the scenario.
        config (dict): ``max_steps``, the scenario's options, and ``compile``, by default True: whether the step is
            compiled.

    Example::

        task = CompiledVmas("navigation", VmasTask.NAVIGATION.get_from_yaml().config)
        task = CompiledVmas("hidden_goals", {"n_agents": 4, "max_steps": 50})
    """

    def get_env_fun(
        self, num_envs: int, continuous_actions: bool, seed: int | None, device: torch.device | str
    ) -> Callable[[], EnvBase]:
        options = {"compile": True, **self.config, "seed": seed, "device": device}
        return partial(make_vmas_env, self.name.lower(), num_envs, continuous_actions=continuous_actions, **options)

    def observation_spec(self, env: EnvBase) -> Composite:
        return self._of_groups(env, "observation")

    def info_spec(self, env: EnvBase) -> Composite | None:
        info = self._of_groups(env, "info")
        return info if list(info.keys(True, True)) else None

    def _of_groups(self, env: EnvBase, entry: str) -> Composite:
        """The group's entry alone: models must not read the return so far, or whether the episode has ended."""
        spec = env.full_observation_spec_unbatched.clone()
        for key in list(spec.keys(True, True)):
            if entry not in key[1:2]:
                del spec[key]
        return spec
