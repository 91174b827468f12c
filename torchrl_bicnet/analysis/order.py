"""Sensitivity of a trained team to the order of its agents."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.envs import EnvBase

from torchrl_bicnet.analysis.intervention import reorder
from torchrl_bicnet.analysis.states import visited_states
from torchrl_bicnet.checks import check_integer, check_seed, check_type
from torchrl_bicnet.episodes import in_eval_mode
from torchrl_bicnet.evaluation import Evaluation, evaluate, mean_and_stderr
from torchrl_bicnet.modules import BiCNetActor


@dataclass(frozen=True, eq=False)
class OrderSensitivity:
    """Returns and actions of a team over ``P`` orders in which a group's communication takes its ``N`` agents.

    Args:
        orders (Tensor): ``(P, N)``, entry k is the agent at place k; the first is the order of the training.
        evaluations (list of Evaluation): with each order, from the same start states.
        action_std (Tensor): of each agent, ``(N,)``: the standard deviation of its action over the orders, in the
            states visited in the order of the training; root mean square over these states and the action's entries.
        group (str): the group whose order it is, and whose returns count.

    Example:
        >>> import torch
        >>> from torchrl_bicnet import Evaluation
        >>> pair = [Evaluation({"agents": torch.full((9, 2), x)}, torch.ones(9), seed=0) for x in (4.0, 2.0)]
        >>> sensitivity = OrderSensitivity(torch.tensor([[0, 1], [1, 0]]), pair, torch.zeros(2), "agents")
        >>> sensitivity.summary()["order_return_std"]
        1.0
    """

    orders: Tensor
    evaluations: list[Evaluation]
    action_std: Tensor
    group: str

    def summary(self) -> dict[str, float]:
        """The numbers by name; returns are averaged over the group's agents and the episodes.

        ``order_return_std``, ``order_return_min`` and ``order_return_max``: standard deviation and range over the
        orders; ``order_return_trained``: in the order of the training; ``order_action_std``: root mean square of
        ``action_std``.
        """
        returns = self.returns().mean(-1)  # (P,)
        return {
            "order_return_trained": returns[0].item(),
            "order_return_min": returns.min().item(),
            "order_return_max": returns.max().item(),
            "order_return_std": returns.std(correction=0).item(),
            "order_action_std": self.action_std.square().mean().sqrt().item(),
        }

    def by_order(self) -> list[dict[str, Any]]:
        """Of each of the ``orders``, averaged over the group's agents and the episodes.

        ``order``: the agents' indices; ``return``; ``return_difference`` to the order of the training, with its
        standard error over the episodes, ``return_difference_stderr``.
        """
        returns = self.returns()
        rows = []
        for order, each in zip(self.orders.tolist(), returns):
            difference, stderr = mean_and_stderr(each - returns[0])
            row = {"order": order, "return": each.mean().item()}
            rows.append(row | {"return_difference": difference, "return_difference_stderr": stderr})
        return rows

    def returns(self) -> Tensor:
        """With each order in each episode, averaged over the group's agents, ``(P, E)``."""
        return torch.stack([evaluation.team_returns()[self.group] for evaluation in self.evaluations])


def order_sensitivity(
    env: EnvBase,
    policy: TensorDictModuleBase,
    *,
    max_steps: int,
    seed: int,
    group: NestedKey | None = None,
    max_orders: int = 24,
) -> OrderSensitivity:
    """Measure how much a team's returns and actions depend on the order in which its communication takes the agents.

    A recurrence over agents is trained in one order; mean and attention know none.

    Args:
        env (EnvBase): as for :func:`~torchrl_bicnet.evaluate`.
        policy (TensorDictModuleBase): a :class:`~torchrl_bicnet.BiCNetActor`, or a sequence that holds one for each
            group.

    Keyword Args:
        max_steps (int): time limit, in steps.
        seed (int): of the start states, and of the orders drawn.
        group (NestedKey, optional): whose order is changed. ``None``: that of the only actor in the policy.
        max_orders (int): all orders where there are so many or fewer (24 are those of 4 agents), otherwise so many
            different ones, drawn at random, with the order of the training among them. Defaults to ``24``.

    Returns:
        OrderSensitivity: the orders, the evaluations and the spread of the actions.

    Example:
        >>> from torchrl_bicnet import BiCNetActor, make_vmas_env
        >>> env = make_vmas_env("navigation", num_envs=8, n_agents=3)
        >>> sensitivity = order_sensitivity(env, BiCNetActor.from_env(env), max_steps=5, seed=0)
        >>> sensitivity.orders.shape, sensitivity.action_std.shape
        (torch.Size([6, 3]), torch.Size([3]))
    """
    check_integer("max_orders", max_orders, least=2)
    check_seed(seed)
    actor = _actor(policy, group)
    states = visited_states(env, policy, max_steps=max_steps, seed=seed)
    orders = _orders(states[actor.in_keys[0]].shape[-2], max_orders, seed)
    evaluations, actions = [], []
    for order in orders:
        with reorder(actor, order):
            evaluations.append(evaluate(env, policy, max_steps=max_steps, seed=seed))
            with torch.no_grad(), in_eval_mode(actor):
                actions.append(actor(states.copy())[actor.out_keys[1]])  # (S, N, a)
    variance = torch.stack(actions).var(0, correction=0).mean(-1)  # (S, N)
    counted = torch.ones_like(variance) if actor.mask_key is None else states[actor.mask_key].to(variance)
    name = actor.group if isinstance(actor.group, str) else "/".join(actor.group)
    return OrderSensitivity(orders, evaluations, (variance * counted).sum(0).div(counted.sum(0)).sqrt(), name)


def _actor(policy: TensorDictModuleBase, group: NestedKey | None) -> BiCNetActor:
    check_type("policy", policy, TensorDictModuleBase, "a TensorDict module")
    actors = [module for module in policy.modules() if isinstance(module, BiCNetActor)]
    chosen = [actor for actor in actors if group is None or actor.group == unravel_key(group)]
    if len(chosen) != 1:
        wanted = "exactly one group" if group is None else f"group {group!r}"
        found = [actor.group for actor in actors]
        raise ValueError(f"Expected a policy with a BiCNetActor of {wanted}, found actors of {found}.")
    return chosen[0]


def _orders(n_agents: int, max_orders: int, seed: int) -> Tensor:
    """``(P, n_agents)``, the identity first."""
    if math.factorial(n_agents) <= max_orders:
        return torch.tensor(list(itertools.permutations(range(n_agents))))
    generator = torch.Generator().manual_seed(seed)
    orders = {tuple(range(n_agents)): None}
    while len(orders) < max_orders:
        orders[tuple(torch.randperm(n_agents, generator=generator).tolist())] = None
    return torch.tensor(list(orders))
