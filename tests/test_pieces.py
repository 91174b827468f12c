import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from torchrl_bicnet.compiling import pieces
from torchrl_bicnet.compiling.pieces import compile_in_pieces


@pytest.fixture
def short_pieces(monkeypatch):
    monkeypatch.setattr(pieces, "MAX_OPERATIONS", 12)
    monkeypatch.setattr(pieces, "MIN_PERIOD", 4)


def substeps(n):
    """A world: a start, so many substeps that write in place, to views too, and an end that reads them all."""

    masses = torch.tensor([1.0, 2.0, 3.0])  # a constant of the graph

    def step(position, velocity, action):
        position, velocity, constant = position.clone(), velocity.clone(), torch.full((3,), 0.5)
        force = (action * 2).tanh()
        middle = None
        for i in range(n):
            x, y = velocity.unbind(-1)
            velocity = torch.stack([x + force * constant, y.cos() - x], -1)
            velocity[:, 0] += position[:, 1]
            position += velocity * 0.1
            weight = masses.clone()
            weight += velocity[:, 0]
            velocity = velocity * weight.unsqueeze(-1).tanh()
            if i == n - 2:
                middle = velocity  # read by the end, of one substep alone
        return [position, velocity, (position * middle).sum(-1), action.clone()]

    return step


def compiled_in_pieces(function, inputs):
    """With eager pieces, and the sizes of those that were compiled."""
    sizes = []

    def compile_piece(graph, given):
        sizes.append(len(graph.graph.nodes) - len(given) - 1)
        return graph

    return compile_in_pieces(make_fx(function)(*inputs), inputs, compile_piece), sizes


def world():
    torch.manual_seed(0)
    return [torch.randn(3, 2), torch.randn(3, 2), torch.randn(3)]


@pytest.mark.parametrize("n", [2, 5, 9])
def test_pieces_are_the_whole_to_the_bit(short_pieces, n):
    step = substeps(n)
    call, sizes = compiled_in_pieces(step, world())
    assert max(sizes) <= 12 + 2  # the elements of a list stay with it
    for _ in range(2):
        inputs = [torch.randn_like(tensor) for tensor in world()]
        before = [tensor.clone() for tensor in inputs]
        for found, expected in zip(call(*inputs), step(*inputs), strict=True):
            assert torch.equal(found, expected)
        assert all(map(torch.equal, inputs, before))


def test_substeps_are_compiled_once(short_pieces, monkeypatch):
    few, many = (compiled_in_pieces(substeps(n), world())[1] for n in (6, 12))
    assert len(many) == len(few) <= 6
    # As one piece, if it is short.
    monkeypatch.setattr(pieces, "MAX_OPERATIONS", 1000)
    assert len(compiled_in_pieces(substeps(8), world())[1]) == 1


def test_pieces_of_other_shapes_or_constants_are_not_mistaken(short_pieces):
    """The same operations again and again, but on tensors that grow, or with another number."""

    def growing(x):
        for _ in range(8):
            x = torch.cat([x.sin(), x.cos()]).exp().neg().tanh()
        return [x]

    def counting(x):
        for i in range(8):
            x = (x.sin() + i).cos().exp().neg().tanh()
        return [x]

    for function in (growing, counting):
        inputs = [torch.randn(2)]
        call, _ = compiled_in_pieces(function, inputs)
        assert torch.equal(*call(*inputs), *function(*inputs))


def test_without_anything_that_repeats(short_pieces):
    def function(x):
        for name in (
            "sin",
            "cos",
            "exp",
            "neg",
            "tanh",
            "sqrt",
            "abs",
            "floor",
            "ceil",
            "log1p",
            "erf",
            "sign",
            "frac",
        ):
            x = getattr(x.abs(), name)()
        return [x]

    inputs = [torch.rand(3)]
    call, sizes = compiled_in_pieces(function, inputs)
    assert len(sizes) == 3
    assert torch.equal(*call(*inputs), *function(*inputs))
