"""Mean messages, attention and no communication: the rivals and the ablation of the recurrence."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from torchrl_bicnet.checks import check_integer
from torchrl_bicnet.communication.mask import mask_absent, masked_input


class MeanCommunication(nn.Module):
    """CommNet's communication: own encoding and the mean of the others', each by its own linear map.

    ``y_i = W x_i + C mean_{j != i} x_j + b``; an agent alone hears zeros. The nonlinearity of the paper's ``f`` is
    left to the decoder.

    Args:
        in_features (int): size of each agent's input.
        out_features (int): size of each agent's output.

    Keyword Args:
        device (torch.device, optional): where to create the parameters.
        dtype (torch.dtype, optional): their type.

    Shape:
        - x: ``(*B, N, in_features)``
        - mask: boolean ``(*B, N)``, True where the agent is present, or ``None``
        - output: ``(*B, N, out_features)``, zero for absent agents.

    Reference: Sukhbaatar et al., *Learning Multiagent Communication with Backpropagation*, 2016,
    https://arxiv.org/abs/1605.07736, equations 1 and 2.

    Example:
        >>> import torch
        >>> MeanCommunication(8, 16)(torch.randn(32, 5, 8)).shape
        torch.Size([32, 5, 16])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_integer("in_features", in_features)
        check_integer("out_features", out_features)
        self.in_features = in_features
        self.out_features = out_features
        self.own = nn.Linear(in_features, out_features, device=device, dtype=dtype)
        self.others = nn.Linear(in_features, out_features, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = masked_input(x, mask, self.in_features)
        n_others = max(x.shape[-2] - 1, 1) if mask is None else (mask.sum(-1) - 1).clamp_min(1)[..., None, None]
        mean_of_others = (x.sum(-2, keepdim=True) - x) / n_others
        return mask_absent(self.own(x) + self.others(mean_of_others), mask)


class AttentionCommunication(nn.Module):
    """Multi-head self-attention over the agents, without position: agents with equal inputs get equal outputs.

    Args:
        in_features (int): size of each agent's input.
        out_features (int): size of each agent's output, a multiple of ``num_heads``.

    Keyword Args:
        num_heads (int): number of attention heads. Defaults to ``4``.
        device (torch.device, optional): where to create the parameters.
        dtype (torch.dtype, optional): their type.

    Shape:
        - x: ``(*B, N, in_features)``
        - mask: boolean ``(*B, N)``, True where the agent is present, or ``None``
        - output: ``(*B, N, out_features)``, zero for absent agents.

    Reference: Vaswani et al., *Attention Is All You Need*, 2017, https://arxiv.org/abs/1706.03762, section 3.2;
    over agents as in Iqbal and Sha, *Actor-Attention-Critic*, 2019, https://arxiv.org/abs/1810.02912.

    Example:
        >>> import torch
        >>> AttentionCommunication(8, 16, num_heads=2)(torch.randn(32, 5, 8)).shape
        torch.Size([32, 5, 16])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        num_heads: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_integer("in_features", in_features)
        check_integer("out_features", out_features)
        check_integer("num_heads", num_heads)
        if out_features % num_heads:
            raise ValueError(f"out_features must be a multiple of num_heads, found {out_features} and {num_heads}.")
        self.in_features = in_features
        self.out_features = out_features
        self.num_heads = num_heads
        self.query_key_value = nn.Linear(in_features, 3 * out_features, device=device, dtype=dtype)
        self.output = nn.Linear(out_features, out_features, device=device, dtype=dtype)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = masked_input(x, mask, self.in_features)
        projected = self.query_key_value(x).unflatten(-1, (3, self.num_heads, -1))  # (*B, N, 3, heads, F)
        query, key, value = projected.movedim(-4, -2).unbind(-4)  # each (*B, heads, N, F)
        # Written out: the fused kernels know neither torch.vmap nor double backward. Of few agents the products in a
        # compiled update are sums of their terms, which Inductor fuses with what stands around them.
        in_update = not torch.compiler.is_compiling() and get_proxy_mode() is not None  # traced by make_fx
        product = _sum_of_terms if in_update and x.shape[-2] <= 16 else torch.matmul
        scores = product(query, key.mT) / query.shape[-1] ** 0.5  # (*B, heads, N, N)
        if mask is not None:
            # Every agent attends itself, so that no row of the softmax is empty; absent agents are zeroed below.
            itself = torch.eye(x.shape[-2], dtype=torch.bool, device=x.device)
            scores = scores.masked_fill(~(mask.unsqueeze(-2) | itself).unsqueeze(-3), -torch.inf)
        heard = product(scores.softmax(-1), value)
        return mask_absent(self.output(heard.movedim(-3, -2).flatten(-2)), mask)


def _sum_of_terms(x: Tensor, y: Tensor) -> Tensor:
    """The matrix product ``(*B, K, L), (*B, L, M) -> (*B, K, M)``."""
    return (x.unsqueeze(-1) * y.unsqueeze(-3)).sum(-2)


class NoCommunication(nn.Module):
    """No communication, the ablation: each agent keeps its own encoding.

    Args:
        in_features (int): size of each agent's input and output.

    Shape:
        - x: ``(*B, N, in_features)``
        - mask: boolean ``(*B, N)``, True where the agent is present, or ``None``
        - output: ``(*B, N, in_features)``, zero for absent agents.

    Example:
        >>> import torch
        >>> x = torch.randn(32, 5, 8)
        >>> torch.equal(NoCommunication(8)(x), x)
        True
    """

    def __init__(self, in_features: int) -> None:
        super().__init__()
        check_integer("in_features", in_features)
        self.in_features = in_features
        self.out_features = in_features

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return masked_input(x, mask, self.in_features)
