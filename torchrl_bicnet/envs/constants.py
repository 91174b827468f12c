"""Tensors of Python numbers, made once and shared: never write to them."""

import functools

import torch
from torch import Tensor


@functools.lru_cache(maxsize=4096)
def indices(values: tuple[int, ...], device: torch.device) -> Tensor:
    """``(n,)``, int64."""
    return torch.tensor(values, device=device)


@functools.lru_cache(maxsize=4096)
def column(values: tuple[float, ...], device: torch.device) -> Tensor:
    """``(n, 1)``, float32, or of booleans."""
    dtype = torch.bool if isinstance(values[0], bool) else torch.float32
    return torch.tensor(values, dtype=dtype, device=device).unsqueeze(-1)
