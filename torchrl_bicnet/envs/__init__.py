"""VMAS environments for TorchRL."""

from torchrl_bicnet.envs.make import make_vmas_env
from torchrl_bicnet.vmas_state import WorldSnapshot, restore, snapshot

__all__ = ["WorldSnapshot", "make_vmas_env", "restore", "snapshot"]
