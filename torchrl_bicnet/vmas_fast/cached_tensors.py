"""Tensors of Python numbers, made once and shared: never write to them."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.lru_cache(maxsize=4096)
def indices(values: tuple[int, ...], device: torch.device) -> Tensor:
    """``(n,)``, int64."""
    return torch.tensor(values, device=device)


@functools.lru_cache(maxsize=4096)
def column(values: tuple[float, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """``(n, 1)``."""
    return torch.tensor(values, dtype=dtype, device=device).unsqueeze(-1)
