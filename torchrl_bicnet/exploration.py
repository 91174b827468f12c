"""Noise on the actions of a group of agents while data is collected."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.data import Composite
from torchrl.envs.utils import ExplorationType, exploration_type

from torchrl_bicnet.checks import check_integer, check_type
from torchrl_bicnet.communication.mask import mask_absent
from torchrl_bicnet.specs import action_bounds, action_leaf


class ExplorationNoise(TensorDictModuleBase):
    """Gaussian noise on the actions, of another scale in each environment and correlated in time.

    Goes behind the actor, ``TensorDictSequential(actor, noise)``, and changes actions under
    ``ExplorationType.RANDOM`` only, which TorchRL's collectors set. Outside any ``set_exploration_type`` it is silent,
    unlike TorchRL's own modules.

    Each entry of the action gets ``factor * sigma * (high - low) / 2 * n_t`` and is clamped to the bounds
    ``low, high``. Environment ``i`` of the batch has the ``i``-th of ``num_envs`` values of ``sigma`` spread evenly
    over the range, both ends included; a single environment has the middle. The process
    ``n_t = c n_{t-1} + sqrt(1 - c^2) e_t`` with standard normal ``e_t`` and correlation ``c`` is standard normal at
    every step: ``c`` changes how long a push lasts, about ``1 / (1 - c)`` steps, and not how strong it is.

    With a correlation the state ``n_t`` travels in the tensordict, at ``"exploration_noise"`` beside the action. It
    starts anew where ``"is_init"`` is set and where it is missing or 0, which is what stands there for absent agents
    and outside exploration. Without correlation neither entry is read or written. All randomness comes from torch's
    global generator, and nothing waits for the device.

    Args:
        spec (Composite): the action spec at the action's key, such as ``actor.spec``; bounds equal over the agents
            fit any number of agents.

    Keyword Args:
        sigma (float or pair of float): standard deviation before clamping, in units of half the action's range: 1
            reaches from the middle to a bound. A pair is the range over the environments, a float the same everywhere.
        correlation (float): between the noise of two successive steps, in [0, 1). Defaults to ``0.0``, white noise.
        end_factor (float): what the calls of :meth:`step` lower the factor on ``sigma`` to, from 1. Defaults to
            ``0.1``.
        annealing_num_steps (int): the number of calls of :meth:`step` this takes. Defaults to ``1000``.
        action_key (NestedKey, optional): which of the actions of ``spec``. ``None``: the only one.
        mask_key (NestedKey, optional): where a boolean mask ``(*B, N)`` of the agents present is read, as for
            :class:`~torchrl_bicnet.BiCNetActor`. Absent agents get the action 0.

    Shape:
        - action: ``(*B, N, a)``, ``B`` the environments
        - ``"is_init"``: ``(*B, 1)``, boolean, as TorchRL's :class:`~torchrl.envs.InitTracker` and
          :func:`~torchrl_bicnet.make_vmas_env` write it
        - ``"exploration_noise"``: ``(*B, N, a)``

    References: Li et al., *Parallel Q-Learning*, 2023, https://arxiv.org/abs/2307.12983, for a scale per environment;
    Lillicrap et al., *Continuous control with deep reinforcement learning*, 2015, https://arxiv.org/abs/1509.02971,
    section 7, for noise correlated in time.

    Example:
        >>> from tensordict.nn import TensorDictSequential
        >>> from torchrl.collectors import Collector
        >>> from torchrl_bicnet import BiCNetActor, make_vmas_env
        >>> env = make_vmas_env("navigation", num_envs=8, max_steps=50, n_agents=3)
        >>> actor = BiCNetActor.from_env(env)
        >>> noise = ExplorationNoise(actor.spec, sigma=(0.05, 0.8), correlation=0.9, annealing_num_steps=2)
        >>> for batch in Collector(env, TensorDictSequential(actor, noise), frames_per_batch=80, total_frames=160):
        ...     print(batch["agents", "action"].shape, f"{noise.factor:.2f}")
        ...     noise.step()
        torch.Size([8, 10, 3, 2]) 1.00
        torch.Size([8, 10, 3, 2]) 0.55
    """

    low: Tensor
    high: Tensor
    n_steps: Tensor

    def __init__(
        self,
        spec: Composite,
        *,
        sigma: float | tuple[float, float],
        correlation: float = 0.0,
        end_factor: float = 0.1,
        annealing_num_steps: int = 1000,
        action_key: NestedKey | None = None,
        mask_key: NestedKey | None = None,
    ) -> None:
        super().__init__()
        self.sigma = _range(sigma)
        check_integer("annealing_num_steps", annealing_num_steps)
        if not 0 <= correlation < 1:
            raise ValueError(f"correlation must be at least 0 and below 1, found {correlation}.")
        if not 0 <= end_factor <= 1:
            raise ValueError(f"end_factor must be between 0 and 1, found {end_factor}.")
        self.correlation = correlation
        self.end_factor = end_factor
        self.annealing_num_steps = annealing_num_steps
        self.action_key = _action_key(spec, action_key)
        self.mask_key = None if mask_key is None else unravel_key(mask_key)
        group = self.action_key[:-1] if isinstance(self.action_key, tuple) else ()
        self.state_key = unravel_key((*group, "exploration_noise"))
        mask_keys = [] if self.mask_key is None else [self.mask_key]
        if correlation:
            self.in_keys = [self.action_key, self.state_key, "is_init", *mask_keys]
            self.out_keys = [self.action_key, self.state_key]
        else:
            self.in_keys = [self.action_key, *mask_keys]
            self.out_keys = [self.action_key]
        low, high = action_bounds(action_leaf(spec, self.action_key))
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.int64, device=low.device))

    @property
    def factor(self) -> Tensor:
        """The annealing's factor on ``sigma``, of shape ``()``."""
        return 1 - (1 - self.end_factor) * (self.n_steps / self.annealing_num_steps).clamp(max=1)

    def step(self) -> None:
        """Lower the factor once, after each batch of collected frames; it stays at ``end_factor`` in the end."""
        self.n_steps.add_(1)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict[self.action_key]
        if exploration_type() is not ExplorationType.RANDOM:
            if self.correlation:
                # Written here too: collectors learn by a call outside exploration which keys a policy writes.
                tensordict.set(self.state_key, torch.zeros_like(action))
            return tensordict
        if action.ndim < 2 or action.shape[-self.low.ndim :] != self.low.shape:
            raise ValueError(
                f"Expected an action of shape (*B, N, a) that ends in that of the bounds, {tuple(self.low.shape)}, "
                f"found {tuple(action.shape)}."
            )
        mask = None if self.mask_key is None else tensordict[self.mask_key]
        noise = torch.randn_like(action)
        if self.correlation:
            noise = mask_absent(self._continue(tensordict, noise), mask)
            tensordict.set(self.state_key, noise)
        scale = self._scale(action) * (self.high - self.low) / 2
        action = (action + scale * noise).clamp(self.low, self.high)
        return tensordict.set(self.action_key, mask_absent(action, mask))

    def _continue(self, tensordict: TensorDictBase, fresh: Tensor) -> Tensor:
        """The next noise of the process, ``(*B, N, a)``: the fresh one itself where it starts anew."""
        is_init = tensordict.get("is_init")
        if is_init is None:
            raise KeyError(
                'Noise correlated in time restarts with the episode and needs "is_init", which was not found: append '
                "torchrl.envs.InitTracker() to the environment (make_vmas_env has it), or use correlation=0."
            )
        if is_init.shape != (*fresh.shape[:-2], 1):
            raise ValueError(
                f'Expected "is_init" of shape {(*fresh.shape[:-2], 1)} for an action of shape {tuple(fresh.shape)}, '
                f"found {tuple(is_init.shape)}."
            )
        previous = tensordict.get(self.state_key)
        if previous is None:
            return fresh
        following = self.correlation * previous + math.sqrt(1 - self.correlation**2) * fresh
        return torch.where(is_init.unsqueeze(-1) | (previous == 0), fresh, following)

    def _scale(self, action: Tensor) -> Tensor:
        """Each environment's annealed ``sigma``, ``(*B, 1, 1)``."""
        environments = action.shape[:-2]
        low, high = self.sigma
        if environments.numel() == 1:
            low = high = (low + high) / 2
        sigma = torch.linspace(low, high, environments.numel(), dtype=action.dtype, device=action.device)
        return self.factor * sigma.reshape(*environments, 1, 1)


def _range(sigma: float | tuple[float, float]) -> tuple[float, float]:
    if isinstance(sigma, Sequence) and len(sigma) != 2:
        raise ValueError(f"sigma must be a finite number or a pair with 0 <= low <= high, found {sigma!r}.")
    low, high = sigma if isinstance(sigma, Sequence) else (sigma, sigma)
    if not 0 <= low <= high < math.inf:
        raise ValueError(f"sigma must be a finite number or a pair with 0 <= low <= high, found {sigma!r}.")
    return float(low), float(high)


def _action_key(spec: Composite, action_key: NestedKey | None) -> NestedKey:
    check_type("spec", spec, Composite, "a Composite that holds the action spec, such as actor.spec")
    if action_key is not None:
        return unravel_key(action_key)
    keys = list(spec.keys(True, True))
    if len(keys) != 1:
        raise ValueError(f"Expected a spec of one action, or action_key= to choose one, found {keys}.")
    return keys[0]
