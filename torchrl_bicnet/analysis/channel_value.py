"""Value of the messages of a trained team."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

from torchrl_bicnet.analysis.intervention import Channel, intervene
from torchrl_bicnet.checks import check_integer, check_seed, check_type
from torchrl_bicnet.evaluation import Evaluation, evaluate, paired_difference


def example_channels(n_agents: int) -> dict[str, Channel]:
    """Channels of every kind but a radius, by the labels of a plot.

    Args:
        n_agents (int): size of the largest group.

    Returns:
        dict: label to channel. Limits to a radius are for you to add, in the units of your scenario.

    Example:
        >>> list(example_channels(3))[:4]
        ['cut', 'drop 10%', 'drop 25%', 'drop 50%']
    """
    check_integer("n_agents", n_agents, least=2)
    return {
        "cut": Channel(window=0),
        **{f"drop {probability:.0%}": Channel(drop=probability) for probability in (0.1, 0.25, 0.5)},
        **{f"noise {sigma}": Channel(noise=sigma) for sigma in (0.1, 0.3, 1.0)},
        **{f"{bits} bit{'s' * (bits > 1)}": Channel(bits=bits) for bits in (1, 2, 4, 8)},
        **{f"window {window}": Channel(window=window) for window in range(1, n_agents - 1)},
        "forward only": Channel(direction="forward"),
        "backward only": Channel(direction="backward"),
    }


@dataclass(frozen=True, eq=False)
class ChannelValue:
    """Evaluations of a team with its own channel and with others, from the same start states.

    Args:
        intact (Evaluation): with the messages as they are.
        changed (dict): label to the evaluation with that channel.

    Example:
        >>> import torch
        >>> from torchrl_bicnet import Evaluation
        >>> intact, cut = (Evaluation({"agents": torch.full((9, 2), x)}, torch.ones(9), seed=0) for x in (4.0, 1.0))
        >>> ChannelValue(intact, {"cut": cut}).differences()["cut"]["evaluation_return_difference"]
        -3.0
    """

    intact: Evaluation
    changed: dict[str, Evaluation]

    def differences(self) -> dict[str, dict[str, float]]:
        """Label to how much more than intact it returns: :func:`~torchrl_bicnet.paired_difference`."""
        return {label: paired_difference(evaluation, self.intact) for label, evaluation in self.changed.items()}

    def summary(self) -> dict[str, dict[str, float]]:
        """``"intact"`` and each label to the metrics of its evaluation, beside the differences to intact."""
        differences = self.differences()
        changed = {label: evaluation.summary() | differences[label] for label, evaluation in self.changed.items()}
        return {"intact": self.intact.summary()} | changed


def channel_value(
    env: EnvBase,
    policy: TensorDictModuleBase,
    channels: Mapping[str, Channel],
    *,
    max_steps: int,
    seed: int,
) -> ChannelValue:
    """Returns of a trained team when its messages are cut, lost, noisy, rounded or limited.

    Nothing is retrained, so it tells how much this team relies on its channel, not how well a team could do without
    one. All evaluations start from the same states and draw losses and noise from the evaluation's own random stream.

    Args:
        env (EnvBase): as for :func:`~torchrl_bicnet.evaluate`.
        policy (TensorDictModuleBase): acts for every group; every communication in it gets the channel.
        channels (mapping): label to :class:`~torchrl_bicnet.analysis.Channel`, such as
            :func:`~torchrl_bicnet.analysis.example_channels`.

    Keyword Args:
        max_steps (int): time limit, in steps.
        seed (int): of the start states, and of what is lost and of the noise.

    Returns:
        ChannelValue: the evaluations.

    Example:
        >>> from torchrl_bicnet import BiCNetActor, make_vmas_env
        >>> from torchrl_bicnet.analysis import Channel
        >>> env = make_vmas_env("navigation", num_envs=8, n_agents=3)
        >>> channels = {"cut": Channel(window=0), "range 0.5": Channel(radius=0.5, positions=(0, 1))}
        >>> value = channel_value(env, BiCNetActor.from_env(env), channels, max_steps=5, seed=0)
        >>> list(value.differences())
        ['cut', 'range 0.5']
    """
    check_type("channels", channels, Mapping, "a mapping of label to Channel")
    check_seed(seed)
    evaluations = []
    for channel in (Channel(), *channels.values()):
        with intervene(policy, channel):
            evaluations.append(evaluate(env, policy, max_steps=max_steps, seed=seed))
    return ChannelValue(evaluations[0], dict(zip(channels, evaluations[1:])))
