"""Recurrence over the agent dimension: the communication layer of BiCNet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from torchrl_bicnet.checks import check_integer
from torchrl_bicnet.communication.mask import mask_absent, masked_input

# The cells: (gates of the input, gates of the hidden state, state) -> state, whose first entry is the output.
# Equations and order of the gates are those of torch.nn.LSTM, GRU and RNN.
_State = tuple[Tensor, ...]


def _lstm_cell(input_gates: Tensor, hidden_gates: Tensor, state: _State) -> _State:
    i, f, g, o = (input_gates + hidden_gates).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru_cell(input_gates: Tensor, hidden_gates: Tensor, state: _State) -> _State:
    input_r, input_z, input_n = input_gates.chunk(3, -1)
    hidden_r, hidden_z, hidden_n = hidden_gates.chunk(3, -1)
    z = (input_z + hidden_z).sigmoid()
    n = (input_n + (input_r + hidden_r).sigmoid() * hidden_n).tanh()
    return (n + z * (state[0] - n),)


def _rnn_cell(input_gates: Tensor, hidden_gates: Tensor, state: _State) -> _State:
    return ((input_gates + hidden_gates).tanh(),)


class _Cell(NamedTuple):
    torch_mode: str
    kernel: Callable[..., Any]  # fused
    step: Callable[..., _State]  # of the loop
    n_states: int


_CELLS = {
    "lstm": _Cell("LSTM", torch.lstm, _lstm_cell, 2),
    "gru": _Cell("GRU", torch.gru, _gru_cell, 1),
    "rnn": _Cell("RNN_TANH", torch.rnn_tanh, _rnn_cell, 1),
}
_IMPLEMENTATIONS = ("auto", "fused", "loop")
# Agents in one product of the loop's inputs. The gates of a long team at once would leave the cache, and memory of
# tens of megabytes is mapped anew by each call. It does not depend on the batch, whose size may be dynamic.
_AGENTS_AT_ONCE = 8


class RecurrentCommunication(nn.RNNBase):
    """Bidirectional recurrence over the agent dimension, the communication layer of BiCNet.

    Agent ``i`` hears the agents before it through the forward direction and those after it through the backward
    direction; the parameters do not depend on the number of agents. They are those of :class:`torch.nn.LSTM`,
    :class:`~torch.nn.GRU` or :class:`~torch.nn.RNN` (tanh): state dicts load both ways.

    Two implementations share the parameters and agree to rounding, in values and gradients:

    - ``"fused"``: torch's own kernel (oneDNN on CPU, cuDNN on CUDA), fastest in eager mode; it takes no mask;
    - ``"loop"``: an explicit loop over agents with both directions in one product per step. It works under
      :func:`torch.vmap`, :func:`torch.compile` with ``fullgraph=True``, double backward, in eval mode on CUDA
      with gradients, and with a mask. Under :func:`torch.export.export` it is taken whatever is asked for; with a free
      number of agents it is one operation of the graph.

    With a mask the recurrence skips absent agents, so the outputs of those present are what they would be in
    the team from which the absent were removed.

    Args:
        in_features (int): size of each agent's input.
        hidden_size (int): size of the hidden state, per direction.

    Keyword Args:
        cell (str): ``"lstm"``, ``"gru"`` or ``"rnn"``. Defaults to ``"lstm"``.
        num_layers (int): number of stacked recurrences. Defaults to ``1``.
        bidirectional (bool): if ``False``, agents hear only those before them. Defaults to ``True``.
        bias (bool): whether the gates have biases. Defaults to ``True``.
        implementation (str): ``"auto"``, ``"fused"`` or ``"loop"``. ``"auto"`` takes the loop under a mask, a
            ``torch.func`` transform, ``torch.compile`` or ``make_fx``, and in eval mode on CUDA while gradients are
            recorded; the fused kernel otherwise. For double backward or forward-mode differentiation ask for
            ``"loop"``. Defaults to ``"auto"``.
        device (torch.device, optional): where to create the parameters.
        dtype (torch.dtype, optional): their type.

    Shape:
        - x: ``(*B, N, in_features)``
        - mask: boolean ``(*B, N)``, True where the agent is present, or ``None``
        - output: ``(*B, N, out_features)``, ``out_features = hidden_size * (2 if bidirectional else 1)``; zero for
          absent agents.

    Reference: Peng et al., *Multiagent Bidirectionally-Coordinated Nets*, 2017, https://arxiv.org/abs/1703.10069,
    section 3.2 and figure 1.

    Example:
        >>> import torch
        >>> layer = RecurrentCommunication(8, 16, cell="gru")
        >>> layer(torch.randn(32, 5, 8)).shape
        torch.Size([32, 5, 32])
        >>> mask = torch.tensor([True, True, False])
        >>> layer(torch.randn(3, 8), mask)[2].abs().max().item()
        0.0
        >>> _ = layer.load_state_dict(torch.nn.GRU(8, 16, bidirectional=True).state_dict())
    """

    def __init__(
        self,
        in_features: int,
        hidden_size: int,
        *,
        cell: Literal["lstm", "gru", "rnn"] = "lstm",
        num_layers: int = 1,
        bidirectional: bool = True,
        bias: bool = True,
        implementation: Literal["auto", "fused", "loop"] = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, size in (("in_features", in_features), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            check_integer(name, size)
        if cell not in _CELLS:
            raise ValueError(f"cell must be one of {tuple(_CELLS)}, found {cell!r}.")
        if implementation not in _IMPLEMENTATIONS:
            raise ValueError(f"implementation must be one of {_IMPLEMENTATIONS}, found {implementation!r}.")
        super().__init__(
            _CELLS[cell].torch_mode,
            in_features,
            hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=True,
            bidirectional=bidirectional,
            device=device,
            dtype=dtype,
        )
        self.cell = cell
        self.implementation = implementation
        self.in_features = in_features
        self.out_features = hidden_size * (1 + bidirectional)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = masked_input(x, mask, self.in_features)
        flat = x.reshape(-1, *x.shape[-2:])
        if self._needs_loop(x, mask):
            out = self._loop(flat, None if mask is None else mask.reshape(-1, mask.shape[-1]))
        else:
            out = self._fused(flat)
        return mask_absent(out.reshape(*x.shape[:-1], self.out_features), mask)

    def _needs_loop(self, x: Tensor, mask: Tensor | None) -> bool:
        if self.implementation == "fused" and mask is not None:
            raise ValueError('implementation="fused" cannot skip absent agents; use "auto" or "loop" with a mask.')
        if torch.compiler.is_exporting():  # the kernel would be for one number of agents
            return True
        if self.implementation != "auto":
            return self.implementation == "loop"
        return (
            mask is not None
            or torch.compiler.is_compiling()
            or get_proxy_mode() is not None  # traced by make_fx
            or any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in (x, *self._weights()))
            # cuDNN's backward needs train mode.
            or (x.is_cuda and not self.training and torch.is_grad_enabled())
        )

    def _weights(self) -> list[Tensor]:
        return [weight for weights in self.all_weights for weight in weights]

    def _initial_state(self, x: Tensor, leading: int) -> _State:
        zeros = x.new_zeros(leading, x.shape[0], self.hidden_size)
        return (zeros,) * _CELLS[self.cell].n_states

    def _fused(self, x: Tensor) -> Tensor:
        directions = 1 + self.bidirectional
        state = self._initial_state(x, directions * self.num_layers)
        options = (self.bias, self.num_layers, 0.0, self.training, self.bidirectional, True)
        kernel = _CELLS[self.cell].kernel
        return kernel(x, state if self.cell == "lstm" else state[0], self._weights(), *options)[0]

    def _loop(self, x: Tensor, mask: Tensor | None) -> Tensor:
        directions = 1 + self.bidirectional
        present = None if mask is None else self._along_directions(mask.transpose(0, 1)).unsqueeze(-1)  # (D, N, B, 1)
        for layer in range(self.num_layers):
            x = self._loop_layer(x, present, self.all_weights[layer * directions : (layer + 1) * directions])
        return x

    def _loop_layer(self, x: Tensor, present: Tensor | None, weights: Sequence[Sequence[Tensor]]) -> Tensor:
        # weights: per direction D, [weight_ih (G, F), weight_hh (G, H)] and with bias [bias_ih (G), bias_hh (G)]
        weight_ih, weight_hh, *biases = (torch.stack(parts) for parts in zip(*weights))
        weight_hh = weight_hh.transpose(-2, -1)  # (D, H, G)
        hidden_bias = biases[1].unsqueeze(1) if biases else weight_hh.new_zeros(len(weights), 1, weight_hh.shape[-1])
        cell = _CELLS[self.cell].step
        state = self._initial_state(x, len(weights))

        def step(state: _State, gates: Tensor, here: Tensor | None, hidden_gates: Tensor | None = None) -> _State:
            if hidden_gates is None:
                hidden_gates = torch.baddbmm(hidden_bias, state[0], weight_hh)  # (D, B, G)
            new_state = cell(gates, hidden_gates, state)
            if here is None:
                return new_state
            return tuple(torch.where(here, new, old) for new, old in zip(new_state, state))

        all_gates = self._input_gates(x, weight_ih, biases[0] if biases else None)
        if _of_any_size(x):
            hidden = _scan(step, state, next(all_gates), present)
        else:
            here = iter(()) if present is None else iter(present.unbind(1))
            outputs = []
            for i, gates in enumerate(gates for part in all_gates for gates in part.unbind(1)):
                # At first the state is zero; an agent alone keeps the product, for its gradient.
                known = hidden_bias if i == 0 < x.shape[1] - 1 else None
                state = step(state, gates, next(here, None), known)
                outputs.append(state[0])
            hidden = torch.stack(outputs, 2)
        forward, *backward = hidden.unbind()  # (B, N, H) of each direction
        return torch.cat([forward, *(hidden.flip(1) for hidden in backward)], -1)  # (B, N, D * H)

    def _input_gates(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[Tensor]:
        """The gates of inputs ``x: (B, N, F)``, ``(D, n, B, G)`` for some of the steps after the other."""
        weight = weight.transpose(-2, -1)  # (D, F, G)
        inputs = self._along_directions(x.transpose(0, 1))  # (D, N, B, F)
        for part in (inputs,) if _of_any_size(x) else inputs.split(_AGENTS_AT_ONCE, 1):
            rows = part.flatten(1, 2)
            gates = torch.bmm(rows, weight) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, weight)
            yield gates.unflatten(1, part.shape[1:3])

    def _along_directions(self, x: Tensor) -> Tensor:
        """The agents of ``x: (N, ...)`` in the order of each direction, ``(D, N, ...)``."""
        return torch.stack([x, x.flip(0)]) if self.bidirectional else x.unsqueeze(0)

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.hidden_size}, cell={self.cell!r}, num_layers={self.num_layers}, "
            f"bidirectional={self.bidirectional}, bias={self.bias}, implementation={self.implementation!r}"
        )


def _of_any_size(x: Tensor) -> bool:
    """Whether a graph is exported in which the number of agents of ``x: (B, N, F)`` is free."""
    return torch.compiler.is_exporting() and isinstance(x.shape[1], torch.SymInt)


def _scan(step: Callable[..., _State], state: _State, gates: Tensor, present: Tensor | None) -> Tensor:
    """The loop over any number of agents, as an operation of an exported graph; hidden states ``(D, B, N, H)``."""

    def combine(state: _State, inputs: tuple[Tensor, ...]) -> tuple[_State, Tensor]:
        new_state = step(state, inputs[0], inputs[1] if len(inputs) > 1 else None)
        return new_state, new_state[0].clone()  # the operation takes no tensor twice

    inputs = (gates,) if present is None else (gates, present)
    state = tuple(each.clone() for each in state)  # nor does it keep apart what is one tensor
    _, hidden = scan(combine, state, tuple(x.transpose(0, 1) for x in inputs), dim=0)  # (N, D, B, H)
    return hidden.permute(1, 2, 0, 3)
