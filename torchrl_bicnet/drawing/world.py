"""The drawing of a world, without a display."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec
from typing import TYPE_CHECKING, Any

import torch
import vmas.simulator
from vmas.simulator.core import Agent
from vmas.simulator.environment import Environment

if TYPE_CHECKING:
    from torchrl_bicnet.drawing.canvas import Canvas


def draw_world(
    environment: Environment,
    index: int,
    *,
    width: int | None = None,
    agent_index_focus: int | None = None,
    absent: Sequence[Agent] = (),
    **options: Any,
) -> tuple[Canvas, Any]:
    """Draw one of the environments, without the agents that are absent.

    What the scenario draws may need random numbers: call it in a random stream that may move. Options are those of
    VMAS's own ``render``.

    Returns:
        The canvas, and the camera: ``scale`` and ``translation`` from the world to pixels of the window.
    """
    # Here, so that the package imports without Matplotlib, and quickly with it.
    from torchrl_bicnet.drawing.canvas import Canvas

    window_width, window_height = environment.scenario.viewer_size
    scale = 1.0 if width is None else width / window_width
    canvas = Canvas(round(window_width * scale), max(round(window_height * scale), 1), scale)
    # A viewer of its own, so that one that shows this environment in a window is left alone.
    painted = copy.copy(environment)
    painted.viewer, painted.visible_display = None, None
    if absent:
        painted.world = copy.copy(environment.world)
        painted.world._agents = [
            _ghost(agent, environment) if agent in absent else agent for agent in environment.world.agents
        ]
    with _drawing_on(canvas):
        look = {"env_index": index, "agent_index_focus": agent_index_focus, **options}
        Environment.render.__wrapped__(painted, mode="human", **look)
    return canvas, painted.viewer.transform


def _ghost(agent: Agent, environment: Environment) -> Agent:
    """An agent that is not drawn and does not move the camera."""
    ghost, state = copy.copy(agent), copy.copy(agent.state)
    origin = torch.tensor(environment.scenario.render_origin, dtype=state.pos.dtype, device=state.pos.device)
    state._pos = origin.expand_as(state.pos)
    ghost._state, ghost._render = state, torch.zeros_like(agent.is_rendering)
    return ghost


@contextmanager
def _drawing_on(canvas: Canvas) -> Iterator[None]:
    """VMAS's rendering module, executed anew over the canvas, takes the place of the one that needs a display."""
    import matplotlib

    def get_cmap(name: str, size: int) -> Any:
        """As VMAS 1.5 asks for it; Matplotlib 3.9 removed it."""
        return matplotlib.colormaps[name].resampled(size)

    name = "vmas.simulator.rendering"
    with _in_place_of(*((sys.modules, *module) for module in canvas.pyglet().items())):
        spec = find_spec(name)
        if spec is None or spec.loader is None:
            raise ImportError(f"VMAS has no module {name}.")
        rendering = module_from_spec(spec)
        spec.loader.exec_module(rendering)
        with _in_place_of(
            (sys.modules, name, rendering),
            (vars(vmas.simulator), "rendering", rendering),
            (vars(matplotlib.cm), "get_cmap", get_cmap),
        ):
            yield


@contextmanager
def _in_place_of(*entries: tuple[dict[str, Any], str, Any]) -> Iterator[None]:
    """Set entries of dictionaries for a while."""
    before = [(names, name, name in names, names.get(name)) for names, name, _ in entries]
    try:
        for names, name, value in entries:
            names[name] = value
        yield
    finally:
        for names, name, was_there, value in before:
            if was_there:
                names[name] = value
            else:
                del names[name]
