"""A saved state of a VMAS environment, to restore."""

from __future__ import annotations

import torch
from torch import Tensor
from vmas.simulator.environment import Environment

from torchrl_bicnet.vmas_state.object_graph import is_under, set_contents, stream_paths, traverse


class SavedState:
    """The state of an environment as it is now: its objects, their contents and the values of its tensors."""

    def __init__(self, environment: Environment) -> None:
        self.environment, self.graph = environment, traverse(environment)
        self.tensors = {
            identity: (_version(tensor), tensor.detach().clone())
            for identity, (_, tensor) in self.graph.tensors.items()
        }
        self.arrays = {identity: array.copy() for identity, (_, array) in self.graph.arrays.items()}

    def restore(self, *, streams: bool = True) -> None:
        """Restore everything, or everything but random streams: what was drawn meanwhile is not drawn again."""
        left_out = () if streams else stream_paths(self.graph, self.environment)
        for path, tensor in self.graph.tensors.values():
            version, copy = self.tensors[id(tensor)]
            if (_version(tensor) != version or version is None) and not is_under(path, left_out):
                for dimension in [d for d in range(tensor.ndim) if tensor.stride(d) == 0 and tensor.shape[d] > 1]:
                    tensor, copy = tensor.narrow(dimension, 0, 1), copy.narrow(dimension, 0, 1)
                with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                    tensor.detach().copy_(copy)
        for path, array in self.graph.arrays.values():
            if not is_under(path, left_out):
                array[...] = self.arrays[id(array)]
        for node in reversed(self.graph.nodes.values()):
            if not is_under(node.path, left_out):
                set_contents(node.obj, node.contents)


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
