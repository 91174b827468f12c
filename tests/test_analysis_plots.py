import pytest
import torch

from torchrl_bicnet import Evaluation
from torchrl_bicnet.analysis import (
    ChannelValue,
    OrderSensitivity,
    plot_channel_value,
    plot_influence,
    plot_order_sensitivity,
)


def evaluation(*returns):
    return Evaluation({f"g{i}": value for i, value in enumerate(returns)}, lengths=torch.ones(2), seed=0)


def test_the_influence_matrix_has_a_number_in_each_cell(tmp_path):
    matrix = torch.tensor([[1.0, 0.25], [0.0, 2.0]])
    figure = plot_influence(matrix)
    axes = figure.axes[0]
    assert {text.get_position(): text.get_text() for text in axes.texts} == {
        (0, 0): "1",
        (1, 0): "0.25",
        (0, 1): "0",
        (1, 1): "2",
    }
    assert axes.get_xlabel() == "observation of agent"
    assert axes.get_ylabel() == "action of agent"
    assert torch.equal(torch.from_numpy(axes.images[0].get_array().data), matrix)
    figure.savefig(tmp_path / "influence.png")
    assert (tmp_path / "influence.png").read_bytes().startswith(b"\x89PNG")


def test_each_group_has_a_panel_and_each_channel_a_row(tmp_path):
    intact = evaluation(torch.tensor([[4.0, 2.0], [2.0, 4.0]]), torch.tensor([[1.0], [3.0]]))
    cut = evaluation(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([[-1.0], [-3.0]]))
    figure = plot_channel_value(ChannelValue(intact, {"cut": cut}))
    left, right = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["g0", "g1"]
    assert [label.get_text() for label in left.get_yticklabels()] == ["intact", "cut"]
    assert left.containers[0].lines[0].get_xdata().tolist() == [3.0, 0.5]
    assert right.containers[0].lines[0].get_xdata().tolist() == [2.0, -2.0]
    assert left.yaxis_inverted()
    assert right.yaxis_inverted()
    # One standard error to either side: 0 and .5.
    (bars,) = left.containers[0].lines[2]
    assert bars.get_segments()[1][:, 0].tolist() == [0.0, 1.0]
    assert "± standard error over 2 episodes" in figure.get_supxlabel()
    figure.savefig(tmp_path / "channel.png")


def test_the_order_of_the_training_and_the_best_one_are_marked_and_named(tmp_path):
    gains = torch.tensor([[1.0], [-1.0]])
    evaluations = [evaluation(torch.full((2, 2), value) + gains * gain) for value, gain in ((2, 5), (3, 7), (1, 5))]
    orders = torch.tensor([[0, 1, 2], [0, 2, 1], [1, 0, 2]])
    figure = plot_order_sensitivity(OrderSensitivity(orders, evaluations, torch.tensor([0.1, 0.2, 0.3]), "g0"))
    left, right = figure.axes
    all_orders = left.containers[0]
    assert all_orders.lines[0].get_xydata().tolist() == [[0, 1.0], [1, 2.0], [2, 3.0]]
    # Differences to the order of the training: -1 in both episodes, none, and 3 and -1 around 1.
    (bars,) = all_orders.lines[2]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[1, 1], [2, 2], [1, 5]]
    marked = {line.get_label(): line.get_xydata().tolist() for line in left.lines if "order" in line.get_label()}
    assert marked == {"order of the training: 0, 1, 2": [[1, 2.0]], "best order: 0, 2, 1": [[2, 3.0]]}
    assert "± standard error, over 2 episodes, of the difference" in figure.get_supxlabel()
    assert [bar.get_height() for bar in right.patches] == pytest.approx([0.1, 0.2, 0.3])
    figure.savefig(tmp_path / "order.png")
