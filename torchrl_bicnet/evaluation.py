"""Policy evaluation: returns, success and collisions in one episode per environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from torchrl_bicnet.checks import check_type
from torchrl_bicnet.envs.outcomes import reported_collision, reported_success
from torchrl_bicnet.episodes import Policy, first_episodes


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Results of :func:`~torchrl_bicnet.evaluate` in the first episode of each of ``E`` environments.

    Args:
        returns (dict): group to the undiscounted return of each of its ``N`` agents, ``(E, N)``, in units of reward.
        lengths (Tensor): steps of the episode, ``(E,)``, at most ``max_steps``.
        success (Tensor, optional): whether the task was solved at any step, boolean ``(E,)``; ``None`` if the
            scenario does not report it.
        collisions (Tensor, optional): in how many steps at least one agent collided, ``(E,)``; ``None`` if the
            scenario does not report it.
        seed (int, optional): what the start states were drawn from; ``None`` if they cannot be reproduced.
        present (dict, optional): group to whether each of its agents was ever in the team, boolean ``(E, N)``;
            ``None`` if all always were.

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
    present: dict[str, Tensor] | None = None

    def team_returns(self) -> dict[str, Tensor]:
        """Group to the return of its team, ``(E,)``: the mean over its agents that were ever there, 0 without any."""
        return {group: _over_agents(returns, self._present(group)) for group, returns in self.returns.items()}

    def _present(self, group: str) -> Tensor:
        returns = self.returns[group]
        return torch.ones_like(returns, dtype=torch.bool) if self.present is None else self.present[group]

    def summary(self) -> dict[str, float]:
        """The metrics by name; with several groups the first four start with ``GROUP/``.

        - ``evaluation_return``: the team's return, which is the mean over its agents, averaged over the episodes;
        - ``evaluation_return_stderr``: its standard error over the episodes, of two or more;
        - ``evaluation_return_agent_INDEX`` and ``evaluation_return_agent_INDEX_stderr``: the same of one agent;
        - ``evaluation_return_team_of_SIZE`` and ``evaluation_return_team_of_SIZE_stderr``, if the teams are of several
          sizes: the same of the teams of a size;
        - ``episode_length``: mean number of steps;
        - ``success_rate``: share of the episodes in which the task was solved, if the scenario reports it
          (:func:`~torchrl_bicnet.envs.outcomes.reported_success` says which do);
        - ``collision_rate``: share of the episodes with at least one collision, if the scenario reports them
          (:func:`~torchrl_bicnet.envs.outcomes.reported_collision`).
        """
        present = {group: self._present(group) for group in self.returns}
        metrics = _return_metrics(self.team_returns(), self.returns, present, "evaluation_return")
        metrics["episode_length"] = self.lengths.double().mean().item()
        if self.success is not None:
            metrics["success_rate"] = self.success.double().mean().item()
        if self.collisions is not None:
            metrics["collision_rate"] = (self.collisions > 0).double().mean().item()
        return metrics


def evaluate(env: EnvBase, policy: Policy, *, max_steps: int, seed: int | None = None) -> Evaluation:
    """Returns of a policy in the first episode of every environment, for every group of agents, without exploration.

    No environment starts a second episode, so a scenario that can end early does not add up several returns, as a
    rollout of fixed length with automatic resets would.

    It disturbs nothing: the policy acts in eval mode and gets back the mode of each of its modules, so no statistics
    of a batch norm move; what it draws (dropout, sampling) comes from a random stream of the evaluation's own, on
    CPU and CUDA; the environments of :func:`~torchrl_bicnet.make_vmas_env` have streams of their own too. Only
    TorchRL's plain ``VmasEnv`` shares one stream with every other in the process.

    Where the environment writes ``(group, "mask")``, ``(num_envs, N)``, an agent's rewards count as long as it was
    present in the state before the step.

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

    Example:
        >>> from torchrl_bicnet import BiCNetActor, make_vmas_env
        >>> env = make_vmas_env("navigation", num_envs=16, n_agents=3)
        >>> evaluation = evaluate(env, BiCNetActor.from_env(env), max_steps=20, seed=0)
        >>> evaluation.returns["agents"].shape, evaluation.success.dtype
        (torch.Size([16, 3]), torch.bool)
        >>> sorted(evaluation.summary())[:3]
        ['collision_rate', 'episode_length', 'evaluation_return']
    """
    with first_episodes(env, policy, max_steps=max_steps, seed=seed) as (start, steps):
        rewards = {"/".join(key[:-1]): key for key in env.reward_keys if isinstance(key, tuple)}
        if not rewards:
            raise ValueError(f"The environment must have rewards (group, 'reward'), found {env.reward_keys}.")
        succeeded, collided = reported_success(env), reported_collision(env)
        success = torch.zeros_like(start["done"]).squeeze(-1)  # (num_envs,)
        lengths, collisions = torch.zeros((2, *success.shape), dtype=torch.long, device=success.device)
        returns = {group: torch.zeros((), device=success.device) for group in rewards}
        ever_present = {group: torch.zeros((), dtype=torch.bool, device=success.device) for group in rewards}
        masked = False
        for step in steps:
            for group, key in rewards.items():
                reward = step.after[key].squeeze(-1)  # (num_envs, N)
                present = _mask(step.state, key[:-1], reward)
                masked |= present is not None
                counted = step.running.unsqueeze(-1)
                counted = counted.expand_as(reward) if present is None else counted & present
                ever_present[group] = ever_present[group] | counted
                returns[group] = returns[group] + torch.where(counted, reward, 0.0)
            lengths += step.running
            if succeeded is not None:
                success |= step.running & succeeded(step.state, step.after)
            if collided is not None:
                collisions += step.running & collided(step.state, step.after)
    return Evaluation(
        returns,
        lengths,
        success=None if succeeded is None else success,
        collisions=None if collided is None else collisions,
        seed=seed,
        present=ever_present if masked else None,
    )


def _mask(state: TensorDictBase, group: tuple[str, ...], reward: Tensor) -> Tensor | None:
    """The mask of the agents present, ``(num_envs, N)``, if there is one."""
    mask = state.get((*group, "mask"), None)
    return mask if mask is not None and mask.dtype == torch.bool and mask.shape == reward.shape else None


def paired_difference(first: Evaluation, second: Evaluation) -> dict[str, float]:
    """Difference of the returns of two evaluations from the same start states, the first minus the second.

    Differences are taken episode by episode, so what the start states have in common cancels, and the standard errors
    are smaller than those of two independent evaluations.

    Args:
        first (Evaluation): of :func:`~torchrl_bicnet.evaluate` with a seed.
        second (Evaluation): with the same seed, on the same environment.

    Returns:
        dict: ``evaluation_return_difference``, its standard error ``evaluation_return_difference_stderr``, and the
        same per agent, named as in :meth:`Evaluation.summary`, with ``GROUP/`` before them for several groups.

    Raises:
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
    teams, others = first.team_returns(), second.team_returns()
    return _return_metrics(
        {group: returns - others[group] for group, returns in teams.items()},
        {group: returns - second.returns[group] for group, returns in first.returns.items()},
        {group: first._present(group) & second._present(group) for group in first.returns},
        "evaluation_return_difference",
    )


def by_group(values: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Values of each group by one name: ``name`` of the only group, ``group/name`` of several.

    Example:
        >>> by_group({"agents": {"loss": 1.0}}), by_group({"agent": {"loss": 1.0}, "adversary": {"loss": 2.0}})
        ({'loss': 1.0}, {'agent/loss': 1.0, 'adversary/loss': 2.0})
    """
    several = len(values) > 1
    return {f"{group}/{name}" if several else name: one for group, each in values.items() for name, one in each.items()}


def mean_and_stderr(episodes: Tensor) -> tuple[float, float]:
    """Mean and standard error of a number of each episode, ``(E,)``; of a single one the error is NaN."""
    several = len(episodes) > 1
    return episodes.mean().item(), (episodes.std() / len(episodes) ** 0.5).item() if several else float("nan")


def _over_agents(returns: Tensor, present: Tensor) -> Tensor:
    """The mean over the agents present, ``(E, N) -> (E,)``; 0 without any."""
    return torch.where(present, returns, 0.0).sum(-1) / present.sum(-1).clamp(min=1)


def _return_metrics(
    teams: Mapping[str, Tensor], returns: Mapping[str, Tensor], present: Mapping[str, Tensor], name: str
) -> dict[str, float]:
    """Of each group's team, ``(E,)``, of teams of each size, and of each agent, ``(E, N)``, where it was present."""
    metrics: dict[str, dict[str, float]] = {}
    for group, team in teams.items():
        here = present[group]
        agents = enumerate(zip(returns[group].unbind(-1), here.unbind(-1)))
        parts = {name: team} | {f"{name}_agent_{i}": values[was_there] for i, (values, was_there) in agents}
        sizes = here.sum(-1)  # (E,)
        if len(several := sizes.unique().tolist()) > 1:
            parts |= {f"{name}_team_of_{size}": team[sizes == size] for size in several}
        metrics[group] = {}
        for metric, part in parts.items():
            if len(part) > 0:
                metrics[group][metric], stderr = mean_and_stderr(part)
            if len(part) > 1:
                metrics[group][f"{metric}_stderr"] = stderr
    return by_group(metrics)
