"""The state of a VMAS environment: found, saved, restored, compared, detached, and reset in part."""

from torchrl_bicnet.vmas_state.detach import detach
from torchrl_bicnet.vmas_state.snapshot import WorldSnapshot, restore, snapshot

__all__ = ["WorldSnapshot", "detach", "restore", "snapshot"]
