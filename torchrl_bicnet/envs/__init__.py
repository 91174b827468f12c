"""VMAS environments for TorchRL."""

from torchrl_bicnet.envs.vmas import make_vmas_env
from torchrl_bicnet.envs.world import WorldSnapshot, restore, snapshot

__all__ = ["WorldSnapshot", "make_vmas_env", "restore", "snapshot"]
