"""Operations that make the host wait for the device, found by running them."""

from __future__ import annotations

import contextlib
import io
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from torchrl_bicnet.vmas_graph.draws import Draw, draw_in_advance, draws

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
        problem = self._problem(function.name(), args, kwargs or {})
        if not problem and draws(function):
            problem = self._draw_problem(function, args, kwargs or {})
        if problem:
            self.problems.append(f"{function.name()} {problem}, in {_caller()}")
        return function(*args, **(kwargs or {}))

    def _problem(self, name: str, args: Any, kwargs: dict[str, Any]) -> str:
        return "waits for the device" if _waits(name, args, kwargs) else ""

    def _draw_problem(self, function: Any, args: Any, kwargs: dict[str, Any]) -> str:
        return "draws random numbers"


class TraceGuard(SyncGuard):
    """Notes what cannot be traced: operations whose result decides in Python what happens next, some draws, and prints.

    With gradients enabled around it, also operations for which the scenario switches them off: no graph would show it.

    Attributes:
        draws (list of callable): repeat the draws that can be made in advance, in their order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[Draw] = []
        self._watches = contextlib.ExitStack()

    def __enter__(self) -> TraceGuard:
        self._gradients = torch.is_grad_enabled()
        self._streams = _host_streams()
        self._watches.enter_context(_Conversions(self.problems))
        self._watches.enter_context(contextlib.redirect_stdout(_Prints(self.problems)))
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._watches.close()
        if _host_streams() != self._streams:
            self.problems.append("it draws random numbers from NumPy or Python")

    def _problem(self, name: str, args: Any, kwargs: dict[str, Any]) -> str:
        # Inductor writes one number to the rows of a mask by `where`.
        writes_a_number = name == "aten::index_put_" and args[2].numel() == 1
        counts_rows = name in _INDEXING and _has_mask(args[1]) and not writes_a_number
        if counts_rows or name in _READING:
            return "reads a tensor on the host"
        return "" if torch.is_grad_enabled() == self._gradients else "runs without gradients"

    def _draw_problem(self, function: Any, args: Any, kwargs: dict[str, Any]) -> str:
        draw = draw_in_advance(function, args, kwargs)
        if draw is None:
            return "draws random numbers that depend on tensors"
        self.draws.append(draw)
        return ""


class _Conversions(TorchFunctionMode):
    """Notes who reads a tensor on the host without an operation."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__()
        self.problems = problems

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (Tensor.tolist, Tensor.numpy, Tensor.__array__):
            self.problems.append(f"{function.__name__} reads a tensor on the host, in {_caller()}")
        return function(*args, **(kwargs or {}))


class _Prints(io.TextIOBase):
    """Instead of the standard output: notes who writes to it."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems

    def write(self, text: str) -> int:
        self.problems.append(f"print writes text, in {_caller()}")
        return len(text)


def _host_streams() -> tuple[Any, ...]:
    kind, keys, *others = np.random.get_state(legacy=True)
    return random.getstate(), kind, tuple(keys), *others


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
