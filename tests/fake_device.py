"""A CUDA device where there is none: tensors that say ``cuda:0`` and compute on the CPU.

Under :class:`FakeCuda` a tensor made on, or moved to, ``"cuda"`` is a :class:`CudaTensor`. An operation whose tensors
lie on different devices raises where CUDA would, every operation has its value, and :class:`DeviceSyncs` names those
that the host has to wait for. torch's own ``FakeTensorMode`` has no values and dies in the autograd engine.

What CUDA allows and waits for was read in torch's sources; TestGPU in tests/test_fake_device.py asks a GPU. Not here:
pinned memory, ``set_`` of a storage (so no ``snapshot``), hooks of gradients, double backward, ``torch.autograd.grad``.
"""

import contextlib
import ctypes
import functools
import operator
import types
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

from torchrl_bicnet.vmas_graph.device_syncs import SyncGuard

READS, COUNTS, COPIES = "reads on the host", "counts the rows of a mask", "copies to the device"
_CUDA, _META = 1, 14  # c10::DeviceType
_TO_OTHER_DEVICES = frozenset({"aten::copy_", "aten::_to_copy"})
_INDEXING = frozenset({"aten::index.Tensor", "aten::index_put_", "aten::index_put"})
# These and the pointwise operations, but for some, take a tensor without dimensions from the CPU as a number.
_TAKING_A_NUMBER = frozenset({"aten::masked_fill_.Tensor", "aten::masked_fill.Tensor", "aten::fill_.Tensor"})
_TAKING_NONE = frozenset({"aten::clamp.Tensor", "aten::clamp_.Tensor"})


class CudaTensor(torch.Tensor):
    """A tensor on ``cuda:0`` whose ``value`` is a tensor on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, value):
        layout = {"strides": value.stride(), "storage_offset": value.storage_offset(), "dtype": value.dtype}
        tensor = torch.Tensor._make_wrapper_subclass(cls, value.size(), device="cuda:0", **layout)
        tensor.value = value
        return tensor

    def __repr__(self):
        return f"CudaTensor({self.value})"

    @property
    def data(self):
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, other):
        torch.Tensor.data.__set__(self, other)
        self.value = other.value

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError(f"{function} on a CudaTensor outside of FakeCuda.")


class FakeCuda(TorchDispatchMode):
    """The context in which ``"cuda"`` is a device with tensors, a random generator, autograd and recurrent kernels.

    Infrastructure of torch's dispatch as ``FakeTensorMode`` is: every other dispatch mode sees CudaTensors. Only
    ``backward()`` is there of autograd, without hooks and double backward.

    Args:
        own_generator (bool): whether the device draws from a generator of its own, as a GPU does. From the CPU's it
            draws what a CPU would, even if a program draws on both.
    """

    def __init__(self, *, own_generator=True):
        super().__init__()
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE  # else torch would start CUDA at the first tensor on it
        self.own_generator = own_generator
        self.random_state = torch.Generator().get_state()

    def __enter__(self):
        if torch.cuda.is_available():
            pytest.skip("A GPU is here: the tests marked gpu run on it.")
        with contextlib.ExitStack() as stack:
            stack.enter_context(_device_guard())
            stack.enter_context(_rnn_kernels())
            stack.enter_context(mock.patch("torch.autograd._engine_run_backward", _run_backward))
            stack.enter_context(mock.patch.multiple("torch.cuda", **self._functions()))
            stack.enter_context(mock.patch("torch.backends.cudnn.is_acceptable", return_value=False))
            for name in ("tensor", "as_tensor", "Tensor.to"):
                stack.enter_context(mock.patch(f"torch.{name}", _for_fake_cuda(operator.attrgetter(name)(torch))))
            stack.enter_context(mock.patch("torch.Tensor.cuda", lambda tensor: tensor.to("cuda")))
            # A module's parameters become CudaTensors, instead of tensors of torch with the memory of one.
            stack.enter_context(mock.patch("torch.__future__._swap_module_params_on_conversion", True))
            # `torch.tensor(data, device="cuda")` makes a tensor on the CPU and copies it.
            stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
            torch._C._set_only_lift_cpu_tensors(True)
            self._patches = stack.pop_all()
        return super().__enter__()

    def __exit__(self, *exception):
        super().__exit__(*exception)
        self._patches.close()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = _tensors_of(args, kwargs)
        takes_from_device = to_device = any(isinstance(tensor, CudaTensor) for tensor in tensors)
        if takes_from_device:
            _check_devices(function, args, tensors)
        inner_args, inner_kwargs = _map(CudaTensor, lambda tensor: tensor.value, (args, kwargs))
        if kwargs.get("device") is not None:
            to_device = torch.device(kwargs["device"]).type == "cuda"
            inner_kwargs["device"] = "cpu" if to_device else kwargs["device"]
        draws = to_device and torch.Tag.nondeterministic_seeded in function.tags
        with self._generator() if draws and self.own_generator else contextlib.nullcontext():
            outputs = function(*inner_args, **inner_kwargs)
        if to_device:
            outputs = _map(torch.Tensor, CudaTensor, outputs)
        if not takes_from_device or not _tensors_of(outputs):
            return outputs
        return return_and_correct_aliasing(function, args, kwargs, outputs)

    @contextlib.contextmanager
    def _generator(self):
        outside = torch.get_rng_state()
        torch.set_rng_state(self.random_state)
        yield
        self.random_state = torch.get_rng_state()
        torch.set_rng_state(outside)

    def _functions(self):
        """Those of ``torch.cuda`` that are called here."""

        def set_rng_state(state, device="cuda"):
            self.random_state = state.clone()

        def manual_seed(seed):
            self.random_state = torch.Generator().manual_seed(seed).get_state()

        return {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "_exchange_device": lambda index: 0,
            "_maybe_exchange_device": lambda index: 0,
            "synchronize": _as_if_of_torch(lambda device=None: torch.zeros((), device="cuda").item()),
            "get_rng_state": lambda device="cuda": self.random_state.clone(),
            "set_rng_state": set_rng_state,
            "manual_seed": manual_seed,
            "manual_seed_all": manual_seed,
        }


class DeviceSyncs(SyncGuard):
    """Notes the operations that wait for the device of :class:`FakeCuda`, with their lines.

    It knows what :class:`SyncGuard` cannot know on a CPU: which tensors lie on the device.
    """

    @property
    def waits(self):
        """A list of strings ``"OPERATION KIND, in FILE:LINE"``, KIND being READS, COUNTS or COPIES."""
        return [problem for problem in self.problems if any(kind in problem for kind in (READS, COUNTS, COPIES))]

    def _problem(self, function, args, kwargs):
        name = function.name()
        tensors = _tensors_of(args, kwargs)
        on_device = [isinstance(tensor, CudaTensor) for tensor in tensors]
        if not any(on_device) and torch.device(kwargs.get("device") or "cpu").type != "cuda":
            return ""
        if name in _INDEXING and not all(on_device):
            return "" if _becomes_masked_fill(name, tensors) else COPIES
        if not super()._problem(function, args, kwargs):
            return ""
        if name in _TO_OTHER_DEVICES:
            return COPIES if isinstance(args[0], CudaTensor) == (name == "aten::copy_") else READS
        return READS if name in ("aten::_local_scalar_dense", "aten::equal") else COUNTS


def _map(kind, function, data):
    """Nested data with a function applied to every item of a kind; torch's ``tree_map_only`` took half of all time."""
    if isinstance(data, kind):
        return function(data)
    if isinstance(data, (list, tuple)):
        return type(data)([_map(kind, function, item) for item in data])
    return {key: _map(kind, function, item) for key, item in data.items()} if isinstance(data, dict) else data


def _tensors_of(*data):
    found = []
    _map(torch.Tensor, found.append, data)
    return found


def _becomes_masked_fill(name, tensors):
    """Whether an operation writes one number from the CPU to the rows of a mask on the device."""
    if name == "aten::index.Tensor" or len(tensors) != 3:
        return False
    _, index, value = tensors
    return isinstance(index, CudaTensor) and index.dtype == torch.bool and value.numel() == 1


def _check_devices(function, args, tensors):
    """Raise as CUDA does if tensors of an operation on the device lie on the CPU.

    One number may, and indices, and what is copied.
    """
    name, misplaced = function.name(), [tensor for tensor in tensors if not isinstance(tensor, CudaTensor)]
    if not misplaced or name in _TO_OTHER_DEVICES:
        return
    if name in _INDEXING and isinstance(args[0], CudaTensor):
        misplaced = [value for value in args[2:3] if not isinstance(value, CudaTensor) and value.ndim > 0]
    elif name in _TAKING_A_NUMBER or (torch.Tag.pointwise in function.tags and name not in _TAKING_NONE):
        schema = zip(function._schema.arguments, args)
        written = [argument for declared, argument in schema if declared.is_write]
        if len(misplaced) == 1 and misplaced[0].ndim == 0 and not any(misplaced[0] is one for one in written):
            return
    if misplaced:
        found = ", ".join(f"{tuple(tensor.shape)} on {tensor.device}" for tensor in tensors)
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} found {found}.")


def _for_fake_cuda(function):
    """A function of torch's that would ask the guard below for the index of ``"cuda"``, or read tensors in a list."""

    def with_index(device):
        return torch.device("cuda:0") if torch.device(device) == torch.device("cuda") else device

    def call(data, *args, **kwargs):
        if isinstance(data, (list, tuple)):
            data = [item.item() if isinstance(item, CudaTensor) else item for item in data]
        args, kwargs = _map((str, torch.device), with_index, (args, kwargs))
        return function(data, *args, **kwargs)

    return _as_if_of_torch(call)


def _as_if_of_torch(function):
    """A function by which SyncGuard does not stop when it looks for the line that called torch."""
    names = {**globals(), "__name__": "torch"}
    return types.FunctionType(function.__code__, names, None, function.__defaults__, function.__closure__)


CudaTensor.tolist = _as_if_of_torch(lambda tensor: tensor.cpu().tolist())


@contextlib.contextmanager
def _device_guard():
    """A guard of CUDA devices that does nothing: autograd asks one for the stream of every tensor."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * (_META + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before, guards[_CUDA] = guards[_CUDA], guards[_META]
    try:
        yield
    finally:
        guards[_CUDA] = before


_engine_of_torch = torch.autograd._engine_run_backward


def _run_backward(outputs, gradients, retain_graph, create_graph, inputs, *args, **kwargs):
    """The autograd engine for CudaTensors: that of torch records events on the streams of an accelerator."""
    if not any(isinstance(output, CudaTensor) for output in outputs):
        return _engine_of_torch(outputs, gradients, retain_graph, create_graph, inputs, *args, **kwargs)
    assert not create_graph
    assert not inputs
    nodes = list(dict.fromkeys(output.grad_fn for output in outputs))
    n_missing = dict.fromkeys(nodes, 0)  # gradients that a node waits for
    for node in nodes:
        for following, _ in node.next_functions:
            if following is not None:
                if following not in n_missing:
                    nodes.append(following)
                n_missing[following] = n_missing.get(following, 0) + 1
    arrived = {node: [None] * len(node._input_metadata) for node in nodes}
    for output, gradient in zip(outputs, gradients):
        _add_gradient(arrived, output.grad_fn, output.output_nr, gradient)
    ready = [node for node in nodes if not n_missing[node]]
    while ready:
        node = ready.pop()
        found = _call_node(node, arrived.pop(node))
        for (following, index), gradient in zip(node.next_functions, found):
            if following is not None:
                _add_gradient(arrived, following, index, gradient)
                n_missing[following] -= 1
                if not n_missing[following]:
                    ready.append(following)


def _call_node(node, gradients):
    """The gradients of a node's inputs."""
    if all(gradient is None for gradient in gradients):
        return [None] * len(node.next_functions)
    with torch.no_grad():
        found = getattr(node, "apply", node)(*gradients)  # a torch.autograd.Function is not callable
    found = found if isinstance(found, tuple) else (found,)
    return found[len(found) - len(node.next_functions) :]  # without the numbers before the tensors of _FusedRNN


def _add_gradient(arrived, node, index, gradient):
    if gradient is None:
        return
    expected, before = node._input_metadata[index], arrived[node][index]
    if gradient.device != expected.device:
        raise RuntimeError(f"{node.name()} expected a gradient on {expected.device}, found {gradient.device}.")
    gradient = gradient.sum_to_size(expected.shape).to(expected.dtype)
    arrived[node][index] = gradient if before is None else before + gradient


@contextlib.contextmanager
def _rnn_kernels():
    """The recurrent kernels of the device: torch's of the CPU, as a whole."""
    library = torch.library.Library("aten", "IMPL")
    for kernel in (torch.ops.aten.lstm.input, torch.ops.aten.gru.input, torch.ops.aten.rnn_tanh.input):
        library.impl(kernel, functools.partial(_fused_rnn, kernel), "AutogradCUDA")
    try:
        yield
    finally:
        library._destroy()


def _fused_rnn(kernel, x, states, parameters, *options):
    states = states if isinstance(states, (list, tuple)) else [states]
    return _FusedRNN.apply(kernel, len(states), options, x, *states, *parameters)


class _FusedRNN(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kernel, n_states, options, *tensors):
        if not all(isinstance(tensor, CudaTensor) for tensor in tensors):
            raise RuntimeError("Input, hidden and parameter tensors are not at the same device.")
        ctx.training = options[3]
        ctx.inputs = [tensor.value.detach().requires_grad_() for tensor in tensors]
        x, states, parameters = ctx.inputs[0], ctx.inputs[1 : 1 + n_states], ctx.inputs[1 + n_states :]
        with torch.enable_grad():
            ctx.outputs = kernel(x, states if n_states > 1 else states[0], parameters, *options)
        return tuple(CudaTensor(output.detach()) for output in ctx.outputs)

    @staticmethod
    def backward(ctx, *gradients):
        if not ctx.training:
            raise RuntimeError("cudnn RNN backward can only be called in training mode")
        outputs, gradients = zip(*((out, grad.value) for out, grad in zip(ctx.outputs, gradients) if grad is not None))
        return None, None, None, *map(CudaTensor, torch.autograd.grad(outputs, ctx.inputs, gradients))
