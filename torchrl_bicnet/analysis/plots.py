"""Pictures of the analysis of a team. Matplotlib is loaded where one is drawn; saving it is the caller's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchrl_bicnet.analysis.channel_value import ChannelValue
from torchrl_bicnet.analysis.order import OrderSensitivity
from torchrl_bicnet.analysis.probe import LinearProbe
from torchrl_bicnet.checks import check_integer, check_type
from torchrl_bicnet.evaluation import mean_and_stderr

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_influence(matrix: Tensor) -> Figure:
    """Draw an influence matrix, a row for each agent that acts and a column for each that observes.

    Args:
        matrix (Tensor): ``(N, N)``, of :func:`~torchrl_bicnet.analysis.influence_matrix`.

    Returns:
        Figure: Matplotlib's.

    Example:
        >>> import torch
        >>> plot_influence(torch.rand(3, 3)).axes[0].get_xlabel()
        'observation of agent'
    """
    check_type("matrix", matrix, Tensor, "a tensor (N, N)")
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"Expected a matrix (N, N), found shape {tuple(matrix.shape)}.")
    values = matrix.detach().cpu().numpy()
    size = 1.8 + 0.6 * len(values)
    figure = _figure(size + 1.0, size)
    axes = figure.subplots()
    image = axes.imshow(values, cmap="viridis", vmin=0)
    for i, row in enumerate(values.tolist()):
        for j, value in enumerate(row):
            colour = "black" if value > 0.6 * values.max() else "white"
            axes.text(j, i, f"{value:.2g}", ha="center", va="center", color=colour, fontsize=8)
    agents = range(len(values))
    axes.set(xticks=agents, yticks=agents, xlabel="observation of agent", ylabel="action of agent")
    figure.colorbar(image, label="norm of the Jacobian")
    return figure


def plot_channel_value(value: ChannelValue) -> Figure:
    """Draw a team's return with each channel, with standard errors, beside its return with its own.

    Args:
        value (ChannelValue): of :func:`~torchrl_bicnet.analysis.channel_value`.

    Returns:
        Figure: Matplotlib's; a panel for each group, a row for each channel.

    Example:
        >>> import torch
        >>> from torchrl_bicnet import Evaluation
        >>> from torchrl_bicnet.analysis import ChannelValue
        >>> intact, cut = (Evaluation({"agents": torch.rand(9, 2) + x}, torch.ones(9), seed=0) for x in (4.0, 1.0))
        >>> axes = plot_channel_value(ChannelValue(intact, {"cut": cut})).axes[0]
        >>> [label.get_text() for label in axes.get_yticklabels()]
        ['intact', 'cut']
    """
    check_type("value", value, ChannelValue, "a ChannelValue")
    rows = {"intact": value.intact, **value.changed}
    groups = list(value.intact.returns)
    figure = _figure(5.0 * len(groups), 1.8 + 0.28 * len(rows))
    for axes, group in zip(figure.subplots(1, len(groups), sharey=True, squeeze=False)[0], groups):
        means, errors = zip(*(mean_and_stderr(evaluation.team_returns()[group]) for evaluation in rows.values()))
        axes.axvline(means[0], color="grey", linestyle="--", linewidth=1)
        axes.errorbar(means, range(len(rows)), xerr=errors, fmt="o", markersize=4, capsize=2)
        axes.set(xlabel="return per agent", title=group if len(groups) > 1 else "", yticks=range(len(rows)))
        axes.set_yticklabels(list(rows))
        axes.grid(axis="x", alpha=0.3)
    axes.invert_yaxis()  # shared by the panels
    n_episodes = len(value.intact.lengths)
    figure.supxlabel(
        f"bars: ± standard error over {n_episodes} episodes, from the same start states in each row", fontsize="small"
    )
    return figure


def plot_order_sensitivity(sensitivity: OrderSensitivity) -> Figure:
    """Draw the return with each order of the agents, and how much each agent's action moves over the orders.

    Args:
        sensitivity (OrderSensitivity): of :func:`~torchrl_bicnet.analysis.order_sensitivity`.

    Returns:
        Figure: Matplotlib's; on the left the returns, from the lowest to the highest, with the standard errors of
        their differences to the order of the training, on the right the actions.

    Example:
        >>> import torch
        >>> from torchrl_bicnet import Evaluation
        >>> from torchrl_bicnet.analysis import OrderSensitivity
        >>> pair = [Evaluation({"agents": torch.rand(9, 2)}, torch.ones(9), seed=0) for _ in range(2)]
        >>> sensitivity = OrderSensitivity(torch.tensor([[0, 1], [1, 0]]), pair, torch.zeros(2), "agents")
        >>> len(plot_order_sensitivity(sensitivity).axes)
        2
    """
    check_type("sensitivity", sensitivity, OrderSensitivity, "an OrderSensitivity")
    rows = sensitivity.by_order()
    trained, ranked = rows[0], sorted(rows, key=lambda row: row["return"])
    best = ranked[-1]
    returns = [row["return"] for row in ranked]
    errors = [row["return_difference_stderr"] for row in ranked]
    figure = _figure(8.0, 3.6)
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    left.errorbar(range(len(ranked)), returns, yerr=errors, fmt="o", markersize=4, capsize=2, label="an order")
    for row, marker, size, name in ((trained, "o", 8, "order of the training"), (best, "*", 12, "best order")):
        order = ", ".join(map(str, row["order"]))
        left.plot(ranked.index(row), row["return"], marker, markersize=size, zorder=3, label=f"{name}: {order}")
    left.set(xlabel="orders of the agents, by return", ylabel="return per agent")
    left.xaxis.get_major_locator().set_params(integer=True)
    left.grid(alpha=0.3)
    left.legend(fontsize="small")
    agents = range(len(sensitivity.action_std))
    right.bar(agents, sensitivity.action_std.cpu().numpy())
    right.set(xlabel="agent", ylabel="standard deviation of the action\nover the orders", xticks=agents)
    n_episodes = len(sensitivity.evaluations[0].lengths)
    figure.supxlabel(
        f"bars: ± standard error, over {n_episodes} episodes, of the difference to the order of the training",
        fontsize="small",
    )
    return figure


def plot_linear_probe(probe: LinearProbe, *, receiver: int = 1, knower: int = 0) -> Figure:
    """Draw how well each agent's knowledge can be read from what each heard, and the readouts of one pair.

    Args:
        probe (LinearProbe): of :func:`~torchrl_bicnet.analysis.linear_probe`.

    Keyword Args:
        receiver (int): who heard. Defaults to ``1``.
        knower (int): who knows. Defaults to ``0``.

    Returns:
        Figure: Matplotlib's; first the coefficients of determination, from what was heard, from the own observation,
        and from that and what the agent does; then the readouts of the pair against the truth, of up to 500 states.

    Example:
        >>> import torch
        >>> from torchrl_bicnet.analysis import LinearProbe
        >>> truth = torch.rand(50, 3, 2)
        >>> heard, nothing = truth.expand(3, -1, -1, -1), torch.full((3, 50, 3, 2), 0.5)
        >>> plot_linear_probe(LinearProbe(truth, heard, nothing, heard)).axes[0].get_title()
        'heard'
    """
    check_type("probe", probe, LinearProbe, "a LinearProbe")
    n_agents = probe.truth.shape[1]
    for name, agent in (("receiver", receiver), ("knower", knower)):
        check_integer(name, agent, least=0, most=n_agents - 1)
    size = 1.8 + 0.5 * n_agents
    figure = _figure(3 * size + 4.5, max(size, 3.6))
    *matrices, right = figure.subplots(1, 4, width_ratios=(size, size, size, 4.5))
    kinds = (("heard", probe.r2), ("own observation", probe.own_r2), ("own observation and action", probe.acted_r2))
    for axes, (name, r2) in zip(matrices, kinds):
        image = axes.imshow(r2.numpy(), cmap="viridis", vmin=0, vmax=1)
        for i, row in enumerate(r2.tolist()):
            for j, value in enumerate(row):
                colour = "white" if value < 0.6 else "black"  # on the white of NaN too
                axes.text(j, i, f"{value:z.2f}", ha="center", va="center", color=colour, fontsize=8)
        axes.set(xticks=range(n_agents), yticks=range(n_agents), title=name)
        axes.set(xlabel="knowledge of agent", ylabel="readout by agent")
    figure.colorbar(image, ax=matrices, label="$R^2$")
    some = torch.linspace(0, len(probe.truth) - 1, min(len(probe.truth), 500)).long()
    draw_readouts(
        right,
        probe.truth[some, knower],
        probe.readout[receiver, some, knower],
        probe.own_readout[receiver, some, knower],
    )
    right.legend(fontsize="small")
    right.set(xlabel=f"what agent {knower} knows", ylabel=f"readout by agent {receiver}")
    return figure


def draw_readouts(axes: Axes, truth: Tensor, heard: Tensor, own: Tensor) -> None:
    """Draw readouts from what was heard, and behind them those from the own observation, against the truth."""
    for name, readout, colour in (("own observation", own, "0.6"), ("heard", heard, "C0")):
        axes.scatter(truth.flatten(), readout.flatten(), s=8, color=colour, linewidths=0, label=name)
    axes.axline((0, 0), slope=1, color="black", linewidth=1, linestyle="--")
    axes.grid(alpha=0.3)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
