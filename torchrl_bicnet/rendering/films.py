"""Films of policies in VMAS worlds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase

from torchrl_bicnet.checks import check_number, check_type
from torchrl_bicnet.episodes import first_episodes
from torchrl_bicnet.rendering.worlds import agents_of, mosaic, render, vmas_environment

MIN_FPS = 0.001
MAX_GIF_DURATION = 655_350  # of one picture, in ms: 16 bits of hundredths of a second


def record(
    env: EnvBase,
    policy: TensorDictModuleBase,
    *,
    max_steps: int,
    seed: int | None = None,
    env_index: int | Sequence[int] = 0,
    columns: int | None = None,
    influence: Tensor | Callable[[TensorDictBase], Tensor] | None = None,
    **drawing: Any,
) -> list[np.ndarray]:
    """Film the first episode of one environment or of several, without exploration.

    The episodes are those of :func:`~torchrl_bicnet.evaluate` with the same seed. An episode that ended shows its last
    state until all that are filmed have ended. Like an evaluation it leaves the policy's mode and all random streams
    but the environment's alone.

    Args:
        env (EnvBase): of :func:`~torchrl_bicnet.make_vmas_env`. It is reset first.
        policy (TensorDictModuleBase): acts for every group.

    Keyword Args:
        max_steps (int): length of the film at most, in steps.
        seed (int, optional): seeds the environment first.
        env_index (int or sequence of int): which of the vectorised environments; several make a mosaic.
        columns (int, optional): of the mosaic, as in :func:`~torchrl_bicnet.rendering.render`.
        influence (Tensor or callable, optional): as in :func:`~torchrl_bicnet.rendering.render`, or a function that
            gives it for the tensordict that the policy is about to read.
        **drawing: ``width``, ``agent_index_focus`` and ``group`` of :func:`~torchrl_bicnet.rendering.render`.

    Returns:
        list of ndarray: the start state and the state after each step, each ``(H, W, 3)`` uint8.

    Example:
        >>> from torchrl_bicnet import BiCNetActor, make_vmas_env
        >>> env = make_vmas_env("navigation", num_envs=4, n_agents=3)
        >>> frames = record(env, BiCNetActor.from_env(env), max_steps=5, seed=0, env_index=range(4), width=100)
        >>> len(frames), frames[0].shape
        (6, (202, 202, 3))
    """
    if callable(influence):
        agents_of(env, vmas_environment(env), drawing.get("group"))
    constant = None if callable(influence) else influence
    render(env, env_index, columns=columns, influence=constant, **drawing)  # refuses what it would refuse below
    indices = list(env_index) if isinstance(env_index, Sequence) else [env_index]
    pictures: list[np.ndarray] = [np.empty(0)] * len(indices)
    frames = []

    def draw(state: TensorDictBase, running: Tensor) -> None:
        arrows = influence(state) if callable(influence) else influence
        for place, index in enumerate(indices):
            if running[index]:
                pictures[place] = render(env, index, influence=arrows, **drawing)
        frames.append(mosaic(pictures, columns))

    with first_episodes(env, policy, max_steps=max_steps, seed=seed) as (start, steps):
        draw(start, torch.ones_like(start["done"]))
        for step in steps:
            draw(step.next_state, step.running)
            if not (step.running & ~step.after["done"].squeeze(-1))[indices].any():
                break
    return frames


def save_film(frames: Sequence[np.ndarray], path: str | Path, *, fps: float = 10.0) -> None:
    """Write frames as a GIF or an MP4 (H.264), by the file's suffix.

    Args:
        frames (sequence of ndarray): of one size, ``(H, W, 3)`` uint8, such as
            :func:`~torchrl_bicnet.rendering.record` gives.
        path (str or Path): ends in ``.gif`` or ``.mp4``, in a folder that exists. A file there is overwritten.

    Keyword Args:
        fps (float): frames per second; 10 is real time at VMAS's usual time step of 0.1 s. A GIF holds durations in
            hundredths of a second and one frame for several equal ones; odd sides of an MP4 get a row or a column more.

    Raises:
        ValueError: for more than 50 frames per second in a GIF or 1000 in an MP4, and for a GIF that stands still for
            more than 655.35 s.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> frames = [np.full((40, 60, 3), grey, dtype=np.uint8) for grey in (0, 100, 200)]
        >>> with TemporaryDirectory() as folder:
        ...     save_film(frames, f"{folder}/grey.gif", fps=5)
    """
    path = Path(path)
    write, fastest = WRITERS.get(path.suffix.lower(), (None, 0))
    if write is None:
        raise ValueError(f"A film is a .gif or an .mp4, found {path.name!r}.")
    check_number("fps", fps)
    if not MIN_FPS <= fps <= fastest:
        raise ValueError(f"fps must be from {MIN_FPS} to {fastest}, found {fps}.")
    if len(frames) == 0:
        raise ValueError("A film needs at least one frame, found none.")
    for number, frame in enumerate(frames):
        check_type("frames", frame, np.ndarray, "arrays")
        wrong = frame.ndim != 3 or frame.shape[2:] != (3,) or frame.size == 0
        if wrong or frame.dtype != np.uint8 or frame.shape != frames[0].shape:
            raise ValueError(
                f"Frames must be (H, W, 3) uint8, not empty, all of one size; the first is {frames[0].shape} "
                f"{frames[0].dtype}, frame {number} is {frame.shape} {frame.dtype}."
            )
    write(frames, path, fps)


def _write_gif(frames: Sequence[np.ndarray], path: Path, fps: float) -> None:
    from PIL import Image

    # One palette for all frames, so that a frame holds only what changed: the colours of large areas as they are, for
    # the many mixed ones at edges others near to them.
    counts: Counter[int] = Counter()
    for frame in frames:
        found, times = np.unique(_packed(frame), return_counts=True)
        counts.update(dict(zip(found.tolist(), times.tolist())))
    colors = _unpacked(np.array([color for color, _ in counts.most_common()]))
    palette, mixed = colors[:128], colors[128:]
    if len(mixed) > 0:
        near = Image.fromarray(mixed[None].astype(np.uint8)).quantize(128).getpalette()
        palette = np.concatenate([palette, np.reshape(near or [], (-1, 3))])
    images = []
    for frame in frames:
        found, place = np.unique(_packed(frame), return_inverse=True)
        closeness = _unpacked(found) @ palette.T - (palette**2).sum(-1) / 2  # (colours, entries)
        image = Image.fromarray(closeness.argmax(-1)[place].reshape(frame.shape[:2]).astype(np.uint8))
        image.putpalette(palette.astype(np.uint8).flatten().tolist())
        images.append(image)
    duration = round(100 / fps) * 10  # in ms
    longest = duration * max(len(list(equal)) for _, equal in groupby(images, Image.Image.tobytes))
    if longest > MAX_GIF_DURATION:
        raise ValueError(
            f"A GIF shows one picture for {MAX_GIF_DURATION / 1000} s at most, found equal frames for "
            f"{longest / 1000} s at fps={fps}; write an .mp4."
        )
    images[0].save(path, save_all=True, append_images=images[1:], duration=duration, loop=0, optimize=True)


def _packed(frame: np.ndarray) -> np.ndarray:
    """A number for each colour, (H * W,)."""
    return frame.reshape(-1, 3) @ np.array([1 << 16, 1 << 8, 1])


def _unpacked(numbers: np.ndarray) -> np.ndarray:
    """The colours of the numbers, (n, 3), whole numbers as floats, for which products are fast."""
    return np.stack([numbers >> 16, numbers >> 8 & 255, numbers & 255], -1).astype(np.float64)


def _write_mp4(frames: Sequence[np.ndarray], path: Path, fps: float) -> None:
    import av

    height, width, _ = frames[0].shape
    odd = ((0, height % 2), (0, width % 2), (0, 0))  # colours are stored for blocks of two by two
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": "20"})
        stream.height, stream.width, stream.pix_fmt = height + height % 2, width + width % 2, "yuv420p"
        for frame in frames:
            image = av.VideoFrame.from_ndarray(np.pad(frame, odd, mode="edge"), format="rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode())


# By the file's suffix: the writer, and the most frames per second; browsers show frames of a GIF shorter than 20 ms for
# 100 ms.
WRITERS = {".gif": (_write_gif, 50), ".mp4": (_write_mp4, 1000)}
