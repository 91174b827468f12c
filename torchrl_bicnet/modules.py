"""BiCNet's actor and critic: which keys the plain nets read and write, and the specs they keep to."""

from __future__ import annotations

from typing import Any

from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn
from torchrl.data import Composite, TensorSpec
from torchrl.envs import EnvBase

from torchrl_bicnet.checks import check_integer, check_key, check_type
from torchrl_bicnet.communication.mask import mask_absent
from torchrl_bicnet.net import BiCNet
from torchrl_bicnet.specs import _size, action_bounds, action_leaf, find_group


class _MaskedNet(nn.Module):
    """``(*inputs[, mask]) -> net(*inputs[, mask=mask])``: the module's last tensor is the net's keyword."""

    def __init__(self, net: nn.Module, in_keys: list[NestedKey], mask_key: NestedKey | None) -> None:
        super().__init__()
        self.net = net
        self.in_keys = in_keys
        self.mask_key = mask_key

    def forward(self, *tensors: Tensor) -> Any:
        inputs, mask = self.split(tensors)
        if mask is None:
            return self.net(*inputs)
        return mask_absent(self.net(*(mask_absent(x, mask) for x in inputs), mask=mask), mask)

    def split(self, tensors: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor | None]:
        # TensorDictModule passes None for a missing entry; as a mask it would mean that everybody is present.
        missing = [key for key, tensor in zip(self.in_keys, tensors) if tensor is None]
        if missing:
            raise KeyError(f"No entry was found at {missing}.")
        if self.mask_key is None:
            return tensors, None
        if tensors[-1] is None:
            raise KeyError(f"No mask of the agents present was found at mask_key={self.mask_key!r}.")
        return tensors[:-1], tensors[-1]


class _BoundedAction(_MaskedNet):
    """``(*inputs[, mask]) -> param, action``: the net's output and the same squashed into the bounds."""

    low: Tensor
    high: Tensor

    def __init__(
        self, net: nn.Module, in_keys: list[NestedKey], mask_key: NestedKey | None, low: Tensor, high: Tensor
    ) -> None:
        super().__init__(net, in_keys, mask_key)
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        param = super().forward(*tensors)
        if param.shape[-self.low.ndim :] != self.low.shape:
            raise ValueError(
                f"The action bounds {'differ over agents and ' if self.low.ndim > 1 else ''}have shape "
                f"{tuple(self.low.shape)}, which an output of the net of shape {tuple(param.shape)} does not fit."
            )
        # An overflow inside the net is the middle of the bounds here; `param` still shows it.
        fraction = (param.tanh().nan_to_num() + 1) / 2
        action = self.low + (self.high - self.low) * fraction
        # Rounding leaves the bounds in a fifth of all cases.
        return param, mask_absent(action.clamp(self.low, self.high), self.split(tensors)[1])


class _AgentModule(TensorDictModule):
    """What the actor and the critic share: a group of agents, and the mask of those present."""

    def __init__(
        self,
        module: _MaskedNet,
        in_keys: list[NestedKey],
        out_keys: list[NestedKey],
        group: NestedKey,
        mask_key: NestedKey | None,
    ) -> None:
        mask_keys = [] if mask_key is None else [mask_key]
        super().__init__(module, in_keys=[*in_keys, *mask_keys], out_keys=out_keys)
        self.group = unravel_key(group)
        self.mask_key = None if mask_key is None else unravel_key(mask_key)

    @staticmethod
    def _make_net(
        net: nn.Module | None, n_agent_inputs: int, n_agent_outputs: int, net_options: dict[str, Any]
    ) -> nn.Module:
        check_type("net", net, (nn.Module, type(None)), "a module or None")
        if net is None:
            return BiCNet(n_agent_inputs, n_agent_outputs, **net_options)
        if net_options:
            raise TypeError(f"net= is used as it is and takes no net options, found {', '.join(sorted(net_options))}.")
        if isinstance(net, BiCNet) and (net.n_agent_inputs, net.n_agent_outputs) != (n_agent_inputs, n_agent_outputs):
            raise ValueError(
                f"Expected a net of {n_agent_inputs} inputs and {n_agent_outputs} outputs per agent, found one of "
                f"{net.n_agent_inputs} and {net.n_agent_outputs}."
            )
        return net


class BiCNetActor(_AgentModule):
    """BiCNet's deterministic actor: one action per agent, each depending on every agent's observation.

    Reads ``(group, "observation")``, writes ``(group, "param")``, the net's output, and ``(group, "action")``, the
    same squashed into the bounds by ``low + (high - low) * (tanh(param) + 1) / 2`` and clamped, so that actions stay
    inside after rounding. Where the net overflows, ``param`` is not a number and the action is the middle of the
    bounds. The action has the floating type of the spec. It is an ordinary TensorDict module: state dict, ``.to``,
    deepcopy, pickle, vmap.

    Bounds equal over the agents are kept as ``(a,)``: the same actor then runs, and loads, on another number of agents.

    Args:
        n_agent_inputs (int): size of each agent's observation.
        action_spec (Bounded or Composite): the action spec, of shape ``(*B, N, a)`` with the same bounds over ``B``,
            or a Composite that holds it at the action's key, such as ``env.full_action_spec``.

    Keyword Args:
        group (NestedKey): where the agents' entries live. Defaults to ``"agents"``.
        mask_key (NestedKey, optional): where a boolean mask ``(*B, N)`` of the agents present is read. Absent agents
            get param and action exactly 0, whatever the bounds, and change nothing for the others.
        net (nn.Module, optional): called as ``net(observation)``, with ``mask=`` only where ``mask_key`` is set,
            ``(*B, N, n_agent_inputs) -> (*B, N, a)``. Defaults to a :class:`~torchrl_bicnet.BiCNet`.
        in_keys (list of NestedKey, optional): defaults to ``[(group, "observation")]``.
        out_keys (list of NestedKey, optional): defaults to ``[(group, "param"), (group, "action")]``.
        **net_options: options of :class:`~torchrl_bicnet.BiCNet`; with ``share_params=False`` the number of agents
            is taken from the spec.

    Attributes:
        spec (Composite): the action spec at the action's key, which TorchRL's exploration modules take.

    Raises:
        TypeError: for an action spec that is not Bounded and of floating point, ``net=`` with net options, an unknown
            net option, an argument of another type, or (in forward) inputs of another type than the parameters' or a
            mask that is not boolean.
        KeyError: if a Composite holds no action spec at the action's key, or (in forward) if there is no entry at one
            of ``in_keys`` or no mask at ``mask_key``.
        ValueError: for bounds that are not finite, that differ over the batch or that do not fit the net's output
            (bounds that differ over the agents on another number of agents); for an option out of its range; for
            inputs of another shape or on another device.

    Reference: Peng et al., *Multiagent Bidirectionally-Coordinated Nets*, 2017, https://arxiv.org/abs/1703.10069.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import Bounded
        >>> actor = BiCNetActor(18, Bounded(-1.0, 1.0, (4, 2)))
        >>> td = TensorDict({"agents": {"observation": torch.randn(32, 4, 18)}}, [32])
        >>> actor(td)["agents", "action"].shape
        torch.Size([32, 4, 2])
        >>> actor.in_keys, actor.out_keys
        ([('agents', 'observation')], [('agents', 'param'), ('agents', 'action')])
    """

    def __init__(
        self,
        n_agent_inputs: int,
        action_spec: TensorSpec,
        *,
        group: NestedKey = "agents",
        mask_key: NestedKey | None = None,
        net: nn.Module | None = None,
        in_keys: list[NestedKey] | None = None,
        out_keys: list[NestedKey] | None = None,
        **net_options: Any,
    ) -> None:
        check_integer("n_agent_inputs", n_agent_inputs)
        _check_keys(group, mask_key, in_keys, out_keys)
        in_keys = [unravel_key((group, "observation"))] if in_keys is None else in_keys
        out_keys = [unravel_key((group, "param")), unravel_key((group, "action"))] if out_keys is None else out_keys
        if len(out_keys) != 2:
            raise ValueError(f"The actor writes two keys, its net's output and the action, found out_keys={out_keys}.")
        leaf = action_leaf(action_spec, out_keys[1])
        low, high = action_bounds(leaf)
        if not net_options.get("share_params", True):
            net_options.setdefault("n_agents", leaf.shape[-2])
        device = net_options.get("device")
        net = self._make_net(net, n_agent_inputs, leaf.shape[-1], net_options)
        module = _BoundedAction(net, in_keys, mask_key, low.to(device), high.to(device))
        super().__init__(module, in_keys, out_keys, group, mask_key)
        self._spec = Composite({out_keys[1]: leaf.clone()}, shape=leaf.shape[:-2])

    @property
    def spec(self) -> Composite:
        # A copy each: OrnsteinUhlenbeckProcessModule changes the spec it is given.
        return self._spec.clone().to(self.module.low.device)

    @classmethod
    def from_env(cls, env: EnvBase, *, group: NestedKey | None = None, **kwargs: Any) -> BiCNetActor:
        """The actor of an environment's group of agents, sizes and bounds read from the specs.

        Args:
            env (EnvBase): a TorchRL environment with entries ``(group, "observation")`` and ``(group, "action")``.

        Keyword Args:
            group (NestedKey, optional): the group. ``None``: the only one.
            **kwargs: anything the constructor takes; ``device`` defaults to the environment's.

        Raises:
            ValueError: if the group does not exist or, for ``None``, if there are several; if the agents of the group
                have different observation or action sizes.
            KeyError: if the environment has no such entries.
            TypeError: for an environment or keys of another type.

        Example:
            >>> from torchrl_bicnet import make_vmas_env
            >>> env = make_vmas_env("navigation", num_envs=2, n_agents=3)
            >>> actor = BiCNetActor.from_env(env)
            >>> env.rollout(5, actor)["agents", "action"].shape
            torch.Size([2, 5, 3, 2])
        """
        group = find_group(env, group)
        _check_keys(group, kwargs.get("mask_key"), kwargs.get("in_keys"), kwargs.get("out_keys"))
        observations = _given(kwargs, "in_keys", [unravel_key((group, "observation"))])
        action = _given(kwargs, "out_keys", [unravel_key((group, "action"))])[-1]
        n_agent_inputs = sum(_size(env, key) for key in observations)
        _size(env, action)
        if "net" not in kwargs:
            kwargs.setdefault("device", env.device)
        return cls(n_agent_inputs, env.full_action_spec[action], group=group, **kwargs)


class BiCNetCritic(_AgentModule):
    """BiCNet's critic: one Q value per agent, each depending on every agent's observation and action.

    Reads ``(group, "observation")`` and ``(group, "action")``, writes ``(group, "state_action_value")`` of shape
    ``(*B, N, 1)``. It is an ordinary TensorDict module: state dict, ``.to``, deepcopy, pickle, vmap.

    Args:
        n_agent_inputs (int): size of each agent's observation.
        n_agent_actions (int): size of each agent's action.

    Keyword Args:
        group (NestedKey): where the agents' entries live. Defaults to ``"agents"``.
        mask_key (NestedKey, optional): where a boolean mask ``(*B, N)`` of the agents present is read. The Q of absent
            agents is exactly 0, and they change nothing for the others.
        net (nn.Module, optional): called as ``net(observation, action)``, with ``mask=`` only where ``mask_key`` is
            set, giving ``(*B, N, 1)``. Defaults to a :class:`~torchrl_bicnet.BiCNet`.
        in_keys (list of NestedKey, optional): defaults to ``[(group, "observation"), (group, "action")]``.
        out_keys (list of NestedKey, optional): defaults to ``[(group, "state_action_value")]``.
        **net_options: options of :class:`~torchrl_bicnet.BiCNet`.

    Raises:
        TypeError: for ``net=`` with net options, an unknown net option, an argument of another type, or (in forward)
            inputs of another type than the parameters' or a mask that is not boolean.
        KeyError: in forward, if there is no entry at one of ``in_keys`` or no mask at ``mask_key``.
        ValueError: for an option out of its range, or (in forward) inputs of another shape or on another device.

    Reference: Peng et al., *Multiagent Bidirectionally-Coordinated Nets*, 2017, https://arxiv.org/abs/1703.10069.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> critic = BiCNetCritic(18, 2, communication="gru")
        >>> agents = {"observation": torch.randn(32, 4, 18), "action": torch.rand(32, 4, 2)}
        >>> critic(TensorDict({"agents": agents}, [32]))["agents", "state_action_value"].shape
        torch.Size([32, 4, 1])
    """

    def __init__(
        self,
        n_agent_inputs: int,
        n_agent_actions: int,
        *,
        group: NestedKey = "agents",
        mask_key: NestedKey | None = None,
        net: nn.Module | None = None,
        in_keys: list[NestedKey] | None = None,
        out_keys: list[NestedKey] | None = None,
        **net_options: Any,
    ) -> None:
        check_integer("n_agent_inputs", n_agent_inputs)
        check_integer("n_agent_actions", n_agent_actions)
        _check_keys(group, mask_key, in_keys, out_keys)
        in_keys = [unravel_key((group, "observation")), unravel_key((group, "action"))] if in_keys is None else in_keys
        out_keys = [unravel_key((group, "state_action_value"))] if out_keys is None else out_keys
        if len(out_keys) != 1:
            raise ValueError(f"The critic writes one key, the state-action value, found out_keys={out_keys}.")
        net = self._make_net(net, n_agent_inputs + n_agent_actions, 1, net_options)
        super().__init__(_MaskedNet(net, in_keys, mask_key), in_keys, out_keys, group, mask_key)

    @classmethod
    def from_env(cls, env: EnvBase, *, group: NestedKey | None = None, **kwargs: Any) -> BiCNetCritic:
        """The critic of an environment's group of agents, sizes read from the specs.

        Args:
            env (EnvBase): a TorchRL environment with entries ``(group, "observation")`` and ``(group, "action")``.

        Keyword Args:
            group (NestedKey, optional): the group. ``None``: the only one.
            **kwargs: anything the constructor takes; ``device`` defaults to the environment's.

        Raises:
            ValueError: if the group does not exist or, for ``None``, if there are several; if the agents of the group
                have different observation or action sizes.
            KeyError: if the environment has no such entries.
            TypeError: for an environment or keys of another type.

        Example:
            >>> from torchrl_bicnet import make_vmas_env
            >>> env = make_vmas_env("navigation", num_envs=2, n_agents=3)
            >>> actor, critic = BiCNetActor.from_env(env), BiCNetCritic.from_env(env)
            >>> critic(actor(env.reset()))["agents", "state_action_value"].shape
            torch.Size([2, 3, 1])
        """
        group = find_group(env, group)
        _check_keys(group, kwargs.get("mask_key"), kwargs.get("in_keys"), kwargs.get("out_keys"))
        both = [unravel_key((group, name)) for name in ("observation", "action")]
        *observations, action = _given(kwargs, "in_keys", both)
        n_agent_inputs = sum(_size(env, key) for key in observations)
        n_agent_actions = _size(env, action)
        if "net" not in kwargs:
            kwargs.setdefault("device", env.device)
        if not kwargs.get("share_params", True):
            kwargs.setdefault("n_agents", env.full_action_spec[action].shape[-2])
        return cls(n_agent_inputs, n_agent_actions, group=group, **kwargs)


def _check_keys(group: Any, mask_key: Any, in_keys: Any, out_keys: Any) -> None:
    check_key("group", group)
    if mask_key is not None:
        check_key("mask_key", mask_key)
    for name, keys in (("in_keys", in_keys), ("out_keys", out_keys)):
        if keys is None:
            continue
        if not isinstance(keys, list) or not keys:
            raise TypeError(f"{name} must be a list of keys, found {keys!r}.")
        for key in keys:
            check_key(name, key)


def _given(kwargs: dict[str, Any], name: str, default: list[NestedKey]) -> list[NestedKey]:
    return default if kwargs.get(name) is None else kwargs[name]
