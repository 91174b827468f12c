import inspect
import traceback

import pytest
import torch

from tests.helpers_vmas import SYNC_FREE, needs_cuda, waits
from torchrl_bicnet import make_vmas_env
from torchrl_bicnet.vmas_fast.sync_free import class_without_syncs, without_syncs

OUTSIDE = 3.0


class Plain:
    """What is written in scenarios, and more."""

    def __init__(self):
        self.coefficient = 2.0

    def assign(self, x, y, mask):
        x[mask] = 0.5
        x[~mask] = y[~mask]
        x[mask] = -y[mask] * self.coefficient + OUTSIDE
        return x

    def augment(self, x, y, mask):
        x[mask] += 1
        x[mask] -= torch.tensor(0.25)
        x[mask & (y > 0)] *= y[mask & (y > 0)] - 2 * x[mask & (y > 0)]
        x[mask] /= self.coefficient
        return x

    def parts(self, x, y, mask):
        first = mask[:, 0]
        x[first, 0] = y[first, 1]
        x[first, :2] *= y[first, 1:] - x[first, 1:]
        x[~first] /= y[~first, 0, None]
        x[first & mask[:, 1], 2] = torch.clamp(y[first & mask[:, 1], 0], -self.coefficient - OUTSIDE, 0.5)
        x[first, 1:2] -= 1
        x[(first,)] += y[(first,)]
        x[first][:, 0] = 3  # to a copy
        x[1:][:, 0] = 4
        both = torch.stack([x, y], -1)
        both[mask, 0] = both[mask, 1] - both[mask, 0]
        both[first, 1, 0] *= both[first, 2, 1]
        return both.flatten(1)

    def rows(self, x, y, mask):
        x[mask[:, 0]] = torch.tensor([1.0, 2.0, 3.0])
        x[:, 1][mask[:, 1]] = y[:, 0][mask[:, 1]]
        x[0] += y[1]
        x[2:, 0] = 7
        x[mask.nonzero()[:2, 0], 1] = 4.0
        return x

    def otherwise(self, x, y, mask):
        x[mask] = y[mask].sort().values  # as many as there are
        x[mask] += y[mask].exp()
        table = {}
        table["x"] = x
        return table["x"]

    def choose(self, x, y, mask):
        chosen = torch.where(mask, 0.0, x) + torch.where(y > 0, y, 1e-8)
        return chosen + torch.where(mask, x, y) + torch.where(mask, 1, 2)

    def constants(self, x, y, mask):
        made = torch.tensor([0.5, 1, 2])
        made += 1  # the next is a fresh one
        whole = torch.tensor([1, 2, 3]), torch.tensor([True, False, True]), torch.tensor(1.5, dtype=torch.float64)
        return torch.stack([made, torch.tensor([0.5, 1, 2]), *whole[:2], whole[2] * made])

    def inner(self, x, y, mask, *, scale=2.0):
        def add(z):
            z[mask] += scale
            return z

        return add(x)


METHODS = [name for name, value in vars(Plain).items() if inspect.isfunction(value) and name != "__init__"]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("none", [False, True])
def test_outputs_are_the_same(name, none):
    torch.manual_seed(0)
    x, y, mask = torch.randn(5, 3), torch.randn(5, 3), (torch.rand(5, 3) > 0.5) & (not none)
    x[0, 0], y[1, 1] = -0.0, torch.nan
    sync_free = Plain()
    sync_free.__class__ = class_without_syncs(Plain)
    alias = x.clone()
    if name in ("assign", "augment", "parts", "inner"):
        getattr(sync_free, name)(x.clone(), y, mask)  # makes the constants
        assert not waits(getattr(sync_free, name), x.clone(), y, mask)
    for _ in range(2):
        expected = getattr(Plain(), name)(x.clone(), y, mask)
        found = getattr(sync_free, name)(alias, y, mask)
        assert expected.dtype == found.dtype
        assert torch.equal(expected.nan_to_num(nan=9.0), found.nan_to_num(nan=9.0))
        assert torch.equal(expected.signbit(), found.signbit())
        alias = x.clone()


def test_writes_are_in_place():
    x = torch.zeros(3)
    view = x[:2]
    without_syncs(Plain.assign)(Plain(), view, torch.ones(2), torch.tensor([True, False]))
    assert x.tolist() == [1.0, 1.0, 0.0]


class Child(Plain):
    def assign(self, x, y, mask):
        x = super().assign(x, y, mask)
        x[mask] += 1
        return x

    def __secret(self, x, mask):
        x[mask] += 1
        return x

    def reveal(self, x, mask):
        return self.__secret(x, mask)


def test_inheritance_and_names_mangled_by_the_class():
    child = Child()
    child.__class__ = class_without_syncs(Child)
    mask = torch.tensor([True, False])
    assert child.assign(torch.zeros(2), torch.ones(2), mask).tolist() == [2.0, 1.0]
    assert child.reveal(torch.zeros(2), mask).tolist() == [1.0, 0.0]
    assert isinstance(child, Child)
    assert type(child).__name__ == "Child"
    assert Child.assign.__code__.co_freevars == ("__class__",)  # as it was


def test_what_stays():
    def nothing(x):
        return x + 1

    @torch.no_grad()
    def decorated(x, mask):
        x[mask] += 1

    scope = {}
    exec("def unread(x, mask):\n    x[mask] += 1", scope)
    for function in (nothing, decorated, scope["unread"]):
        assert without_syncs(function) is function


class World:
    device = torch.device("cpu")

    def __init__(self, answers):
        self.answers = answers

    def collides(self, a, b):
        return self.answers[a, b]


class SyncFreeWorld(World):
    def near(self, a, b):
        return torch.tensor(self.answers[a, b]) if a < b else None


class SilentWorld(SyncFreeWorld):
    collides = None


class Asking:
    def penalise(self, world, x, mask):
        for a in range(2):
            if world.collides(a, 1):
                penalty = a + 1
                if a == 0:
                    penalty = 10
                if mask is x:
                    factor = 3
                else:
                    factor = 2
                    x[1] = 4
                x[mask] -= penalty * factor
                x[0] = 5
        assert (x < 100).all(), "too large"
        return x

    def only_asserts(self, x):
        assert (x < 100).all(), "too large"


def test_questions_about_contacts_and_assertions():
    mask = torch.tensor([False, True, True])
    for answers in ({(0, 1): True, (1, 1): False}, {(0, 1): False, (1, 1): True}, {(0, 1): False, (1, 1): False}):
        expected = Asking().penalise(World(answers), torch.zeros(3), mask)
        assert torch.equal(without_syncs(Asking.penalise)(Asking(), World(answers), torch.zeros(3), mask), expected)
        found = without_syncs(Asking.penalise)(Asking(), SilentWorld({**answers, (1, 1): False}), torch.zeros(3), mask)
        expected = Asking().penalise(World({**answers, (1, 1): False}), torch.zeros(3), mask)
        assert torch.equal(found, expected)
    large = (Asking(), World({(0, 1): False, (1, 1): False}), torch.full((3,), 100.0), mask)
    without_syncs(Asking.penalise)(*large)
    without_syncs(Asking.only_asserts)(Asking(), torch.full((3,), 100.0))
    with pytest.raises(AssertionError, match="too large"):
        without_syncs(Asking.penalise, checks=True)(*large)


def _get_inner_point_box(x):
    """By the name of a function of VMAS's physics, but another."""
    return x * 2


class Unlikely:
    """What a user may write, and what must then stay as it is or come out the same."""

    def __init__(self):
        self.memo = {"x": 0.0}

    def base(self, x):
        return x + 1

    def count(self, world, x, mask):
        number = 0
        if world.collides(0, 1):
            number += 1
        return number

    def nearest(self, world, x, mask):
        nearest = torch.full((3,), 10.0)
        for a in range(2):
            if world.collides(a, 1):
                nearest = torch.minimum(nearest, x)
        return nearest

    def before_it_is_set(self, world, x, mask):
        for _ in range(2):
            if world.collides(0, 1):
                x[mask] = 3.0
                chain = x[mask] = 4.0  # noqa: F841
        return x

    def bits(self, world, x, mask):
        found = torch.zeros(3, dtype=torch.bool)
        if world.collides(0, 1):
            found[mask] |= True
        return found

    def overlapping(self, world, x, mask):
        grid = torch.arange(6.0)
        grid[1:][mask.repeat(2)[:5]] = grid[:-1][mask.repeat(2)[:5]]
        square = torch.arange(9.0).view(3, 3)
        square[square > 2] = square.T[square > 2]
        return torch.cat([grid, square.flatten()])

    def acts(self, world, x, mask):
        if world.collides(0, 1):
            x[mask] -= self.anew()
            x[mask] += torch.rand(())
        return x * len(self.memo)

    def augmented(self, world, x, mask):
        self.memo["x"] += self.changed()
        return self.memo["x"]

    def changed(self):
        self.memo["x"] = 100.0
        return 5.0

    def zeros(self, world, x, mask):
        return torch.stack([torch.tensor(0.0), torch.tensor(-0.0)]).signbit()

    def alone(self, world, x, mask):
        if x.ndim == 1:
            assert (x < 100).all()
        return x

    def order(self, world, x, mask):
        self.memo["x"] = self.anew()
        return self.memo["x"]

    def anew(self):
        self.memo = {}
        return 5.0

    def walrus(self, world, x, mask):
        x[mask] = (value := 2.0)
        return x * value

    def own_function(self, world, x, mask):
        x[mask] += 1
        return _get_inner_point_box(x)

    def margin(self, world, x, mask):
        # a comment at the margin
        x[mask] += 1  # fmt: skip
        return x


class Heir(Unlikely):
    def base(self, x):
        result = {}
        result["x"] = super().base(x)
        result["x"][x > 0] += 1
        return result["x"]


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize(
    "name", [n for n, f in vars(Unlikely).items() if inspect.isfunction(f) and "world" in str(f.__code__.co_varnames)]
)
def test_what_a_user_may_write(name, near):
    mask, answers = torch.tensor([False, True, True]), {(0, 1): near, (1, 1): False}
    sync_free = Unlikely()
    sync_free.__class__ = class_without_syncs(Unlikely, _get_inner_point_box=lambda x: x * 0)
    torch.manual_seed(0)
    expected = getattr(Unlikely(), name)(World(answers), torch.ones(3), mask)
    torch.manual_seed(0)
    assert torch.equal(
        torch.as_tensor(getattr(sync_free, name)(SyncFreeWorld(answers), torch.ones(3), mask)),
        torch.as_tensor(expected),
    )


class Counting:
    def penalise(self, world, x):
        for a in range(3):
            if world.collides(a, 3):
                met = 1 if a == 0 else met + 1  # noqa: F821
                x[0] = met
        return x


def test_a_variable_that_is_read_before_it_is_set():
    world = SyncFreeWorld({(0, 3): True, (1, 3): False, (2, 3): True})
    assert without_syncs(Counting.penalise)(Counting(), world, torch.zeros(2)).tolist() == [2.0, 0.0]


def test_a_value_of_the_class_above():
    sync_free = Heir()
    sync_free.__class__ = class_without_syncs(Heir)
    assert sync_free.base(torch.tensor([-3.0, 1.0])).tolist() == [-2.0, 3.0]


def test_errors_point_to_the_source():
    with pytest.raises(TypeError) as caught:
        without_syncs(Plain.augment)(Plain(), None, None, None)
    frames = [frame for frame in traceback.extract_tb(caught.value.__traceback__) if frame.name == "augment"]
    assert frames[-1].filename == __file__
    assert "x[mask] += 1" in frames[-1].line


def waits_of_a_step(scenario, **options):
    env = make_vmas_env(scenario, 8, max_steps=10, seed=0, **options)
    td = env.rand_step(env.reset())["next"]  # makes the constants
    return waits(env.step, env.rand_action(td))


@pytest.mark.parametrize(("scenario", "options"), SYNC_FREE.items())
def test_a_step_never_waits(scenario, options):
    assert not waits_of_a_step(scenario, **options)


def test_checked_actions_wait():
    assert waits_of_a_step("navigation", check_actions=True)


@pytest.mark.parametrize(("scenario", "options"), [pytest.param(*item, marks=needs_cuda) for item in SYNC_FREE.items()])
def test_a_step_never_waits_for_the_gpu(scenario, options):
    env = make_vmas_env(scenario, 8, max_steps=10, seed=0, device="cuda", **options)
    td = env.rand_action(env.rand_step(env.reset())["next"])
    torch.cuda.set_sync_debug_mode("error")
    try:
        env.step(td)
    finally:
        torch.cuda.set_sync_debug_mode("default")
