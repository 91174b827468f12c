import copy
import pickle

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import AdditiveGaussianModule, OrnsteinUhlenbeckProcessModule

from torchrl_bicnet import BiCNet, BiCNetActor, BiCNetCritic, NoCommunication, make_vmas_env

SMALL = {"hidden_size": 8, "num_cells": (12,)}
UNIT = Bounded(-1.0, 1.0, (3, 2))
GROUPS = ["agents", "team", ("league", "north", "team")]


def data(n_agents=3, batch=(4,), group="agents", **entries):
    td = TensorDict({}, batch)
    group = (group,) if isinstance(group, str) else group
    td[*group, "observation"] = torch.randn(*batch, n_agents, 5)
    td[*group, "action"] = torch.rand(*batch, n_agents, 2) * 2 - 1
    for name, value in entries.items():
        td[*group, name] = value
    return td


def random_bounds(*shape):
    """Drawn independently: low + (high - low) then misses high by rounding in an eighth of the draws."""
    draws = torch.randn(2, *shape) * 10.0 ** torch.randint(-6, 7, shape)
    return draws.sort(0).values


class TestActor:
    @pytest.mark.parametrize("group", GROUPS)
    @pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
    def test_keys_and_shapes(self, group, batch):
        actor = BiCNetActor(5, UNIT, group=group, **SMALL)
        path = (group,) if isinstance(group, str) else group
        assert actor.in_keys == [(*path, "observation")]
        assert actor.out_keys == [(*path, "param"), (*path, "action")]
        td = actor(data(group=group, batch=batch))
        assert td[*path, "param"].shape == td[*path, "action"].shape == (*batch, 3, 2)
        assert actor.spec[*path, "action"].expand(*batch, 3, 2).is_in(td[*path, "action"])

    def test_keys_of_ones_own(self):
        actor = BiCNetActor(5, UNIT, in_keys=["seen"], out_keys=["raw", ("deep", "er", "act")], **SMALL)
        td = actor(TensorDict({"seen": torch.randn(4, 3, 5)}, [4]))
        assert td["deep", "er", "act"].shape == td["raw"].shape
        several = BiCNetActor(5, UNIT, in_keys=["near", "far"], **SMALL)
        assert several(TensorDict({"near": torch.randn(3, 2), "far": torch.randn(3, 3)}))["agents", "action"].shape == (
            3,
            2,
        )

    def test_several_inputs_and_a_mask(self):
        actor = BiCNetActor(5, Bounded(1.0, 2.0, (3, 2)), in_keys=["near", "far"], mask_key="mask", **SMALL)
        td = TensorDict(
            {"near": torch.randn(3, 2), "far": torch.randn(3, 3), "mask": torch.tensor([True, False, True])}
        )
        action = actor(td)["agents", "action"]
        assert (action[1] == 0).all()
        assert (action[[0, 2]] >= 1).all()

    @pytest.mark.parametrize("batch", [(), (4,), (2, 4)])
    def test_the_spec_has_the_batch_of_the_one_given(self, batch):
        spec = BiCNetActor(5, UNIT.expand(*batch, 3, 2), **SMALL).spec
        assert spec.shape == batch
        assert spec["agents", "action"].shape == (*batch, 3, 2)

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("per_agent", [False, True])
    def test_actions_never_leave_the_bounds(self, seed, per_agent):
        torch.manual_seed(seed)
        low, high = (bound.expand(3, 2).contiguous() for bound in random_bounds(3 if per_agent else 1, 2))
        actor = BiCNetActor(5, Bounded(low, high), **SMALL)
        for scale in (1.0, 1e3, 1e20, 3e38):
            for weight_scale in (1.0, 1e3, 1e30):
                wild = copy.deepcopy(actor)
                with torch.no_grad():
                    for parameter in wild.parameters():
                        parameter.mul_(weight_scale)
                    observation = (torch.rand(1000, 3, 5) * 2 - 1) * scale
                    action = wild(TensorDict({"agents": {"observation": observation}}))["agents", "action"]
                assert (action >= low).all()
                assert (action <= high).all()

    def test_the_ends_of_the_range_are_the_bounds_after_rounding(self):
        torch.manual_seed(0)
        low, high = random_bounds(1, 10_000)
        actor = BiCNetActor(10_000, Bounded(low, high), net=nn.Identity())
        for end, bound in ((-1e30, low), (1e30, high)):
            action = actor(TensorDict({"agents": {"observation": torch.full((1, 10_000), end)}}))["agents", "action"]
            assert (action >= low).all()
            assert (action <= high).all()
            assert ((action - bound).abs() <= 1e-6 * torch.maximum(low.abs(), high.abs())).all()

    def test_squashing_by_hand(self):
        actor = BiCNetActor(1, Bounded(torch.tensor([[2.0]]), torch.tensor([[6.0]])), net=nn.Identity())
        param = torch.tensor([[-1.0], [0.0], [1.0]])
        td = actor(TensorDict({"agents": {"observation": param}}))
        # 4 + 2 tanh(param)
        torch.testing.assert_close(td["agents", "action"], torch.tensor([[2.4768117], [4.0], [5.5231883]]))
        assert torch.equal(td["agents", "param"], param)

    def test_an_overflow_is_the_middle_and_stays_visible(self):
        actor = BiCNetActor(1, Bounded(torch.tensor([[2.0]]), torch.tensor([[6.0]])), net=nn.Identity())
        td = actor(TensorDict({"agents": {"observation": torch.full((1, 1), torch.nan)}}))
        assert td["agents", "action"].item() == 4
        assert td["agents", "param"].isnan().all()

    def test_another_number_of_agents(self):
        actor = BiCNetActor(5, UNIT, **SMALL)
        other = BiCNetActor(5, Bounded(-1.0, 1.0, (7, 2)), **SMALL)
        other.load_state_dict(actor.state_dict())
        td = data(n_agents=7)
        torch.testing.assert_close(other(td.clone())["agents", "action"], actor(td.clone())["agents", "action"])
        lower = torch.tensor([[-1.0, -1.0], [-1.0, -2.0], [-1.0, -1.0]])
        for low, high in ((lower, torch.ones(3, 2)), (-torch.ones(3, 2), -lower)):
            different = BiCNetActor(5, Bounded(low, high), **SMALL)
            assert different(data())["agents", "action"].shape == (4, 3, 2)
            with pytest.raises(ValueError, match=r"differ over agents and have shape \(3, 2\).*\(4, 7, 2\)"):
                different(td)

    def test_separate_parameters_take_the_number_of_agents_from_the_spec(self):
        assert BiCNetActor(5, UNIT, share_params=False, **SMALL).module.net.n_agents == 3

    @pytest.mark.parametrize(
        ("spec", "error", "match"),
        [
            (Unbounded((3, 2)), TypeError, "expected a Bounded spec of a floating type, found Unbounded"),
            (Bounded(0, 5, (3, 2), dtype=torch.int64), TypeError, "found .* of dtype torch.int64"),
            (Bounded(-3e38, 3e38, (3, 2)), ValueError, "finite action bounds"),
            (Bounded(torch.zeros(2, 1, 1), torch.tensor([[[1.0]], [[2.0]]])), ValueError, "same action bounds in ever"),
        ],
    )
    def test_action_specs_that_no_squashing_fits(self, spec, error, match):
        with pytest.raises(error, match=match):
            BiCNetActor(5, spec)

    def test_masks(self):
        torch.manual_seed(0)
        bounds = Bounded(torch.full((3, 2), 2.0), torch.full((3, 2), 6.0))  # 0 is outside
        actor = BiCNetActor(5, bounds, mask_key=("agents", "mask"), **SMALL)
        assert actor.in_keys == [("agents", "observation"), ("agents", "mask")]
        mask = torch.tensor([[True, False, True], [False, False, True], [True, True, True], [False, False, False]])
        td = data(mask=mask)
        td["agents", "observation"][~mask] = torch.nan
        actor(td)
        for name in ("param", "action"):
            assert (td["agents", name][~mask] == 0).all()
        for row in range(3):
            alone = BiCNetActor(5, bounds, net=actor.module.net)
            team = TensorDict({"agents": {"observation": td["agents", "observation"][row, mask[row]]}})
            torch.testing.assert_close(td["agents", "action"][row, mask[row]], alone(team)["agents", "action"])
        with pytest.raises(TypeError, match="boolean"):
            actor(data(mask=torch.ones(4, 3)))

    def test_a_missing_mask_is_an_error_not_everybody(self):
        actor = BiCNetActor(5, UNIT, mask_key=("agents", "msk"), **SMALL)
        with pytest.raises(KeyError, match='key "msk" not found'):
            actor(data(mask=torch.zeros(4, 3, dtype=torch.bool)))

    @pytest.mark.parametrize("base", [nn.Module, BiCNet])
    def test_a_net_of_ones_own_may_know_nothing_of_absent_slots(self, base):
        class Net(base):
            def __init__(self):
                nn.Module.__init__(self)
                self.n_agent_inputs, self.n_agent_outputs = 5, 2
                self.linear = nn.Linear(5, 2)

            def forward(self, observation, mask):
                return self.linear(observation)

        net = Net()
        mask = torch.tensor([[True, False, True]] * 4)
        td = data(mask=mask)
        td["agents", "observation"][~mask] = torch.nan
        BiCNetActor(5, UNIT, net=net, mask_key=("agents", "mask"))(td)["agents", "action"].sum().backward()
        assert net.linear.weight.grad.isfinite().all()
        for name in ("param", "action"):
            assert (td["agents", name][~mask] == 0).all()
            assert (td["agents", name][mask] != 0).all()

    def test_bounds_and_spec_are_where_the_net_is(self):
        actor = BiCNetActor(5, UNIT, device="meta", **SMALL)
        assert {tensor.device.type for tensor in actor.state_dict().values()} == {"meta"}
        assert actor.spec.device.type == "meta"
        assert BiCNetActor(5, UNIT, **SMALL).to("meta").spec["agents", "action"].device.type == "meta"

    def test_a_net_without_masks_is_called_without_one(self):
        class Net(nn.Module):
            def forward(self, observation):
                return observation[..., :2]

        assert BiCNetActor(5, UNIT, net=Net())(data())["agents", "action"].shape == (4, 3, 2)
        masked = BiCNetActor(5, UNIT, net=Net(), mask_key=("agents", "mask"))
        with pytest.raises(TypeError, match="mask"):
            masked(data(mask=torch.ones(4, 3, dtype=torch.bool)))

    def test_a_net_of_another_action_size(self):
        with pytest.raises(ValueError, match=r"bounds have shape \(2,\), which .* \(4, 3, 5\) does not fit"):
            BiCNetActor(5, UNIT, net=nn.Identity())(data())

    @pytest.mark.parametrize("batch", [(), (4,)])
    @pytest.mark.parametrize("module", [AdditiveGaussianModule, OrnsteinUhlenbeckProcessModule])
    @pytest.mark.filterwarnings("ignore:The tensordict passed to Ornstein:UserWarning")
    def test_torchrl_exploration_takes_the_spec(self, module, batch):
        spec = Composite({("agents", "action"): Bounded(-1.0, 1.0, (*batch, 3, 2))}, shape=batch)
        actor = BiCNetActor(5, spec, **SMALL)
        keys_before = set(actor.spec.keys(True, True))
        noise = module(actor.spec, action_key=actor.out_keys[-1])
        td = actor(data(batch=(4,)))
        quiet = td["agents", "action"].clone()
        with set_exploration_type(ExplorationType.RANDOM):
            noise(td)
        assert (td["agents", "action"] != quiet).any()
        assert td["agents", "action"].abs().max() <= 1
        assert set(actor.spec.keys(True, True)) == keys_before


class TestCritic:
    @pytest.mark.parametrize("group", GROUPS)
    @pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
    def test_keys_and_shapes(self, group, batch):
        critic = BiCNetCritic(5, 2, group=group, **SMALL)
        path = (group,) if isinstance(group, str) else group
        assert critic.in_keys == [(*path, "observation"), (*path, "action")]
        assert critic(data(group=group, batch=batch))[*path, "state_action_value"].shape == (*batch, 3, 1)

    def test_each_q_depends_on_every_agent(self):
        critic = BiCNetCritic(5, 2, **SMALL).double()
        td = data(batch=()).double()
        for name in ("observation", "action"):

            def q(x, name=name):
                return critic(td.clone().set(("agents", name), x))["agents", "state_action_value"]

            influence = torch.autograd.functional.jacobian(q, td["agents", name]).abs().sum((1, 3))
            assert (influence > 0).all()

    def test_masks(self):
        critic = BiCNetCritic(5, 2, mask_key=("agents", "mask"), **SMALL)
        mask = torch.tensor([[True, False, True]] * 4)
        td = data(mask=mask)
        critic(td)
        clean = td["agents", "state_action_value"].clone()
        for name in ("observation", "action"):
            td["agents", name][~mask] = torch.nan
        critic(td)
        assert torch.equal(td["agents", "state_action_value"], clean)
        assert (clean[~mask] == 0).all()

    def test_inputs_that_do_not_fit_each_other(self):
        td = TensorDict({"agents": {"observation": torch.randn(4, 3, 5), "action": torch.randn(4, 2, 3)}}, [4])
        with pytest.raises(ValueError, match=r"7 features in all, found \(4, 3, 5\), \(4, 2, 3\)"):
            BiCNetCritic(5, 2, **SMALL)(td)


class Selections(TorchDispatchMode):
    """Counts where an operation selects by a mask."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.where.self
        return func(*args, **(kwargs or {}))


def test_how_often_is_selected_by_the_mask():
    class Net(nn.Module):
        def forward(self, observation, mask=None):
            return observation[..., :2]

    class Layer(NoCommunication):
        def forward(self, x, mask=None):
            return x

    def count(cls, *args, mask_key=("agents", "mask"), **options):
        with Selections() as selections:
            cls(5, *args, mask_key=mask_key, **options)(data(mask=torch.ones(4, 3, dtype=torch.bool)))
        return selections.count

    # The inputs, the layer's input and output, what was heard, the net's output; the action
    assert count(BiCNetCritic, 2, communication="mean", **SMALL) == 5
    assert count(BiCNetActor, UNIT, communication="mean", **SMALL) == 6
    # A layer of the user's own need not mask
    assert count(BiCNetCritic, 2, communication=Layer(12), **SMALL) == 3
    # A foreign net's input and output; the action
    assert count(BiCNetActor, UNIT, net=Net()) == 3
    assert count(BiCNetActor, UNIT, mask_key=None, **SMALL) == 0


def modules():
    return [BiCNetActor(5, UNIT, **SMALL), BiCNetCritic(5, 2, **SMALL)]


@pytest.mark.parametrize("i", [0, 1], ids=["actor", "critic"])
class TestOrdinaryModules:
    def test_state_dict_round_trip(self, i):
        first, second = modules()[i], modules()[i]
        td = data()
        out = first.out_keys[-1]
        assert not torch.equal(first(td.clone())[out], second(td.clone())[out])
        second.load_state_dict(first.state_dict())
        assert torch.equal(first(td.clone())[out], second(td.clone())[out])

    @pytest.mark.parametrize("how", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
    def test_copies_are_equal_and_independent(self, i, how):
        module = modules()[i]
        twin = how(module)
        td = data()
        out = module.out_keys[-1]
        assert torch.equal(module(td.clone())[out], twin(td.clone())[out])
        assert twin.in_keys == module.in_keys
        assert twin.group == module.group
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(1)
        assert not torch.equal(module(td.clone())[out], twin(td.clone())[out])

    def test_to(self, i):
        module = modules()[i].to(torch.float64)
        td = module(data().double())
        assert td[module.out_keys[-1]].dtype == torch.float64
        assert {tensor.dtype for tensor in module.state_dict().values()} == {torch.float64}
        meta = modules()[i].to("meta")
        assert {tensor.device.type for tensor in meta.state_dict().values()} == {"meta"}

    def test_vmap_over_parameters(self, i):
        twins = [modules()[i] for _ in range(2)]
        parameters = torch.stack([TensorDict.from_module(twin) for twin in twins])
        td = data()
        out = twins[0].out_keys[-1]
        expected = torch.stack([twin(td.clone())[out] for twin in twins])

        def call(parameters, td):
            with parameters.to_module(twins[0]):
                return twins[0](td)

        assert torch.allclose(torch.vmap(call, (0, None))(parameters, td)[out], expected, atol=1e-6)


class TestFromEnv:
    def test_sizes_bounds_and_options(self):
        env = make_vmas_env("navigation", 2, n_agents=3)
        actor = BiCNetActor.from_env(env, communication="gru", hidden_size=8)
        critic = BiCNetCritic.from_env(env, group="agents", communication="gru", hidden_size=8)
        td = critic(actor(env.reset()))
        assert td["agents", "state_action_value"].shape == (2, 3, 1)
        assert actor.spec["agents", "action"] == env.full_action_spec["agents", "action"]

    @pytest.mark.parametrize("cls", [BiCNetActor, BiCNetCritic])
    def test_the_modules_are_where_the_environment_is(self, cls, monkeypatch):
        env = make_vmas_env("navigation", 2, n_agents=3)
        cls.from_env(env)  # the specs are built once
        monkeypatch.setattr(type(env), "device", torch.device("meta"))
        assert {tensor.device.type for tensor in cls.from_env(env).state_dict().values()} == {"meta"}
        cpu = cls.from_env(env, device="cpu")
        assert {tensor.device.type for tensor in cpu.state_dict().values()} == {"cpu"}

    def test_separate_parameters_take_the_number_of_agents_from_the_env(self):
        env = make_vmas_env("navigation", 2, n_agents=3)
        actor = BiCNetActor.from_env(env, share_params=False)
        critic = BiCNetCritic.from_env(env, share_params=False)
        assert critic(actor(env.reset()))["agents", "state_action_value"].shape == (2, 3, 1)

    @pytest.mark.parametrize("cls", [BiCNetActor, BiCNetCritic])
    def test_groups(self, cls):
        env = make_vmas_env("simple_tag", 2)
        with pytest.raises(ValueError, match=r"several groups; choose one with group=, found \['adversary', 'agent'\]"):
            cls.from_env(env)
        with pytest.raises(ValueError, match=r"no group 'agents'; its groups are \['adversary', 'agent'\]"):
            cls.from_env(env, group="agents")
        module = cls.from_env(env, group="adversary")
        assert module.in_keys[0] == ("adversary", "observation")

    @pytest.mark.parametrize("cls", [BiCNetActor, BiCNetCritic])
    def test_different_sizes_in_one_group(self, cls):
        group_map = {"team": ["speaker_0", "listener_0"]}
        env = make_vmas_env("simple_speaker_listener", 2, group_map=group_map)
        with pytest.raises(ValueError, match=r"'team', 'observation'.* have different sizes"):
            cls.from_env(env)

    def test_keys_that_do_not_exist(self):
        env = make_vmas_env("navigation", 2)
        with pytest.raises(KeyError, match="no entry 'position'"):
            BiCNetActor.from_env(env, in_keys=["position"])

    def test_anything_the_constructor_takes(self):
        env = make_vmas_env("navigation", 2, n_agents=3)
        actor = BiCNetActor.from_env(env, in_keys=None, net=nn.Linear(18, 2), mask_key=None)
        assert actor(env.reset())["agents", "action"].shape == (2, 3, 2)
        actor = BiCNetActor.from_env(env, in_keys=["step_count", ("agents", "observation")], device="cpu")
        assert actor.module.net.n_agent_inputs == 19
        critic = BiCNetCritic.from_env(env, out_keys=["q"], group=("agents",))
        assert critic.group == "agents"
        assert critic.out_keys == ["q"]
