"""Linear probes of the messages of a team."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from torchrl_bicnet.analysis.intervention import _nets
from torchrl_bicnet.checks import check_type
from torchrl_bicnet.episodes import in_eval_mode
from torchrl_bicnet.modules import BiCNetActor


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """Linear readouts of what each agent knows, in ``S`` states of episodes that they were not fit on.

    All are double and on the CPU; entry ``[i]`` of readouts is that of agent ``i``.

    Args:
        truth (Tensor): what each agent knows, ``(S, N, K)``.
        readout (Tensor): from what agent ``i`` heard, ``(N, S, N, K)``.
        own_readout (Tensor): from its observation instead, ``(N, S, N, K)``.
        acted_readout (Tensor): from its observation and what it does, ``(N, S, N, K)``.

    Example:
        >>> import torch
        >>> truth = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])
        >>> readout = torch.stack([truth, torch.full((2, 2, 1), 3.0)])  # agent 0 heard all, agent 1 nothing
        >>> LinearProbe(truth, readout, readout, readout).r2
        tensor([[ 1.,  1.],
                [-1.,  0.]])
    """

    truth: Tensor
    readout: Tensor
    own_readout: Tensor
    acted_readout: Tensor

    @property
    def r2(self) -> Tensor:
        """Coefficients of determination of the readouts from what was heard, ``(N, N)``: row hears, column knows.

        1 where what ``j`` knows can be read exactly, 0 where the readout is no better than the mean, negative where it
        is worse, NaN where what ``j`` knows is the same in all states. Of several features the squares are summed.
        """
        return _r2(self.readout, self.truth)

    @property
    def own_r2(self) -> Tensor:
        """The same of the readouts from the own observation, ``(N, N)``."""
        return _r2(self.own_readout, self.truth)

    @property
    def acted_r2(self) -> Tensor:
        """The same of the readouts from the own observation and what the agent does, ``(N, N)``."""
        return _r2(self.acted_readout, self.truth)


def linear_probe(actor: BiCNetActor, states: TensorDictBase, knowledge: Tensor) -> LinearProbe:
    """Fit linear probes: what can each agent tell of what another one knows, from what it heard?

    What agent ``i`` heard is the output of the communication layer for it. From it, in half of the episodes, a linear
    readout with an intercept is fit by least squares to what agent ``j`` knows; the other half tells how good it is.
    Two more readouts stand beside it:

    - from the observation of agent ``i``: what it could tell, linearly, without hearing anything, as where an agent
      that has set out for its goal betrays by its place what another one told it;
    - from its observation and the net's output for it, its action before the squashing: what of the knowledge of ``j``
      is in what it does. What was heard need not be used, nor learned: random layers pass on much of what they get.

    Readouts have as many coefficients as the layer has outputs: take several times as many episodes, where what is
    known stays the same for an episode. With a mask the states count in which all agents are present.

    Args:
        actor (BiCNetActor): the actor of a group, with a :class:`~torchrl_bicnet.BiCNet` in it.
        states (TensorDictBase): of batch shape ``*B``, with the actor's ``in_keys`` and ``"episode"``, ``(*B,)``, as
            :func:`~torchrl_bicnet.analysis.visited_states` gives them.
        knowledge (Tensor): what each agent knows, ``(*B, N, K)``, such as some features of its observation.

    Returns:
        LinearProbe: readouts and truth in the episodes that were not fit on.

    Reference: Alain and Bengio, *Understanding intermediate layers using linear classifier probes*, 2016,
    https://arxiv.org/abs/1610.01644.

    Example:
        >>> from torchrl_bicnet import BiCNetActor, make_vmas_env
        >>> from torchrl_bicnet.analysis import visited_states
        >>> env = make_vmas_env("hidden_goals", num_envs=500, n_agents=3)
        >>> actor = BiCNetActor.from_env(env, communication="none")
        >>> states = visited_states(env, actor, max_steps=1, seed=0)
        >>> probe = linear_probe(actor, states, states["agents", "observation"][..., 4:6])  # the goal that it sees
        >>> (probe.r2 > 0.5).int().tolist()
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    """
    check_type("actor", actor, BiCNetActor, "one BiCNetActor, such as run.actors[group]")
    check_type("states", states, TensorDictBase, "a tensordict")
    check_type("knowledge", knowledge, Tensor, "a tensor (*B, N, K)")
    n_agents = states[actor.in_keys[0]].shape[-2]
    if knowledge.shape[:-1] != (*states.batch_size, n_agents):
        expected = f"({', '.join(map(str, (*states.batch_size, n_agents, 'K')))})"
        raise ValueError(f"knowledge must be of shape {expected}, found {tuple(knowledge.shape)}.")
    states, knowledge = states.reshape(-1), knowledge.reshape(-1, *knowledge.shape[-2:])
    if actor.mask_key is not None:
        complete = states[actor.mask_key].all(-1)
        states, knowledge = states[complete], knowledge[complete]
    episodes, place = states["episode"].cpu().unique(return_inverse=True)
    if len(episodes) < 2:
        raise ValueError(f"states must be of two episodes or more, found {len(episodes)}.")
    held_out, truth = place % 2 == 1, knowledge.cpu().double()
    heard, param = _heard(actor, states)
    own = torch.cat([states[key] for key in actor.in_keys if key != actor.mask_key], -1)
    sources = (heard, own, torch.cat([own, param], -1))
    return LinearProbe(truth[held_out], *(_readouts(features, truth, held_out) for features in sources))


def _heard(actor: BiCNetActor, states: TensorDictBase) -> tuple[Tensor, Tensor]:
    """Outputs of the communication layers, ``(S, N, F)``, and of the net, ``(S, N, a)``."""
    heard: list[Tensor] = []
    with torch.no_grad(), in_eval_mode(actor), ExitStack() as hooks:
        for net in _nets(actor):
            handle = net.communication.register_forward_hook(lambda layer, inputs, output: heard.append(output))
            hooks.callback(handle.remove)
        param = actor(states.copy())[actor.out_keys[0]]
    return torch.cat(heard, -1), param


def _readouts(features: Tensor, truth: Tensor, held_out: Tensor) -> Tensor:
    """From the features of each receiver, ``(S, N, F)``, for the states held out: ``(N, held out, N, K)``."""
    x = nn.functional.pad(features.cpu().double(), (0, 1), value=1.0).movedim(-2, 0)  # (N, S, F + 1)
    known = truth[~held_out].flatten(1).expand(len(x), -1, -1)
    # Any rank; the default driver may return zeros: https://github.com/pytorch/pytorch/issues/187411
    coefficients = torch.linalg.lstsq(x[:, ~held_out], known, driver="gelsd").solution
    return (x[:, held_out] @ coefficients).unflatten(-1, truth.shape[1:])


def _r2(readout: Tensor, truth: Tensor) -> Tensor:
    errors = (readout - truth).square().sum((1, 3))  # (N, N)
    spread = (truth - truth.mean(0)).square().sum((0, 2))  # (N,)
    return torch.where(spread > 0, 1 - errors / spread, torch.nan)
