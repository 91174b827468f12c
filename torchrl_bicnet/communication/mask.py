"""Masks of the agents present: absent agents are zeroed and get no gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_bicnet.checks import check_like


def mask_absent(x: Tensor, mask: Tensor | None) -> Tensor:
    """Set the slots of absent agents to zero, whatever they hold (NaN too), and cut their gradient.

    Args:
        x (Tensor): ``(*B, N, F)``.
        mask (Tensor, optional): boolean, ``(*B, N)``, True where the agent is present. ``None``: everybody is.

    Returns:
        Tensor: ``(*B, N, F)``.

    Raises:
        TypeError: if the mask is not boolean.
        ValueError: if the mask has not one entry per agent of ``x``, or is on another device.

    Example:
        >>> import torch
        >>> mask_absent(torch.tensor([[1.0], [float("nan")]]), torch.tensor([True, False]))
        tensor([[1.],
                [0.]])
    """
    if mask is None:
        return x
    if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
        found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"The mask must be boolean (True where the agent is present), found {found}.")
    if mask.shape != x.shape[:-1]:
        raise ValueError(
            f"The mask must have one entry per agent, shape {tuple(x.shape[:-1])} for an input of shape "
            f"{tuple(x.shape)}, found {tuple(mask.shape)}."
        )
    if mask.device != x.device:
        raise ValueError(f"The mask must be on {x.device}, where the input is, found {mask.device}.")
    # Selected, not multiplied: NaN * 0 is NaN, in the forward and in the backward pass.
    return torch.where(mask.unsqueeze(-1), x, torch.zeros_like(x))


def _present(x: Tensor, mask: Tensor | None, in_features: int, weight: Tensor | None = None) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"Expected a tensor of shape (*B, N, {in_features}), found {type(x).__name__}.")
    if x.ndim < 2 or x.shape[-1] != in_features or x.shape[-2] == 0:
        raise ValueError(
            f"Expected an input of shape (*B, N, {in_features}) with the agents on dimension -2, found "
            f"{tuple(x.shape)}."
        )
    if weight is not None:
        check_like(x, weight)
    return mask_absent(x, mask)
