"""TorchRL's DDPG loss, wired to BiCNet's actor and critic."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from tensordict import TensorDictBase
from tensordict.nn import TensorDictSequential
from tensordict.utils import NestedKey, expand_right, unravel_key
from torch import Tensor
from torch.nn.functional import pad
from torchrl.objectives import DDPGLoss
from torchrl.objectives.value import TD0Estimator

from torchrl_bicnet.checks import check_number
from torchrl_bicnet.communication.mask import mask_absent
from torchrl_bicnet.memory import AgentMemory
from torchrl_bicnet.modules import BiCNetActor, BiCNetCritic

SATURATED = 3.0  # tanh is 0.995 there, and its slope 0.01


def make_ddpg_loss(
    actor: BiCNetActor | TensorDictSequential,
    critic: BiCNetCritic | TensorDictSequential,
    *,
    gamma: float = 0.99,
    delay_actor: bool = True,
    loss_function: Literal["l1", "l2", "smooth_l1"] = "l2",
    saturation_penalty: float = 0.0,
) -> DDPGLoss:
    """TorchRL's :class:`~torchrl.objectives.DDPGLoss` with every key set from the modules.

    The critic's loss averages ``(Q_i(s, a) - y_i)^2`` over samples and agents present, with
    ``y_i = r_i + gamma (1 - terminated_i) Q_i'(s', mu'(s'))`` from the target networks. The actor's loss is the mean of
    ``-Q_i(s, mu(s))``: its gradient sums ``dQ_i/da_j da_j/dtheta`` over all pairs of agents ``i`` and ``j``, which is
    BiCNet's Theorem 1 up to ``1/N``.

    Rewards, done and terminated are read at ``("next", group, ...)``, the squared TD error is written to
    ``(group, "td_error")``, so that the losses of several groups share a batch.

    Transitions of several steps, as TorchRL's :class:`~torchrl.data.MultiStep` makes them with the group's reward among
    its ``reward_keys``, are discounted by their ``"steps_to_next_obs"``, ``(*B,)``, the same for all agents.

    With the modules' ``mask_key``, absent agents are left out of both losses; their rewards, NaN too, reach neither the
    target nor a metric. The target uses the mask at ``("next", ...)``: an agent that leaves the team has no value
    afterwards. A later ``loss.make_value_estimator(...)`` replaces the estimator that keeps the rewards of the absent
    out of the metrics, takes transitions of several steps and knows where memories restart; without any of these the
    losses stay right.

    With an :class:`~torchrl_bicnet.AgentMemory` before actor and critic, batches are sequences ``(*B, T)``. The next
    states are a sequence too; memories go through it from the state that is stored with the first of them, and from the
    stored one again where an episode starts or ends.

    Args:
        actor (BiCNetActor or TensorDictSequential): the policy, or a sequence of modules that ends with it.
        critic (BiCNetCritic or TensorDictSequential): the state-action value, of the same group and mask, or a sequence
            that ends with it.

    Keyword Args:
        gamma (float): discount, in [0, 1]. Defaults to ``0.99``.
        delay_actor (bool): whether to use a target network for the actor too, as the paper does.
            Defaults to ``True``.
        loss_function (str): ``"l2"``, ``"l1"`` or ``"smooth_l1"``. Defaults to ``"l2"``.
        saturation_penalty (float): weight in the actor's loss of the mean of ``max(|param| - 3, 0)^2``, where
            ``"param"`` is what the actor squashes into the action: from 3 on, where an action is 0.995 of the way to
            its bound, the gradient of tanh vanishes, and an actor that gets there while the critic hardly tells
            actions apart may never come back. Smaller actions are not touched. Defaults to ``0``.

    Returns:
        DDPGLoss: backpropagate ``loss_actor`` and ``loss_value`` only, and update its targets with
        :class:`~torchrl.objectives.SoftUpdate`.

    References: Peng et al., 2017, https://arxiv.org/abs/1703.10069, theorem 1 and section 3.3; Lillicrap et al.,
    *Continuous control with deep reinforcement learning*, 2015, https://arxiv.org/abs/1509.02971, algorithm 1; for
    the penalty Andrychowicz et al., *Hindsight Experience Replay*, 2017, https://arxiv.org/abs/1707.01495, appendix A,
    who penalise small ones too.

    Example:
        >>> from torchrl.objectives import SoftUpdate
        >>> from torchrl_bicnet import BiCNetActor, BiCNetCritic, make_vmas_env
        >>> env = make_vmas_env("navigation", num_envs=8, n_agents=3)
        >>> loss = make_ddpg_loss(BiCNetActor.from_env(env), BiCNetCritic.from_env(env), gamma=0.95)
        >>> target_update = SoftUpdate(loss, tau=0.005)
        >>> losses = loss(env.rollout(5).reshape(-1))
        >>> (losses["loss_actor"] + losses["loss_value"]).backward()
    """
    policy, value = (m[-1] if isinstance(m, TensorDictSequential) else m for m in (actor, critic))
    if not isinstance(policy, BiCNetActor) or not isinstance(value, BiCNetCritic):
        raise TypeError(
            f"Expected a BiCNetActor and a BiCNetCritic, or sequences that end with them, found "
            f"{type(policy).__name__}, {type(value).__name__}."
        )
    for name in ("group", "mask_key"):
        if getattr(policy, name) != getattr(value, name):
            raise ValueError(
                f"Actor and critic must share one {name}, found {getattr(policy, name)!r} and {getattr(value, name)!r}."
            )
    if shared := {key for key in actor.out_keys if key[0] == "next"} & set(critic.out_keys):
        raise ValueError(f"Memories of actor and critic must have names of their own, found {sorted(shared)} in both.")
    for network, last in ((actor, policy), (critic, value)):
        for memory in network.modules():
            if isinstance(memory, AgentMemory) and memory.out_keys[0] not in last.in_keys:
                raise ValueError(
                    f"What a memory writes, {memory.out_keys[0]!r}, must be among the in_keys of the "
                    f"{type(last).__name__} behind it, found {last.in_keys}."
                )
    if policy.out_keys[-1] not in value.in_keys:
        raise ValueError(
            f"The critic must read the action that the actor writes at {policy.out_keys[-1]!r}, its in_keys are "
            f"{value.in_keys}."
        )
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must be between 0 and 1, found {gamma}.")
    if loss_function not in ("l1", "l2", "smooth_l1"):
        raise ValueError(f"loss_function must be 'l1', 'l2' or 'smooth_l1', found {loss_function!r}.")
    check_number("saturation_penalty", saturation_penalty)
    if not saturation_penalty >= 0:
        raise ValueError(f"saturation_penalty must not be negative, found {saturation_penalty}.")
    loss_class = DDPGLoss
    if saturation_penalty:
        loss_class = partial(_PenalisedDDPGLoss, saturation_penalty, policy.out_keys[0])
    loss = loss_class(actor, critic, delay_actor=delay_actor, loss_function=loss_function)
    loss.set_keys(
        state_action_value=value.out_keys[0],
        reward=unravel_key((policy.group, "reward")),
        done=unravel_key((policy.group, "done")),
        terminated=unravel_key((policy.group, "terminated")),
        priority=unravel_key((policy.group, "td_error")),
    )
    mask_key = loss.loss_mask_key = policy.mask_key
    loss.make_value_estimator(_AgentTD0Estimator, gamma=gamma, value_network=loss.actor_critic, mask_key=mask_key)
    loss.set_keys()  # hands the keys above on to the estimator
    loss.in_keys = [*loss.in_keys, loss.value_estimator.tensor_keys.steps_to_next_obs]
    return loss


class _PenalisedDDPGLoss(DDPGLoss):
    """The actor's loss and a penalty on what it squashes, where that is in the tails of tanh."""

    def __init__(self, saturation_penalty: float, param_key: NestedKey, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.saturation_penalty, self.param_key = saturation_penalty, param_key

    def loss_actor(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        params: list[Tensor] = []
        hook = self.actor_network.register_forward_hook(
            lambda actor, inputs, output: params.append(output[self.param_key])
        )
        try:
            loss, metadata = super().loss_actor(tensordict)
        finally:
            hook.remove()
        excess = (params[0].abs() - SATURATED).clamp(min=0)
        weights = self._maybe_get_priority_weight(tensordict)
        penalty = self._reduce_loss(excess.square().mean(-1), tensordict=tensordict, weights=weights)
        return loss + self.saturation_penalty * penalty, metadata


class _AgentTD0Estimator(TD0Estimator):
    """TD(0) per agent: over several steps of a transition, and zero for absent agents whatever their rewards hold."""

    def __init__(self, *, mask_key: NestedKey | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mask_key = mask_key

    def value_estimate(self, tensordict: TensorDictBase, *args: Any, **kwargs: Any) -> Tensor:
        tensordict = tensordict.copy()
        steps_key = self.tensor_keys.steps_to_next_obs
        steps = tensordict.get(steps_key, None)
        if "is_init" in self.value_network.in_keys:  # memories, and sequences (*B, T)
            if tensordict.ndim < 2:
                raise ValueError(
                    f"With memories a batch is of sequences, (*B, T), not of single transitions: found one of "
                    f"{tuple(tensordict.shape)}."
                )
            restarts = tensordict["is_init"]
            if steps is not None:  # with another number of them the next state does not follow on the one before
                restarts = restarts | pad(steps[..., 1:] != steps[..., :-1], (1, 0)).view_as(restarts)
            tensordict["next", "is_init"] = restarts  # from the states that are stored there
        if steps is not None:  # of a transition, for each of its agents
            reward = tensordict["next", self.tensor_keys.reward]
            tensordict.set(steps_key, expand_right(steps, reward.shape))
        # The arithmetic keeps the agents apart, so a NaN reward is still in its own slot. Every slot is in the metrics.
        target = super().value_estimate(tensordict, *args, **kwargs)
        return target if self.mask_key is None else mask_absent(target, tensordict[self.mask_key])
