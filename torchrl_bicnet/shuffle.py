"""Random orders of the agents in a replayed batch, so that a recurrence over them does not learn one order."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor

from torchrl_bicnet.checks import check_key


def shuffle_agents(tensordict: TensorDictBase, group: NestedKey = "agents") -> TensorDictBase:
    """Put the agents of each transition of a batch in a random order, the same in all of its entries.

    A recurrence over agents that is trained on it cannot rely on one order of them; it loses what an order gives, that
    agents who see the same can act differently. It is for agents that are alike: with an id, parameters or action
    bounds for each slot it teaches one agent what another one did. Orders come from torch's global generator.

    Args:
        tensordict (TensorDictBase): a batch of transitions, ``(*B,)``; it is changed.

    Keyword Args:
        group (NestedKey): the group; every entry of it and of ``("next", group)`` has its ``N`` agents on the dimension
            behind ``*B``. Defaults to ``"agents"``.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> observation = torch.arange(4.0).view(1, 4, 1)
        >>> agents = {"observation": observation, "action": 10 * observation}
        >>> shuffled = shuffle_agents(TensorDict({"agents": agents}, [1]))["agents"]
        >>> bool((shuffled["action"] == 10 * shuffled["observation"]).all())
        True
        >>> shuffled["observation"].sum()
        tensor(6.)
    """
    check_key("group", group)
    keys = [key for key in (unravel_key(group), unravel_key(("next", group))) if key in tensordict.keys(True)]
    if not keys:
        raise KeyError(f"The batch has no group {group!r}, only {list(tensordict.keys())}.")
    n_dims = tensordict.ndim
    first = next(iter(tensordict[keys[0]].values(True, True)))
    order = torch.rand(first.shape[: n_dims + 1], device=first.device).argsort(-1)

    def shuffled(x: Tensor) -> Tensor:
        return x.take_along_dim(order.view(*order.shape, *(1,) * (x.ndim - order.ndim)), n_dims)

    for key in keys:
        tensordict[key] = tensordict[key].apply(shuffled)
    return tensordict
