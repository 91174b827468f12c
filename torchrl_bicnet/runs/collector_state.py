"""The state of a collector over a VMAS environment, as a component of a checkpoint."""

from __future__ import annotations

import json
from typing import Any

from tensordict import TensorDict
from torch import Tensor
from torchrl.collectors import Collector

from torchrl_bicnet.checks import check_integer, check_type
from torchrl_bicnet.vmas_state.snapshot import WorldSnapshot, restore, snapshot
from torchrl_bicnet.vmas_state.unwrap import environments_of


class CollectorState:
    """State of a collector over a VMAS environment: the worlds, their random stream, the step it goes on from.

    A component for :class:`Checkpoints`: TorchRL's collectors save their counters, but neither the simulator behind the
    environment nor the observations they go on from.

    Args:
        collector (Collector): over an environment of :func:`~torchrl_bicnet.make_vmas_env`, in this process.

    Example:
        >>> import torch
        >>> from torchrl_bicnet import make_vmas_env
        >>> def make_collector():
        ...     return Collector(make_vmas_env("navigation", num_envs=4), frames_per_batch=8, total_frames=16)
        >>> first, second = make_collector(), make_collector()
        >>> _ = next(iter(first))
        >>> CollectorState(second).load_state_dict(CollectorState(first).state_dict())
        >>> start, same_start = (next(iter(collector))["agents", "observation"][:, 0] for collector in (first, second))
        >>> torch.equal(start, same_start)
        True
    """

    def __init__(self, collector: Collector) -> None:
        check_type("collector", collector, Collector, "a Collector")
        environments_of(collector.env)
        self.collector = collector

    def state_dict(self) -> dict[str, Any]:
        """Counters, observations and worlds, as tensors and plain values."""
        counters = self.collector.state_dict()
        world = snapshot(self.collector.env)
        return {
            "counters": {name: counters[name] for name in ("frames", "iter", "traj_pool") if name in counters},
            "carrier": self.collector._carrier.to_dict(),  # TorchRL 0.14 has no public name for it
            "tensors": world.tensors.to_dict(),
            "plain": json.dumps(world.plain),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: for a state that lacks a part, is damaged, or is that of another scenario or number of
                environments. The collector is unchanged then.
        """
        check_type("state", state, dict, "a dict")
        for name, kind in {"counters": dict, "carrier": dict, "tensors": dict, "plain": str}.items():
            if not isinstance(state.get(name), kind):
                raise ValueError(f"The state of a collector must hold {name}, a {kind.__name__}; found {list(state)}.")
        try:
            plain = json.loads(state["plain"])
            carrier, tensors = TensorDict(state["carrier"]), TensorDict(state["tensors"])
        except (LookupError, RecursionError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"The state is damaged, in plain, carrier or tensors: {error!r}.") from error
        for name in ("frames", "iter"):
            check_integer(f"counters[{name!r}]", state["counters"].get(name), least=-1)
        for key in self.collector.env.observation_keys:
            if not isinstance(carrier.get(key, None), Tensor):
                raise ValueError(f"The state is damaged or of another environment: carrier has no tensor at {key!r}.")
        restore(self.collector.env, WorldSnapshot(tensors, plain))
        self.collector.load_state_dict(state["counters"], strict=False)
        if "traj_pool" in state["counters"]:  # loading has drawn new identifiers from it
            self.collector._traj_pool.load_state_dict(state["counters"]["traj_pool"])
        # A reset's tensordict without its tensors: groups of agents have batch sizes of their own.
        self.collector._carrier = self.collector._carrier.empty(recurse=True).update(state["carrier"])
