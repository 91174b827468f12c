import pytest
import torch

from torchrl_bicnet import Evaluation, figures
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
    with pytest.raises(ValueError, match=r"Expected a matrix \(N, N\), found shape \(2, 3\)"):
        plot_influence(torch.zeros(2, 3))


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
    figure.savefig(tmp_path / "channel.png")


def test_the_order_of_the_training_is_marked(tmp_path):
    gains = torch.tensor([[1.0], [-1.0]])
    evaluations = [evaluation(torch.full((2, 2), value) + gains * gain) for value, gain in ((2, 5), (3, 7), (1, 5))]
    orders = torch.tensor([[0, 1, 2], [0, 2, 1], [1, 0, 2]])
    figure = plot_order_sensitivity(OrderSensitivity(orders, evaluations, torch.tensor([0.1, 0.2, 0.3]), "g0"))
    left, right = figure.axes
    assert left.lines[0].get_xydata().tolist() == [[1, 2.0], [2, 3.0], [0, 1.0]]
    assert left.lines[-1].get_xydata().tolist() == [[1, 2.0]]
    # Differences to the order of the training: none, 3 and -1 around 1, and -1 in both episodes.
    (bars,) = left.containers[0].lines[2]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[2, 2], [1, 5], [1, 1]]
    assert [bar.get_height() for bar in right.patches] == pytest.approx([0.1, 0.2, 0.3])
    figure.savefig(tmp_path / "order.png")


@pytest.mark.parametrize(
    ("plot", "expected"),
    [
        (plot_influence, "matrix must be a tensor"),
        (plot_channel_value, "value must be a ChannelValue"),
        (plot_order_sensitivity, "sensitivity must be an OrderSensitivity"),
    ],
)
def test_misuse(plot, expected):
    with pytest.raises(TypeError, match=rf"{expected}.*, found \[1\.0\]"):
        plot([1.0])


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'torchrl_bicnet\[train\]'"):
        plot_influence(torch.zeros(2, 2))
