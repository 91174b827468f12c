"""Who influences whom in a team: how much one agent's observation moves another's action."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_bicnet.checks import check_type
from torchrl_bicnet.evaluation import in_eval_mode
from torchrl_bicnet.modules import BiCNetActor


def influence(actor: BiCNetActor, states: TensorDictBase) -> Tensor:
    """How much each agent's observation moves each agent's action, in each state.

    Entry ``[i, j]`` is the Frobenius norm of the Jacobian of agent ``i``'s action (after the squashing, in units of
    the action) by agent ``j``'s observation (in units of the observation), with the actor in eval mode. Where an
    agent is absent its row and its column are zero.

    Args:
        actor (BiCNetActor): the actor of a group.
        states (TensorDictBase): holds the actor's ``in_keys``, of batch shape ``*B``.

    Returns:
        Tensor: ``(*B, N, N)``, row ``i`` acts, column ``j`` observes.

    Raises:
        TypeError: for an actor that is no :class:`~torchrl_bicnet.BiCNetActor`, or states that are no tensordict.
        KeyError: if the states lack one of the actor's ``in_keys``.
        TypeError, ValueError: as the actor, for entries of another type or shape.

    Example:
        >>> from torchrl_bicnet import BiCNetActor, make_vmas_env
        >>> env = make_vmas_env("navigation", num_envs=8, n_agents=3)
        >>> influence(BiCNetActor.from_env(env), env.reset()).shape
        torch.Size([8, 3, 3])
    """
    if not isinstance(actor, BiCNetActor):
        raise TypeError(f"actor must be a BiCNetActor, found {type(actor).__name__}.")
    check_type("states", states, TensorDictBase, "a tensordict")
    tensors = {key: states.get(key, None) for key in actor.in_keys}
    missing = [key for key, value in tensors.items() if value is None]
    if missing:
        raise KeyError(f"The states lack {missing}, which the actor reads; they hold {list(states.keys(True, True))}.")
    for key in actor.in_keys:
        if key != actor.mask_key and not tensors[key].is_floating_point():
            raise TypeError(f"Expected {key!r} of floating point, found {tensors[key].dtype}.")
    mask = tensors.pop(actor.mask_key, None) if actor.mask_key is not None else None
    # Reverse mode, one action entry at a time for all states at once: it serves the fused kernels, which know no vmap.
    with torch.enable_grad(), in_eval_mode(actor):
        observations = [x.detach().clone().requires_grad_() for x in tensors.values()]
        action = actor.module(*observations, *([] if mask is None else [mask]))[1]  # (*B, N, a)
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

    Raises:
        TypeError, ValueError, KeyError: as :func:`~torchrl_bicnet.analysis.influence`.
        ValueError: if there are no states.

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
