"""The state that values were computed from, found by watching the operations that compute them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torchrl_bicnet.vmas_state.host_reads import HostReads

# Operations that take a shape and no values, and those after which a whole tensor holds what it was given.
_SHAPE_ALONE = ("_like", "new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros")
_OVERWRITING = frozenset({"copy_", "fill_", "zero_", "normal_", "uniform_", "random_"})


class Origins(TorchDispatchMode):
    """Follows values from the tensors of a state through all operations of the block.

    Tensors that share memory are told apart no further: what is computed from one counts as computed from all.

    Args:
        tensors (list of Tensor): of the state.

    Attributes:
        read (set of int): positions of the tensors whose values decided in Python what was done.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        self._kept: list[Any] = []  # so that no memory is taken for another
        self._of: dict[int, set[int]] = {}
        for i, tensor in enumerate(tensors):
            self._of.setdefault(self._memory(tensor), set()).add(i)
        self.read: set[int] = set()
        self._host_reads = HostReads(lambda tensor, _: self.read.update(self.of(tensor)))

    def __enter__(self) -> Origins:
        self._host_reads.__enter__()
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._host_reads.__exit__(*exception)

    def of(self, tensor: Tensor) -> set[int]:
        """The positions of the tensors that a tensor was computed from."""
        return self._of.get(tensor.untyped_storage()._cdata, set())

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = _tensors((*args, *kwargs.values()) if kwargs else args)
        if not any(x.untyped_storage()._cdata in self._of for x in given):  # most operations of a reset
            return function(*args, **(kwargs or {}))
        traits, origins = _traits(function), set[int]()
        if not traits.shape_alone:
            origins = origins.union(*map(self.of, given))
        outputs = function(*args, **(kwargs or {}))
        results = _tensors((outputs,))
        known = {x.untyped_storage()._cdata for x in given}
        for result in results:
            if origins and result.untyped_storage()._cdata not in known:
                self._of[self._memory(result)] = origins
        # An index whose result has a shape that depends on values is a mask.
        masks = traits.name != "index" or any(x.dtype == torch.bool for x in given[1:])
        if origins and (not results or (traits.dynamic and masks)):
            self.read |= origins
        for position, keyword in traits.written:
            argument = args[position] if position < len(args) else (kwargs or {}).get(keyword)
            for written in _tensors((argument,)):
                self._write(traits.name, written, given, origins)
        return outputs

    def _write(self, name: str, written: Tensor, given: list[Tensor], origins: set[int]) -> None:
        memory = self._memory(written)
        if name in _OVERWRITING and written.numel() * written.itemsize == written.untyped_storage().nbytes():
            self._of[memory] = set().union(*(self.of(x) for x in given if x is not written))
        else:
            self._of[memory] = self._of.get(memory, set()) | origins

    def _memory(self, tensor: Tensor) -> int:
        memory = tensor.untyped_storage()
        self._kept.append(memory)
        return memory._cdata


@dataclass(frozen=True)
class _Traits:
    name: str
    shape_alone: bool
    dynamic: bool
    written: tuple[tuple[int, str], ...]  # positions and names of the arguments that it writes to


@functools.cache
def _traits(function: Any) -> _Traits:
    name = function.name().removeprefix("aten::").split(".")[0]
    written = tuple(
        (i, argument.name)
        for i, argument in enumerate(function._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    dynamic = torch.Tag.dynamic_output_shape in function.tags
    return _Traits(name, name.endswith(_SHAPE_ALONE), dynamic, written)


def _tensors(data: Any) -> list[Tensor]:
    """Those in lists and tuples."""
    found = []
    for item in data:
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, (list, tuple)):
            found += _tensors(item)
    return found
