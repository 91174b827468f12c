"""Films of policies in VMAS worlds."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_bicnet.checks import check_number, check_type
from torchrl_bicnet.envs.random_stream import RandomStream
from torchrl_bicnet.evaluation import act, check_evaluation, in_eval_mode
from torchrl_bicnet.rendering.worlds import agents_of, mosaic, render, vmas_environment

MIN_FPS = 0.001
MAX_FPS = {".gif": 50, ".mp4": 1000}  # browsers show frames of a GIF shorter than 20 ms for 100 ms
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
    """Frames of the first episode of one environment or of several, without exploration.

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

    Raises:
        ValueError, TypeError, KeyError, ImportError: for what :func:`~torchrl_bicnet.evaluate` and
            :func:`~torchrl_bicnet.rendering.render` refuse, before the environment is seeded or reset.

    Example:
        >>> from torchrl_bicnet import BiCNetActor, make_vmas_env
        >>> env = make_vmas_env("navigation", num_envs=4, n_agents=3)
        >>> frames = record(env, BiCNetActor.from_env(env), max_steps=5, seed=0, env_index=range(4), width=100)
        >>> len(frames), frames[0].shape
        (6, (202, 202, 3))
    """
    check_evaluation(env, policy, max_steps, seed)
    constant = None if callable(influence) else influence
    if callable(influence):
        agents_of(env, vmas_environment(env), drawing.get("group"))
    render(env, env_index, columns=columns, influence=constant, **drawing)  # refuses what it would refuse below
    indices = [env_index] if not isinstance(env_index, Sequence) else list(env_index)
    frames = []
    deterministic = set_exploration_type(ExplorationType.DETERMINISTIC)
    with in_eval_mode(policy), RandomStream(seed, vmas_environment(env).device), deterministic:
        if seed is not None:
            env.set_seed(seed)
        td = env.reset()
        running = torch.ones_like(td["done"])  # (num_envs, 1)
        pictures: list[np.ndarray] = [np.empty(0)] * len(indices)
        for step in range(max_steps + 1):
            arrows = influence(td) if callable(influence) else influence
            for place, index in enumerate(indices):
                if running[index]:
                    pictures[place] = render(env, index, influence=arrows, **drawing)
            frames.append(mosaic(pictures, columns))
            running = running & ~td["done"]
            if step == max_steps or not running[indices].any():
                break
            with torch.no_grad():
                td = env.step_mdp(env.step(act(env, policy, td)))
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
        ValueError: for another suffix, no frames, frames of another or of different shapes or dtypes, ``fps`` below
            0.001, above 50 for a GIF or above 1000 for an MP4, or a GIF that stands still for more than 655.35 s.
        TypeError: for a path, frames or ``fps`` of another type.
        FileNotFoundError: if the folder does not exist.
        IsADirectoryError: if the path is a folder.
        ImportError: if Pillow (GIF) or PyAV (MP4) is not installed.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> frames = [np.full((40, 60, 3), grey, dtype=np.uint8) for grey in (0, 100, 200)]
        >>> with TemporaryDirectory() as folder:
        ...     save_film(frames, f"{folder}/grey.gif", fps=5)
    """
    check_type("path", path, (str, os.PathLike), "a path")
    check_type("frames", frames, (Sequence, np.ndarray), "a sequence of arrays")
    check_number("fps", fps)
    path = Path(path)
    writers = {".gif": (_write_gif, "PIL", "pillow"), ".mp4": (_write_mp4, "av", "av")}
    if path.suffix.lower() not in writers:
        raise ValueError(f"A film is a .gif or an .mp4, found {path.name!r}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent} to write {path.name} to.")
    if path.is_dir():
        raise IsADirectoryError(f"There is a folder {path}, where the film should be written.")
    fastest = MAX_FPS[path.suffix.lower()]
    if not MIN_FPS <= fps <= fastest:
        raise ValueError(f"fps must be from {MIN_FPS} to {fastest}, found {fps}.")
    if len(frames) == 0:
        raise ValueError(f"A film needs at least one frame, found none: frames={frames!r}.")
    for number, frame in enumerate(frames):
        if not isinstance(frame, np.ndarray):
            raise TypeError(f"frames must be arrays, frame {number} is {frame!r}.")
        wrong = frame.ndim != 3 or frame.shape[2:] != (3,) or frame.size == 0
        if wrong or frame.dtype != np.uint8 or frame.shape != frames[0].shape:
            raise ValueError(
                f"Frames must be (H, W, 3) uint8, not empty, all of one size; the first is {frames[0].shape} "
                f"{frames[0].dtype}, frame {number} is {frame.shape} {frame.dtype}."
            )
    write, module, package = writers[path.suffix.lower()]
    if find_spec(module) is None:
        raise ImportError(f"Writing {path.suffix} needs {module}: pip install {package}.")
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
