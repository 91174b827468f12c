"""A step of a VMAS environment as one compiled function of tensors: traced once, fused by Inductor."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten
from vmas.simulator.environment import Environment

from torchrl_bicnet.compiling.inductor import Function, compile_graph
from torchrl_bicnet.compiling.overlaps import overlaps
from torchrl_bicnet.vmas_fast.batched_world import BatchedWorld, every_pair
from torchrl_bicnet.vmas_graph.device_syncs import TraceGuard
from torchrl_bicnet.vmas_graph.draws import Draw, GivenDraws
from torchrl_bicnet.vmas_state.object_graph import PLACES, SENSING
from torchrl_bicnet.vmas_state.saved_state import SavedState
from torchrl_bicnet.vmas_state.start_states import N_TRIALS
from torchrl_bicnet.vmas_state.tensor_places import TensorPlaces, memory_of
from torchrl_bicnet.vmas_state.unwrap import scenario_name

# Steps after which an environment holds its tensors in the same way at the end of each.
N_SETTLING = 3
# Compiled functions that are kept for one environment: one for each set of numbers that its objects hold.
N_FUNCTIONS = 8
# Sets of numbers that resets may choose from.
N_KINDS = 3
Inputs = dict[Any, Tensor]  # by key


@dataclass
class CompiledFunction:
    """A step from environments of one signature; from those whose step cannot be compiled, why."""

    signature: Any
    problem: str = ""
    call: Function | None = None
    call_with_gradients: Function | None = None  # made when it is first needed
    graph: GraphModule | None = None  # to make it, if the environment lets gradients through
    n_new: int = 0  # of its results: tensors of the state, before those of the outputs
    # Place to the index, among the tensors of all places and then the new ones, of what it holds after the step.
    updates: tuple[tuple[int, int], ...] = ()
    outputs: Any = None  # the structure of the outputs
    written: frozenset[int] = frozenset()  # places whose tensors the step writes to in place
    shared: tuple[tuple[int, int], ...] = ()  # pairs of places, with one of those, that hold the same memory
    reshares: bool = False  # whether they are other pairs after the step
    draws: tuple[Draw, ...] = ()  # the random numbers that it is given


class CompiledStep:
    """A step of an environment, compiled for the numbers that its objects hold, as a function of all their tensors.

    While it steps, the state is a flat list of tensors, one for each place that holds one (:class:`TensorPlaces`).
    After a step the new ones are put into their places, so that the objects of VMAS are never out of date; before it,
    those that are there are compared by identity, so that a tensor that somebody replaced or wrote to is noticed.
    Whoever is given the environment may change anything (:meth:`look_again`): the next step looks at all objects. For
    other numbers than before, such as another drag, the step is compiled anew.

    A step runs uncompiled from a state in which objects hold other things than afterwards, such as the first one of a
    new environment. Which steps are compiled depends on the state alone, so that a run that is killed and resumed goes
    on to the bit.

    If the environment lets gradients through (``grad_enabled``) and an input or a tensor of the state has any, another
    compiled function of the same graph is called, which has them too; the state then carries them from step to step.

    Args:
        environment (Environment): of VMAS, from :func:`~torchrl_bicnet.make_vmas_env`.
        step (callable): from tensors by key, such as the actions of each group, ``(num_envs, N, a)``, to the outputs.
        step_without_draws (callable): the same without swapping random streams in.
        inputs (dict): any, for their shapes.

    Raises:
        ValueError: for a scenario whose step reads a tensor, draws random numbers that depend on tensors or changes
            numbers of Python, or whose resets do.
        RuntimeError: if it cannot be compiled here, as without a C++ compiler.
    """

    def __init__(
        self,
        environment: Environment,
        step: Callable[[Inputs], Any],
        step_without_draws: Callable[[Inputs], Any],
        inputs: Inputs,
    ) -> None:
        self.environment, self.step, self.step_without_draws = environment, step, step_without_draws
        self.shapes = {key: (value.shape, value.dtype) for key, value in inputs.items()}
        self.functions: list[CompiledFunction] = []
        self._changed = True  # perhaps, by somebody who was given the environment
        self._n_uncompiled = 0  # in a row
        self._check(inputs)

    def look_again(self) -> None:
        """Expect that somebody changes the environment until the next step."""
        self._changed = True

    def current_places(self) -> TensorPlaces | None:
        """The places with the tensors that the environment holds now; ``None`` if somebody may have changed more."""
        return None if self._changed or not self._is_current() else self._places

    def take_over(self) -> None:
        """Go on from the tensors that were put into the places."""
        world = self.environment.world
        if vars(self.environment)[PLACES] is not self._places or world._gravity is not self._gravity:
            self._changed = True
            return
        self._make_dense()
        function = self.current
        if function.written and function.shared != overlaps(self._places.tensors, function.written):
            self._changed = True

    def __call__(self, inputs: Inputs) -> Any:
        # Tensors of inference mode have no versions and cannot be written to outside of it.
        gradients = self.environment.grad_enabled and torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            given = [self._as_traced(key, inputs[key]) for key in self.shapes]
            if self._changed or not self._is_current():
                self._enter(dict(zip(self.shapes, given)))
            function, held = self.current, self._places.tensors
            if function.call is None:
                return self._step_uncompiled(function, dict(zip(self.shapes, given)))
            self._n_uncompiled = 0
            results = self._call(function, [*held, *given, *self._draw(function.draws)])
            after = held + results[: function.n_new]
            for place, index in function.updates:
                self._places.put(place, after[index])
            self._changed = function.reshares
            return tree_unflatten(results[function.n_new :], function.outputs)

    def _call(self, function: CompiledFunction, tensors: list[Tensor]) -> list[Tensor]:
        if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in tensors):
            with torch.no_grad():
                return function.call(*tensors)  # type: ignore[misc]
        if function.call_with_gradients is None:
            apart = [tensor.detach().clone() for tensor in tensors]
            name = f"The step of {scenario_name(self.environment)}"
            function.call_with_gradients = compile_graph(function.graph, apart, name, gradients=True)  # type: ignore[arg-type]
        return function.call_with_gradients(*tensors)

    def _draw(self, draws: tuple[Draw, ...]) -> list[Tensor]:
        if not draws:
            return []
        with self.environment.random_stream.of_torch():
            return [draw() for draw in draws]

    def _as_traced(self, key: Any, value: Tensor) -> Tensor:
        shape, dtype = self.shapes[key]
        if value.shape != shape:
            raise ValueError(f"Expected {key} of shape {tuple(shape)}, found {tuple(value.shape)}.")
        value = value.to(self.environment.device, dtype).contiguous()
        return value.clone() if value.is_inference() else value

    def _is_current(self) -> bool:
        """Whether each place holds its tensor: what is written to one is noticed, but that of gravity decides more."""
        return self._places.are_current() and self._gravity._version == self._gravity_version

    def _enter(self, inputs: Inputs) -> None:
        """Take the state from the objects."""
        self._places = TensorPlaces.of(self.environment)
        self._make_dense()
        self.current = self._find(self._places, inputs)
        self._gravity = self.environment.world._gravity
        self._gravity_version = self._gravity._version
        self._changed = False

    def _make_dense(self) -> None:
        dense: dict[Any, Tensor] = {}
        for place, tensor in enumerate(self._places.tensors):
            if not _is_dense(tensor):
                memory = memory_of(tensor)
                dense.setdefault(memory, tensor.clone(memory_format=torch.contiguous_format))
                self._places.put(place, dense[memory])

    def _find(self, places: TensorPlaces, inputs: Inputs) -> CompiledFunction:
        world = self.environment.world
        signature = places.signature, isinstance(world, BatchedWorld) and world.weightless()
        for function in self.functions:
            if function.signature == signature and function.shared == overlaps(places.tensors, function.written):
                return function
        if len(self.functions) == N_FUNCTIONS:
            name = scenario_name(self.environment)
            message = (
                f"The step of {name} is compiled for other numbers again and again: make those that change tensors."
            )
            warnings.warn(message, UserWarning, stacklevel=2)
        with _traceless(self.environment):
            function = Tracing(self, places, signature).function(inputs)
        places.refresh()
        self.functions = [*self.functions[1 - N_FUNCTIONS :], function]
        return function

    def _step_uncompiled(self, function: CompiledFunction, inputs: Inputs) -> Any:
        self._n_uncompiled += 1
        self._changed = True
        if self._n_uncompiled == N_SETTLING:
            message = f"Steps of {scenario_name(self.environment)} are not compiled for now: {function.problem}."
            warnings.warn(message, UserWarning, stacklevel=2)
        return self.step(inputs)

    def _check(self, inputs: Inputs) -> None:
        """Compile the step that follows on others, take some steps and resets, and undo them."""
        saved = SavedState(self.environment)
        problem = ""
        try:
            for _ in range(N_SETTLING):
                self.step(inputs)
            try:
                first = TensorPlaces(self.environment)
                with _traceless(self.environment):
                    problem = Tracing(self, first, None).problem(inputs)
                problem = problem or self._change_by_resets(first, inputs) or self._find(first, inputs).problem
            except TypeError as error:
                problem = str(error)
        finally:
            saved.restore()
        if problem:
            name = scenario_name(self.environment)
            hint = " (as `.item()`, `bool(tensor)` and `if tensor` do)" if "reads a tensor" in problem else ""
            raise ValueError(f"A step of {name} cannot be compiled: {problem}{hint}. Use compile=False.")

    def _change_by_resets(self, first: TensorPlaces, inputs: Inputs) -> str:
        """What resets draw that is no tensor; empty if there is little to choose from."""
        environment, found = self.environment, [first]
        resets = [functools.partial(environment.reset, return_observations=False)] * N_TRIALS
        resets.append(functools.partial(environment.reset_at, 0, return_observations=False))
        before = SavedState(environment)
        for reset in resets:
            reset()
            self.step(inputs)
            places = TensorPlaces(environment)
            if all(places.signature != other.signature for other in found):
                found.append(places)
        before.restore()
        if len(found) <= N_KINDS:
            return ""
        return f"with a reset {found[0].difference(found[1])} changes in more than values of tensors"

    def __getstate__(self) -> dict[str, Any]:
        """Without the functions, for a copy, which compiles them again."""
        return {**self.__dict__, "functions": [], "_changed": True, "_places": None, "current": None}


class Tracing:
    """The step of an environment from its present state, run, traced and compiled; the state is left changed."""

    def __init__(self, compiled: CompiledStep, places: TensorPlaces, signature: Any) -> None:
        self.environment, self.step = compiled.environment, compiled.step_without_draws
        self.places, self.signature = places, signature
        self.tensors = [container[key] for container, key in places.places]  # places has those before any copies
        self.keys = list(compiled.shapes)

    def problem(self, inputs: Inputs) -> str:
        """Run the step and say what keeps it from being compiled; empty if there is nothing."""
        versions = [tensor._version for tensor in self.tensors]
        saved = SavedState(self.environment)
        with torch.set_grad_enabled(self.environment.grad_enabled), TraceGuard() as guard:
            self.step(inputs)
        after = TensorPlaces(self.environment)
        self.written = frozenset(i for i, t in enumerate(self.tensors) if t._version != versions[i])
        self.shared = overlaps(self.places.tensors, self.written)
        self.draws = tuple(guard.draws)
        saved.restore()
        return guard.problems[0] if guard.problems else self._change(after)

    def function(self, inputs: Inputs) -> CompiledFunction:
        if problem := self.problem(inputs):
            return CompiledFunction(self.signature, problem, written=self.written, shared=self.shared)
        return self._trace(inputs)

    def _change(self, after: TensorPlaces) -> str:
        if path := self.places.difference(after):
            return f"{path} changes in more than values of tensors, such as a number, which a tensor may hold instead"
        paths = self.places.paths
        for i, j in self.shared:
            if memory_of(self.places.tensors[i]) != memory_of(self.places.tensors[j]):
                return f"it writes to memory of which {paths[i]} and {paths[j]} each hold a part"
        gravity = paths.index("world._gravity") if "world._gravity" in paths else None
        if gravity in self.written or (gravity is not None and after.tensors[gravity] is not self.tensors[gravity]):
            return "it changes the gravity of the world"
        return ""

    def _trace(self, inputs: Inputs) -> CompiledFunction:
        function = CompiledFunction(self.signature, written=self.written, shared=self.shared, draws=self.draws)
        state = [tensor.clone(memory_format=torch.contiguous_format) for tensor in self.tensors]
        given = [*(inputs[key].clone() for key in self.keys), *(draw() for draw in self.draws)]
        n, n_given = len(state), len(state) + len(self.keys)

        def traced(*tensors: Tensor) -> list[Tensor]:
            before = list(tensors[:n])
            # What a user may hold, such as the positions of the step before, is not written to.
            installed = [t.clone() if i in self.written else t for i, t in enumerate(before)]
            for i, j in self.shared:
                installed[j] = installed[i]
            self.places.install(installed)
            if isinstance(self.environment.world, BatchedWorld):
                self.environment.world.assume_weightless(self.signature[1])
            with GivenDraws(tensors[n_given:]):
                leaves, function.outputs = tree_flatten(self.step(dict(zip(self.keys, tensors[n:n_given]))))
            index = {memory_of(tensor): i for i, tensor in enumerate(before)}
            new: list[Tensor] = []
            updates = []
            for place, tensor in enumerate(TensorPlaces(self.environment).tensors):
                if memory_of(tensor) not in index:
                    index[memory_of(tensor)] = n + len(new)
                    new.append(tensor)
                if index[memory_of(tensor)] != place:
                    updates.append((place, index[memory_of(tensor)]))
            function.n_new, function.updates = len(new), tuple(updates)
            updated = dict(updates)
            held = [updated.get(place, place) for place in range(n)]
            pairs = [(i, j) for j in range(n) for i in range(j) if held[i] == held[j]]
            function.reshares = {pair for pair in pairs if not self.written.isdisjoint(pair)} != {*self.shared}
            return [tensor.clone(memory_format=torch.contiguous_format) for tensor in (*new, *leaves)]

        try:
            graph = make_fx(traced)(*state, *given)
        except Exception as error:
            function.problem = f"it cannot be traced: {error!r}"
            return function
        if self.environment.grad_enabled:
            function.graph = deepcopy(graph)
        function.call = compile_graph(graph, [*state, *given], f"The step of {scenario_name(self.environment)}")
        return function


@contextlib.contextmanager
def _traceless(environment: Environment) -> Iterator[None]:
    """Run and trace steps from the present state, which comes back afterwards, with nothing remembered of it."""
    saved = SavedState(environment)
    vars(environment.world).pop(SENSING, None)
    try:
        with deepcopy(environment.random_stream), torch.no_grad(), every_pair():
            yield
    finally:
        vars(environment.world).pop(SENSING, None)
        saved.restore()


def _is_dense(tensor: Tensor) -> bool:
    """Whether it is as the compiled function takes it: contiguous, with a version."""
    return tensor.is_contiguous() and not tensor.is_inference()
