"""Tensors that are read on the host without an operation of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

_METHODS = (Tensor.tolist, Tensor.numpy, Tensor.__array__)


class HostReads(TorchFunctionMode):
    """Tells of tensors that are converted to Python or NumPy in the block.

    Args:
        tell (callable): takes the tensor and the name of the method.
    """

    def __init__(self, tell: Callable[[Tensor, str], None]) -> None:
        super().__init__()
        self.tell = tell

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _METHODS:
            self.tell(args[0], function.__name__)
        return function(*args, **(kwargs or {}))
