"""Memory of each agent over time, in front of an actor or a critic."""

from __future__ import annotations

from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey, expand_right, unravel_key
from torch import Tensor
from torch.nn.functional import pad
from torchrl.data import Unbounded
from torchrl.envs import EnvBase, TensorDictPrimer
from torchrl.modules import GRUModule, LSTMModule, set_recurrent_mode

from torchrl_bicnet.checks import check_integer, check_key, check_type
from torchrl_bicnet.communication.mask import mask_absent
from torchrl_bicnet.specs import agent_mask_key, agent_spec, find_group

_CELLS = {"gru": (GRUModule, ("hidden",)), "lstm": (LSTMModule, ("hidden", "cell"))}  # and the parts of their states


class AgentMemory(TensorDictModuleBase):
    """A recurrence over time for each agent, of what it observed since the episode began.

    Goes in front of an actor or a critic, ``TensorDictSequential(memory, actor)``, which reads ``(group, "memory")``
    among its ``in_keys``. Agents share the parameters and do not hear each other in it: that is what the communication
    behind it is for. It is TorchRL's :class:`~torchrl.modules.GRUModule` or :class:`~torchrl.modules.LSTMModule`, with
    agents in the place of environments, and is used as these are:

    - the state travels in the tensordict, from ``("next", group, "memory_hidden")`` to ``(group, "memory_hidden")``, so
      an environment that the memory acts in needs :meth:`make_tensordict_primer` as a transform;
    - it starts from zero wherever ``"is_init"`` is set;
    - under ``set_recurrent_mode(True)``, which TorchRL's losses set by themselves, the last dimension of the tensordict
      is time and a sequence is processed in one piece, from the state that is stored with its first step, and anew from
      the stored one, which is zero at the start of an episode, wherever ``"is_init"`` is set. Sequences come from a
      replay buffer by :class:`~torchrl.data.SliceSampler`; :meth:`burn_in` brings their first states up to date.

    Learn from sequences, never from ``batch.reshape(-1)``, and let the critic's memory act along with the actor,
    ``TensorDictSequential(actor_memory, actor, critic_memory)``, so that its states are stored too.

    As TorchRL's modules do, it waits for the device, to see where episodes start.

    An absent agent remembers nothing: its slot is zero, and it starts anew should it come back.

    Args:
        n_agent_inputs (int): size of each agent's observation.
        hidden_size (int): size of what an agent remembers.

    Keyword Args:
        n_agents (int): number of agents, for the state's spec alone: parameters do not depend on it.
        cell (str): ``"gru"`` or ``"lstm"``. Defaults to ``"gru"``.
        group (NestedKey): where the agents' entries live. Defaults to ``"agents"``.
        mask_key (NestedKey, optional): where a boolean mask ``(*B, N)`` of the agents present is read.
        name (str): of the entry that is written; the state is at ``name_hidden``, and ``name_cell`` of an LSTM.
            Actor and critic need memories of two names. Defaults to ``"memory"``.
        in_key (NestedKey, optional): what is remembered. Defaults to ``(group, "observation")``.
        device (torch.device, optional): where to create the parameters.

    Raises:
        KeyError: when it is called, if the state is missing: the environment was not given the primer.
        RuntimeError: under :func:`torch.vmap`, as value estimators use it without ``deactivate_vmap=True``.

    Shape:
        - observation: ``(*B, N, n_agent_inputs)``, in recurrent mode ``B = (*environments, T)``
        - ``"is_init"``: ``(*B, 1)``, as :class:`~torchrl.envs.InitTracker` and
          :func:`~torchrl_bicnet.make_vmas_env` write it
        - memory: ``(*B, N, hidden_size)``; state: ``(*B, N, 1, hidden_size)``

    References: Hochreiter and Schmidhuber, *Long short-term memory*, 1997, and Cho et al., 2014,
    https://arxiv.org/abs/1406.1078, for the cells; Kapturowski et al., *Recurrent Experience Replay in Distributed
    Reinforcement Learning*, 2019, for stored states and burn-in.

    Example:
        >>> from tensordict.nn import TensorDictSequential
        >>> from torchrl.modules import set_recurrent_mode
        >>> from torchrl_bicnet import BiCNetActor, make_vmas_env
        >>> env = make_vmas_env("navigation", num_envs=8, max_steps=50, n_agents=3)
        >>> memory = AgentMemory.from_env(env, hidden_size=32)
        >>> env = env.append_transform(memory.make_tensordict_primer())
        >>> actor = BiCNetActor(18 + 32, env.full_action_spec, in_keys=[("agents", "observation"), memory.out_keys[0]])
        >>> policy = TensorDictSequential(memory, actor)
        >>> sequences = env.rollout(10, policy)  # step by step
        >>> with set_recurrent_mode(True):  # in one piece
        ...     again = policy(sequences.clone())
        >>> again["agents", "memory"].allclose(sequences["agents", "memory"], atol=1e-5)
        True
    """

    def __init__(
        self,
        n_agent_inputs: int,
        hidden_size: int,
        *,
        n_agents: int,
        cell: Literal["gru", "lstm"] = "gru",
        group: NestedKey = "agents",
        mask_key: NestedKey | None = None,
        name: str = "memory",
        in_key: NestedKey | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        sizes = {"n_agent_inputs": n_agent_inputs, "hidden_size": hidden_size, "n_agents": n_agents}
        for argument, size in sizes.items():
            check_integer(argument, size)
        if cell not in _CELLS:
            raise ValueError(f"cell must be one of {tuple(_CELLS)}, found {cell!r}.")
        check_type("name", name, str, "a string")
        for argument, key in (("group", group), ("in_key", in_key), ("mask_key", mask_key)):
            if key is not None:
                check_key(argument, key)
        self.group, self.n_agents = unravel_key(group), n_agents
        self.mask_key = None if mask_key is None else unravel_key(mask_key)
        module_class, parts = _CELLS[cell]
        self.hidden_size = hidden_size
        self.state_keys = [unravel_key((group, f"{name}_{part}")) for part in parts]
        in_keys = [unravel_key((group, "observation") if in_key is None else in_key), *self.state_keys, "is_init"]
        self.out_keys = [unravel_key((group, name)), *(unravel_key(("next", state)) for state in self.state_keys)]
        recurrence = module_class(n_agent_inputs, hidden_size, in_keys=in_keys, out_keys=self.out_keys, device=device)
        self.in_keys = [*in_keys, *([] if self.mask_key is None else [self.mask_key])]
        self.cell = next(recurrence.children())  # torch's
        # No submodule: TorchRL would make a primer of it, too, for states without agents.
        self.__dict__["_recurrence"] = recurrence

    @classmethod
    def from_env(
        cls,
        env: EnvBase,
        hidden_size: int,
        *,
        group: NestedKey | None = None,
        **kwargs: Any,
    ) -> AgentMemory:
        """The memory of an environment's group of agents.

        Args:
            env (EnvBase): an environment whose agents are on dimension -2 of ``(group, "observation")``.
            hidden_size (int): size of what an agent remembers.

        Keyword Args:
            group (NestedKey, optional): the group. ``None``: the only one.
            **kwargs: anything the constructor takes; ``device`` defaults to the environment's, ``mask_key`` to
                ``(group, "mask")`` if the environment writes it.
        """
        group = find_group(env, group)
        *batch, n_agents, n_agent_inputs = agent_spec(
            env, kwargs.get("in_key") or unravel_key((group, "observation"))
        ).shape
        found = {"device": env.device, "mask_key": agent_mask_key(env, group, torch.Size([*batch, n_agents]))}
        return cls(n_agent_inputs, hidden_size, n_agents=n_agents, group=group, **(found | kwargs))

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The transform that puts the state, zero at each reset, into an environment and its specs."""
        specs = {state: Unbounded((self.n_agents, 1, self.hidden_size)) for state in self.state_keys}
        return TensorDictPrimer(specs, expand_specs=True)

    @torch.no_grad()
    def burn_in(self, sequences: TensorDictBase, steps: int) -> TensorDictBase:
        """Bring the stored states after the first ``steps`` of sequences ``(*B, T)`` up to date, from those steps.

        Learn from the rest, ``sequences[..., steps:]``. The states before its first step and behind it are changed, at
        which the values of states and of next states begin; one that starts an episode stays zero.
        """
        check_integer("steps", steps, least=0, most=sequences.shape[-1] - 1)
        if steps:
            with set_recurrent_mode(True):
                before = self(sequences[..., :steps].select(*self.in_keys))
            first = sequences[..., steps].select(*self.in_keys)
            for key in self.state_keys:
                last = before["next"][key][..., -1, :, :, :]
                first[key] = torch.where(expand_right(first["is_init"], last.shape), first[key], last)
            with set_recurrent_mode(False):
                self(first)
            for key in (*self.state_keys, *self.out_keys[1:]):
                sequences[key][..., steps, :, :, :] = first[key]
        return sequences

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        observation, is_init = self.in_keys[0], "is_init"
        if missing := [key for key in self.state_keys if key not in tensordict.keys(True)]:
            raise KeyError(
                f"The state {missing[0]!r} of a memory is missing: append memory.make_tensordict_primer() to the "
                f"environment, so that it passes the state on from step to step."
            )
        if torch._C._functorch.is_batchedtensor(tensordict[is_init]):
            raise RuntimeError(
                "Memories do not run under torch.vmap: give deactivate_vmap=True to loss.make_value_estimator."
            )
        mask = None if self.mask_key is None else tensordict[self.mask_key]  # (*B, N)
        inputs = {observation: mask_absent(tensordict[observation], mask)}
        inputs |= {key: tensordict[key] for key in self.state_keys}
        starts = expand_right(tensordict[is_init], inputs[observation].shape[:-1])  # (*B, N)
        if mask is not None and self._recurrence.recurrent_mode:
            starts = starts | pad(~mask[..., :-1, :], (0, 0, 1, 0))  # who was absent at the step before
        inputs[is_init] = starts.unsqueeze(-1)

        n_dims = tensordict.ndim  # the agents come next, and time last
        agents_first = {key: tensor.movedim(n_dims, 0) for key, tensor in inputs.items()}
        output = self._recurrence(TensorDict(agents_first, [starts.shape[-1], *tensordict.shape]))
        for key in self.out_keys:
            tensordict.set(key, _mask_slots(output[key].movedim(0, n_dims), mask))
        return tensordict


def _mask_slots(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zero where the agent is absent, with any number of dimensions behind that of the agents."""
    return x if mask is None else torch.where(expand_right(mask, x.shape), x, torch.zeros_like(x))
