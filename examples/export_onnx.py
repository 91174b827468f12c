"""Write the trained actor of a run as an ONNX model: ``python examples/export_onnx.py runs/first actor.onnx``.

`examples/drive_with_onnx.py` runs it without this package.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import tyro
from torchrl import torchrl_logger
from torchrl.checkpoint import CheckpointError

from torchrl_bicnet import load_run
from torchrl_bicnet.export import save_onnx


def main(
    run: tyro.conf.Positional[Path],
    output: tyro.conf.Positional[Path],
    checkpoint: Literal["last", "best"] = "last",
) -> None:
    """Write one model for each group of agents.

    Args:
        run: run folder of train_vmas.py
        output: file to write; of several groups, GROUP is put before its suffix
        checkpoint: the policy at the end, or the one with the best evaluation during training
    """
    trained = load_run(run, checkpoint=checkpoint)
    example = trained.make_env(max(len(trained.options.get("n_agents", ())), 1)).reset()
    for group, actor in trained.actors.items():
        path = output if len(trained.actors) == 1 else output.with_suffix(f".{group}{output.suffix}")
        save_onnx(actor, example, path)
        print(f"{group}: {path}, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    torchrl_logger.setLevel("WARNING")
    try:
        tyro.cli(main)
    except (ImportError, ValueError, OSError, CheckpointError) as error:
        sys.exit(f"error: {error}")
