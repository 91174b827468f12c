"""Training runs on disk: their folders, metrics, checkpoints and learning curves."""

from torchrl_bicnet.runs.checkpoints import Checkpoints, verify_checkpoint
from torchrl_bicnet.runs.collector_state import CollectorState
from torchrl_bicnet.runs.files import read_options
from torchrl_bicnet.runs.learning_curves import LearningCurve, learning_curves
from torchrl_bicnet.runs.options import options_of_file, validated
from torchrl_bicnet.runs.plots import plot_learning_curves
from torchrl_bicnet.runs.restore import EVAL_SEED, TEST_SEED, TrainedRun, load_run
from torchrl_bicnet.runs.run import Run
from torchrl_bicnet.runs.statistics import interquartile_mean

__all__ = [
    "EVAL_SEED",
    "TEST_SEED",
    "Checkpoints",
    "CollectorState",
    "LearningCurve",
    "Run",
    "TrainedRun",
    "interquartile_mean",
    "learning_curves",
    "load_run",
    "options_of_file",
    "plot_learning_curves",
    "read_options",
    "validated",
    "verify_checkpoint",
]
