"""Coordination tasks of our own, as scenarios of VMAS."""

from torchrl_bicnet.tasks.guess_the_sum import GuessTheSum

__all__ = ["GuessTheSum"]
