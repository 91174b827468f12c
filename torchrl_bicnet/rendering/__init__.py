"""Pictures and films of VMAS worlds, without a display."""

from torchrl_bicnet.rendering.films import record, save_film
from torchrl_bicnet.rendering.worlds import render

__all__ = ["record", "render", "save_film"]
