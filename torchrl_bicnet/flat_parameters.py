"""The parameters of a network of a loss in one tensor, so that an operation on all of them is one operation."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.objectives import DDPGLoss

# Parameters begin at multiples of so many bytes, as kernels of matrix products like it.
ALIGNMENT = 64


class FlatParameters:
    """Where the parameters of one network of the loss lie in one tensor."""

    def __init__(self, loss: DDPGLoss, name: str) -> None:
        self.params, self.targets = f"{name}_params", f"target_{name}_params"
        self.name, self.loss = name, loss
        leaves = dict(getattr(loss, self.params).items(True, True))
        trained = {k: p for k, p in leaves.items() if isinstance(p, nn.Parameter) and p.requires_grad}
        kinds = {(parameter.dtype, parameter.device) for parameter in trained.values()}
        if len(kinds) != 1:
            found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds)) or "none"
            raise ValueError(f"{name} must have trained parameters of one type on one device, found {found}.")
        self.identities = {id(parameter) for parameter in trained.values()}
        if len(self.identities) < len(trained):
            raise ValueError(f"{name} must not hold a parameter under two names.")
        self.shapes = {key: parameter.shape for key, parameter in trained.items()}
        self.fixed = [key for key in leaves if key not in trained]
        step = ALIGNMENT // next(iter(trained.values())).element_size()
        self.sizes: list[int] = []  # of the parameters, with the gap after each
        for shape in self.shapes.values():
            self.sizes += [shape.numel(), -shape.numel() % step]

    def pack(self, loss: DDPGLoss) -> TensorDict:
        """Move the parameters, and those of the target network if there is one, and return the network's state."""
        params = getattr(loss, self.params)
        parameters = self._move(params)
        state = {"parameters": parameters.requires_grad_()}
        state["buffers"] = TensorDict({key: params.get(key).data for key in self.fixed})
        if self.targets in loss._modules:
            targets = getattr(loss, self.targets)
            state["target"] = self._move(targets)
            state["target_buffers"] = TensorDict({key: targets.get(key).data for key in self.fixed})
        self.pointers = self._pointers()
        return TensorDict(state)

    def _move(self, params: TensorDictBase) -> Tensor:
        first = params.get(next(iter(self.shapes)))
        flat = torch.zeros(sum(self.sizes), dtype=first.dtype, device=first.device)
        for key, view in self.views(flat).items():
            view.copy_(params.get(key).data)
            params.get(key).data = view
        return flat

    def views(self, flat: Tensor) -> dict[NestedKey, Tensor]:
        parts = flat.split(self.sizes)[::2]
        return {key: part.view(shape) for (key, shape), part in zip(self.shapes.items(), parts)}

    def unpack(self, state: TensorDictBase) -> dict[str, TensorDictBase]:
        """The networks as the loss holds them, but of tensors of a state: name to parameters."""
        leaves = {self.params: self.views(state["parameters"]) | _leaves(state, "buffers")}
        if "target" in state:
            leaves[self.targets] = self.views(state["target"]) | _leaves(state, "target_buffers")
        return {
            name: getattr(self.loss, name).data.named_apply(lambda key, _: given[key], nested_keys=True)  # noqa: B023
            for name, given in leaves.items()
        }

    def check_in_place(self) -> None:
        if self._pointers() != self.pointers:
            raise ValueError(
                f"Parameters of {self.name} were moved after the UpdateStep was made, by `.to`, a copy or another "
                "UpdateStep, so that they would not be trained: do that first."
            )

    def _pointers(self) -> list[int]:
        networks = [self.loss._modules[name] for name in (self.params, self.targets) if name in self.loss._modules]
        return [tensor.data_ptr() for network in networks for tensor in network.values(True, True)]


def _leaves(state: TensorDictBase, name: str) -> dict[NestedKey, Tensor]:
    return dict(state[name].items(True, True)) if name in state else {}  # none is left of an empty one
