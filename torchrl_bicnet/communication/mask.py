"""Masks of the agents present: absent agents are zeroed and get no gradient."""

from __future__ import annotations

import torch
from torch import Tensor


def mask_absent(x: Tensor, mask: Tensor | None) -> Tensor:
    """Set the slots of absent agents to zero, whatever they hold (NaN too), and cut their gradient.

    Args:
        x (Tensor): ``(*B, N, F)``.
        mask (Tensor, optional): boolean, ``(*B, N)``, True where the agent is present. ``None``: everybody is.

    Returns:
        Tensor: ``(*B, N, F)``.

    Example:
        >>> import torch
        >>> mask_absent(torch.tensor([[1.0], [float("nan")]]), torch.tensor([True, False]))
        tensor([[1.],
                [0.]])
    """
    if mask is None:
        return x
    dtype = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
    if dtype is not torch.bool:
        raise TypeError(f"The mask must be boolean (True where the agent is present), found {dtype}.")
    if mask.shape != x.shape[:-1]:
        raise ValueError(
            f"The mask must have one entry per agent, shape {tuple(x.shape[:-1])} for an input of shape "
            f"{tuple(x.shape)}, found {tuple(mask.shape)}."
        )
    # Selected, not multiplied: NaN * 0 is NaN, in the forward and in the backward pass.
    return torch.where(mask.unsqueeze(-1), x, torch.zeros_like(x))


def masked_input(x: Tensor, mask: Tensor | None, in_features: int) -> Tensor:
    """The input of a communication layer, its shape checked and absent agents set to zero."""
    if x.ndim < 2 or x.shape[-1] != in_features or x.shape[-2] == 0:
        raise ValueError(
            f"Expected an input of shape (*B, N, {in_features}) with the agents on dimension -2, found "
            f"{tuple(x.shape)}."
        )
    return mask_absent(x, mask)
