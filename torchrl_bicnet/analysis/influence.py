"""Influence in a team: how much one agent's observation moves another's action."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_bicnet.checks import check_type
from torchrl_bicnet.episodes import in_eval_mode
from torchrl_bicnet.modules import BiCNetActor


def influence(actor: BiCNetActor, states: TensorDictBase) -> Tensor:
    """Influence of each agent's observation on each agent's action, in each state.

    Entry ``[i, j]`` is the Frobenius norm of the Jacobian of agent ``i``'s action (after the squashing, in units of
    the action) by agent ``j``'s observation (in units of the observation), with the actor in eval mode. Where an
    agent is absent its row and its column are zero.

    Args:
        actor (BiCNetActor): the actor of a group.
        states (TensorDictBase): holds the actor's ``in_keys``, of batch shape ``*B``.

    Returns:
        Tensor: ``(*B, N, N)``, row ``i`` acts, column ``j`` observes.

    Example:
        >>> from torchrl_bicnet import BiCNetActor, make_vmas_env
        >>> env = make_vmas_env("navigation", num_envs=8, n_agents=3)
        >>> influence(BiCNetActor.from_env(env), env.reset()).shape
        torch.Size([8, 3, 3])
    """
    check_type("actor", actor, BiCNetActor, "a BiCNetActor")  # not a sequence of several
    check_type("states", states, TensorDictBase, "a tensordict")
    mask = [] if actor.mask_key is None else [states[actor.mask_key]]
    # Reverse mode, one action entry at a time for all states at once: it serves the fused kernels, which know no vmap.
    with torch.enable_grad(), in_eval_mode(actor):
        keys = [key for key in actor.in_keys if key != actor.mask_key]
        observations = [states[key].detach().clone().requires_grad_() for key in keys]
        action = actor.module(*observations, *mask)[1]  # (*B, N, a)
        rows = []
        for i in range(action.shape[-2]):
            squares = torch.zeros(action.shape[:-1], dtype=action.dtype, device=action.device)  # (*B, N)
            for entry in action[..., i, :].unbind(-1):
                gradients = torch.autograd.grad(entry.sum(), observations, retain_graph=True)
                squares += sum(gradient.square().sum(-1) for gradient in gradients)
            rows.append(squares.sqrt())
    return torch.stack(rows, -2)


def influence_matrix(actor: BiCNetActor, states: TensorDictBase) -> Tensor:
    """:func:`~torchrl_bicnet.analysis.influence`, averaged over the states in which both agents are present.

    A team without communication has a diagonal matrix; one that talks in one direction only a triangular one.

    Args:
        actor (BiCNetActor): the actor of a group.
        states (TensorDictBase): holds the actor's ``in_keys``, of any batch shape, such as those of
            :func:`~torchrl_bicnet.analysis.visited_states`.

    Returns:
        Tensor: ``(N, N)``, row ``i`` acts, column ``j`` observes; zero for agents never present together.

    Example:
        >>> from torchrl_bicnet import BiCNetActor, make_vmas_env
        >>> env = make_vmas_env("navigation", num_envs=8, n_agents=3)
        >>> matrix = influence_matrix(BiCNetActor.from_env(env, communication="none"), env.reset())
        >>> (matrix != 0).int().tolist()
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    """
    check_type("states", states, TensorDictBase, "a tensordict")
    if 0 in states.batch_size:
        raise ValueError(f"Expected at least one state, found batch shape {tuple(states.batch_size)}.")
    norms = influence(actor, states)
    both = torch.ones_like(norms, dtype=torch.bool)
    if actor.mask_key is not None:
        mask = states[actor.mask_key]
        both = mask.unsqueeze(-1) & mask.unsqueeze(-2)
    norms, both = (x.reshape(-1, *norms.shape[-2:]) for x in (norms, both))
    return norms.sum(0) / both.sum(0).clamp_min(1)
