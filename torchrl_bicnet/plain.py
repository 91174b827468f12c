"""A BiCNet written in plain PyTorch, as a :class:`~torchrl_bicnet.BiCNet`: its weights, loaded one by one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from torchrl_bicnet.checks import check_type
from torchrl_bicnet.communication.recurrent import RecurrentCommunication
from torchrl_bicnet.net import BiCNet

# The parts of the plain networks, and where BiCNet has them.
_PARTS = {"prev_dense.": "encoder.", "comm_net.lstm.": "communication.", "post_dense.": "decoder."}
_DEPTH = 4


def load_plain_bicnet(state_dict: Mapping[str, Tensor], *, device: torch.device | str | None = None) -> BiCNet:
    """A BiCNet written in plain PyTorch, loaded weight by weight: same outputs, gradients and running statistics.

    For users who have an ``Actor`` or a ``Critic`` of https://github.com/bic4907/BiCNet, or one written after it.
    Both have ``prev_dense``, four linear layers with a batch norm (``norm1`` to ``norm4``) *before* each,
    ``comm_net.lstm`` over the agents, and ``post_dense``, four linear layers that see the messages beside the
    observation. All sizes are read off the shapes: ``net(observation)`` is what the actor computes before its tanh,
    ``net(observation, action)`` what the critic does, in train and in eval mode, for any batch shape and number of
    agents. As in the original, batch norm counts every agent of the batch as a row and leaves a single row unchanged.

    The weights are copied, in their type; the global random generator is left alone. What a state dict does not hold
    is taken to be as in the original: ReLU between the linear layers, batch norm with torch's momentum and epsilon,
    an LSTM without dropout and with the agents on its second dimension. A critic differs from an actor only in that
    its ``post_dense`` sees less than ``prev_dense``: the observation, which comes first, not the action.

    In an actor, a critic and their loss, batch norm is in the mode of the actor and the critic: ``actor.eval()`` before
    collecting, or acting moves the running statistics, and ``actor.train()`` before the updates. TorchRL's losses do
    not pass their own ``train()`` and ``eval()`` on.

    Args:
        state_dict (Mapping): the ``state_dict()`` of the plain actor or critic.

    Keyword Args:
        device (torch.device, optional): where to put the net. Defaults to where the weights are.

    Returns:
        BiCNet: called with ``(*B, N, observation)`` and for a critic ``(*B, N, action)``, giving ``(*B, N, outputs)``;
        in train mode. Its batch norm takes no mask: with one, forward raises a ValueError.

    Reference: Peng et al., *Multiagent Bidirectionally-Coordinated Nets*, 2017, https://arxiv.org/abs/1703.10069.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchrl.data import Bounded
        >>> from torchrl_bicnet import BiCNetActor, BiCNetCritic, make_ddpg_loss
        >>> def dense_net(*widths, norm_in=False):  # stands for the networks of your own
        ...     layers = {f"dense{i}": nn.Linear(*widths[i - 1 : i + 1]) for i in range(1, 5)}
        ...     norms = {f"norm{i}": nn.BatchNorm1d(widths[i - 1]) for i in range(1, 5)}
        ...     return nn.ModuleDict(layers | norms if norm_in else layers)
        >>> def plain(n_inputs, n_observations, n_outputs):
        ...     lstm = nn.LSTM(16, 16, batch_first=True, bidirectional=True)
        ...     return nn.ModuleDict({
        ...         "prev_dense": dense_net(n_inputs, 32, 32, 32, 16, norm_in=True),
        ...         "comm_net": nn.ModuleDict({"lstm": lstm}),
        ...         "post_dense": dense_net(32 + n_observations, 16, 16, 16, n_outputs),
        ...     })
        >>> plain_actor, plain_critic = plain(18, 18, 2), plain(18 + 2, 18, 1)
        >>> actor_net = load_plain_bicnet(plain_actor.state_dict())
        >>> actor_net(torch.randn(32, 4, 18)).shape
        torch.Size([32, 4, 2])
        >>> actor = BiCNetActor(18, Bounded(-1.0, 1.0, (4, 2)), net=actor_net)  # with these bounds its action is tanh
        >>> critic = BiCNetCritic(18, 2, net=load_plain_bicnet(plain_critic.state_dict()))
        >>> loss = make_ddpg_loss(actor, critic)
    """
    check_type("state_dict", state_dict, Mapping, "a state dict, such as module.state_dict()")
    n_layers, bidirectional, bias = _check_names(state_dict)
    encoder_widths = _widths(state_dict, "prev_dense")
    decoder_widths = _widths(state_dict, "post_dense")
    hidden_size = state_dict["comm_net.lstm.weight_hh_l0"].shape[1]
    skip = decoder_widths[0] - hidden_size * (1 + bidirectional)
    if not 0 <= skip <= encoder_widths[0]:
        raise ValueError(
            f"post_dense must see the {decoder_widths[0] - skip} features of comm_net and up to {encoder_widths[0]} "
            f"of prev_dense's input, found {decoder_widths[0]} features."
        )
    weight = state_dict["prev_dense.dense1.weight"]
    with torch.device("meta"):  # without the work and the random numbers of an initialisation
        net = BiCNet(
            encoder_widths[0],
            decoder_widths[-1],
            encoder=_dense_net(encoder_widths, norm=True),
            communication=RecurrentCommunication(
                encoder_widths[-1], hidden_size, num_layers=n_layers, bidirectional=bidirectional, bias=bias
            ),
            decoder=_dense_net(decoder_widths, norm=False),
            skip=skip,
        )
    net = net.to(weight.dtype).to_empty(device=weight.device if device is None else device)
    try:
        net.load_state_dict({_name_in_bicnet(name): tensor for name, tensor in state_dict.items()})
    except RuntimeError as error:
        raise RuntimeError(f"The weights do not fit each other: {error}") from error
    return net


class _RowNorm(nn.BatchNorm1d):
    """Batch norm over the rows ``(*B, N)`` of ``x: (*B, N, F)``; a single row is left as it is."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.num_features)
        return x if len(rows) == 1 else super().forward(rows).reshape(x.shape)


def _dense_net(widths: list[int], norm: bool) -> nn.Sequential:
    """The plain ``DenseNet`` by the names of its layers, ReLU between them."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (in_features, out_features) in enumerate(pairwise(widths), start=1):
        if norm:
            layers[f"norm{i}"] = _RowNorm(in_features)
        layers[f"dense{i}"] = nn.Linear(in_features, out_features)
        if i < _DEPTH:
            layers[f"activation{i}"] = nn.ReLU()
    return nn.Sequential(layers)


def _widths(state_dict: Mapping[str, Tensor], part: str) -> list[int]:
    weights = [state_dict[f"{part}.dense{i}.weight"] for i in range(1, _DEPTH + 1)]
    return [weights[0].shape[1], *(weight.shape[0] for weight in weights)]


def _name_in_bicnet(name: str) -> str:
    part = next(part for part in _PARTS if name.startswith(part))
    return _PARTS[part] + name.removeprefix(part)


def _check_names(state_dict: Mapping[str, Tensor]) -> tuple[int, bool, bool]:
    """The number of layers of the LSTM, whether it has two directions, and biases, if the names are the plain ones."""
    n_layers = sum(f"comm_net.lstm.weight_ih_l{layer}" in state_dict for layer in range(len(state_dict)))
    bidirectional = any(name.endswith("_reverse") for name in state_dict)
    bias = any(name.startswith("comm_net.lstm.bias_") for name in state_dict)
    expected = {
        f"comm_net.lstm.{kind}_{gates}_l{layer}{direction}"
        for kind in (("weight", "bias") if bias else ("weight",))
        for gates in ("ih", "hh")
        for layer in range(max(n_layers, 1))
        for direction in (("", "_reverse") if bidirectional else ("",))
    }
    for i in range(1, _DEPTH + 1):
        expected |= {f"{part}.dense{i}.{kind}" for part in ("prev_dense", "post_dense") for kind in ("weight", "bias")}
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        expected |= {f"prev_dense.norm{i}.{kind}" for kind in ("weight", "bias", *statistics)}
    missing, unexpected = sorted(expected - state_dict.keys()), sorted(state_dict.keys() - expected)
    if missing or unexpected:
        raise ValueError(
            "Expected the state dict of the plain BiCNet's Actor or Critic, with the parts "
            f"{', '.join(part.rstrip('.') for part in _PARTS)}; missing: {', '.join(missing) or 'nothing'}; "
            f"unexpected: {', '.join(unexpected) or 'nothing'}."
        )
    return n_layers, bidirectional, bias
