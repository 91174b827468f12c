"""One optimisation step of DDPG as one function of a sampled batch: eager, or compiled."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey, expand_right
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torchrl.objectives import DDPGLoss

from torchrl_bicnet.checks import check_integer, check_number, check_type
from torchrl_bicnet.compiling.inductor import Function, compile_graph
from torchrl_bicnet.flat_parameters import FlatParameters

ACTOR, CRITIC = "actor_network", "value_network"


class UpdateStep:
    """One optimisation step of DDPG: losses, gradients, clipping, Adam for actor and critic, and the target networks.

    It calls the loss as it is, and moves the parameters of each network into one tensor, of which they become views:
    clipping, Adam and the targets are then one operation each, not one per parameter. The modules, their state dicts
    and the loss's stay what they were; only their memory has moved.

    With ``compile=True`` the same step is traced and fused by Inductor when it is first called with a batch of new
    shapes or keys, which takes up to a minute, and longer for larger teams; on CUDA it is then replayed as one CUDA
    graph. No form waits for the device, but with a memory over time.

    Args:
        loss (DDPGLoss): from :func:`~torchrl_bicnet.make_ddpg_loss`, configured and on its device: its value estimator,
            keys, frozen parameters and modes are taken as they are when the step is made. Parameters that are moved
            afterwards are an error.

    Keyword Args:
        actor_lr (float): learning rate of the actor.
        critic_lr (float): learning rate of the critic.
        tau (float): fraction of the way that the target networks move towards the trained ones.
        max_grad_norm (float): the gradients of actor and critic together are clipped to this norm. Defaults to
            ``inf``: not clipped.
        actor_warmup (int): the actor's learning rate rises in a line over so many updates, so that it does not follow a
            critic that knows nothing yet. Defaults to ``0``.
        compile (bool): whether to compile it. Defaults to ``False``.
        autocast (torch.dtype, optional): ``torch.bfloat16`` computes both losses in it by :class:`torch.autocast`;
            parameters, Adam and targets keep their type. Defaults to ``None``: no autocast of its own.

    Raises:
        ValueError: if a parameter is trained twice, by actor and critic or under two names of one, or if one of them
            has none to train, or not all of one type and device; if it is to be compiled and has a memory over time.
        RuntimeError: when it is called, if it cannot be compiled here, as without a C++ compiler.

    Reference: Lillicrap et al., *Continuous control with deep reinforcement learning*, 2015,
    https://arxiv.org/abs/1509.02971, algorithm 1.

    Example:
        >>> import torch
        >>> from torchrl_bicnet import BiCNetActor, BiCNetCritic, make_ddpg_loss, make_vmas_env
        >>> env = make_vmas_env("navigation", num_envs=8, seed=0)
        >>> loss = make_ddpg_loss(BiCNetActor.from_env(env), BiCNetCritic.from_env(env))
        >>> update = UpdateStep(loss, actor_lr=5e-4, critic_lr=1e-3, tau=0.01, max_grad_norm=1.0)
        >>> metrics = update(env.rollout(10).reshape(-1))
        >>> list(metrics)
        ['loss_actor', 'loss_value', 'grad_norm']
    """

    def __init__(
        self,
        loss: DDPGLoss,
        *,
        actor_lr: float,
        critic_lr: float,
        tau: float,
        max_grad_norm: float = math.inf,
        actor_warmup: int = 0,
        compile: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        check_type("loss", loss, DDPGLoss, "a DDPGLoss, such as from make_ddpg_loss")
        for name, number, most in (
            ("actor_lr", actor_lr, math.inf),
            ("critic_lr", critic_lr, math.inf),
            ("tau", tau, 1.0),
            ("max_grad_norm", max_grad_norm, math.inf),
        ):
            check_number(name, number)
            if not 0 <= number <= most:
                raise ValueError(f"{name} must be between 0 and {most}, found {number}.")
        check_integer("actor_warmup", actor_warmup, least=0)
        check_type("compile", compile, bool, "a bool")
        if compile and "is_init" in loss.in_keys:
            raise ValueError("compile must be False with a memory, which goes through a sequence as its values say.")
        if autocast not in (None, torch.bfloat16):
            raise ValueError(f"autocast must be torch.bfloat16 or None, found {autocast!r}.")
        self.loss = loss
        self._learning_rates = {ACTOR: actor_lr, CRITIC: critic_lr}
        self._warmups = {ACTOR: actor_warmup, CRITIC: 0}
        self._tau, self._max_grad_norm = tau, max_grad_norm
        self._compile, self._autocast = compile, autocast
        self._layouts = {name: FlatParameters(loss, name) for name in self._learning_rates}
        actor, critic = (layout.identities for layout in self._layouts.values())
        if shared := actor & critic:
            raise ValueError(f"Actor and critic must have parameters of their own, found {len(shared)} in both.")
        loss._has_update_associated.update(dict.fromkeys(loss._has_update_associated, True))  # as SoftUpdate does
        # All that a step changes: parameters, targets, Adam's averages and counts, and buffers, such as running means
        self._state = TensorDict({name: _with_adam(layout.pack(loss)) for name, layout in self._layouts.items()})
        self.device = self._state[ACTOR, "parameters"].device
        self._loss = self._with_parameters(loss, self._state)
        self._functions: dict[Any, Function] = {}

    def __call__(self, sample: TensorDictBase) -> dict[str, Tensor]:
        """Take the step on a batch of transitions, ``(*B,)``, with the keys ``loss.in_keys``.

        The TD errors, ``(*B, N)``, are written to the batch as the loss does, for a prioritised replay buffer with
        ``priority_key=loss.tensor_keys.priority``. Such a buffer takes the largest of the agents; the weights that it
        gives to transitions are those of all their agents.

        Returns:
            The metrics ``loss_actor`` and ``loss_value``, before the step, and ``grad_norm``, before clipping, on the
            device.
        """
        for layout in self._layouts.values():
            layout.check_in_place()
        keys = self._loss.tensor_keys
        steps_key = self._loss.value_estimator.tensor_keys.steps_to_next_obs
        read = sample.select(*self._loss.in_keys, *self._loss._loss_mask_keys(), steps_key, strict=False)
        if (weight := read.get(keys.priority_weight, None)) is not None:  # of a transition, for each of its agents
            read.set(keys.priority_weight, expand_right(weight, read["next", keys.reward].shape[:-1]))
        metrics = self._call_compiled(read) if self._compile else self._step(self._state, self._loss, read)
        sample.set(keys.priority, metrics.pop("td_error"))
        return metrics

    def _step(self, state: TensorDictBase, loss: DDPGLoss, sample: TensorDictBase) -> dict[str, Tensor]:
        autocast = torch.autocast(self.device.type, self._autocast) if self._autocast else contextlib.nullcontext()
        trained = [state[name, "parameters"] for name in self._learning_rates]
        with torch.enable_grad(), autocast:
            output = loss(sample)
            total = output["loss_actor"] + output["loss_value"]
        for parameters in trained:
            parameters.grad = None  # that of a step which was interrupted
        total.backward()
        gradients = [parameters.grad for parameters in trained]
        grad_norm = nn.utils.get_total_norm(gradients, foreach=False)
        scale = (self._max_grad_norm / (grad_norm + 1e-6)).clamp(max=1.0)
        for (name, lr), parameters, gradient in zip(self._learning_rates.items(), trained, gradients):
            parameters.grad = None
            _adam(state[name], parameters.data, gradient * scale, lr, self._warmups[name])
            if "target" in state[name]:
                state[name, "target"].lerp_(parameters.data, self._tau)
        losses = {name: output[name].detach() for name in ("loss_actor", "loss_value", "td_error")}
        return {**losses, "grad_norm": grad_norm}

    def _call_compiled(self, sample: TensorDictBase) -> dict[str, Tensor]:
        state = {key: tensor.detach() for key, tensor in self._state.items(True, True)}
        read = dict(sample.items(True, True))
        signature = tuple((key, tensor.shape, tensor.dtype) for key, tensor in read.items())
        inputs = [*state.values(), *(tensor.contiguous() for tensor in read.values())]
        if signature not in self._functions:
            self._functions[signature] = self._compiled(list(state), list(read), inputs, sample.batch_size)
        results = self._functions[signature](*inputs)
        torch._foreach_copy_(list(state.values()), results[: len(state)])
        return dict(zip(("loss_actor", "loss_value", "td_error", "grad_norm"), results[len(state) :]))

    def _compiled(
        self, state_keys: list[NestedKey], sample_keys: list[NestedKey], inputs: list[Tensor], batch_size: torch.Size
    ) -> Function:
        """The step as a compiled function: state and sample to the state afterwards and the metrics."""
        n = len(state_keys)

        def function(*tensors: Tensor) -> list[Tensor]:
            after = [tensor.clone() for tensor in tensors[:n]]
            state = TensorDict(dict(zip(state_keys, after)))
            for name in self._learning_rates:
                state[name, "parameters"].requires_grad_()
            metrics = self._step(
                state,
                self._with_parameters(self._loss, state),
                TensorDict(dict(zip(sample_keys, tensors[n:])), batch_size),
            )
            return [tensor.detach() for tensor in (*after, *metrics.values())]

        with torch.no_grad():
            graph = make_fx(function)(*(tensor.clone() for tensor in inputs))
            return compile_graph(graph, [tensor.clone() for tensor in inputs], "The update")

    @torch.enable_grad()
    def _with_parameters(self, loss: DDPGLoss, state: TensorDictBase) -> DDPGLoss:
        """A copy of the loss with the parameters of a state, differentiable with respect to them."""
        networks: dict[str, TensorDictBase] = {}
        for name, layout in self._layouts.items():
            networks |= layout.unpack(state[name])
        changed = copy.copy(loss)
        changed.__dict__ = {**vars(loss), "_modules": {**loss._modules, **networks}, "_cache": {}}
        return changed

    def state_dict(self) -> dict[str, Tensor]:
        """Adam's averages of each parameter's gradients and of their squares, and its count of steps, by name.

        Parameters and targets are in the loss's. It is the same for all forms of the step, and loads into any.
        """
        state = {}
        for name, layout in self._layouts.items():
            state[f"{name}.step"] = self._state[name, "step"]
            for part in _AVERAGES:
                for key, average in layout.views(self._state[name, part]).items():
                    state[f"{name}.{part}.{key if isinstance(key, str) else '.'.join(key)}"] = average
        return state

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load what :meth:`state_dict` returned, for networks with parameters of the same names and shapes."""
        own = self.state_dict()
        expected, found = (
            {(name, (*getattr(tensor, "shape", ()),)) for name, tensor in tensors.items()}
            for tensors in (own, state_dict)
        )
        if expected != found:
            raise ValueError(f"Expected tensors {sorted(expected - found)}, found {sorted(found - expected)}.")
        for name, tensor in own.items():
            tensor.copy_(state_dict[name])


# Adam with torch's defaults: its averages, their decay rates and what keeps it from dividing by zero.
_AVERAGES = ("exp_avg", "exp_avg_sq")
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


def _with_adam(network: TensorDict) -> TensorDict:
    parameters = network["parameters"]
    network.update({part: torch.zeros_like(parameters) for part in _AVERAGES})
    return network.set("step", torch.zeros((), dtype=torch.float64, device=parameters.device))


def _adam(network: TensorDictBase, parameters: Tensor, gradient: Tensor, lr: float, warmup: int) -> None:
    """Kingma and Ba, *Adam*, 2015, https://arxiv.org/abs/1412.6980, algorithm 1.

    Of tensor operations alone: torch's fused one is refused by Inductor, its other ones ask the device for the step.
    """
    step = network["step"].add_(1)
    mean = network["exp_avg"].lerp_(gradient, 1 - _BETA1)
    square = network["exp_avg_sq"].mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
    deviation = (square / (1 - _BETA2**step)).sqrt_().add_(_EPSILON)
    rate = lr * (step / warmup).clamp(max=1) if warmup else lr
    parameters.sub_(mean / deviation * (rate / (1 - _BETA1**step)))
