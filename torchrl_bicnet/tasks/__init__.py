"""Coordination tasks of our own, as scenarios of VMAS that :func:`~torchrl_bicnet.make_vmas_env` knows by name."""

from torchrl_bicnet.tasks.dispersion_energy import DispersionEnergy
from torchrl_bicnet.tasks.guess_the_sum import GuessTheSum
from torchrl_bicnet.tasks.hidden_goals import HiddenGoals
from torchrl_bicnet.tasks.speaker_listener import SpeakerListener

__all__ = ["SCENARIOS", "DispersionEnergy", "GuessTheSum", "HiddenGoals", "SpeakerListener"]

SCENARIOS = {
    "dispersion_energy": DispersionEnergy,
    "guess_the_sum": GuessTheSum,
    "hidden_goals": HiddenGoals,
    "speaker_listener": SpeakerListener,
}
