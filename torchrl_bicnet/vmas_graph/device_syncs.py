"""Operations that make the host wait for the device, found by running them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Operations that read a tensor on the host or count the rows of a mask.
_READING = frozenset(
    {"aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select", "aten::_unique2"}
)
# These, and what copies numbers to the device; a single one (`aten::scalar_tensor`) is filled in there.
_WAITING = _READING | {"aten::lift_fresh"}
_INDEXING = frozenset({"aten::index.Tensor", "aten::index_put_"})


class SyncGuard(TorchDispatchMode):
    """Notes the operations that wait for the device or draw random numbers, with their lines.

    Attributes:
        problems (list of str): in their order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name()
        if problem := self._problem(name, args, kwargs or {}):
            self.problems.append(f"{name} {problem}, in {_caller()}")
        elif torch.Tag.nondeterministic_seeded in function.tags:
            self.problems.append(f"{name} draws random numbers, in {_caller()}")
        return function(*args, **(kwargs or {}))

    def _problem(self, name: str, args: Any, kwargs: dict[str, Any]) -> str:
        return "waits for the device" if _waits(name, args, kwargs) else ""


class TraceGuard(SyncGuard):
    """Notes the operations that cannot be traced: those whose result decides in Python what happens next, or draws."""

    def _problem(self, name: str, args: Any, kwargs: dict[str, Any]) -> str:
        # Inductor writes one number to the rows of a mask by `where`.
        writes_a_number = name == "aten::index_put_" and args[2].numel() == 1
        counts_rows = name in _INDEXING and _has_mask(args[1]) and not writes_a_number
        return "reads a tensor on the host" if counts_rows or name in _READING else ""


def _waits(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    if name in _INDEXING:
        return _has_mask(args[1])
    if name == "aten::copy_":
        return args[0].device != args[1].device
    if name == "aten::_to_copy" and kwargs.get("device") is not None:
        return torch.device(kwargs["device"]).type != args[0].device.type
    return name in _WAITING


def _has_mask(indices: Any) -> bool:
    return any(index is not None and index.dtype == torch.bool for index in indices)


def _caller() -> str:
    """The line of the simulator or the scenario that is running."""
    frame: Any = sys._getframe(2)
    passed = ("torch.", "tensordict.", "torchrl_bicnet.vmas_fast.sync_free", __name__)
    while frame.f_back is not None and f"{frame.f_globals.get('__name__')}.".startswith(passed):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
