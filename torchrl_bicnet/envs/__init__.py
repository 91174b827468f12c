"""VMAS environments for TorchRL."""

from torchrl_bicnet.envs.vmas import make_vmas_env

__all__ = ["make_vmas_env"]
