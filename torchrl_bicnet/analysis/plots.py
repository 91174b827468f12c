"""Pictures of what is found inside a team. Matplotlib is loaded where one is drawn; saving it is the caller's."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from torch import Tensor

from torchrl_bicnet.analysis.channel_value import ChannelValue
from torchrl_bicnet.analysis.order import OrderSensitivity
from torchrl_bicnet.checks import check_type

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_influence(matrix: Tensor) -> Figure:
    """Draw an influence matrix, a row for each agent that acts and a column for each that observes.

    Args:
        matrix (Tensor): ``(N, N)``, of :func:`~torchrl_bicnet.analysis.influence_matrix`.

    Returns:
        Figure: Matplotlib's.

    Raises:
        TypeError: for something else than a tensor.
        ValueError: if it is not square, or empty.
        ImportError: without Matplotlib, of the extra ``train``.

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
    figure = _new_figure(size + 1.0, size)
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
    """Draw what a team returns with each channel, with standard errors, beside what it returns with its own.

    Args:
        value (ChannelValue): of :func:`~torchrl_bicnet.analysis.channel_value`.

    Returns:
        Figure: Matplotlib's; a panel for each group, a row for each channel.

    Raises:
        TypeError: for something else than a :class:`~torchrl_bicnet.analysis.ChannelValue`.
        ImportError: without Matplotlib, of the extra ``train``.

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
    summaries = [evaluation.summary() for evaluation in rows.values()]
    groups = list(value.intact.returns)
    figure = _new_figure(5.0 * len(groups), 1.2 + 0.28 * len(rows))
    for axes, group in zip(figure.subplots(1, len(groups), sharey=True, squeeze=False)[0], groups):
        name = "evaluation_return" if len(groups) == 1 else f"{group}/evaluation_return"
        means, errors = ([summary[key] for summary in summaries] for key in (name, f"{name}_stderr"))
        axes.axvline(means[0], color="grey", linestyle="--", linewidth=1)
        axes.errorbar(means, range(len(rows)), xerr=errors, fmt="o", markersize=4, capsize=2)
        axes.set(
            xlabel="return per agent ± standard error", title=group if len(groups) > 1 else "", yticks=range(len(rows))
        )
        axes.set_yticklabels(list(rows))
        axes.grid(axis="x", alpha=0.3)
    axes.invert_yaxis()  # shared by the panels
    return figure


def plot_order_sensitivity(sensitivity: OrderSensitivity) -> Figure:
    """Draw the return with each order of the agents, and how much each agent's action moves over the orders.

    Args:
        sensitivity (OrderSensitivity): of :func:`~torchrl_bicnet.analysis.order_sensitivity`.

    Returns:
        Figure: Matplotlib's; on the left the returns, from the lowest to the highest, with the standard errors of
        their differences to the order of the training, on the right the actions.

    Raises:
        TypeError: for something else than an :class:`~torchrl_bicnet.analysis.OrderSensitivity`.
        ImportError: without Matplotlib, of the extra ``train``.

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
    episodes = sensitivity.returns().cpu().numpy()  # (P, E)
    returns, several = episodes.mean(-1), episodes.shape[-1] > 1
    errors = (episodes - episodes[0]).std(-1, ddof=int(several)) / episodes.shape[-1] ** 0.5
    ranks = returns.argsort().argsort()
    figure = _new_figure(8.0, 3.2)
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    left.errorbar(ranks, returns, yerr=errors, fmt="o", markersize=4, capsize=2, label="another order")
    left.plot(ranks[:1], returns[:1], "o", markersize=7, label="order of the training")
    left.set(
        xlabel="orders of the agents, by return",
        ylabel="return per agent ± standard error\nof the difference to the order of training",
    )
    left.xaxis.get_major_locator().set_params(integer=True)
    left.grid(alpha=0.3)
    left.legend()
    agents = range(len(sensitivity.action_std))
    right.bar(agents, sensitivity.action_std.cpu().numpy())
    right.set(xlabel="agent", ylabel="standard deviation of the action", xticks=agents)
    return figure


def _new_figure(width: float, height: float) -> Figure:
    if find_spec("matplotlib") is None:
        raise ImportError("Plots need Matplotlib: pip install 'torchrl_bicnet[train]'.")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
