"""BiCNet on plain tensors: encoder -> communication -> decoder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchrl.modules import MLP, MultiAgentMLP

from torchrl_bicnet.checks import check_integer, check_type
from torchrl_bicnet.communication.baselines import AttentionCommunication, MeanCommunication, NoCommunication
from torchrl_bicnet.communication.mask import mask_absent
from torchrl_bicnet.communication.recurrent import RecurrentCommunication
from torchrl_bicnet.communication.recurrent_attention import RecurrentAttentionCommunication

CommunicationName = Literal["lstm", "gru", "rnn", "recurrent_attention", "mean", "attention", "none"]


class BiCNet(nn.Module):
    """Bidirectionally-coordinated net: a per-agent encoder, communication between the agents, a per-agent decoder.

    The decoder sees what the agent heard, the output of the communication layer, beside the agent's own input.

    With ``share_params=True`` one encoder and one decoder serve every agent: the number of parameters does not
    depend on the number of agents ``N``, and the same weights run on any ``N``. With ``False`` every agent slot has
    its own encoder and decoder around the one shared communication layer, and with ``agent_id=True`` a name of its own
    in its input: such a net is for one ``N``.

    With a mask the agents present act as in the team from which the absent were removed, whatever the absent slots hold
    (with ``share_params=False`` or ``agent_id=True`` each with the parameters or the name of its own slot).

    Args:
        n_agent_inputs (int): size of each agent's input, summed over the inputs.
        n_agent_outputs (int): size of each agent's output.

    Keyword Args:
        communication (str or nn.Module): ``"lstm"``, ``"gru"``, ``"rnn"``
            (:class:`~torchrl_bicnet.RecurrentCommunication`), ``"recurrent_attention"``
            (:class:`~torchrl_bicnet.RecurrentAttentionCommunication`), ``"mean"``
            (:class:`~torchrl_bicnet.MeanCommunication`), ``"attention"``
            (:class:`~torchrl_bicnet.AttentionCommunication`), ``"none"``
            (:class:`~torchrl_bicnet.NoCommunication`), or a module with that signature, whose ``in_features`` is
            then the encoder's width. Defaults to ``"lstm"``.
        hidden_size (int): size of a direction's hidden state; the other layers put out twice that, as many features
            as a bidirectional recurrence. Defaults to ``64``.
        num_cells (sequence of int): widths of the hidden layers, of the encoder and of the decoder. The encoder's
            last one is its output. Defaults to ``(128,)``.
        norm_class (type, optional): normalisation after each hidden linear layer, over the features:
            :class:`torch.nn.LayerNorm`, :class:`torch.nn.RMSNorm` or alike. ``None`` is none.
            Defaults to :class:`torch.nn.LayerNorm`.
        activation_class (type): activation. Defaults to :class:`torch.nn.ReLU`.
        skip (bool or int): how much of its own input an agent's decoder sees: ``True`` all of it, ``False`` none, an
            int the first so many features. Defaults to ``True``.
        encoder (nn.Module, optional): a module instead of the MLP, ``(*B, N, n_agent_inputs) -> (*B, N, E)``; with
            a communication given by name it must have an attribute ``out_features``, ``E``. It sees zeros in absent
            slots and must be differentiable there.
        decoder (nn.Module, optional): a module instead of the MLP,
            ``(*B, N, communication.out_features + skipped) -> (*B, N, n_agent_outputs)``.
        share_params (bool): one encoder and decoder for all agents, or one per agent slot. Defaults to ``True``.
        agent_id (bool): appends a one-hot of the agent's slot to its input. Defaults to ``False``.
        n_frequencies (int): appends Fourier features to an agent's input: of each number ``x`` the sine and cosine of
            ``pi 2^k x``, divided by ``2^(k + 1)``, for ``k`` from 0 to ``n_frequencies - 1``. With them a net learns
            functions that change over small distances, such as the value of being exactly at a goal, for which it
            takes very long without; the factors leave smooth functions the faster ones. For inputs of the order of 1.
            Defaults to ``0``.
        n_smooth_inputs (int): the last so many numbers of an agent's input get none of them. A critic's actions should
            not: its gradient with respect to them, which the actor follows, would change over small distances too.
            Defaults to ``0``; :class:`~torchrl_bicnet.BiCNetCritic` sets it to the size of its actions.
        n_agents (int, optional): number of agents, needed with ``share_params=False`` and ``agent_id=True`` only.
        device (torch.device, optional): where to create the parameters.

    Shape:
        - inputs: one or more ``(*B, N, F_k)``, concatenated on the last dimension, ``sum F_k = n_agent_inputs``
        - mask: boolean ``(*B, N)``, True where the agent is present, or ``None``
        - output: ``(*B, N, n_agent_outputs)``, zero for absent agents.

    References: Peng et al., *Multiagent Bidirectionally-Coordinated Nets*, 2017, https://arxiv.org/abs/1703.10069,
    figure 1; Tancik et al., *Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains*,
    2020, https://arxiv.org/abs/2006.10739, and for critics Yang et al., *Overcoming the Spectral Bias of Neural Value
    Approximation*, 2022, https://arxiv.org/abs/2206.04672.

    Example:
        >>> import torch
        >>> net = BiCNet(n_agent_inputs=18, n_agent_outputs=2)
        >>> net(torch.randn(32, 4, 18)).shape
        torch.Size([32, 4, 2])
        >>> net(torch.randn(7, 18)).shape  # the same weights, seven agents, no batch
        torch.Size([7, 2])
        >>> critic = BiCNet(18 + 2, 1, communication="gru")
        >>> critic(torch.randn(32, 4, 18), torch.randn(32, 4, 2)).shape
        torch.Size([32, 4, 1])
    """

    encoder: nn.Module
    communication: nn.Module
    decoder: nn.Module

    # Version of the state dict, which torch saves beside the weights. Raised where their names or meaning change.
    _version = 1

    def __init__(
        self,
        n_agent_inputs: int,
        n_agent_outputs: int,
        *,
        communication: CommunicationName | nn.Module = "lstm",
        hidden_size: int = 64,
        num_cells: Sequence[int] = (128,),
        norm_class: type[nn.Module] | None = nn.LayerNorm,
        activation_class: type[nn.Module] = nn.ReLU,
        skip: bool | int = True,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        share_params: bool = True,
        agent_id: bool = False,
        n_frequencies: int = 0,
        n_smooth_inputs: int = 0,
        n_agents: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_integer("n_agent_inputs", n_agent_inputs)
        check_integer("n_agent_outputs", n_agent_outputs)
        check_integer("hidden_size", hidden_size)
        check_integer("n_frequencies", n_frequencies, least=0)
        check_integer("n_smooth_inputs", n_smooth_inputs, least=0, most=n_agent_inputs)
        check_type("num_cells", num_cells, Sequence, "a sequence of widths, such as (64,)")
        for width in num_cells:
            check_integer("num_cells", width)
        for name, part in (("encoder", encoder), ("decoder", decoder)):
            check_type(name, part, (nn.Module, type(None)), "a module or None")
        for name, layer in (("norm_class", norm_class or nn.Identity), ("activation_class", activation_class)):
            check_type(name, layer, type, "a class of modules, such as nn.ReLU")
        if norm_class is nn.BatchNorm1d:
            raise ValueError("norm_class must normalise over the features, such as LayerNorm, found BatchNorm1d.")
        if not share_params or agent_id:  # every agent slot has networks or a name of its own
            check_integer("n_agents, with share_params=False or agent_id=True,", n_agents)
        self.n_agent_inputs = n_agent_inputs
        self.n_agent_outputs = n_agent_outputs
        self.n_agents = None if share_params and not agent_id else n_agents
        self.agent_id = agent_id
        self.n_frequencies = n_frequencies
        self.n_smooth_inputs = n_smooth_inputs
        n_named = n_agent_inputs + (n_agents if agent_id and n_agents else 0)
        n_inputs = n_named + 2 * n_frequencies * (n_agent_inputs - n_smooth_inputs)
        self.n_skipped = _count_skipped(skip, n_inputs)
        mlp = partial(
            _mlp,
            n_agents=None if share_params else n_agents,
            activation_class=activation_class,
            norm_class=norm_class,
            device=device,
        )
        *encoder_cells, width = num_cells or (hidden_size,)
        if isinstance(communication, nn.Module):
            width = _features(communication, "in_features")
        elif encoder is not None:
            width = _features(encoder, "out_features")
        if encoder is None:
            encoder = mlp(n_inputs, width, encoder_cells, activate_last_layer=True)
        if not isinstance(communication, nn.Module):
            communication = _make_communication(communication, width, hidden_size, device)
        if decoder is None:
            decoder = mlp(_features(communication, "out_features") + self.n_skipped, n_agent_outputs, num_cells)
        self.encoder, self.communication, self.decoder = encoder, communication, decoder
        self._has_batch_norm = any(isinstance(module, _BatchNorm) for module in self.modules())

    def forward(self, *inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None and self._has_batch_norm:
            raise ValueError("Batch norm mixes the absent agents into the others; a net that holds one takes no mask.")
        x = mask_absent(self._concatenate(inputs), mask)
        if self.n_frequencies:
            waves = fourier_features(x[..., : self.n_agent_inputs - self.n_smooth_inputs], self.n_frequencies)
            x = mask_absent(torch.cat([x, waves], -1), mask)
        # Masked here too: a layer of the user's own may leave anything in the absent slots.
        heard = mask_absent(self.communication(self.encoder(x), mask), mask)
        out = self.decoder(torch.cat([heard, x[..., : self.n_skipped]], -1))
        return mask_absent(out, mask)

    def _concatenate(self, inputs: tuple[Tensor, ...]) -> Tensor:
        shapes = [tuple(x.shape) for x in inputs]
        if (
            any(len(shape) < 2 or shape[:-1] != shapes[0][:-1] for shape in shapes)
            or sum(shape[-1] for shape in shapes) != self.n_agent_inputs
            or self.n_agents not in (None, shapes[0][-2])
        ):
            n_agents = "N" if self.n_agents is None else self.n_agents
            raise ValueError(
                f"Expected inputs of shape (*B, {n_agents}, F) with the agents on dimension -2 and "
                f"{self.n_agent_inputs} features in all, found {', '.join(map(str, shapes)) or 'no input'}."
            )
        if self.agent_id:
            slots = torch.eye(shapes[0][-2], dtype=inputs[0].dtype, device=inputs[0].device)
            inputs = (*inputs, slots.expand(*shapes[0][:-1], -1))
        return inputs[0] if len(inputs) == 1 else torch.cat(inputs, -1)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        version = local_metadata.get("version") or self._version
        if version > self._version:
            raise RuntimeError(
                f"The state dict was saved by a newer torchrl_bicnet: its BiCNet is of version {version}, this one "
                f"reads up to {self._version}."
            )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def fourier_features(x: Tensor, n_frequencies: int) -> Tensor:
    """``(*B, F) -> (*B, 2 F n_frequencies)``."""
    scales = [2**k for k in range(n_frequencies)]
    return torch.cat([wave(torch.pi * s * x) / (2 * s) for s in scales for wave in (torch.sin, torch.cos)], -1)


def _mlp(
    in_features: int,
    out_features: int,
    num_cells: Sequence[int],
    activate_last_layer: bool = False,
    *,
    n_agents: int | None,
    activation_class: type[nn.Module],
    norm_class: type[nn.Module] | None,
    device: torch.device | str | None,
) -> nn.Module:
    """An MLP for all agents or, with ``n_agents``, one for each agent slot."""
    widths = [*num_cells, out_features] if activate_last_layer else num_cells
    options: dict[str, Any] = {
        "num_cells": list(num_cells),
        "depth": len(num_cells),
        "activation_class": activation_class,
        "norm_class": norm_class,
        "norm_kwargs": [{"normalized_shape": width} for width in widths] if norm_class else None,
        "activate_last_layer": activate_last_layer,
        "device": device,
    }
    if n_agents is None:
        return MLP(in_features, out_features, **options)
    return MultiAgentMLP(in_features, out_features, n_agents, centralized=False, share_params=False, **options)


def _count_skipped(skip: bool | int, n_agent_inputs: int) -> int:
    # bool is an int: True is all features, not the first one.
    if isinstance(skip, bool):
        return n_agent_inputs * skip
    check_integer("skip", skip, least=0, most=n_agent_inputs)
    return skip


def _features(module: nn.Module, name: Literal["in_features", "out_features"]) -> int:
    features = getattr(module, name, None)
    if not isinstance(features, int):
        raise TypeError(f"{type(module).__name__} needs an integer attribute {name}, found {features!r}.")
    return features


def _make_communication(name: str, in_features: int, hidden_size: int, device: torch.device | str | None) -> nn.Module:
    if name in ("lstm", "gru", "rnn"):
        return RecurrentCommunication(in_features, hidden_size, cell=name, device=device)  # type: ignore[arg-type]
    if name == "recurrent_attention":
        return RecurrentAttentionCommunication(in_features, 2 * hidden_size, device=device)
    if name == "mean":
        return MeanCommunication(in_features, 2 * hidden_size, device=device)
    if name == "attention":
        return AttentionCommunication(in_features, 2 * hidden_size, device=device)
    if name == "none":
        return NoCommunication(in_features)
    raise ValueError(f"communication must be one of {get_args(CommunicationName)} or a module, found {name!r}.")
