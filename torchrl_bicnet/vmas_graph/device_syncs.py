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
from torch.utils._python_dispatch import TorchDispatchMode

from torchrl_bicnet.vmas_graph.draws import Draw, draw_in_advance, draws
from torchrl_bicnet.vmas_state.host_reads import HostReads

_INDEXING = frozenset({"aten::index.Tensor", "aten::index_put_"})
# Of operations whose result, or its shape, depends in Python on values.
_READING = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})


class SyncGuard(TorchDispatchMode):
    """Notes the operations that wait for the device or draw random numbers, with their lines.

    Attributes:
        problems (list of str): in their order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        problem = self._problem(function, args, kwargs or {})
        if not problem and draws(function):
            problem = self._draw_problem(function, args, kwargs or {})
        if problem:
            self.problems.append(f"{function.name()} {problem}, in {_caller()}")
        return function(*args, **(kwargs or {}))

    def _problem(self, function: Any, args: Any, kwargs: dict[str, Any]) -> str:
        name = function.name()
        # A single number (`aten::scalar_tensor`) is filled in on the device.
        copies = name == "aten::lift_fresh" or _copies(name, args, kwargs)
        return "waits for the device" if copies or _reads(function, args) else ""

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
        self._watches.enter_context(HostReads(self._note_read))
        self._watches.enter_context(contextlib.redirect_stdout(_Prints(self.problems)))
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._watches.close()
        if _host_streams() != self._streams:
            self.problems.append("it draws random numbers from NumPy or Python")

    def _problem(self, function: Any, args: Any, kwargs: dict[str, Any]) -> str:
        if _copies(function.name(), args, kwargs):
            return "copies between devices"
        # Inductor writes one number to the rows of a mask by `where`.
        writes_a_number = function.name() == "aten::index_put_" and args[2].numel() == 1
        if _reads(function, args) and not writes_a_number:
            return "reads a tensor on the host"
        return "" if torch.is_grad_enabled() == self._gradients else "runs without gradients"

    def _note_read(self, tensor: Tensor, method: str) -> None:
        self.problems.append(f"{method} reads a tensor on the host, in {_caller()}")

    def _draw_problem(self, function: Any, args: Any, kwargs: dict[str, Any]) -> str:
        draw = draw_in_advance(function, args, kwargs)
        if draw is None:
            return "draws random numbers that depend on tensors"
        self.draws.append(draw)
        return ""


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


def _reads(function: Any, args: Any) -> bool:
    if function.name() in _INDEXING:
        return _has_mask(args[1])
    return not _READING.isdisjoint(function.tags)


def _copies(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    if name == "aten::copy_":
        return args[0].device != args[1].device
    if name == "aten::_to_copy" and kwargs.get("device") is not None:
        return torch.device(kwargs["device"]).type != args[0].device.type
    return False


def _has_mask(indices: Any) -> bool:
    return any(index is not None and index.dtype == torch.bool for index in indices)


def _caller() -> str:
    """The line of the simulator or the scenario that is running."""
    frame: Any = sys._getframe(2)
    ours = ("torchrl_bicnet.vmas_fast.sync_free", "torchrl_bicnet.vmas_state.host_reads", __name__)
    passed = ("torch.", "tensordict.", *ours)
    while frame.f_back is not None and f"{frame.f_globals.get('__name__')}.".startswith(passed):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
