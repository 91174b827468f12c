"""What a policy reaches: returns, success and collisions in one episode per environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_bicnet.checks import check_integer, check_seed, check_type
from torchrl_bicnet.envs.outcomes import reported_collision, reported_success
from torchrl_bicnet.envs.random_stream import RandomStream


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What :func:`~torchrl_bicnet.evaluate` found in the first episode of each of ``E`` environments.

    Args:
        returns (dict): group to the undiscounted return of each of its ``N`` agents, ``(E, N)``, in units of reward.
        lengths (Tensor): steps of the episode, ``(E,)``, at most ``max_steps``.
        success (Tensor, optional): whether the task was solved at any step, boolean ``(E,)``; ``None`` if the
            scenario does not report it.
        collisions (Tensor, optional): in how many steps at least one agent collided, ``(E,)``; ``None`` if the
            scenario does not report it.
        seed (int, optional): what the start states were drawn from; ``None`` if they are not to be had again.

    Raises:
        TypeError: for a field that is missing, unknown or of another type.
        ValueError: for returns of no group or of another shape, or other tensors that have not one entry per episode.

    Example:
        >>> import torch
        >>> returns = torch.tensor([[1.0, 3.0], [3.0, 5.0]])
        >>> Evaluation({"agents": returns}, lengths=torch.tensor([5, 5])).summary()["evaluation_return"]
        3.0
    """

    returns: dict[str, Tensor]
    lengths: Tensor
    success: Tensor | None = None
    collisions: Tensor | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        check_type("returns", self.returns, dict, "a dict of group to tensor")
        if not self.returns:
            raise ValueError(f"returns must hold at least one group, found {self.returns}.")
        for group, values in self.returns.items():
            if not isinstance(group, str) or not isinstance(values, Tensor):
                raise TypeError(f"returns must map names to tensors, found {group!r}: {type(values).__name__}.")
        shapes = {group: tuple(values.shape) for group, values in self.returns.items()}
        n_episodes = {shape[:1] for shape in shapes.values()}
        if any(len(shape) != 2 for shape in shapes.values()) or len(n_episodes) > 1:
            raise ValueError(f"returns must be of shape (E, N) for every group, found {shapes}.")
        for name in ("lengths", "success", "collisions"):
            values = getattr(self, name)
            if values is None and name != "lengths":
                continue
            check_type(name, values, Tensor, "a tensor")
            if {tuple(values.shape)} != n_episodes:
                raise ValueError(f"{name} must have one entry per episode, found shape {tuple(values.shape)}.")
        if self.success is not None and self.success.dtype is not torch.bool:
            raise TypeError(f"success must be boolean, found {self.success.dtype}.")
        if self.seed is not None:
            check_seed(self.seed)

    def summary(self) -> dict[str, float]:
        """The metrics by name; with several groups the first four start with ``GROUP/``.

        - ``evaluation_return``: the team's return, which is the mean over its agents, averaged over the episodes;
        - ``evaluation_return_stderr``: its standard error over the episodes, not a number for a single one;
        - ``evaluation_return_agent_INDEX`` and ``evaluation_return_agent_INDEX_stderr``: the same of one agent;
        - ``episode_length``: mean number of steps;
        - ``success_rate``: share of the episodes in which the task was solved, if the scenario reports it
          (:func:`~torchrl_bicnet.envs.outcomes.reported_success` says which do);
        - ``collision_rate``: share of the episodes with at least one collision, if the scenario reports them
          (:func:`~torchrl_bicnet.envs.outcomes.reported_collision`).
        """
        metrics = _return_metrics(self.returns, "evaluation_return")
        metrics["episode_length"] = self.lengths.double().mean().item()
        if self.success is not None:
            metrics["success_rate"] = self.success.double().mean().item()
        if self.collisions is not None:
            metrics["collision_rate"] = (self.collisions > 0).double().mean().item()
        return metrics


@torch.no_grad()
def evaluate(
    env: EnvBase,
    policy: TensorDictModuleBase | Callable[[TensorDictBase], TensorDictBase],
    *,
    max_steps: int,
    seed: int | None = None,
) -> Evaluation:
    """What a policy reaches in the first episode of every environment, for every group of agents, without exploration.

    No environment starts a second episode, so a scenario that can end early does not add up several returns, as a
    rollout of fixed length with automatic resets would.

    It disturbs nothing: the policy acts in eval mode and gets back the mode of each of its modules, so no statistics
    of a batch norm move; what it draws (dropout, sampling) comes from a random stream of the evaluation's own, on
    CPU and CUDA; the environments of :func:`~torchrl_bicnet.make_vmas_env` have streams of their own too. Only
    TorchRL's plain ``VmasEnv`` shares one stream with every other in the process. It knows no masks: rewards of absent
    agents count as the environment gives them.

    Args:
        env (EnvBase): a vectorised environment of batch size ``(num_envs,)`` with a root ``done`` that writes
            ``(group, "reward")`` for each group: from :func:`~torchrl_bicnet.make_vmas_env`, a plain ``VmasEnv``, or
            another.
        policy (TensorDictModuleBase or callable): writes the action of every group; called under
            :attr:`ExplorationType.DETERMINISTIC`.

    Keyword Args:
        max_steps (int): episodes that have not ended by then are cut off, in steps.
        seed (int, optional): seeds the environment and what the policy draws: the same start states for every
            evaluation with this seed, whatever the policy, as :func:`~torchrl_bicnet.paired_difference` needs.

    Returns:
        Evaluation: returns, lengths, and success and collisions where the scenario reports them.

    Raises:
        TypeError: for an environment, a policy, ``max_steps``, ``seed`` or an action of another type; for a policy that
            returns no tensordict.
        ValueError: if ``max_steps`` is below 1 or the seed outside of ``[0, 2**32)``; if the environment has another
            batch size, no groups of agents or no root ``done``; for an action of another shape.
        KeyError: if the policy writes no action for a group.

    Example:
        >>> from torchrl_bicnet import BiCNetActor, make_vmas_env
        >>> env = make_vmas_env("navigation", num_envs=16, n_agents=3)
        >>> evaluation = evaluate(env, BiCNetActor.from_env(env), max_steps=20, seed=0)
        >>> evaluation.returns["agents"].shape, evaluation.success.dtype
        (torch.Size([16, 3]), torch.bool)
        >>> sorted(evaluation.summary())[:3]
        ['collision_rate', 'episode_length', 'evaluation_return']
    """
    rewards = check_evaluation(env, policy, max_steps, seed)
    succeeded, collided = reported_success(env), reported_collision(env)
    device = torch.device("cpu") if env.device is None else env.device
    deterministic = set_exploration_type(ExplorationType.DETERMINISTIC)
    with in_eval_mode(policy), RandomStream(seed, device), deterministic:
        if seed is not None:
            env.set_seed(seed)
        td = env.reset()
        running = torch.ones_like(td["done"]).squeeze(-1)  # (num_envs,)
        lengths, collisions = torch.zeros((2, *running.shape), dtype=torch.long, device=device)
        success = torch.zeros_like(running)
        returns = {group: torch.zeros((), device=device) for group in rewards}
        for _ in range(max_steps):
            td = env.step(act(env, policy, td))
            after = td["next"]
            for group, key in rewards.items():
                reward = after[key].squeeze(-1)  # (num_envs, N)
                returns[group] = returns[group] + torch.where(running.unsqueeze(-1), reward, 0.0)
            lengths += running
            if succeeded is not None:
                success |= running & succeeded(after)
            if collided is not None:
                collisions += running & collided(after)
            running = running & ~after["done"].squeeze(-1)
            if not running.any():
                break
            td = env.step_mdp(td)
    return Evaluation(
        returns,
        lengths,
        success=None if succeeded is None else success,
        collisions=None if collided is None else collisions,
        seed=seed,
    )


@contextmanager
def in_eval_mode(policy: object) -> Iterator[None]:
    """Every module of the policy in eval mode for the block, and in its own mode again after it."""
    modes = {module: module.training for module in policy.modules()} if isinstance(policy, nn.Module) else {}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def paired_difference(first: Evaluation, second: Evaluation) -> dict[str, float]:
    """How much more the first evaluation returned than the second, from the same start states.

    Differences are taken episode by episode, so what the start states have in common cancels, and the standard errors
    are smaller than those of two independent evaluations.

    Args:
        first (Evaluation): of :func:`~torchrl_bicnet.evaluate` with a seed.
        second (Evaluation): with the same seed, on the same environment.

    Returns:
        dict: ``evaluation_return_difference``, its standard error ``evaluation_return_difference_stderr``, and the
        same per agent, named as in :meth:`Evaluation.summary`, with ``GROUP/`` before them for several groups.

    Raises:
        TypeError: for something else than evaluations.
        ValueError: if the evaluations have no seed, different ones, or returns of different groups or shapes.

    Example:
        >>> from torchrl_bicnet import BiCNetActor, make_vmas_env
        >>> env = make_vmas_env("navigation", num_envs=16)
        >>> first, second = (evaluate(env, BiCNetActor.from_env(env), max_steps=9, seed=0) for _ in range(2))
        >>> difference = paired_difference(first, second)
        >>> difference["evaluation_return_difference_stderr"] > 0
        True
    """
    check_type("first", first, Evaluation, "an Evaluation")
    check_type("second", second, Evaluation, "an Evaluation")
    if first.seed is None or first.seed != second.seed:
        raise ValueError(
            f"Only evaluations from the same start states can be paired: expected one seed, found {first.seed} and "
            f"{second.seed}."
        )
    shapes = [{group: tuple(r.shape) for group, r in evaluation.returns.items()} for evaluation in (first, second)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"Expected returns of the same groups and shapes, found {shapes[0]} and {shapes[1]}.")
    differences = {group: returns - second.returns[group] for group, returns in first.returns.items()}
    return _return_metrics(differences, "evaluation_return_difference")


def _return_metrics(returns: dict[str, Tensor], name: str) -> dict[str, float]:
    """Of each group's team and of each of its agents; returns: ``(E, N)``."""
    metrics = {}
    for group, values in returns.items():
        prefix = name if len(returns) == 1 else f"{group}/{name}"
        agents = {f"{prefix}_agent_{i}": agent for i, agent in enumerate(values.split(1, -1))}
        for column, part in ({prefix: values} | agents).items():
            episodes = part.mean(-1)  # (E,)
            metrics[column] = part.mean().item()
            several = len(episodes) > 1
            metrics[f"{column}_stderr"] = (episodes.std() / len(episodes) ** 0.5).item() if several else float("nan")
    return metrics


def check_evaluation(env: EnvBase, policy: object, max_steps: int, seed: int | None) -> dict[str, NestedKey]:
    """Refuse bad input before anything is changed; group to its reward's key."""
    if not isinstance(env, EnvBase):
        raise TypeError(f"env must be a TorchRL environment, found {type(env).__name__}.")
    if not callable(policy):
        raise TypeError(f"policy must be a TensorDict module or a callable, found {type(policy).__name__}.")
    check_integer("max_steps", max_steps)
    if seed is not None:
        check_seed(seed)
    if len(env.batch_size) != 1:
        raise ValueError(f"The environment must have batch size (num_envs,), found {tuple(env.batch_size)}.")
    if "done" not in env.done_keys:
        raise ValueError(f"The environment must have a root 'done', found done keys {env.done_keys}.")
    rewards = {"/".join(key[:-1]): key for key in env.reward_keys if isinstance(key, tuple)}
    if not rewards:
        raise ValueError(f"The environment must have rewards (group, 'reward'), found {env.reward_keys}.")
    return rewards


def act(env: EnvBase, policy: Callable[[TensorDictBase], TensorDictBase], td: TensorDictBase) -> TensorDictBase:
    """What the policy returns, once its actions are such as the environment takes.

    Args:
        env (EnvBase): of batch size ``(num_envs,)``.
        policy (callable): tensordict to tensordict.
        td (TensorDictBase): the state, ``(num_envs,)``.

    Raises:
        TypeError: if it returns no tensordict, or an action of another type.
        KeyError: if an action is missing.
        ValueError: for an action of another shape.
    """
    td = policy(td)
    if not isinstance(td, TensorDictBase):
        raise TypeError(f"The policy must return a tensordict, found {type(td).__name__}.")
    for key in env.action_keys:
        action, spec = td.get(key, None), env.full_action_spec[key]
        if action is None:
            raise KeyError(f"The policy wrote no action at {key!r}; the environment needs {env.action_keys}.")
        if action.shape != spec.shape and -1 not in spec.shape:
            raise ValueError(
                f"Expected an action of shape {tuple(spec.shape)} at {key!r}, found {tuple(action.shape)}."
            )
        if action.is_floating_point() != spec.dtype.is_floating_point or action.is_complex():
            raise TypeError(f"Expected an action of type {spec.dtype} at {key!r}, found {action.dtype}.")
    return td


def by_group(values: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Values of each group by one name: ``name`` of the only group, ``group/name`` of several.

    Example:
        >>> by_group({"agents": {"loss": 1.0}}), by_group({"agent": {"loss": 1.0}, "adversary": {"loss": 2.0}})
        ({'loss': 1.0}, {'agent/loss': 1.0, 'adversary/loss': 2.0})
    """
    several = len(values) > 1
    return {f"{group}/{name}" if several else name: one for group, each in values.items() for name, one in each.items()}
