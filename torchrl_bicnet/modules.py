"""BiCNet's actor and critic as TensorDict modules: the keys of the plain nets, the action bounds and the mask."""

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
from torchrl_bicnet.specs import action_bounds, action_leaf, agent_mask_key, agent_spec, find_group


class _MaskedNet(nn.Module):
    """A net whose mask is the last positional input: ``(*inputs[, mask]) -> net(*inputs[, mask=mask])``."""

    def __init__(self, net: nn.Module, masked: bool) -> None:
        super().__init__()
        self.net = net
        self.masked = masked

    def forward(self, *tensors: Tensor) -> Any:
        if not self.masked:
            return self.net(*tensors)
        *inputs, mask = tensors
        if type(self.net) is BiCNet:  # masks by itself
            return self.net(*inputs, mask=mask)
        return mask_absent(self.net(*(mask_absent(x, mask) for x in inputs), mask=mask), mask)


class _BoundedAction(_MaskedNet):
    """The net's output and the same squashed into the bounds: ``(*inputs[, mask]) -> param, action``."""

    low: Tensor
    high: Tensor

    def __init__(self, net: nn.Module, masked: bool, low: Tensor, high: Tensor) -> None:
        super().__init__(net, masked)
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
        # Clamped, since `low + (high - low) * fraction` may round outside the bounds.
        action = (self.low + (self.high - self.low) * fraction).clamp(self.low, self.high)
        return param, mask_absent(action, tensors[-1] if self.masked else None)


class _AgentModule(TensorDictModule):
    """The net of a group of agents, with the mask of those present as its last entry."""

    def __init__(
        self,
        module: _MaskedNet,
        in_keys: list[NestedKey],
        out_keys: list[NestedKey],
        group: NestedKey,
        mask_key: NestedKey | None,
    ) -> None:
        mask_keys = [] if mask_key is None else [mask_key]
        # Strict: a missing mask would otherwise arrive as None, which means that everybody is present.
        super().__init__(module, in_keys=[*in_keys, *mask_keys], out_keys=out_keys, strict=True)
        self.group = unravel_key(group)
        self.mask_key = None if mask_key is None else unravel_key(mask_key)


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
        in_keys = _keys("in_keys", in_keys, group, "observation")
        out_keys = _keys("out_keys", out_keys, group, "param", "action")
        if len(out_keys) != 2:
            raise ValueError(f"The actor writes two keys, its net's output and the action, found out_keys={out_keys}.")
        leaf = action_leaf(action_spec, out_keys[1])
        low, high = action_bounds(leaf)
        if _counts_agents(net_options):
            net_options.setdefault("n_agents", leaf.shape[-2])
        net = _make_net(net, n_agent_inputs, leaf.shape[-1], net_options)
        device = net_options.get("device")
        module = _BoundedAction(net, mask_key is not None, low.to(device), high.to(device))
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
            **kwargs: anything the constructor takes; ``device`` defaults to the environment's, ``mask_key`` to
                ``(group, "mask")`` if the environment writes it, ``(*B, N)`` boolean, and no ``net`` is given.

        Example:
            >>> from torchrl_bicnet import make_vmas_env
            >>> env = make_vmas_env("navigation", num_envs=2, n_agents=3)
            >>> actor, critic = BiCNetActor.from_env(env), BiCNetCritic.from_env(env)
            >>> critic(actor(env.reset()))["agents", "state_action_value"].shape
            torch.Size([2, 3, 1])
        """
        group = find_group(env, group)
        observations = _keys("in_keys", kwargs.get("in_keys"), group, "observation")
        action = _keys("out_keys", kwargs.get("out_keys"), group, "param", "action")[-1]
        n_agent_inputs, action_spec = _read_env(env, group, observations, action, kwargs)
        return cls(n_agent_inputs, action_spec, group=group, **kwargs)


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
        **net_options: options of :class:`~torchrl_bicnet.BiCNet`. Fourier features (``n_frequencies``) are of the
            observation, not of the action, the last of ``in_keys``.

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
        in_keys = _keys("in_keys", in_keys, group, "observation", "action")
        out_keys = _keys("out_keys", out_keys, group, "state_action_value")
        if len(out_keys) != 1:
            raise ValueError(f"The critic writes one key, the state-action value, found out_keys={out_keys}.")
        if net is None:
            net_options = {"n_smooth_inputs": n_agent_actions, **net_options}
        net = _make_net(net, n_agent_inputs + n_agent_actions, 1, net_options)
        super().__init__(_MaskedNet(net, mask_key is not None), in_keys, out_keys, group, mask_key)

    @classmethod
    def from_env(cls, env: EnvBase, *, group: NestedKey | None = None, **kwargs: Any) -> BiCNetCritic:
        """The critic of an environment's group of agents; see :meth:`~torchrl_bicnet.BiCNetActor.from_env`."""
        group = find_group(env, group)
        *observations, action = _keys("in_keys", kwargs.get("in_keys"), group, "observation", "action")
        n_agent_inputs, action_spec = _read_env(env, group, observations, action, kwargs)
        if not action_spec.dtype.is_floating_point:
            raise TypeError(
                f"The critic reads continuous actions, found {type(action_spec).__name__} of dtype "
                f"{action_spec.dtype}; for discrete ones docs/recipes.md has critics of a plain BiCNet."
            )
        return cls(n_agent_inputs, action_spec.shape[-1], group=group, **kwargs)


def _keys(name: str, keys: list[NestedKey] | None, group: NestedKey, *entries: str) -> list[NestedKey]:
    """The keys given, by default those of the group's entries."""
    check_key("group", group)
    if keys is None:
        return [unravel_key((group, entry)) for entry in entries]
    check_type(name, keys, list, "a list of keys")  # a tuple may be one key or several
    return keys


def _make_net(
    net: nn.Module | None, n_agent_inputs: int, n_agent_outputs: int, net_options: dict[str, Any]
) -> nn.Module:
    if net is None:
        return BiCNet(n_agent_inputs, n_agent_outputs, **net_options)
    check_type("net", net, nn.Module, "a module or None")
    if net_options:
        raise TypeError(f"net= is used as it is and takes no net options, found {', '.join(sorted(net_options))}.")
    if isinstance(net, BiCNet) and (net.n_agent_inputs, net.n_agent_outputs) != (n_agent_inputs, n_agent_outputs):
        raise ValueError(
            f"Expected a net of {n_agent_inputs} inputs and {n_agent_outputs} outputs per agent, found one of "
            f"{net.n_agent_inputs} and {net.n_agent_outputs}."
        )
    return net


def _counts_agents(net_options: dict[str, Any]) -> bool:
    """Whether a net with these options has one number of agents."""
    return not net_options.get("share_params", True) or net_options.get("agent_id", False)


def _read_env(
    env: EnvBase, group: NestedKey, observations: list[NestedKey], action: NestedKey, options: dict[str, Any]
) -> tuple[int, TensorSpec]:
    """The size of an agent's observations and the action's spec; sets mask, device and team size."""
    n_agent_inputs = sum(agent_spec(env, key).shape[-1] for key in observations)
    action_spec = agent_spec(env, action)
    if options.get("net") is None:
        if (mask_key := agent_mask_key(env, group, action_spec.shape[:-1])) is not None:
            options.setdefault("mask_key", mask_key)
        options.setdefault("device", env.device)
        if _counts_agents(options):
            options.setdefault("n_agents", action_spec.shape[-2])
    return n_agent_inputs, action_spec
