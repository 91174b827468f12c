"""Checkpoints of a training run: whole or refused, rotated, the best kept apart, without pickles."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchrl.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointRotation,
    JSONCheckpointAdapter,
    StateDictCheckpointAdapter,
)

from torchrl_bicnet.checks import check_integer

# All that a checkpoint of ours is made of. TorchRL and tensordict would unpickle other files, and let JSON name classes
# and methods to call: so tensors come from plain tensordicts alone.
_MEMBERS = re.compile(
    r"manifest\.json|components/[^/]+/(value\.json|state\.json|state/meta\.json|state/tensor_\d{8}\.memmap)"
)
_PLAIN_TENSORDICT = "<class 'tensordict._td.TensorDict'>"


def verify_checkpoint(path: Path | str) -> None:
    """Read a checkpoint through without loading it: whole, unchanged since it was written, and free of pickles.

    Args:
        path (Path or str): an archive written by :class:`torchrl.checkpoint.Checkpoint` or :class:`Checkpoints`.

    Raises:
        CheckpointError: for a file that is missing, truncated, changed (each part has a checksum) or something else
            than such an archive; for any part that is not plain JSON or a memory-mapped tensor, since loading it could
            run code.

    Example:
        >>> import tempfile, torch
        >>> from torchrl.checkpoint import Checkpoint, CheckpointError
        >>> path = Checkpoint(format="archive", net=torch.nn.Linear(2, 1)).save(tempfile.mkdtemp() + "/net.torchrl")
        >>> verify_checkpoint(path)
        >>> _ = path.write_bytes(path.read_bytes()[:-30])
        >>> try:
        ...     verify_checkpoint(path)
        ... except CheckpointError as error:
        ...     print("net.torchrl is not a whole checkpoint" in str(error))
        True
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not a checkpoint: expected a file that Checkpoints wrote.")
    try:
        with zipfile.ZipFile(path) as archive:
            foreign = [name for name in archive.namelist() if not _MEMBERS.fullmatch(name)]
            damaged = None if foreign else archive.testzip()
            foreign += [
                name
                for name in ([] if foreign or damaged else archive.namelist())
                if name.endswith("/state/meta.json") and not _is_plain(json.loads(archive.read(name)))
            ]
    except Exception as error:  # a flipped bit may send zipfile anywhere
        raise CheckpointError(f"{path} is not a whole checkpoint: {error}") from error
    if foreign:
        raise CheckpointError(
            f"{path} holds {foreign[0]}, which is neither plain JSON nor a tensor. Nothing of it was loaded: such a "
            "file can run code."
        )
    if damaged is not None:
        raise CheckpointError(f"{path} is not a whole checkpoint: {damaged} has changed since it was written.")
    try:
        components = Checkpoint.manifest(path)["components"]
    except Exception as error:
        raise CheckpointError(f"{path} is not a whole checkpoint: {error!r}") from error
    if not isinstance(components, dict):
        raise CheckpointError(f"{path} is not a whole checkpoint: its components are {components!r}.")


def _is_plain(meta: Any) -> bool:
    """Whether tensordict would make a plain tensordict of tensors from this description, and call nothing."""
    entries = [entry for entry in meta.values() if isinstance(entry, dict)]
    return meta.get("_type") == _PLAIN_TENSORDICT and not any("type" in entry for entry in entries)


class Checkpoints:
    """The checkpoints of one run, in one folder: the last few, and the best apart.

    Each is one archive of :class:`torchrl.checkpoint.Checkpoint`. It appears under its name when it is whole, so that
    a crash while writing leaves those before it as they were, and holds a checksum of each part. Loading it runs no
    code from the file (see :func:`verify_checkpoint`).

    Args:
        folder (Path or str): where the checkpoints go, ``checkpoint-STEP.torchrl``, the best one in ``best``.
        components (dict): name to what is saved and restored: anything with ``state_dict`` and ``load_state_dict``, a
            dictionary or list of JSON values.

    Keyword Args:
        keep_last (int): checkpoints to keep beside the best. Defaults to 2.
        best_components (collection of str): names of the components that the best checkpoint holds, such as the
            networks. Defaults to none: no best checkpoint.
        leave_out (collection of str): names that are never saved, such as the replay buffer to save space. They stay
            as they are when a checkpoint is restored.

    Example:
        >>> import tempfile, torch
        >>> net, counters = torch.nn.Linear(2, 1), {"frames": 600}
        >>> checkpoints = Checkpoints(tempfile.mkdtemp(), {"net": net, "counters": counters})
        >>> checkpoints.save(600).name
        'checkpoint-000000000600.torchrl'
        >>> counters["frames"] = 1200
        >>> checkpoints.load(checkpoints.latest())
        600
        >>> counters
        {'frames': 600}
    """

    def __init__(
        self,
        folder: Path | str,
        components: dict[str, Any],
        *,
        keep_last: int = 2,
        best_components: Collection[str] = (),
        leave_out: Collection[str] = (),
    ) -> None:
        for name, component in components.items():
            if not isinstance(component, (dict, list)) and not hasattr(component, "load_state_dict"):
                found = type(component).__name__
                raise TypeError(f"components[{name!r}] must have a state dict or be a dict or list, found {found}.")
        check_integer("keep_last", keep_last)
        unknown = sorted({*best_components, *leave_out} - components.keys())
        if unknown:
            raise ValueError(f"No component is called {', '.join(unknown)}; there are {', '.join(components)}.")
        self.folder = Path(folder).absolute()
        self.components = components
        self.best_components = list(best_components)
        self.saved_components = [name for name in components if name not in leave_out]
        self._checkpoint = Checkpoint(format="archive")
        for name, component in components.items():
            # Not dump() and load(), which TorchRL would prefer: those of a replay buffer pickle.
            adapter = StateDictCheckpointAdapter() if hasattr(component, "state_dict") else JSONCheckpointAdapter()
            self._checkpoint.register(name, component, adapter=adapter)
        self._last = CheckpointRotation(self.folder, keep_last=keep_last)
        self._best = CheckpointRotation(self.folder / "best", keep_last=1, keep_best=("metric", "max"))

    def save(self, step: int) -> Path:
        """Write everything under ``step`` and remove all but the newest ``keep_last``.

        Raises:
            OSError: if the disk is full, before anything is written. The checkpoints before this one stay.
        """
        check_integer("step", step, least=0)
        self._make_space(self.saved_components)
        path = self._last.save(self._checkpoint, step=step, components=self.saved_components)
        for discarded in self.folder.rglob("*.discarded"):
            discarded.unlink()
        return path

    def save_best(self, step: int, metric: float) -> Path:
        """Write ``best_components`` if ``metric`` is above that of the best so far; returns the best one's path.

        Raises:
            OSError: if the disk is full, before anything is written.
        """
        check_integer("step", step, least=0)
        if math.isnan(metric):
            raise ValueError(f"metric must be a number to compare, found {metric}.")
        best = self.best()
        if best is None or metric > Checkpoint.manifest(best)["metadata"]["metric"]:
            self._make_space(self.best_components)
            best = self._best.save(
                self._checkpoint, step=step, components=self.best_components, metadata={"metric": metric}
            )
        return best

    def latest(self) -> Path | None:
        """The newest checkpoint, whole or not, if there is one."""
        paths = self._paths()
        return paths[-1] if paths else None

    def best(self) -> Path | None:
        """The checkpoint with the highest metric, if there is one."""
        return self._best.best()

    def load(self, path: Path, *, map_location: torch.device | str | None = None) -> int:
        """Load a checkpoint into the components; returns its step.

        Args:
            path (Path): one of this folder, or the best one, from which components that it lacks stay as they are.
            map_location (torch.device, optional): where its tensors go. ``None``: where they were.

        Raises:
            CheckpointError: if it is not a whole checkpoint, names the next older one if there is any; if it is one of
                other components, lists them. The components are untouched if the file is damaged, but may be partly
                loaded if it is whole and of others.
        """
        path = Path(path).absolute()
        in_best = path.parent == self._best.directory
        try:
            verify_checkpoint(path)
            named = re.fullmatch(r"checkpoint-(\d+)\.torchrl", path.name)
            if named is None:
                raise CheckpointError(f"{path} is not called checkpoint-STEP.torchrl, which tells its step.")
            stored = Checkpoint.manifest(path)["components"]
            wanted = [name for name in self.components if name in stored]
            if not in_best:
                wanted = [*wanted, *self.saved_components]
        except CheckpointError as error:
            older = [other for other in self._paths() if other.name < path.name or in_best]
            offer = f" The next older checkpoint is {older[-1]}." if older else " There is no older checkpoint."
            raise CheckpointError(f"{error}{offer}") from error
        self._load(path, set(wanted), map_location)
        return int(named[1])

    def _load(self, path: Path, names: set[str], map_location: torch.device | str | None) -> None:
        try:
            values = self._checkpoint.load(path, components=names, map_location=map_location).values
            for name, value in values.items():
                if value is not self.components[name]:
                    raise ValueError(f"{name} is of type {type(value).__name__}.")
        except Exception as error:  # whatever a component makes of the state of another one
            held = ", ".join(Checkpoint.manifest(path)["components"])
            raise CheckpointError(
                f"{path} is not a checkpoint of these components: {error} It holds {held}."
            ) from error

    def resume(self, path: Path) -> int:
        """:meth:`load`, for a run that goes on from here.

        Newer checkpoints, the best among them, are of a future that may not come: they are set aside, renamed to
        ``*.discarded``, and removed by the next :meth:`save`.
        """
        step = self.load(path)
        for newer in [*self._paths(), *self._best.directory.glob("checkpoint-*.torchrl")]:
            if newer.name > Path(path).name:
                os.replace(newer, newer.with_suffix(".discarded"))
        return step

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-*.torchrl"))

    def _make_space(self, names: Collection[str]) -> None:
        """Remove what an interrupted write left, and see whether there is room for another.

        Writing to a memory map on a full disk would end the process by a signal. The parts are written side by side
        first and then into the archive.
        """
        for leftover in [*self.folder.glob(".checkpoint-*"), *self.folder.glob("best/.checkpoint-*")]:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        saved = [self.components[name] for name in names]
        states = [component.state_dict() if hasattr(component, "state_dict") else component for component in saved]
        needed = 2 * _stored_bytes(states) + 2**24
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"No space for a checkpoint: it needs about {needed / 1e6:.1f} MB and {free / 1e6:.1f} MB are free",
                str(self.folder),
            )


def _stored_bytes(state: Any) -> int:
    """Bytes of the tensors in a nested state dict."""
    if isinstance(state, Tensor):
        return state.nbytes
    if isinstance(state, Mapping):
        return sum(_stored_bytes(value) for value in state.values())
    return sum(_stored_bytes(value) for value in state) if isinstance(state, (list, tuple)) else 0
