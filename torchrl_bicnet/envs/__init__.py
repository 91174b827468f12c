"""VMAS environments for TorchRL."""

from torchrl_bicnet.envs.make import make_vmas_env
from torchrl_bicnet.vmas_state import WorldSnapshot, detach, restore, snapshot

__all__ = ["WorldSnapshot", "detach", "make_vmas_env", "restore", "snapshot"]
