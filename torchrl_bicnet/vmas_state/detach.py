"""A cut through the gradients that the state of a VMAS environment carries."""

from __future__ import annotations

from torch import Tensor
from torchrl.envs import EnvBase

from torchrl_bicnet.vmas_state.tensor_places import TensorPlaces
from torchrl_bicnet.vmas_state.unwrap import environments_of


def detach(env: EnvBase) -> None:
    """Cut the graph of gradients between two windows of steps, by detaching every tensor of a VMAS environment's state.

    With ``grad_enabled=True`` the state after a step has gradients to all actions since the start of the episode, and
    the graph grows from step to step. What was computed from the state before keeps its gradients. The tensordict of
    the rollout is the caller's to detach.

    Args:
        env (EnvBase): made by :func:`~torchrl_bicnet.make_vmas_env`, also inside further
            :class:`~torchrl.envs.TransformedEnv`, or the wrapper in it.

    Raises:
        TypeError: for another kind of environment, or one that holds a tensor in a tuple, a set, a slot or a closure.

    Example:
        >>> from torchrl_bicnet import BiCNetActor, detach, make_vmas_env
        >>> env = make_vmas_env("navigation", num_envs=4, seed=0, grad_enabled=True)
        >>> actor, td = BiCNetActor.from_env(env), env.reset()
        >>> for window in range(2):
        ...     returns = 0
        ...     for step in range(10):
        ...         td = env.step(actor(td))["next"]
        ...         returns = returns + td["agents", "reward"].sum()
        ...     (-returns).backward()
        ...     detach(env)
        ...     td = td.detach()
    """
    for environment in environments_of(env):
        places = TensorPlaces.of(environment)
        detached: dict[int, Tensor] = {}  # one tensor at several places stays one
        for place, tensor in enumerate(places.tensors):
            if tensor.requires_grad:
                places.put(place, detached.setdefault(id(tensor), tensor.detach()))
