"""Trained actors as graphs that run without this package: by torch alone, or by any runtime for ONNX."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torchrl.modules import MultiAgentMLP

from torchrl_bicnet.checks import check_type
from torchrl_bicnet.episodes import in_eval_mode
from torchrl_bicnet.modules import BiCNetActor

__all__ = ["export_actor", "save_onnx"]


class _Action(nn.Module):
    """The actor's action alone, a function of tensors."""

    def __init__(self, actor: BiCNetActor) -> None:
        super().__init__()
        self.module = actor.module

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.module(*inputs)[1]


def export_actor(actor: BiCNetActor, example: TensorDictBase) -> ExportedProgram:
    """An actor as a graph of torch operations, for batches of any size and any number of agents.

    The graph is called with what the actor reads, in the order of ``actor.in_keys`` (observations and, should the actor
    read one, the mask), ``(B, N, F)`` and ``(B, N)``, and gives the actions, ``(B, N, a)``. Its parameters are part of
    it. :func:`torch.export.save` writes it to a file, which :func:`torch.export.load` reads without this package.

    Where each agent has something of its own (an id, action bounds), the number of agents is that of the example.

    Args:
        actor (BiCNetActor): the actor, on CPU.
        example (TensorDictBase): what it reads, ``(B,)``, for the sizes alone, such as ``env.reset()``.

    Returns:
        torch.export.ExportedProgram: call its ``module()``.

    Raises:
        ValueError: for an actor with ``share_params=False``, which torch cannot export.

    Example:
        >>> import torch
        >>> from torchrl_bicnet import BiCNetActor, make_vmas_env
        >>> env = make_vmas_env("navigation", num_envs=2, n_agents=3)
        >>> actor = BiCNetActor.from_env(env)
        >>> act = export_actor(actor, env.reset()).module()
        >>> act(torch.randn(50, 7, 18)).shape  # 50 teams of 7 agents
        torch.Size([50, 7, 2])
    """
    check_type("actor", actor, BiCNetActor, "a BiCNetActor")
    if any(isinstance(module, MultiAgentMLP) for module in actor.modules()):
        raise ValueError("actor must share its parameters: torch does not export TorchRL's MultiAgentMLP.")
    fixed = any(getattr(net, "n_agents", None) for net in actor.modules()) or actor.module.low.ndim > 1
    n_agents = example[actor.in_keys[0]].shape[1] if fixed else 3
    batch, agents = Dim("batch", min=1), None if fixed else Dim("agents", min=1)
    inputs = tuple(_slots(example, key, n_agents) for key in actor.in_keys)
    shapes = (tuple({0: batch, 1: agents} if agents else {0: batch} for _ in inputs),)
    with torch.no_grad(), in_eval_mode(actor), _quiet():
        return torch.export.export(_Action(actor), inputs, dynamic_shapes=shapes)


def save_onnx(actor: BiCNetActor, example: TensorDictBase, path: Path | str) -> None:
    """Write an actor as an ONNX model, for batches of any size and any number of agents.

    Its inputs are named by the last part of the actor's ``in_keys``, such as ``"observation"`` and ``"mask"``, its
    output is ``"action"``. Needs the extra ``onnx``.

    Args:
        actor (BiCNetActor): the actor, on CPU.
        example (TensorDictBase): as for :func:`export_actor`.
        path (Path or str): the file to write.

    Example:
        >>> import tempfile
        >>> import onnxruntime, torch
        >>> from torchrl_bicnet import BiCNetActor, make_vmas_env
        >>> env = make_vmas_env("navigation", num_envs=2, n_agents=3)
        >>> path = Path(tempfile.mkdtemp()) / "actor.onnx"
        >>> save_onnx(BiCNetActor.from_env(env), env.reset(), path)
        >>> session = onnxruntime.InferenceSession(path)
        >>> (action,) = session.run(None, {"observation": torch.randn(50, 7, 18).numpy()})
        >>> action.shape
        (50, 7, 2)
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("save_onnx needs onnx and onnxscript: install the extra, torchrl_bicnet[onnx].") from error
    program = export_actor(actor, example)
    names = [_name(key) for key in actor.in_keys]
    with contextlib.redirect_stdout(io.StringIO()), _quiet():
        torch.onnx.export(program, f=str(path), input_names=names, output_names=["action"], external_data=False)


def _slots(example: TensorDictBase, key: NestedKey, n_agents: int) -> Tensor:
    """Zeros of the entry's type for two environments of so many agents; traced with 1, a graph is for 1 alone."""
    entry = example[key]
    if example.ndim != 1 or entry.ndim < 2:
        raise ValueError(
            f"example must be a tensordict (B,) with agents (B, N, ...), such as env.reset(), found {key!r} of shape "
            f"{tuple(entry.shape)} in one of {tuple(example.shape)}."
        )
    return torch.zeros(2, n_agents, *entry.shape[2:], dtype=entry.dtype)


def _name(key: NestedKey) -> str:
    return key if isinstance(key, str) else key[-1]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' warnings of their own code, and their logs of what is not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
