"""The few OpenGL and pyglet calls of VMAS's renderer, drawn by Matplotlib's Agg instead of a display."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from matplotlib.backend_bases import GraphicsContextBase
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.transforms import Affine2D
from PIL import Image

Points = np.ndarray | Sequence[Sequence[float]]  # (n, 2)
Color = tuple[float, float, float, float]  # red, green, blue, opacity, from 0 to 1

DISPLAY_DPI = 96  # at which pyglet turns the points of a font size into pixels


class Canvas:
    """A picture, and the state of OpenGL's immediate mode that VMAS draws with.

    Shapes come out as OpenGL would fill them, with smooth edges. Two differences: dashes (``LineStyle``, which no
    scenario of VMAS uses) are drawn solid, and text has Matplotlib's own font.

    Args:
        width (int): of the picture in pixels.
        height (int): of the picture in pixels.
        scale (float): pixels of the picture per pixel of the window that VMAS believes to draw on.
    """

    def __init__(self, width: int, height: int, scale: float) -> None:
        self.scale = scale
        self.height = height
        self._renderer = RendererAgg(width, height, dpi=72)  # a point is a pixel
        self._matrices = [np.eye(3)]
        self._color: Color = (1.0, 1.0, 1.0, 1.0)
        self._line_width = 1.0
        self._mode = ""
        self._vertices: list[tuple[float, float]] = []
        sides = width / scale, height / scale
        self.polygon([(0, 0), (sides[0], 0), sides, (0, sides[1])], (1.0, 1.0, 1.0, 1.0))  # else transparent

    def array(self) -> np.ndarray:
        """The picture, ``(height, width, 3)`` uint8."""
        return np.asarray(self._renderer.buffer_rgba())[..., :3].copy()

    def polygon(self, points: Points, color: Color) -> None:
        """Fill a polygon; points in pixels of the window, from its lower left corner."""
        pen = GraphicsContextBase()
        pen.set_linewidth(0)
        self._path(pen, points, color)

    def line(self, points: Points, width: float, color: Color) -> None:
        """Draw a line through points in pixels of the window, as its width is."""
        pen = GraphicsContextBase()
        pen.set_linewidth(width * self.scale)
        pen.set_foreground(color, isRGBA=True)
        self._path(pen, points, None)

    def _path(self, pen: GraphicsContextBase, points: Points, face: Color | None) -> None:
        pen.set_snap(False)  # Agg would move upright edges to whole pixels
        path = Path(np.asarray(points, dtype=float) * self.scale)
        self._renderer.draw_path(pen, path, Affine2D(), face)

    def _to_window(self, points: Points) -> np.ndarray:
        """Points under the current matrix, in pixels of the window."""
        matrix = self._matrices[-1]
        return np.asarray(points, dtype=float) @ matrix[:2, :2].T + matrix[:2, 2]

    def _transform(self, matrix: Sequence[Sequence[float]]) -> None:
        self._matrices[-1] = self._matrices[-1] @ np.array([*matrix, (0, 0, 1)], dtype=float)

    def _translate(self, x: float, y: float, _: float) -> None:
        self._transform(((1, 0, x), (0, 1, y)))

    def _rotate(self, degrees: float, *_: float) -> None:
        cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        self._transform(((cosine, -sine, 0), (sine, cosine, 0)))

    def _set_color(self, *color: float) -> None:
        red, green, blue, opacity = (min(max(float(part), 0.0), 1.0) for part in color)
        self._color = (red, green, blue, opacity)

    def _set_line_width(self, width: float) -> None:
        self._line_width = max(float(width), 1.0)  # OpenGL draws no line thinner than a pixel

    def _begin(self, mode: str) -> None:
        self._mode, self._vertices = mode, []

    def _vertex(self, x: float, y: float, *_: float) -> None:
        self._vertices.append((float(x), float(y)))

    def _end(self) -> None:
        points = self._to_window(self._vertices)
        if self._mode == "points":
            for x, y in points:
                corners = [(x + dx, y + dy) for dx, dy in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))]
                self.polygon(corners, self._color)
        elif self._mode == "polygon":
            self.polygon(points, self._color)
        elif self._mode == "lines":
            for start in range(0, len(points), 2):
                self.line(points[start : start + 2], self._line_width, self._color)
        else:
            if self._mode == "loop":
                points = np.concatenate([points, points[:1]])
            self.line(points, self._line_width, self._color)

    def _draw_text(self, text: str, font_size: float, x: float, y: float) -> None:
        if not text.strip():
            return
        font = FontProperties(family="DejaVu Sans Mono", size=font_size * DISPLAY_DPI / 72 * self.scale)
        _, _, descent = self._renderer.get_text_width_height_descent(text, font, ismath=False)
        x, y = self._to_window([(x, y)])[0] * self.scale
        self._renderer.draw_text(GraphicsContextBase(), x, self.height - y - descent, text, font, angle=0)

    def _draw_image(self, pixels: np.ndarray, x: float, y: float, scale: float) -> None:
        """pixels: (rows, columns, 4), the lowest row first, its corner at (x, y)."""
        rows, columns = pixels.shape[:2]
        corners = self._to_window([(x, y), (x + columns * scale, y + rows * scale)]) * self.scale
        left, low, right, high = (round(end) for end in corners.reshape(-1))
        size = (max(right - left, 1), max(high - low, 1))
        image = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BILINEAR)
        self._renderer.draw_image(GraphicsContextBase(), left, low, np.array(image))

    def pyglet(self) -> dict[str, ModuleType]:
        """Modules ``pyglet`` and ``pyglet.gl`` that draw here, for ``sys.modules``, by name."""
        canvas = self

        class Label:
            def __init__(self, text: str, *, font_size: float, x: float, y: float, **_: Any) -> None:
                self.text, self.font_size, self.x, self.y = text, font_size, x, y

            def draw(self) -> None:
                canvas._draw_text(self.text, self.font_size, float(self.x), float(self.y))

        class Sprite:
            def __init__(self, img: np.ndarray, x: float, y: float, **_: Any) -> None:
                self.img, self.x, self.y = img, x, y

            def update(self, scale: float) -> None:
                self.scale = scale

            def draw(self) -> None:
                canvas._draw_image(self.img, self.x, self.y, self.scale)

        def image_data(width: int, height: int, _: str, data: np.ndarray, **__: Any) -> np.ndarray:
            return data.reshape(height, width, 4)

        def no_library(name: str) -> None:
            raise ImportError(f"no {name} is wanted here")

        def window(**_: Any) -> SimpleNamespace:
            return SimpleNamespace(clear=_nothing, switch_to=_nothing, dispatch_events=_nothing, flip=_nothing)

        gl, pyglet = ModuleType("pyglet.gl"), ModuleType("pyglet")
        vars(gl).update(self._gl())
        vars(pyglet).update(
            gl=gl,
            options={},
            lib=SimpleNamespace(load_library=no_library),
            window=SimpleNamespace(Window=window),
            font=SimpleNamespace(have_font=lambda name: True),
            text=SimpleNamespace(Label=Label),
            image=SimpleNamespace(ImageData=image_data),
            sprite=SimpleNamespace(Sprite=Sprite),
        )
        return {"pyglet": pyglet, "pyglet.gl": gl}

    def _gl(self) -> dict[str, Any]:
        class Pixels:
            """``GLubyte * size``, a type whose instances hold an image's bytes."""

            def __mul__(self, size: int) -> Any:
                return lambda *values: np.array(values, dtype=np.uint8)

        modes = dict.fromkeys(("GL_POLYGON", "GL_QUADS", "GL_TRIANGLES"), "polygon")
        modes |= {"GL_POINTS": "points", "GL_LINES": "lines", "GL_LINE_STRIP": "strip", "GL_LINE_LOOP": "loop"}
        functions = {
            "glPushMatrix": lambda: self._matrices.append(self._matrices[-1]),
            "glPopMatrix": self._matrices.pop,
            "glTranslatef": self._translate,
            "glRotatef": self._rotate,
            "glScalef": lambda x, y, _: self._transform(((x, 0, 0), (0, y, 0))),
            "glColor4f": self._set_color,
            "glLineWidth": self._set_line_width,
            "glBegin": self._begin,
            "glVertex2f": self._vertex,
            "glVertex3f": self._vertex,
            "glEnd": self._end,
        }
        # State that is always as VMAS sets it here, or that a picture without a window does not have.
        unused = ("glBlendFunc", "glClearColor", "glDisable", "glEnable", "glHint", "glLineStipple", "glLoadIdentity")
        functions |= dict.fromkeys((*unused, "glMatrixMode", "gluOrtho2D"), _nothing)
        state = ("BLEND", "LINE_SMOOTH", "LINE_SMOOTH_HINT", "LINE_STIPPLE", "NICEST", "PROJECTION", "SRC_ALPHA")
        constants = {f"GL_{name}": "" for name in (*state, "ONE_MINUS_SRC_ALPHA")}
        return {**constants, **modes, **functions, "GLubyte": Pixels()}


def _nothing(*_: Any, **__: Any) -> None:
    pass
