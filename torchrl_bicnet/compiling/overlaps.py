"""Which tensors share memory."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def overlaps(tensors: list[Tensor], of: Iterable[int] | None = None) -> tuple[tuple[int, int], ...]:
    """The pairs of tensors, earlier and later, that may have elements in common; one of them among some, if given."""
    chosen = range(len(tensors)) if of is None else frozenset(of)
    memories = {tensors[i].untyped_storage()._cdata for i in chosen}
    by_memory: dict[int, list[tuple[int, int, int]]] = {}
    found = []
    for i, tensor in enumerate(tensors):
        memory = tensor.untyped_storage()._cdata
        if memory not in memories:
            continue
        size, start = tensor.element_size(), int(tensor.storage_offset())
        extent = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride())) + 1 if tensor.numel() else 0
        first, end = start * size, (start + extent) * size
        users = by_memory.setdefault(memory, [])
        found += [(j, i) for j, other_first, other_end in users if other_first < end and first < other_end]
        users.append((i, first, end))
    return tuple((i, j) for i, j in found if i in chosen or j in chosen)
