"""VMAS environments for TorchRL: truncated time limits, keys for per-agent losses, a random stream of their own."""

from __future__ import annotations

import copy
import inspect
import re
import traceback
import warnings
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torchrl.envs import EnvBase, TransformedEnv
from torchrl.envs.utils import MarlGroupMapType
from vmas.simulator.environment import Environment
from vmas.simulator.scenario import BaseScenario

from torchrl_bicnet.checks import check_device, check_integer, check_seed, check_type
from torchrl_bicnet.envs.environment import StreamedEnvironment
from torchrl_bicnet.envs.mixed_teams import MixedTeams
from torchrl_bicnet.envs.presence import PresenceError
from torchrl_bicnet.envs.scenarios import load_own, load_shipped, option_names, source_of
from torchrl_bicnet.envs.wrapper import VmasBatchWrapper


def make_vmas_env(
    scenario: str | BaseScenario,
    num_envs: int,
    *,
    max_steps: int | None = None,
    device: torch.device | str = "cpu",
    seed: int | None = None,
    group_map: MarlGroupMapType | dict[str, list[str]] | None = None,
    pad: bool = False,
    continuous_actions: bool = True,
    multidiscrete_actions: bool = False,
    check_actions: bool = False,
    compile: bool = False,
    grad_enabled: bool = False,
    **scenario_kwargs: Any,
) -> TransformedEnv:
    """A vectorised VMAS environment for TorchRL's collectors and losses.

    - The time limit is *truncated*, never terminated, so that a TD target bootstraps through it; what the scenario
      calls done is *terminated*.
    - Root ``done``, ``terminated`` and ``truncated``, ``(num_envs, 1)``, are the environment's done keys; for each
      group of ``N`` agents ``(group, "done")`` and so on hold copies of the reward's shape, ``(num_envs, N, 1)``.
    - ``(group, "episode_reward")``, ``(num_envs, N, 1)``, is the return of the episode so far.
    - ``step_count`` and ``is_init``, ``(num_envs, 1)``, count the steps of the episode and mark its first one, which
      TorchRL's collectors and exploration modules ask for.
    - A scenario says by a method ``is_present(agent)``, which gives booleans ``(num_envs,)``, which agents are there;
      it may change with a reset and in ``post_step``. ``(group, "mask")``, ``(num_envs, N)``, tells. Absent agents do
      not act and are parked far away at rest: one that arrives is to be placed by the scenario, in ``post_step``. A
      step's reward counts for those present before it; one that leaves is terminated with that step.
    - It is pickled as these arguments: in another process it is a new one, in the state that it was made in.
    - The environment has a random stream of its own: building, seeding, resetting or stepping it neither reads nor
      moves the stream of another environment or the global generators of torch, NumPy and Python.

    Args:
        scenario (str or BaseScenario): a scenario of VMAS or of :mod:`torchrl_bicnet.tasks` by name, or one of
            your own: an instance, or its class as ``"path/to/file.py:ClassName"`` or ``"package.module:ClassName"``.
        num_envs (int): number of environments simulated in one batch.

    Keyword Args:
        max_steps (int, optional): time limit in steps. ``None``: no limit.
        device (torch.device): where to simulate. Defaults to ``"cpu"``.
        seed (int, optional): seed of the environment's random stream. ``None``: a different one each time.
        group_map (dict or MarlGroupMapType, optional): group name to the names of its agents. Defaults to groups by
            the agents' names, as in :class:`~torchrl.envs.VmasEnv`; with ``pad=True`` to one group ``"agents"``.
        pad (bool): lets agents of different kinds share a group, so that they can talk: observations are padded with
            zeros to the longest of the group and get a one-hot of the agent's kind (its name without the index, and
            its sizes), actions are padded with entries bound to 0. Defaults to ``False``.
        continuous_actions (bool): ``False``: an agent's action is the number of one of all combinations of its discrete
            actions, ``(num_envs, N)`` integers; one beyond them is taken modulo their number. Defaults to ``True``.
        multidiscrete_actions (bool): with ``continuous_actions=False``, one number for each of its discrete actions,
            ``(num_envs, N, a)``. Defaults to ``False``.
        check_actions (bool): for debugging: asks at every step whether actions are numbers within their bounds, as VMAS
            does, and keeps the assertions of VMAS and its scenarios about tensors. The host then waits for the device.
            Defaults to ``False``.
        compile (bool): traces the step once and compiles it into a few fused loops, which takes 5 to 30 seconds, for
            each size of teams, and a C++ compiler, and some seconds once they are cached. Outputs are equal up to
            rounding. Defaults to ``False``.
        grad_enabled (bool): lets gradients through the step, from rewards, observations and the state after it to the
            actions and the state before it; cut them between windows of steps by :func:`~torchrl_bicnet.detach`. With
            ``compile=True`` a second function is compiled at the first step that has any. Defaults to ``False``: they
            stop at the action.
        **scenario_kwargs: options of the scenario, such as ``n_agents``. Of this one a list or tuple makes teams of
            several sizes, in turn over the environments of the batch: groups then have as many slots as in the largest
            team, and ``(group, "mask")``, boolean ``(num_envs, N)``, tells which of them are agents. The environments
            of a size are those that this size alone has with the same seed.

    Returns:
        TransformedEnv: of batch size ``(num_envs,)``.

    Raises:
        ValueError: for teams of several sizes whose agents differ in what they observe, more of them than
            environments, or names in ``group_map`` with them; for ``pad=True`` with nothing to pad; for
            ``compile=True`` where a step reads a tensor on the host or prints, or a reset changes more than tensors.
        RuntimeError: for ``compile=True`` without a C++ compiler.
        TypeError: for an option that the scenario does not have, which VMAS itself only warns of.

    References: Bettini et al., *VMAS*, 2022, https://arxiv.org/abs/2207.03530; Pardo et al., *Time Limits in
    Reinforcement Learning*, 2018, https://arxiv.org/abs/1712.00378.

    Example:
        >>> env = make_vmas_env("navigation", num_envs=32, max_steps=100, seed=0, n_agents=3)
        >>> td = env.rollout(5)
        >>> td["agents", "observation"].shape, td["next", "agents", "reward"].shape
        (torch.Size([32, 5, 3, 18]), torch.Size([32, 5, 3, 1]))
        >>> td["next", "agents", "terminated"].shape, td["next", "truncated"].shape
        (torch.Size([32, 5, 3, 1]), torch.Size([32, 5, 1]))
        >>> team = make_vmas_env("simple_speaker_listener", num_envs=32, pad=True)
        >>> team.reset()["agents", "observation"].shape  # 3 and 11 features, padded, and a one-hot of 2 kinds
        torch.Size([32, 2, 13])
    """
    arguments = {**locals()}
    if isinstance(scenario, BaseScenario) and scenario._world is None:
        arguments["scenario"] = copy.deepcopy(scenario)  # as it is before its world is made
    check_integer("num_envs", num_envs)
    if max_steps is not None:
        check_integer("max_steps", max_steps)
    check_device(device)
    if seed is not None:
        check_seed(seed)
    flags = {"continuous_actions": continuous_actions, "multidiscrete_actions": multidiscrete_actions, "pad": pad}
    flags |= {"check_actions": check_actions, "compile": compile, "grad_enabled": grad_enabled}
    for name, flag in flags.items():
        check_type(name, flag, bool, "a bool")
    if continuous_actions and multidiscrete_actions:
        raise ValueError("multidiscrete_actions=True needs continuous_actions=False.")
    if pad and not continuous_actions:
        raise ValueError("pad=True needs continuous_actions=True: actions are padded with entries bound to 0.")
    if grad_enabled and not continuous_actions:
        raise ValueError("grad_enabled=True needs continuous_actions=True: discrete ones have no gradient.")
    if compile and check_actions:
        raise ValueError("compile=True and check_actions=True exclude each other.")
    device = torch.device(device)
    own_options = {"check_actions": check_actions, "never_wait": compile or device.type == "cuda"}
    if grad_enabled:
        own_options["grad_enabled"] = True
    if not continuous_actions:
        own_options |= {"continuous_actions": False, "multidiscrete_actions": multidiscrete_actions}

    def make(scenario: str | BaseScenario, num_envs: int, options: dict[str, Any]) -> VmasBatchWrapper:
        environment = _build(scenario, num_envs, device, seed, own_options, options)
        return _wrap(environment, group_map, pad=pad, max_steps=max_steps, compile=compile)

    sizes = scenario_kwargs.get("n_agents")
    if isinstance(sizes, Sequence) and not isinstance(sizes, str):
        _check_sizes(sizes, num_envs, group_map)
        teams = []
        for k, size in enumerate(sizes):
            # Each its own: what make_world draws up is kept in the scenario
            own, rows = copy.deepcopy(scenario), len(range(k, num_envs, len(sizes)))
            teams.append(make(own, rows, scenario_kwargs | {"n_agents": size}))
        env: VmasBatchWrapper | MixedTeams = MixedTeams(teams)
    else:
        env = make(scenario, num_envs, scenario_kwargs)
    if isinstance(scenario, str) or arguments["scenario"] is not scenario:
        env.made_from = _make_base_env, (arguments,)
    return TransformedEnv(env)


def _make_base_env(arguments: dict[str, Any]) -> EnvBase:
    """What :func:`make_vmas_env` puts into TorchRL's :class:`~torchrl.envs.TransformedEnv`."""
    options = {**arguments}
    return make_vmas_env(**options.pop("scenario_kwargs"), **options).base_env


def _wrap(
    environment: StreamedEnvironment,
    group_map: MarlGroupMapType | dict[str, list[str]] | None,
    *,
    pad: bool,
    max_steps: int | None,
    compile: bool,
) -> VmasBatchWrapper:
    names = [agent.name for agent in environment.agents]
    if group_map is not None and not isinstance(group_map, MarlGroupMapType):
        _check_groups(group_map, names)
    if pad:
        group_map = MarlGroupMapType.ALL_IN_ONE_GROUP if group_map is None else group_map
        environment.pad(group_map if isinstance(group_map, dict) else group_map.get_group_map(names))
    env = VmasBatchWrapper(environment, group_map, max_steps=max_steps)
    if compile:
        env.compile_step()
    return env


def _check_sizes(sizes: Sequence[int], num_envs: int, group_map: object) -> None:
    if isinstance(group_map, dict):
        raise ValueError("group_map must be a MarlGroupMapType with teams of several sizes, found agents by name.")
    for size in sizes:
        check_integer("n_agents", size)
    if len(set(sizes)) < len(sizes) or not sizes:
        raise ValueError(f"n_agents must be a number or different numbers of agents, found {sizes}.")
    if num_envs < len(sizes):
        raise ValueError(f"num_envs must be {len(sizes)} or more for teams of {len(sizes)} sizes, found {num_envs}.")


def _check_groups(group_map: dict[str, list[str]], names: list[str]) -> None:
    if not isinstance(group_map, dict) or not all(
        isinstance(group, str) and isinstance(agents, list) for group, agents in group_map.items()
    ):
        raise TypeError(f"group_map must be a dict of group name to a list of its agents, found {group_map!r}.")
    if not all(group_map.values()) or sorted(map(str, chain(*group_map.values()))) != sorted(names):
        raise ValueError(f"group_map must put each of {', '.join(names)} into one group, found {group_map}.")


def _build(
    scenario: str | BaseScenario,
    num_envs: int,
    device: torch.device,
    seed: int | None,
    own_options: dict[str, bool],
    options: dict[str, Any],
) -> StreamedEnvironment:
    ours = sorted(set(options) & set(inspect.signature(Environment.__init__).parameters))
    if ours:
        raise TypeError(f"make_vmas_env sets these arguments of VMAS's Environment itself: {', '.join(ours)}.")
    name = scenario if isinstance(scenario, str) else type(scenario).__name__
    draws_from_torch_alone = False  # cannot be known of a scenario of the user's
    if isinstance(scenario, str) and ":" in scenario:
        scenario = load_own(scenario)
    elif isinstance(scenario, str):
        scenario = load_shipped(scenario)
        draws_elsewhere = re.search(r"\b(np|numpy)\.random|\b(import|from) random", source_of(scenario))
        draws_from_torch_alone = not draws_elsewhere and not any(map(callable, options.values()))
    elif not isinstance(scenario, BaseScenario):
        raise TypeError(f"scenario must be a name or an instance of BaseScenario, found {scenario!r}.")
    own_options = {**own_options, "draws_from_torch_alone": draws_from_torch_alone}
    with warnings.catch_warnings():
        unused = "Scenario kwargs: .* passed but not used"
        warnings.filterwarnings("error", message=unused)
        try:
            return StreamedEnvironment(scenario, num_envs, device, seed=seed, **own_options, **options)
        except UserWarning as warning:
            if not re.match(unused, str(warning)):
                raise
            wrong = ", ".join(option for option in options if repr(option) in str(warning))
        except Exception as error:
            if not options or isinstance(error, PresenceError):
                raise
            reason = repr(error)
            if isinstance(error, AssertionError) and not error.args:  # as most of VMAS's own
                reason = traceback.extract_tb(error.__traceback__)[-1].line or reason
            raise ValueError(f"Scenario {name!r} does not take {options}: {reason}.") from error
    known = ", ".join(sorted(option_names(scenario))) or "none that its source names"
    raise TypeError(f"Scenario {name!r} has no option {wrong}; it has {known}.")
