"""A short run of examples/train_vmas.py, and what it leaves."""

import json
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from examples.train_vmas import Options, main
from torchrl_bicnet import load_run
from torchrl_bicnet.runs.files import read_scalars

QUICK = Options(
    max_steps=10,
    num_envs=4,
    communication="gru",
    hidden_size=8,
    num_cells=(12,),
    critic_num_cells=(12,),
    total_frames=120,
    frames_per_batch=40,
    updates_per_batch=2,
    actor_warmup=0,
    batch_size=8,
    buffer_size=500,
    eval_interval=40,
    eval_episodes=3,
    test_episodes=5,
)


@dataclass
class Result:
    """What a run leaves in its folder."""

    folder: Path

    def frames(self, metric: str) -> list[int]:
        return read_scalars(self.folder / f"scalars/{metric}.csv")[0].tolist()

    def values(self, metric: str) -> list[float]:
        return read_scalars(self.folder / f"scalars/{metric}.csv")[1].tolist()

    def tests(self) -> dict[str, list[float]]:
        return json.loads((self.folder / "test_returns.json").read_text())

    def weights(self, checkpoint: str = "last") -> dict[str, torch.Tensor]:
        return load_run(self.folder, checkpoint=checkpoint).policy.state_dict()

    def checkpoints(self) -> list[int]:
        return [int(path.stem.split("-")[1]) for path in sorted(self.folder.glob("checkpoints/*.torchrl"))]

    def saved(self) -> set[str]:
        with zipfile.ZipFile(self.folder / f"checkpoints/checkpoint-{self.checkpoints()[-1]:012d}.torchrl") as archive:
            return {name.split("/")[1].split("-", 1)[1] for name in archive.namelist() if name.startswith("components")}


def run(tmp_path, name="run", **changes) -> Result:
    main(replace(QUICK, run_folder=tmp_path / name, **changes))
    return Result(tmp_path / name)
