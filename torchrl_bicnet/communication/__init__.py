"""Communication layers over the agent dimension, on plain tensors.

All share one signature, ``forward(x: (*B, N, in_features), mask=None) -> (*B, N, out_features)``, and the
attributes ``in_features`` and ``out_features``: a module of your own with these fits in
:class:`~torchrl_bicnet.BiCNet` too.
"""

from torchrl_bicnet.communication.baselines import AttentionCommunication, MeanCommunication, NoCommunication
from torchrl_bicnet.communication.mask import mask_absent
from torchrl_bicnet.communication.recurrent import RecurrentCommunication
from torchrl_bicnet.communication.recurrent_attention import RecurrentAttentionCommunication

__all__ = [
    "AttentionCommunication",
    "MeanCommunication",
    "NoCommunication",
    "RecurrentAttentionCommunication",
    "RecurrentCommunication",
    "mask_absent",
]
