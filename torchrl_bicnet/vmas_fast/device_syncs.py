"""Operations that make the host wait for the device, found by running them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What reads a tensor on the host, counts the rows of a mask, or copies a number to the device.
WAITING = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "scalar_tensor"})


class Watch(TorchDispatchMode):
    """Notes the operations that cannot be captured, and where they are, and the tensors made before it began."""

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[str] = []
        self.given: list[Tensor] = []
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name()
        masked = name in ("aten::index.Tensor", "aten::index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if masked or name.removeprefix("aten::") in WAITING or self._leaves_the_device(name, args, kwargs):
            self.problems.append(f"{name} waits for the device, in {_caller()}")
        elif torch.Tag.nondeterministic_seeded in function.tags:
            self.problems.append(f"{name} draws random numbers, in {_caller()}")
        self._remember((args, kwargs), self.given)
        outputs = function(*args, **(kwargs or {}))
        self._remember(outputs, [])
        return outputs

    def _leaves_the_device(self, name: str, args: Any, kwargs: Any) -> bool:
        """Whether it copies from one device to another."""
        if name == "aten::copy_":
            return args[0].device != args[1].device
        device = (kwargs or {}).get("device")
        return name == "aten::_to_copy" and device is not None and torch.device(device).type != args[0].device.type

    def _remember(self, data: Any, new: list[Tensor]) -> None:
        for tensor in tree_leaves(data):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._known:
                self._known.add(tensor.untyped_storage()._cdata)
                new.append(tensor)


def _caller() -> str:
    """The line of the simulator or the scenario that is running."""
    frame: Any = sys._getframe(2)
    passed = ("torch.", "tensordict.", "torchrl_bicnet.vmas_fast.sync_free", __name__)
    while frame.f_back is not None and f"{frame.f_globals.get('__name__')}.".startswith(passed):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
