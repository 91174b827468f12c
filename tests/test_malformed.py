"""Malformed inputs, drawn by hypothesis, to every public name and to the scripts.

Each ends in an error of a documented type that names what is wrong, raised by our own code and not from the depths,
and leaves modules, environments and run folders as they were.
"""

import contextlib
import dataclasses
import hashlib
import inspect
import io
import json
import runpy
import shutil
import sys
import traceback
import zipfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import tyro
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torch import Tensor, nn
from torchrl.checkpoint import CheckpointError
from torchrl.collectors import Collector
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase, ExplorationType, PendulumEnv, set_exploration_type

import torchrl_bicnet as bicnet
from examples import evaluate_vmas, train_vmas
from torchrl_bicnet import analysis, rendering, runs
from torchrl_bicnet.vmas_state.snapshot import WorldSnapshot

OURS = [Path(bicnet.__file__).parent, Path(train_vmas.__file__).parent]
N_AGENTS, N_INPUTS, N_ACTIONS, MAX_STEPS = 3, 18, 2, 3

# By whom it was misused, all different messages
MESSAGES: dict[str, set[str]] = {}


@dataclasses.dataclass
class Misuse:
    """A call, what its error must say (of a tuple any entry), and what must stay as it is."""

    call: Callable[[], Any]
    says: tuple[str | tuple[str, ...], ...]
    untouched: tuple[Any, ...] = ()
    errors: tuple[type[Exception], ...] = (ValueError, TypeError)


def fingerprint(thing: Any) -> Any:
    """Everything of a folder, a module, an environment, a dictionary or a tensor, to the bit."""
    if isinstance(thing, Path):
        return {path: path.is_file() and hashlib.sha256(path.read_bytes()).digest() for path in thing.rglob("*")}
    if isinstance(thing, EnvBase):
        world = bicnet.snapshot(thing)
        return fingerprint(world.tensors.to_dict()), json.dumps(world.plain)
    if isinstance(thing, nn.Module):
        hooks = [(len(module._forward_pre_hooks), len(module._forward_hooks)) for module in thing.modules()]
        return fingerprint(thing.state_dict()), hooks, [module.training for module in thing.modules()]
    if isinstance(thing, dict):
        return {key: fingerprint(value) for key, value in thing.items()}
    return thing.detach().numpy().tobytes() if isinstance(thing, Tensor) else repr(thing)


def refused(misuse: Misuse) -> str:
    """Check how a misuse ends; what its error says."""
    before = [fingerprint(thing) for thing in misuse.untouched]
    try:
        result = misuse.call()
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        kind, message = type(error), str(error)
    else:
        raise AssertionError(f"no error, but {result!r}")
    assert kind in misuse.errors, f"{kind.__name__} instead of {misuse.errors}: {message}"
    inside = any(Path(frame.filename).is_relative_to(folder) for folder in OURS)
    assert inside, f"from the depths, {frame.filename}:{frame.lineno}: {kind.__name__}: {message}"
    for part in misuse.says:
        choices = (part,) if isinstance(part, str) else part
        assert any(choice in message for choice in choices), f"{part!r} is not in {kind.__name__}: {message}"
    assert before == [fingerprint(thing) for thing in misuse.untouched], f"something changed: {message}"
    return message


def said(value: Any) -> tuple[str, ...]:
    if isinstance(value, (list, tuple, dict)):
        parts = [*value, *(value.values() if isinstance(value, dict) else ())]
        return repr(value), type(value).__name__, *(choice for part in parts for choice in said(part))
    looks = (str(tuple(value.shape)), str(value.dtype)) if isinstance(value, Tensor) else ()
    name = value if isinstance(value, str) and value else getattr(value, "__name__", repr(value))
    return repr(value), name, type(value).__name__, *looks


def one_wrong(function, good, untouched=(), errors=(ValueError, TypeError), **wrong):
    """Calls in which one argument is wrong: the message has its name and the value, or the value's type."""

    def misuse(name, value):
        return Misuse(lambda: function(**good | {name: value}), (name, said(value)), untouched, errors)

    return st.one_of([st.builds(misuse, st.just(name), values) for name, values in wrong.items()])


# Wrong values of one kind of argument
NO_INTEGER = st.sampled_from(["8", None, True, 1j, (3,)]) | st.floats() | st.lists(st.integers(), max_size=2)
NO_COUNT = NO_INTEGER | st.integers(max_value=0)
NO_BOOL = st.sampled_from([None, 0, 2, "no", 1.0, []])
NO_NUMBER = st.sampled_from(["0.5", None, True, 1j, [0.5]])
NO_FRACTION = NO_NUMBER | st.floats(min_value=1.001) | st.floats(max_value=-0.001) | st.just(float("nan"))
NOT_ABOVE_0 = NO_NUMBER | st.floats(max_value=-0.001) | st.sampled_from([float("nan"), float("inf")])
NO_SEED = NO_INTEGER.filter(lambda value: value is not None) | st.integers(max_value=-1) | st.integers(min_value=2**32)
NO_DEVICE = st.sampled_from(["gpu", "", "cuda:99", "xpu:4", 1.5, ["cpu"], "cpu:x"])
NO_DTYPE = st.sampled_from([torch.int64, torch.bool, "float32", float, 32])
NO_KEY = st.sampled_from([3, (), ("agents", 1), ["agents"], b"agents", 1.0])
NO_MODULE = st.sampled_from(["lstm", 3, [], {}, nn.ReLU])
NO_STRING = st.sampled_from([None, 3, [], ["gru"], {}, True])
NO_MAPPING = st.sampled_from([None, 3, [("a", 1)], "a", {1}])
NO_PATH = st.sampled_from([None, 3, [], b"run"])
# Hypothesis draws the constants of our sources too, valid names among them: none starts with these letters.
WORD = st.text("abcdefghijklmnop", min_size=1, max_size=7).map("zz{}".format)


def tensor_strategy(shapes, says=()):
    """A tensor of one of the shapes, and what a message says about it."""
    return shapes.map(lambda shape: (torch.zeros(shape), (str(tuple(shape)), *says)))


SHAPES = st.lists(st.integers(0, 4), max_size=3)
NO_TENSOR = st.sampled_from([None, 3, "x", [[1.0]], np.zeros((2, 3, 5))]).map(lambda x: (x, (said(x),)))


def wrong_inputs(features):
    """(x, what the message says) for a layer that reads (2, 3, features)."""
    good = torch.zeros(2, N_AGENTS, features)
    dtypes = st.sampled_from([torch.float64, torch.int64, torch.bool, torch.complex64])
    return st.one_of(
        tensor_strategy(SHAPES.filter(lambda shape: len(shape) < 2 or shape[-1] != features), (str(features),)),
        dtypes.map(lambda dtype: (good.to(dtype), (str(dtype), ("float32", "floating point")))),
        st.just((good.to("meta"), ("meta", "cpu"))),
        NO_TENSOR,
    )


def wrong_masks():
    shapes = SHAPES.filter(lambda shape: shape != [2, N_AGENTS])
    return st.one_of(
        shapes.map(lambda shape: (torch.ones(shape, dtype=torch.bool), ("mask", str(tuple(shape)), "(2, 3)"))),
        st.sampled_from([torch.float32, torch.int64, torch.uint8]).map(
            lambda dtype: (torch.ones(2, N_AGENTS, dtype=dtype), ("mask", "boolean", str(dtype)))
        ),
        st.sampled_from([[[True] * N_AGENTS] * 2, "all", True]).map(lambda mask: (mask, ("mask", type(mask).__name__))),
        st.just((torch.ones(2, N_AGENTS, dtype=torch.bool, device="meta"), ("mask", "meta"))),
    )


def in_forward(layer, features, with_mask=True):
    """Calls of a layer with a wrong input or mask."""
    good = torch.zeros(2, N_AGENTS, features)
    calls = wrong_inputs(features).map(lambda wrong: Misuse(lambda: layer(wrong[0]), wrong[1], (layer,)))
    if not with_mask:
        return calls
    return calls | wrong_masks().map(lambda wrong: Misuse(lambda: layer(good, mask=wrong[0]), wrong[1], (layer,)))


# What the calls are made on; built once
@cache
def env(**options):
    return bicnet.make_vmas_env("navigation", 2, max_steps=MAX_STEPS, seed=0, n_agents=N_AGENTS, **options)


@cache
def two_groups():
    return bicnet.make_vmas_env("simple_tag", 2, max_steps=MAX_STEPS, seed=0)


@cache
def actor(mask_key=None):
    return bicnet.BiCNetActor.from_env(env(), hidden_size=4, num_cells=(8,), mask_key=mask_key)


@cache
def critic(mask_key=None):
    return bicnet.BiCNetCritic.from_env(env(), hidden_size=4, num_cells=(8,), mask_key=mask_key)


@cache
def net(**options):
    return bicnet.BiCNet(5, 2, hidden_size=4, num_cells=(8,), **options)


@cache
def pendulum():
    return PendulumEnv()


@cache
def collector():
    return Collector(env(), actor(), frames_per_batch=4, total_frames=8)


def evaluation(n_episodes=2, seed=0, groups=("agents",)):
    returns = {group: torch.rand(n_episodes, N_AGENTS) for group in groups}
    return bicnet.Evaluation(returns, torch.full((n_episodes,), 3), seed=seed)


NO_ENV = st.sampled_from([None, "navigation", 3, dict]) | st.builds(actor)
FOREIGN_ENV = st.builds(pendulum)


def recurrent():
    good = {"in_features": 5, "hidden_size": 4}
    construct = one_wrong(
        bicnet.RecurrentCommunication,
        good,
        in_features=NO_COUNT,
        hidden_size=NO_COUNT,
        num_layers=NO_COUNT,
        bidirectional=NO_BOOL,
        bias=NO_BOOL,
        cell=NO_STRING | WORD,
        implementation=NO_STRING | WORD,
        device=NO_DEVICE,
        dtype=NO_DTYPE,
    )
    layers = [bicnet.RecurrentCommunication(5, 4, implementation=name) for name in ("auto", "loop")]
    fused = bicnet.RecurrentCommunication(5, 4, implementation="fused")
    mask = torch.ones(2, N_AGENTS, dtype=torch.bool)
    return st.one_of(
        construct,
        *(in_forward(layer, 5) for layer in layers),
        in_forward(fused, 5, with_mask=False),
        st.just(Misuse(lambda: fused(torch.zeros(2, N_AGENTS, 5), mask), ("fused", "mask"), (fused,))),
    )


def mean():
    sizes = {"in_features": NO_COUNT, "out_features": NO_COUNT, "device": NO_DEVICE, "dtype": NO_DTYPE}
    good = {"in_features": 5, "out_features": 4}
    return one_wrong(bicnet.MeanCommunication, good, **sizes) | in_forward(bicnet.MeanCommunication(5, 4), 5)


def attention():
    sizes = {"in_features": NO_COUNT, "out_features": NO_COUNT, "device": NO_DEVICE, "dtype": NO_DTYPE}
    heads = NO_COUNT | st.integers(min_value=5) | st.just(3)
    good = {"in_features": 5, "out_features": 4}
    layer = bicnet.AttentionCommunication(5, 4)
    return one_wrong(bicnet.AttentionCommunication, good, num_heads=heads, **sizes) | in_forward(layer, 5)


def none():
    layer = bicnet.NoCommunication(5)
    shapes = tensor_strategy(SHAPES.filter(lambda shape: len(shape) < 2 or shape[-1] != 5))
    return st.one_of(
        one_wrong(bicnet.NoCommunication, {}, in_features=NO_COUNT),
        (shapes | NO_TENSOR).map(lambda wrong: Misuse(lambda: layer(wrong[0]), wrong[1])),
        wrong_masks().map(lambda wrong: Misuse(lambda: layer(torch.zeros(2, 3, 5), wrong[0]), wrong[1])),
    )


def net_options():
    return {
        "communication": NO_STRING | WORD | st.just(nn.LSTM),
        "hidden_size": NO_COUNT,
        "num_cells": st.sampled_from([8, "8", None, ("8",), (0,), (8, -1), (2.5,), {8}]),
        "norm_class": st.sampled_from([nn.BatchNorm1d, "LayerNorm", nn.LayerNorm(8), True, dict]),
        "activation_class": st.sampled_from([nn.ReLU(), "relu", None, torch.relu, dict]),
        "skip": st.sampled_from(["yes", None, 1.5, 99, -1, (0, 1)]),
        "encoder": NO_MODULE,
        "decoder": NO_MODULE,
        "share_params": NO_BOOL,
        "device": NO_DEVICE,
    }


def bicnet_net():
    sizes = {"n_agent_inputs": NO_COUNT, "n_agent_outputs": NO_COUNT}
    own = net(share_params=False, n_agents=N_AGENTS)
    inputs = st.lists(SHAPES, min_size=2, max_size=2).filter(
        lambda shapes: any(len(s) < 2 for s in shapes) or sum(s[-1] for s in shapes) != 5
    )
    return st.one_of(
        one_wrong(bicnet.BiCNet, {"n_agent_inputs": 5, "n_agent_outputs": 2}, **sizes, **net_options()),
        one_wrong(
            partial(bicnet.BiCNet, 5, 2, share_params=False), {}, n_agents=NO_COUNT.filter(lambda n: n is not None)
        ),
        in_forward(net(), 5),
        in_forward(net(communication="none"), 5),
        in_forward(own, 5),
        st.sampled_from([1, 2, 4]).map(
            lambda n: Misuse(lambda: own(torch.zeros(2, n, 5)), (f"(2, {n}, 5)", "(*B, 3, F)"), (own,))
        ),
        inputs.map(
            lambda shapes: Misuse(lambda: net()(*map(torch.zeros, shapes)), tuple(str(tuple(s)) for s in shapes))
        ),
        st.just(Misuse(lambda: net()(), ("found no input",), (net(),))),
        st.sampled_from([nn.Linear(5, 3), nn.Identity()]).map(
            lambda module: Misuse(
                lambda: bicnet.BiCNet(5, 2, communication=nn.Identity(), encoder=module), ("Identity", "in_features")
            )
        ),
    )


def agent_data(observation=None, action=None, mask=None):
    entries = {"observation": observation, "action": action, "mask": mask}
    return TensorDict({"agents": {name: value for name, value in entries.items() if value is not None}}, [])


OBSERVATION = torch.zeros(2, N_AGENTS, N_INPUTS)
ACTION = torch.zeros(2, N_AGENTS, N_ACTIONS)
NO_TENSORDICT = st.sampled_from([None, 3, "td", [OBSERVATION]])
MASK_KEY = ("agents", "mask")


def module_calls(module, masked, entries):
    """Calls of an actor or a critic with wrong data."""
    data = partial(agent_data, **entries)
    wrong = wrong_inputs(N_INPUTS).filter(lambda wrong: isinstance(wrong[0], Tensor))
    if "action" in entries:  # concatenated: the sum of the features is what is wrong
        wrong = wrong.filter(lambda wrong: wrong[0].dtype not in (torch.int64, torch.bool))
        wrong = wrong.map(lambda wrong: (wrong[0], wrong[1][:1]))
    masks = wrong_masks().filter(lambda wrong: isinstance(wrong[0], Tensor))
    missing = st.sampled_from(sorted(entries))
    return st.one_of(
        wrong.map(lambda wrong: Misuse(lambda: module(data(observation=wrong[0])), wrong[1], (module,))),
        masks.map(lambda wrong: Misuse(lambda: masked(data(mask=wrong[0])), wrong[1], (masked,))),
        missing.map(lambda name: Misuse(lambda: module(data(**{name: None})), (name,), (module,), (KeyError,))),
        st.just(Misuse(lambda: masked(data()), ("mask",), (masked,), (KeyError,))),
    )


SPEC = Bounded(-1.0, 1.0, (N_AGENTS, N_ACTIONS))
NO_KEYS = st.sampled_from([("agents", "observation"), "observation", [], [3], [("agents", 1)], {"a"}, 3])


def actors():
    good = {"n_agent_inputs": N_INPUTS, "action_spec": SPEC}
    specs = st.sampled_from(
        [
            (None, "NoneType"),
            ("Bounded", "str"),
            (torch.zeros(3, 2), "Tensor"),
            (Unbounded((3, 2)), "Unbounded"),
            (Categorical(4, (3,)), "Categorical"),
            (Bounded(-1, 1, (3, 2), dtype=torch.int64), "torch.int64"),
            (Bounded(-1.0, 1.0, (2,)), "(2,)"),
            (Bounded(-1.0, float("inf"), (3, 2)), "inf"),
            (Bounded(float("nan"), 1.0, (3, 2)), "nan"),
            (Bounded(torch.tensor([[[0.0]], [[1.0]]]), torch.full((2, 1, 1), 2.0)), "batch"),
        ]
    )
    holders = st.sampled_from([Composite(), Composite(action=SPEC), Composite(agents=Composite(move=SPEC))])
    options = {"group": NO_KEY | st.none(), "mask_key": NO_KEY, "in_keys": NO_KEYS, "out_keys": NO_KEYS}
    from_env = bicnet.BiCNetActor.from_env
    return st.one_of(
        one_wrong(bicnet.BiCNetActor, good, group=options["group"]),
        one_wrong(bicnet.BiCNetActor, good, n_agent_inputs=NO_COUNT, **options, net=NO_MODULE, **net_options()),
        one_wrong(
            bicnet.BiCNetActor, good | {"share_params": False}, n_agents=NO_COUNT.filter(lambda n: n is not None)
        ),
        specs.map(lambda spec: Misuse(lambda: bicnet.BiCNetActor(N_INPUTS, spec[0]), (spec[1],))),
        holders.map(
            lambda spec: Misuse(
                lambda: bicnet.BiCNetActor(N_INPUTS, spec), ("('agents', 'action')", "holds"), (), (KeyError,)
            )
        ),
        WORD.map(lambda word: Misuse(lambda: bicnet.BiCNetActor(N_INPUTS, SPEC, **{word: 1}), (word,))),
        WORD.map(lambda word: Misuse(lambda: from_env(env(), group=word), (repr(word), "agents"), (env(),))),
        one_wrong(from_env, {"env": env()}, env=NO_ENV, group=NO_KEY, in_keys=NO_KEYS, out_keys=NO_KEYS),
        st.just(Misuse(lambda: from_env(two_groups()), ("adversary", "agent"))),
        st.just(Misuse(lambda: from_env(pendulum()), ("action",))),
        WORD.map(lambda word: Misuse(lambda: from_env(env(), in_keys=[word]), (word, "observation"), (), (KeyError,))),
        module_calls(actor(), actor(MASK_KEY), {"observation": OBSERVATION}),
    )


def critics():
    good = {"n_agent_inputs": N_INPUTS, "n_agent_actions": N_ACTIONS}
    options = {"group": NO_KEY | st.none(), "mask_key": NO_KEY, "in_keys": NO_KEYS, "out_keys": NO_KEYS}
    from_env = bicnet.BiCNetCritic.from_env
    actions = tensor_strategy(SHAPES.filter(lambda shape: shape[-1:] != [N_ACTIONS]))
    return st.one_of(
        one_wrong(
            bicnet.BiCNetCritic,
            good,
            n_agent_inputs=NO_COUNT,
            n_agent_actions=NO_COUNT,
            **options,
            net=NO_MODULE,
            **net_options(),
        ),
        one_wrong(
            bicnet.BiCNetCritic, good | {"share_params": False}, n_agents=NO_COUNT.filter(lambda n: n is not None)
        ),
        WORD.map(lambda word: Misuse(lambda: bicnet.BiCNetCritic(N_INPUTS, 2, **{word: 1}), (word,))),
        WORD.map(lambda word: Misuse(lambda: from_env(env(), group=word), (repr(word), "agents"), (env(),))),
        one_wrong(from_env, {"env": env()}, env=NO_ENV, group=NO_KEY, in_keys=NO_KEYS, out_keys=NO_KEYS),
        st.just(Misuse(lambda: from_env(two_groups()), ("adversary", "agent"))),
        module_calls(critic(), critic(MASK_KEY), {"observation": OBSERVATION, "action": ACTION}),
        actions.map(lambda wrong: Misuse(lambda: critic()(agent_data(OBSERVATION, wrong[0])), wrong[1], (critic(),))),
    )


def losses():
    good = {"actor": actor(), "critic": critic()}
    no_modules = NO_MODULE | st.builds(net)
    other = bicnet.BiCNetCritic(N_INPUTS, N_ACTIONS, group="others")
    moves = bicnet.BiCNetCritic(N_INPUTS, N_ACTIONS, in_keys=[("agents", "observation"), ("agents", "move")])
    options = {"gamma": NO_FRACTION, "delay_actor": NO_BOOL, "loss_function": NO_STRING | WORD}
    data = agent_data(OBSERVATION, ACTION)
    data["next"] = data.clone()
    masked = bicnet.make_ddpg_loss(actor(MASK_KEY), critic(MASK_KEY))
    return st.one_of(
        one_wrong(bicnet.make_ddpg_loss, good, tuple(good.values()), **options),
        (no_modules | st.builds(critic)).map(
            lambda wrong: Misuse(
                lambda: bicnet.make_ddpg_loss(wrong, critic()), ("BiCNetActor", type(wrong).__name__), (critic(),)
            )
        ),
        (no_modules | st.builds(actor)).map(
            lambda wrong: Misuse(
                lambda: bicnet.make_ddpg_loss(actor(), wrong), ("BiCNetCritic", type(wrong).__name__), (actor(),)
            )
        ),
        st.sampled_from([(other, "others"), (critic(MASK_KEY), "mask"), (moves, "move")]).map(
            lambda wrong: Misuse(lambda: bicnet.make_ddpg_loss(actor(), wrong[0]), (wrong[1],), (wrong[0],))
        ),
        st.just(Misuse(lambda: masked(data), ("mask",), (actor(MASK_KEY), critic(MASK_KEY)), (KeyError,))),
    )


@cache
def noise(**options):
    return bicnet.ExplorationNoise(actor().spec, sigma=0.5, **options)


def noises():
    good = {"spec": actor().spec, "sigma": 0.5}
    sigmas = st.sampled_from([(0.5, 0.1), (0.1,), (0.1, 0.2, 0.3), "ab", ("a", "b"), (0.1, None), (0.1, 1j), {}])
    correlation = NO_FRACTION | st.just(1.0)

    def explore(module, **entries):
        with set_exploration_type(ExplorationType.RANDOM):
            return module(
                TensorDict(
                    {"agents": {k: v for k, v in entries.items() if k != "is_init"}}
                    | {k: v for k, v in entries.items() if k == "is_init"},
                    [],
                )
            )

    plain, correlated, masked = noise(), noise(correlation=0.5), noise(mask_key=MASK_KEY)
    is_init = torch.ones(2, 1, dtype=torch.bool)
    actions = st.one_of(
        tensor_strategy(SHAPES.filter(lambda shape: len(shape) < 2 or shape[-1] != N_ACTIONS), ("action",)),
        st.sampled_from([torch.int64, torch.bool]).map(lambda dtype: (ACTION.to(dtype), ("action", str(dtype)))),
    )
    inits = st.one_of(
        SHAPES.filter(lambda shape: shape != [2, 1]).map(
            lambda shape: (torch.ones(shape, dtype=torch.bool), ("is_init", str(tuple(shape)), "(2, 1)"))
        ),
        st.sampled_from([torch.float32, torch.int64]).map(lambda dtype: (is_init.to(dtype), ("is_init", str(dtype)))),
    )
    states = tensor_strategy(SHAPES.filter(lambda shape: shape != [2, 3, 2]), ("exploration_noise", "(2, 3, 2)"))
    masks = wrong_masks().filter(lambda wrong: isinstance(wrong[0], Tensor))
    key_errors = st.sampled_from(
        [
            (plain, {}, "action"),
            (masked, {"action": ACTION}, "mask"),
            (correlated, {"action": ACTION}, "is_init"),
        ]
    )
    return st.one_of(
        one_wrong(
            bicnet.ExplorationNoise,
            good,
            sigma=sigmas | NOT_ABOVE_0,
            correlation=correlation,
            end_factor=NO_FRACTION,
            annealing_num_steps=NO_COUNT,
            action_key=NO_KEY,
            mask_key=NO_KEY,
            spec=st.sampled_from([None, SPEC, "spec", 3]),
        ),
        WORD.map(
            lambda word: Misuse(
                lambda: bicnet.ExplorationNoise(actor().spec, sigma=0.5, action_key=word), (word,), (), (KeyError,)
            )
        ),
        st.just(Misuse(lambda: bicnet.ExplorationNoise(Composite(a=SPEC, b=SPEC), sigma=0.5), ("a", "b"))),
        st.just(Misuse(lambda: bicnet.ExplorationNoise(Composite(a=Unbounded((3, 2))), sigma=0.5), ("Unbounded",))),
        actions.map(lambda wrong: Misuse(lambda: explore(plain, action=wrong[0]), wrong[1], (plain,))),
        inits.map(
            lambda wrong: Misuse(lambda: explore(correlated, action=ACTION, is_init=wrong[0]), wrong[1], (correlated,))
        ),
        states.map(
            lambda wrong: Misuse(
                lambda: explore(correlated, action=ACTION, is_init=is_init, exploration_noise=wrong[0]), wrong[1]
            )
        ),
        masks.map(lambda wrong: Misuse(lambda: explore(masked, action=ACTION, mask=wrong[0]), wrong[1], (masked,))),
        key_errors.map(lambda case: Misuse(lambda: explore(case[0], **case[1]), (case[2],), (case[0],), (KeyError,))),
    )


def environments():
    good = {"scenario": "navigation", "num_envs": 2}
    groups = st.sampled_from(
        [
            "agents",
            3,
            [],
            {},
            {"team": ["agent_0"]},
            {"team": ["agent_0", "agent_0", "agent_1", "agent_2"]},
            {"team": ["agent_0", "agent_1", "agent_2", "agent_9"]},
            {"team": "agent_0"},
            {3: ["agent_0", "agent_1", "agent_2"]},
            {"a": ["agent_0", "agent_1", "agent_2"], "b": []},
        ]
    )
    options = st.sampled_from(
        [
            {"n_agents": 0},
            {"n_agents": -2},
            {"n_agents": "three"},
            {"n_agents": 2.5},
            {"n_agents": None},
            {"lidar_range": "far"},
            {"agents_with_same_goal": 99},
            {"world_spawning_x": None},
        ]
    )
    return st.one_of(
        one_wrong(
            bicnet.make_vmas_env,
            good,
            scenario=NO_STRING | WORD | st.just(nn.Module),
            num_envs=NO_COUNT,
            max_steps=NO_COUNT.filter(lambda value: value is not None),
            device=NO_DEVICE,
            seed=NO_SEED,
            pad=NO_BOOL | st.just(True),
            check_actions=NO_BOOL,
            cuda_graph=NO_BOOL | st.just(True),  # without a CUDA device
        ),
        groups.map(
            lambda groups: Misuse(
                lambda: bicnet.make_vmas_env("navigation", 2, n_agents=N_AGENTS, group_map=groups), ("group_map",)
            )
        ),
        options.map(
            lambda options: Misuse(
                lambda: bicnet.make_vmas_env("navigation", 2, **options), ("navigation", *options, repr(options))
            )
        ),
        WORD.map(lambda word: Misuse(lambda: bicnet.make_vmas_env("navigation", 2, **{word: 1}), (word, "n_agents"))),
        st.sampled_from(["continuous_actions", "world", "grad_enabled", "clamp_actions"]).map(
            lambda name: Misuse(lambda: bicnet.make_vmas_env("navigation", 2, **{name: True}), (name,))
        ),
    )


def snapshots():
    return one_wrong(bicnet.snapshot, {}, env=NO_ENV | FOREIGN_ENV)


def restores():
    taken = bicnet.snapshot(env())
    paths = sorted(path for path in taken.plain if path != "made by")
    keys = sorted(taken.tensors.keys())

    def restored(tensors=None, plain=None):
        tensors = taken.tensors if tensors is None else tensors
        return bicnet.restore(env(), WorldSnapshot(tensors, taken.plain if plain is None else plain))

    def misuse(says, **parts):
        return Misuse(lambda: restored(**parts), says, (env(),))

    entries = st.sampled_from([None, 3, [], {}, "x", {"is": "nothing", "items": []}, {"items": [{}]}])
    tensors = st.sampled_from([torch.zeros(7, 5), torch.zeros(()), torch.zeros(2, 2, dtype=torch.int64)])
    return st.one_of(
        one_wrong(bicnet.restore, {"snapshot": taken}, env=NO_ENV | FOREIGN_ENV),
        one_wrong(bicnet.restore, {"env": env()}, (env(),), snapshot=st.sampled_from([None, 3, {}, "x", taken.plain])),
        st.sampled_from([{}, None, 3, [], {"made by": 3}, {"made by": {}}]).map(
            lambda plain: Misuse(lambda: bicnet.restore(env(), WorldSnapshot(taken.tensors, plain)), ("snapshot",))
        ),
        (st.sampled_from(["world", "scenario", "environment"]) | st.sampled_from(paths)).map(
            lambda path: misuse((path.split(".")[0],), plain={k: v for k, v in taken.plain.items() if k != path})
        ),
        st.builds(
            lambda path, entry: misuse(("damaged",), plain=taken.plain | {path: entry}), st.sampled_from(paths), entries
        ),
        st.sampled_from(keys).map(lambda key: misuse((key,), tensors=taken.tensors.exclude(key))),
        st.builds(
            lambda key, value: misuse((key, str(tuple(value.shape))), tensors=taken.tensors.clone().set(key, value)),
            st.sampled_from([key for key in keys if taken.tensors[key].numel() > 1]),
            tensors,
        ),
        st.builds(
            lambda num_envs: Misuse(
                lambda: bicnet.restore(bicnet.make_vmas_env("navigation", num_envs, n_agents=N_AGENTS), taken),
                ("num_envs", str(num_envs)),
            ),
            st.sampled_from([1, 3]),
        ),
        st.just(Misuse(lambda: bicnet.restore(two_groups(), taken), ("navigation", "simple_tag"), (two_groups(),))),
    )


def writes(value):
    """A policy that writes this action."""

    def policy(td):
        return td if value is None else td.set(("agents", "action"), value)

    return policy


def rollouts(function, **more):
    """Wrong arguments that evaluate and what calls it share."""
    good = {"env": env(), "policy": actor(), "max_steps": MAX_STEPS, "seed": 0} | more
    no_policy = st.sampled_from([None, 3, "actor", {}, TensorDict()])
    options = {
        "max_steps": NO_COUNT,
        "seed": NO_SEED if function in (bicnet.evaluate, rendering.record) else NO_SEED | st.none(),
    }
    return one_wrong(function, good, (env(), actor()), env=NO_ENV, policy=no_policy, **options)


def evaluations():
    actions = st.one_of(
        st.sampled_from([(2, 3), (2, 3, 1), (2, 3, 3), (2, 3, 2, 2)]).map(
            lambda shape: (torch.zeros(shape), ("action", str(shape), "(2, 3, 2)"))
        ),
        st.sampled_from([torch.int64, torch.bool, torch.complex64]).map(
            lambda dtype: (ACTION.to(dtype), ("action", str(dtype), "float32"))
        ),
    )
    evaluate = partial(bicnet.evaluate, max_steps=MAX_STEPS, seed=0)
    return st.one_of(
        rollouts(bicnet.evaluate),
        actions.map(lambda wrong: Misuse(lambda: evaluate(env(), writes(wrong[0])), wrong[1])),
        st.just(Misuse(lambda: evaluate(env(), writes(None)), ("('agents', 'action')",), (), (KeyError,))),
        st.sampled_from([None, 3, "td"]).map(
            lambda result: Misuse(lambda: evaluate(env(), lambda td: result), ("policy", type(result).__name__))
        ),
        st.just(Misuse(lambda: evaluate(pendulum(), actor()), ("batch size", "()"))),
    )


def results():
    good = {"returns": {"agents": torch.zeros(2, 3)}, "lengths": torch.ones(2), "seed": 0}
    tensors = st.sampled_from([3, "x", [1.0, 2.0], torch.zeros(3), torch.zeros(2, 1), torch.zeros(())])
    returns = st.sampled_from(
        [None, [], {}, torch.zeros(2, 3), {"agents": torch.zeros(2)}, {"agents": [1.0]}, {3: torch.zeros(2, 3)}]
    )
    return one_wrong(
        bicnet.Evaluation,
        good,
        returns=returns,
        lengths=tensors | st.none(),
        success=tensors | st.just(torch.zeros(2)),
        collisions=tensors,
        seed=NO_SEED,
    )


def pairs():
    no_evaluation = st.sampled_from([None, 3, {}, "x", torch.zeros(2)])
    first = evaluation()
    others = st.sampled_from(
        [
            (evaluation(seed=1), "1"),
            (evaluation(seed=None), "None"),
            (evaluation(n_episodes=3), "(3, 3)"),
            (evaluation(groups=("team",)), "team"),
        ]
    )
    return st.one_of(
        one_wrong(
            bicnet.paired_difference,
            {"first": first, "second": first},
            first=no_evaluation,
            second=no_evaluation,
        ),
        others.map(lambda other: Misuse(lambda: bicnet.paired_difference(first, other[0]), (other[1],))),
    )


def channels():
    return st.one_of(
        one_wrong(
            analysis.Channel,
            {},
            direction=NO_STRING | WORD,
            window=NO_INTEGER.filter(lambda value: value is not None) | st.integers(max_value=-1),
            bits=NO_COUNT.filter(lambda value: value is not None) | st.integers(min_value=17),
            drop=NO_FRACTION,
            noise=NOT_ABOVE_0,
            positions=st.sampled_from([3, "01", (-1,), (0.5,), (True,), ("x",), [None], ()]),
            radius=st.just(1.0),
        ),
        one_wrong(
            partial(analysis.Channel, positions=(0, 1)),
            {},
            radius=NOT_ABOVE_0.filter(lambda value: value not in (None, float("inf"))),
        ),
    )


def entered(manager, *arguments, **options):
    with manager(*arguments, **options):
        pass


def interventions():
    far = analysis.Channel(radius=1.0, positions=(0, 99))

    def used():
        with analysis.intervene(net(), far):
            net()(torch.zeros(2, N_AGENTS, 5))

    good = {"policy": net(), "channel": analysis.Channel()}
    return st.one_of(
        one_wrong(
            partial(entered, analysis.intervene), good, (net(),), policy=NO_MODULE, channel=NO_MODULE | st.none()
        ),
        st.builds(nn.Linear, st.integers(1, 9), st.just(1)).map(
            lambda module: Misuse(lambda: entered(analysis.intervene, module, far), ("BiCNet", "Linear"), (module,))
        ),
        st.just(Misuse(used, ("positions", "99", "5"), (net(),))),
    )


def orders():
    def used(n_agents):
        with analysis.reorder(net(), torch.arange(4)):
            net()(torch.zeros(2, n_agents, 5))

    order = st.sampled_from(
        [
            None,
            3,
            [0, 1, 2],
            "012",
            torch.tensor([0.0, 1.0]),
            torch.tensor(0),
            torch.tensor([0, 2]),
            torch.tensor([1, 1]),
        ]
    )
    good = {"policy": net(), "order": torch.arange(N_AGENTS)}
    return st.one_of(
        one_wrong(partial(entered, analysis.reorder), good, (net(),), policy=NO_MODULE),
        order.map(
            lambda order: Misuse(
                lambda: entered(analysis.reorder, net(), order),
                ("order", (*said(order), str(order.tolist()) if isinstance(order, Tensor) else str(order))),
                (net(),),
            )
        ),
        st.sampled_from([1, 3, 5]).map(lambda n: Misuse(partial(used, n), ("4 agents", str(n)), (net(),))),
        st.just(Misuse(lambda: entered(analysis.reorder, nn.Linear(1, 1), torch.arange(3)), ("BiCNet", "Linear"))),
    )


def influences(function):
    states = agent_data(OBSERVATION)
    wrong = wrong_inputs(N_INPUTS).filter(lambda wrong: isinstance(wrong[0], Tensor) and 0 not in wrong[0].shape)
    return st.one_of(
        one_wrong(
            function,
            {"actor": actor(), "states": states},
            (actor(),),
            actor=NO_MODULE | st.builds(critic) | st.builds(net),
            states=NO_TENSORDICT,
        ),
        WORD.map(
            lambda word: Misuse(
                lambda: function(actor(), TensorDict({word: OBSERVATION}, [2])),
                ("observation", word),
                (actor(),),
                (KeyError,),
            )
        ),
        wrong.map(lambda wrong: Misuse(lambda: function(actor(), agent_data(wrong[0])), wrong[1], (actor(),))),
        st.just(Misuse(lambda: function(actor(MASK_KEY), states), ("mask",), (actor(MASK_KEY),), (KeyError,))),
        st.just(Misuse(lambda: analysis.influence_matrix(actor(), TensorDict({}, [0, 2])), ("state", "(0, 2)"))),
    )


def channel_values():
    value = partial(analysis.channel_value, env(), max_steps=MAX_STEPS, seed=0)
    return st.one_of(
        rollouts(analysis.channel_value, channels={"cut": analysis.Channel(window=0)}),
        st.one_of(NO_MAPPING, st.sampled_from([{"cut": 3}, {"cut": None}, {"cut": "forward"}])).map(
            lambda channels: Misuse(
                lambda: value(actor(), channels),
                (("channels", "channel", "cut"), said(channels if not isinstance(channels, dict) else channels["cut"])),
                (env(), actor()),
            )
        ),
        st.just(Misuse(lambda: value(nn.Linear(1, 1), {}), ("BiCNet", "Linear"), (env(),))),
    )


def channel_results():
    good = {"intact": evaluation(), "changed": {"cut": evaluation()}}
    return one_wrong(
        analysis.ChannelValue,
        good,
        intact=st.sampled_from([None, 3, {}, "x"]),
        changed=st.sampled_from([None, 3, [evaluation()], "x", {"cut": None}, {"cut": 3}]),
    )


def order_results():
    good = {
        "orders": torch.tensor([[0, 1, 2], [2, 1, 0]]),
        "evaluations": [evaluation(), evaluation()],
        "action_std": torch.zeros(N_AGENTS),
        "group": "agents",
    }
    return one_wrong(
        analysis.OrderSensitivity,
        good,
        orders=st.sampled_from([None, [[0, 1, 2]], torch.zeros(2), torch.zeros(1, 3), torch.zeros(2, 4)]),
        evaluations=st.sampled_from([None, 3, [None, None], evaluation()]),
        action_std=st.sampled_from([None, [0.0], torch.zeros(()), torch.zeros(5), torch.zeros(3, 3)]),
        group=st.sampled_from([None, 3]) | WORD,
    )


def order_sensitivities():
    good = {"env": env(), "policy": actor(), "max_steps": MAX_STEPS, "seed": 0}
    return st.one_of(
        rollouts(analysis.order_sensitivity),
        one_wrong(
            analysis.order_sensitivity,
            good,
            (env(), actor()),
            max_orders=NO_COUNT | st.just(1),
            group=NO_KEY | WORD,
        ),
        st.just(
            Misuse(
                lambda: analysis.order_sensitivity(**good | {"policy": TensorDictSequential(actor(), actor(MASK_KEY))}),
                ("exactly one", "agents"),
                (env(),),
            )
        ),
    )


def visits():
    return rollouts(analysis.visited_states) | st.just(
        Misuse(lambda: analysis.visited_states(env(), writes(ACTION), max_steps=2, seed=0), ("function",), (env(),))
    )


def plain_state():
    def dense_net(*widths, norm_in=False):
        layers = {f"dense{i}": nn.Linear(*widths[i - 1 : i + 1]) for i in range(1, 5)}
        norms = {f"norm{i}": nn.BatchNorm1d(widths[i - 1]) for i in range(1, 5)}
        return nn.ModuleDict(layers | norms if norm_in else layers)

    lstm = nn.LSTM(4, 4, batch_first=True, bidirectional=True)
    parts = {
        "prev_dense": dense_net(5, 8, 8, 8, 4, norm_in=True),
        "comm_net": nn.ModuleDict({"lstm": lstm}),
        "post_dense": dense_net(8 + 5, 8, 8, 8, 2),
    }
    return nn.ModuleDict(parts).state_dict()


def plain_nets():
    state = plain_state()
    load = bicnet.load_plain_bicnet
    names = st.sampled_from(sorted(name for name in state if "num_batches" not in name))
    errors = (ValueError, TypeError, RuntimeError)
    return st.one_of(
        one_wrong(load, {"state_dict": state}, state_dict=NO_MAPPING | st.just({3: torch.zeros(1)}), device=NO_DEVICE),
        names.map(
            lambda name: Misuse(
                lambda: load({k: v for k, v in state.items() if k != name}), (name, "missing"), (state,)
            )
        ),
        WORD.map(lambda word: Misuse(lambda: load(state | {word: torch.zeros(1)}), (word, "unexpected"), (state,))),
        st.builds(
            lambda name, value: Misuse(
                lambda: load(state | {name: value}), (name, (str(tuple(getattr(value, "shape", ()))), *said(value)))
            ),
            names,
            st.sampled_from([None, 3, "x", [1.0], torch.zeros(3, 3, 3), torch.zeros(())]),
        ),
        names.map(
            lambda name: Misuse(
                lambda: load(state | {name: torch.zeros([size + 1 for size in state[name].shape])}),
                (("shape", "features"),),
                (state,),
                errors,
            )
        ),
        names.map(lambda name: Misuse(lambda: load(state | {name: state[name].long()}), (name, "int64"), (state,))),
    )


@cache
def run_folders(root: Path, n=3) -> tuple[Path, ...]:
    folders = tuple(root / f"run{seed}" for seed in range(n))
    for seed, folder in enumerate(folders):
        (folder / "scalars").mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"options": {"scenario": "navigation", "seed": seed}}))
        (folder / "scalars/evaluation_return.csv").write_text(f"0,-5.0\n600,{seed}.0\n")
    return folders


BAD_JSON = st.sampled_from(
    ["", "{", "null", "[]", "3", "{}", '{"options": 3}', '{"options": []}', '{"options": {"seed": 0}}', "[" * 9999]
)
BAD_ROW = st.sampled_from(["", "x", "1", "1,2,3", "x,1.0", "1.5,2.0", "600;1.0", "1,,", "99999999999999999999,1", "\0"])


def curves(root: Path):
    folders = run_folders(root)
    learning_curves = runs.learning_curves

    def damaged(file, text, says):
        def call():
            copy = root / "damaged"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folders[0], copy)
            (copy / file).write_text(text)
            return learning_curves([copy, *folders[1:]])

        return Misuse(call, (str(root / "damaged" / file), *says), folders)

    fresh = WORD.map(lambda word: root / word)
    return st.one_of(
        fresh.map(
            lambda path: Misuse(lambda: learning_curves([*folders, path]), (str(path),), folders, (FileNotFoundError,))
        ),
        BAD_JSON.map(lambda text: damaged("run.json", text, ())),
        BAD_ROW.filter(bool).map(
            lambda row: damaged("scalars/evaluation_return.csv", f"0,1.0\n{row}\n", ("line 2", repr(row)))
        ),
        st.just(damaged("scalars/evaluation_return.csv", "", ("empty",))),
        one_wrong(
            learning_curves,
            {"folders": folders},
            folders,
            folders=st.sampled_from([None, 3, str(folders[0]), folders[0], [3], [None]]),
            metric=NO_STRING | WORD,
            normalise=st.sampled_from(
                [
                    3,
                    "x",
                    [],
                    {"balance": (0, 1)},
                    {"navigation": 3},
                    {"navigation": (0,)},
                    {"navigation": (1, 1)},
                    {"navigation": (0, float("nan"))},
                    {"navigation": ("0", "1")},
                ]
            ),
            ignore=st.sampled_from(["seed", 3, None]),
        ),
        st.just(Misuse(lambda: learning_curves([]), ("folder",))),
        st.just(Misuse(lambda: learning_curves(folders, normalise={}), ("normalise", "navigation", "none"))),
        st.just(Misuse(lambda: learning_curves([folders[0]] * 2), ("twice", str(folders[0])))),
    )


def quartiles():
    strata = st.sampled_from(
        [
            ([], "[]"),
            ([np.zeros(1)], "[1]"),
            ([np.zeros((2, 3)), np.zeros((2, 4))], "(2, 4)"),
            ([["a", "b"]], "'a'"),
            ("ab", "ab"),
            (3, "3"),
            (None, "None"),
            ([np.zeros(())], "()"),
            ([None], "None"),
        ]
    )
    good = {"strata": [np.zeros(3)]}
    return st.one_of(
        one_wrong(
            runs.interquartile_mean,
            good,
            confidence_level=NO_FRACTION | st.sampled_from([0.0, 1.0]),
            n_resamples=NO_COUNT,
            seed=NO_SEED | st.none(),
        ),
        strata.map(lambda case: Misuse(lambda: runs.interquartile_mean(case[0]), (("strata", "runs"), case[1]))),
    )


def plotted_curves():
    return st.sampled_from([None, 3, "x", [3], [None], evaluation()]).map(
        lambda curves: Misuse(
            lambda: runs.plot_learning_curves(curves), ("curves", (repr(curves), type(curves).__name__))
        )
    ) | st.just(Misuse(lambda: runs.plot_learning_curves([]), ("no curve",)))


def plotted(function, name):
    return one_wrong(function, {}, **{name: st.sampled_from([None, 3, {}, "x", [], evaluation()])})


def plotted_matrices():
    matrices = st.one_of(
        tensor_strategy(SHAPES.filter(lambda shape: len(shape) != 2 or shape[0] != shape[1])),
        st.just((torch.zeros(0, 0), ("(0, 0)",))),
        NO_TENSOR,
    )
    return matrices.map(lambda wrong: Misuse(lambda: analysis.plot_influence(wrong[0]), wrong[1]))


def exemplary_channels():
    return one_wrong(analysis.example_channels, {}, n_agents=NO_COUNT | st.just(1))


@cache
def saved(root: Path) -> bicnet.Checkpoints:
    checkpoints = bicnet.Checkpoints(root / "saved", {"net": net(), "counters": {"frames": 1}}, best_components=["net"])
    checkpoints.save(1)
    checkpoints.save(2)
    checkpoints.save_best(1, 1.0)
    return checkpoints


def rewritten(path: Path, target: Path, **replaced: bytes) -> Path:
    """A checkpoint with other contents of the parts whose names end so, checksums and all."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = next((value for end, value in replaced.items() if name.endswith(end)), old.read(name))
            new.writestr(name, content)
    return target


def damaged_checkpoints(root: Path):
    """(path, what the message says) of files that are no whole checkpoint of these components."""
    folder = root / "damaged_checkpoints"
    folder.mkdir(exist_ok=True)
    whole = saved(root).latest().read_bytes()

    def written(content):
        path = folder / f"checkpoint-{int.from_bytes(hashlib.sha256(content).digest()[:4]):012d}.torchrl"
        path.write_bytes(content)
        return path, (str(path),)

    def manifest(text):
        path = folder / f"checkpoint-{int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]):012d}.torchrl"
        return rewritten(saved(root).latest(), path, **{"manifest.json": text.encode()}), (str(path),)

    return st.one_of(
        st.integers(0, len(whole) - 1).map(lambda length: written(whole[:length])),
        st.binary(max_size=60).map(written),
        WORD.map(lambda word: (root / word, (str(root / word),))),
        st.just((root, (str(root),))),
        st.sampled_from(["", "{", "[]", "3", "{}", '{"components": 3}', '{"components": {}}']).map(manifest),
    )


def verifications(root: Path):
    return st.one_of(
        damaged_checkpoints(root).map(
            lambda wrong: Misuse(
                lambda: runs.verify_checkpoint(wrong[0]), wrong[1], (root / "saved",), (CheckpointError,)
            )
        ),
        one_wrong(runs.verify_checkpoint, {}, path=st.sampled_from([None, 3, []])),
    )


def checkpoints(root: Path):
    good = {"folder": root / "unused", "components": {"net": net()}}
    kept = saved(root)
    untouched = (root / "saved", net())
    others = st.sampled_from(
        [{"net": bicnet.BiCNet(6, 2)}, {"net": net(), "counters": {}, "more": {}}, {"other": net()}, {"net": {}}]
    )
    names = st.sampled_from(["copy.torchrl", "checkpoint-.torchrl", "checkpoint-x.torchrl"])

    def elsewhere(name):
        path = root / "renamed" / name
        path.parent.mkdir(exist_ok=True)
        shutil.copy(kept.latest(), path)
        return Misuse(lambda: kept.load(path), (name,), untouched, (CheckpointError,))

    def load_others(components):
        return Misuse(
            lambda: bicnet.Checkpoints(root / "saved", components).load(kept.latest()),
            (str(kept.latest()),),
            (root / "saved",),
            (CheckpointError,),
        )

    return st.one_of(
        one_wrong(
            bicnet.Checkpoints,
            good,
            (root,),
            folder=st.sampled_from([None, 3, []]),
            components=NO_MAPPING | st.sampled_from([{"net": object()}, {"net": 3}, {3: net()}]),
            keep_last=NO_COUNT,
        ),
        st.builds(
            lambda option, word: Misuse(lambda: bicnet.Checkpoints(**good, **{option: [word]}), (word, "net"), (root,)),
            st.sampled_from(["best_components", "leave_out"]),
            WORD,
        ),
        st.sampled_from(["best_components", "leave_out"]).map(
            lambda option: Misuse(lambda: bicnet.Checkpoints(**good, **{option: "net"}), (option, "net"), (root,))
        ),
        one_wrong(kept.save, {}, untouched, step=NO_COUNT.filter(lambda step: step != 0 or step is False)),
        one_wrong(kept.save_best, {"step": 3, "metric": 2.0}, untouched, metric=NO_NUMBER | st.just(float("nan"))),
        damaged_checkpoints(root).map(
            lambda wrong: Misuse(lambda: kept.load(wrong[0]), wrong[1], untouched, (CheckpointError,))
        ),
        names.map(elsewhere),
        others.map(load_others),
        one_wrong(partial(kept.load, kept.latest()), {}, untouched, map_location=NO_DEVICE),
    )


def collector_states():
    state = bicnet.CollectorState(collector()).state_dict()
    loaded = bicnet.CollectorState(collector()).load_state_dict
    foreign = Collector(pendulum(), frames_per_batch=2, total_frames=2)
    return st.one_of(
        one_wrong(bicnet.CollectorState, {}, collector=NO_ENV),
        st.just(Misuse(lambda: bicnet.CollectorState(foreign), ("make_vmas_env", "PendulumEnv"))),
        st.sampled_from(sorted(state)).map(
            lambda name: Misuse(lambda: loaded({k: v for k, v in state.items() if k != name}), (name,), (env(),))
        ),
        st.builds(
            lambda name, value: Misuse(lambda: loaded(state | {name: value}), ((name, "snapshot"),), (env(),)),
            st.sampled_from(["counters", "carrier", "tensors", "plain"]),
            st.sampled_from([None, 3, [], "x", "[]", "{}", "[" * 9999, {"agents": 3}, {"frames": "x"}]),
        ),
        one_wrong(loaded, {}, (env(),), state=NO_MAPPING),
        st.just(Misuse(lambda: loaded({}), ("counters", "nothing"), (env(),))),
    )


def run_misuses(root: Path):
    folders = run_folders(root)
    log = bicnet.Run(shutil.copytree(folders[0], root / "logged"), total_frames=600).log
    create = bicnet.Run.create
    (root / "file").touch()
    return st.one_of(
        one_wrong(
            bicnet.Run,
            {"folder": folders[0], "total_frames": 600},
            (root,),
            folder=NO_PATH,
            total_frames=NO_COUNT,
            logger=NO_STRING | WORD,
            shown=st.sampled_from(["loss", 3, None, [1]]),
        ),
        WORD.map(
            lambda word: Misuse(
                lambda: bicnet.Run(root / word, total_frames=600), (word,), (root,), (FileNotFoundError,)
            )
        ),
        st.just(Misuse(lambda: create(folders[0], {}), (str(folders[0]),), (root,), (FileExistsError,))),
        st.just(Misuse(lambda: create(root / "file", {}), (str(root / "file"),), (root,), (FileExistsError,))),
        one_wrong(
            partial(create, root / "new"), {}, (root,), options=NO_MAPPING.filter(lambda value: value != [("a", 1)])
        ),
        one_wrong(create, {"options": {}}, (root,), folder=NO_PATH),
        one_wrong(log, {"frames": 600, "metrics": {}}, (root,), frames=NO_INTEGER | st.just(-1), metrics=NO_MAPPING),
        st.sampled_from([float("nan"), float("inf"), torch.tensor(float("nan")), torch.tensor([torch.inf])]).map(
            lambda value: Misuse(lambda: log(600, {"loss": value}), ("loss", "600"), (root,), (FloatingPointError,))
        ),
        st.sampled_from([torch.zeros(2), "x", None, [1.0], torch.zeros(0)]).map(
            lambda value: Misuse(lambda: log(600, {"loss": value}), ("loss",), (root,))
        ),
    )


def read_runs(root: Path):
    def damaged(content):
        folder = root / "damaged_options"
        folder.mkdir(exist_ok=True)
        (folder / "run.json").write_bytes(content)
        return runs.read_options(folder)

    contents = BAD_JSON.filter(lambda text: '{"seed"' not in text).map(str.encode) | st.binary(max_size=40)
    return st.one_of(
        one_wrong(runs.read_options, {}, folder=NO_PATH),
        contents.map(lambda content: Misuse(lambda: damaged(content), (str(root / "damaged_options/run.json"),))),
        WORD.map(
            lambda word: Misuse(
                lambda: runs.read_options(root / word), (str(root / word),), (root,), (FileNotFoundError,)
            )
        ),
    )


def drawings(function, **good):
    """Wrong arguments that `render` and `record` share."""
    good = {"env": env(), "width": 20} | good
    indices = NO_INTEGER | st.integers(max_value=-1) | st.integers(min_value=2)
    worlds = indices.filter(lambda index: not isinstance(index, list)) | st.just([]) | st.lists(indices, min_size=1)
    influence = st.one_of(
        tensor_strategy(SHAPES.filter(lambda shape: shape not in ([3, 3], [2, 3, 3])), ("influence", "(3, 3)")),
        st.sampled_from([-1.0, float("nan"), float("inf")]).map(
            lambda entry: (torch.full((3, 3), entry), ("influence", str(entry)))
        ),
        st.sampled_from([torch.zeros(3, 3, dtype=torch.complex64), torch.zeros(3, 3, device="meta")]).map(
            lambda tensor: (tensor, ("influence", repr(tensor)))
        ),
        NO_TENSOR.filter(lambda wrong: wrong[0] is not None).map(lambda wrong: (wrong[0], ("influence", *wrong[1]))),
    )
    untouched = (env(),)
    return st.one_of(
        one_wrong(
            function,
            good,
            untouched,
            env_index=worlds,
            width=(NO_COUNT | st.integers(min_value=10_001)).filter(lambda value: value is not None),
            columns=(NO_COUNT | st.integers(min_value=2)).filter(lambda value: value is not None),
            agent_index_focus=(NO_INTEGER | st.integers(max_value=-1) | st.integers(min_value=N_AGENTS)).filter(
                lambda value: value is not None
            ),
            group=NO_KEY | WORD,
        ),
        influence.map(lambda wrong: Misuse(lambda: function(**good, influence=wrong[0]), wrong[1], untouched)),
        st.just(
            Misuse(
                lambda: function(**good | {"env": two_groups()}, influence=torch.ones(1, 1)),
                ("adversary", "agent", "group"),
                (two_groups(),),
            )
        ),
    )


def renders():
    return drawings(rendering.render) | one_wrong(rendering.render, {}, env=NO_ENV | FOREIGN_ENV)


def records():
    good = {"policy": actor(), "max_steps": MAX_STEPS, "seed": 0}
    # With a function no matrix is there to be checked before the first step, but the group is.
    film = partial(rendering.record, **good, influence=lambda td: torch.ones(N_AGENTS, N_AGENTS))
    return st.one_of(
        rollouts(rendering.record, width=20),
        drawings(rendering.record, **good),
        one_wrong(film, {"env": env(), "width": 20}, (env(),), group=NO_KEY | WORD),
        st.just(Misuse(lambda: film(env=two_groups()), ("adversary", "agent", "group"), (two_groups(),))),
    )


def films(root: Path):
    folder = root / "films"
    (folder / "folder.gif").mkdir(parents=True, exist_ok=True)
    good = [np.full((4, 6, 3), grey, dtype=np.uint8) for grey in (0, 100)]
    names = st.sampled_from(["film.gif", "film.mp4"])

    def misuse(frames, says, name="film.gif", errors=(ValueError, TypeError), **options):
        return Misuse(lambda: rendering.save_film(frames, folder / name, **options), says, (folder,), errors)

    frames = st.sampled_from(
        [
            ([*good, good[0][:2]], "(2, 6, 3)"),
            ([good[0][..., 0]], "(4, 6)"),
            ([good[0][..., :2]], "(4, 6, 2)"),
            ([good[0][:0]], "(0, 6, 3)"),
            ([good[0] / 255], "float64"),
            ([*good, None], "None"),
            ([torch.zeros(4, 6, 3, dtype=torch.uint8)], "tensor"),
            ("xx", "'x'"),
            ([], "[]"),
            (None, "None"),
            (3, "3"),
        ]
    )
    fps = NOT_ABOVE_0 | st.sampled_from([0, 1e-9, 1e6, 2**70])
    return st.one_of(
        st.builds(lambda frames, name: misuse(frames[0], ("rames", frames[1]), name), frames, names),
        st.builds(lambda fps, name: misuse(good, ("fps", said(fps)), name, fps=fps), fps, names),
        st.integers(51, 999).map(lambda fps: misuse(good, ("fps", str(fps)), fps=fps)),
        st.integers(2, 9).map(lambda n: misuse(good[:1] * n, (f"{n * 400}", "655.35"), fps=0.0025)),
        WORD.map(lambda word: misuse(good, (word, ".gif", ".mp4"), f"film.{word}")),
        st.builds(
            lambda word, name: misuse(good, (str(folder / word),), f"{word}/{name}", (FileNotFoundError,)), WORD, names
        ),
        st.just(misuse(good, (str(folder / "folder.gif"),), "folder.gif", (IsADirectoryError,))),
        one_wrong(rendering.save_film, {"frames": good}, (folder,), path=NO_PATH),
    )


STRATEGIES: dict[str, Callable[..., st.SearchStrategy[Misuse]]] = {
    "AttentionCommunication": attention,
    "BiCNet": bicnet_net,
    "BiCNetActor": actors,
    "BiCNetCritic": critics,
    "Channel": channels,
    "ChannelValue": channel_results,
    "Checkpoints": checkpoints,
    "CollectorState": collector_states,
    "Evaluation": results,
    "ExplorationNoise": noises,
    "MeanCommunication": mean,
    "NoCommunication": none,
    "OrderSensitivity": order_results,
    "RecurrentCommunication": recurrent,
    "Run": run_misuses,
    "channel_value": channel_values,
    "evaluate": evaluations,
    "example_channels": exemplary_channels,
    "influence": lambda: influences(analysis.influence),
    "influence_matrix": lambda: influences(analysis.influence_matrix),
    "interquartile_mean": quartiles,
    "intervene": interventions,
    "learning_curves": curves,
    "load_plain_bicnet": plain_nets,
    "make_ddpg_loss": losses,
    "make_vmas_env": environments,
    "order_sensitivity": order_sensitivities,
    "paired_difference": pairs,
    "plot_channel_value": lambda: plotted(analysis.plot_channel_value, "value"),
    "plot_influence": plotted_matrices,
    "plot_learning_curves": plotted_curves,
    "plot_order_sensitivity": lambda: plotted(analysis.plot_order_sensitivity, "sensitivity"),
    "read_options": read_runs,
    "record": records,
    "render": renders,
    "reorder": orders,
    "restore": restores,
    "save_film": films,
    "snapshot": snapshots,
    "verify_checkpoint": verifications,
    "visited_states": visits,
}


def options():
    """Names and values of options of train_vmas.py, as on a command line."""
    no_integer = st.sampled_from(["x", "2.5", "", "1e3"])
    counts = no_integer | st.integers(max_value=0).map(str)
    fractions = st.sampled_from(["x", "nan", "inf", "-0.1", "1.5", "1,5"])
    above_0 = st.sampled_from(["x", "nan", "inf", "0", "-1"])
    values = {
        **dict.fromkeys(("num-envs", "max-steps", "updates-per-batch", "batch-size", "total-frames"), counts),
        **dict.fromkeys(
            ("frames-per-batch", "buffer-size", "eval-interval", "checkpoint-interval"),
            counts.filter(lambda count: count != "0"),  # which leaves it to the script
        ),
        **dict.fromkeys(("eval-episodes", "test-episodes"), counts | st.just("1")),
        "hidden-size": counts,
        "num-cells": counts.filter(bool),
        "seed": no_integer | st.sampled_from(["-1", str(2**32)]),
        **dict.fromkeys(("gamma", "tau", "sigma-fraction"), fractions),
        **dict.fromkeys(("actor-lr", "critic-lr"), above_0),
        "max-grad-norm": above_0.filter(lambda value: value != "inf"),  # which clips nothing
        "sigma-start": st.sampled_from(["x", "nan", "inf", "-1", "0"]),
        "sigma-end": st.sampled_from(["x", "nan", "inf", "-1", "7"]),
        **dict.fromkeys(("scenario", "device", "communication", "logger", "checkpoint-buffer"), WORD),
        "scenario-options": st.sampled_from(["n_agent 3", "n_agents 0", "n_agents three", "max_steps 3", "n_agents"]),
        "pad": st.just(""),
    }
    return st.one_of(
        [
            st.builds(lambda name, value: [f"--{name}", *value.split()], st.just(name), values)
            for name, values in values.items()
        ]
    ) | WORD.map(lambda word: [f"--{word}", "1"])


def evaluation_options():
    """Names and values of options of evaluate_vmas.py, as on a command line."""
    no_integer = st.sampled_from(["x", "2.5", "", "1e3"])
    counts = no_integer | st.integers(max_value=0).map(str)
    values = {
        **dict.fromkeys(("episodes", "picture-episodes"), counts | st.just("1")),
        **dict.fromkeys(("film-episodes", "film-steps"), counts),
        "film-width": counts | st.integers(min_value=10_001).map(str),
        "film-columns": counts | st.integers(min_value=7).map(str),
        "seed": no_integer | st.sampled_from(["-1", str(2**32)]),
        "film": WORD | st.sampled_from(["", ".gif", "a/b.gif", "../a.mp4", "a.avi"]),
        **dict.fromkeys(("checkpoint", "device"), WORD | st.just("")),
        "output": st.just(evaluate_vmas.__file__),
    }
    return st.one_of(
        [st.builds(lambda name, value: [f"--{name}", value], st.just(name), values) for name, values in values.items()]
    ) | WORD.map(lambda word: [f"--{word}", "1"])


def evaluation_script(arguments: list[Any]) -> str:
    """What evaluate_vmas.py says when it refuses its arguments; in this process."""
    said = io.StringIO()
    with (
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        patch.object(sys, "argv", [evaluate_vmas.__file__, *map(str, arguments)]),
        patch.object(sys, "path", [*sys.path]),
        pytest.raises(SystemExit) as exit,
    ):
        runpy.run_path(evaluate_vmas.__file__, run_name="__main__")
    assert exit.value.code == 2 or exit.value.code.startswith("error: "), exit.value.code
    assert "Traceback" not in said.getvalue()
    return said.getvalue() + (exit.value.code if isinstance(exit.value.code, str) else "")


def script(arguments: list[Any]) -> str:
    """What train_vmas.py says when it refuses its arguments; in this process."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), pytest.raises(SystemExit) as exit:
        train_vmas.main(tyro.cli(train_vmas.Arguments, args=list(map(str, arguments))))
    # tyro's own refusals end with 2, those of the script with a line.
    assert exit.value.code == 2 or exit.value.code.startswith("error: "), exit.value.code
    assert "Traceback" not in said.getvalue()
    return said.getvalue() + (exit.value.code if isinstance(exit.value.code, str) else "")


QUICK = {"total_frames": 80, "frames_per_batch": 40, "checkpoint_interval": 40, "eval_interval": 40, "num_envs": 4}
QUICK |= {"max_steps": 5, "updates_per_batch": 1, "batch_size": 4, "eval_episodes": 2, "test_episodes": 2}
QUICK |= {"hidden_size": 4, "num_cells": (8,), "buffer_size": 100}


@pytest.fixture(scope="module")
def finished(root):
    """The folder of a run of train_vmas.py."""
    folder = root / "finished"
    train_vmas.main(train_vmas.Arguments(**QUICK, run_folder=folder))
    return folder


def damages(folder: Path):
    """Ways to damage a run folder, each with what the script must say about it."""
    newest = max((folder / "checkpoints").glob("*.torchrl")).relative_to(folder)
    content = (folder / newest).read_bytes()
    about = json.loads((folder / "run.json").read_text())

    def write(file, data, *says):
        return file, data, says

    def changed(change):
        return write("run.json", json.dumps(about | {"options": about["options"] | change}).encode(), *change)

    def lacking(name):
        kept = {key: value for key, value in about["options"].items() if key != name}
        return write("run.json", json.dumps(about | {"options": kept}).encode(), name)

    types = {name: NO_NUMBER if type(value) in (int, float) else st.just(3.5) for name, value in QUICK.items()}
    of_another_run = [{"hidden_size": 8}, {"communication": "gru"}, {"num_envs": 2}, {"scenario": "simple_spread"}]
    return st.one_of(
        st.sampled_from(
            ["", "{", "null", "[]", "3", "{}", '{"options": 3}', "[" * 9999, '{"options": {"seed": 0}}']
        ).map(lambda text: write("run.json", text.encode(), "run.json")),
        st.binary(max_size=40).map(lambda data: write("run.json", data, "run.json")),
        st.one_of(
            [
                values.filter(lambda value: not isinstance(value, complex)).map(
                    partial(lambda n, v: changed({n: v}), name)
                )
                for name, values in types.items()
            ]
        ),
        st.sampled_from([{"seed": -1}, {"gamma": 2.0}, {"num_cells": [0]}, {"tau": float("nan")}, {"word": 1}]).map(
            changed
        ),
        st.sampled_from(sorted(about["options"])).map(lacking),
        st.sampled_from(of_another_run).map(lambda change: (*changed(change)[:2], (str(newest),))),
        st.integers(0, len(content) - 1).map(lambda length: write(newest, content[:length], str(newest), "older")),
        st.binary(max_size=60).map(lambda data: write(newest, data, str(newest), "older")),
        st.just(write("checkpoints/copy.torchrl", content, "copy.torchrl", "older")),
        st.just(write("scalars", b"", "scalars")),
    )


def evaluation_damages(folder: Path):
    """Ways to damage a run folder (a file, its contents or None), and what evaluate_vmas.py must say about each."""
    about = json.loads((folder / "run.json").read_text())
    saved = bicnet.Checkpoints(folder / "checkpoints", {})
    policies = {"last": saved.latest(), "best": saved.best()}

    def options(change):
        kept = {key: value for key, value in (about["options"] | change).items() if value != "lacking"}
        return json.dumps(about | {"options": kept}).encode()

    def damaged(which):
        content, path = policies[which].read_bytes(), policies[which].relative_to(folder)
        # TorchRL looks for the best among those whose manifests it can read.
        says = (str(path),) if which == "last" else ((str(path), "no best checkpoint yet, or a damaged one"),)
        others = [{"hidden_size": 8}, {"communication": "gru"}, {"scenario": "simple_spread"}]
        return st.one_of(
            st.integers(0, len(content) - 1).map(lambda length: (which, path, content[:length], says)),
            st.binary(max_size=60).map(lambda data: (which, path, data, says)),
            st.sampled_from(others).map(lambda change: (which, Path("run.json"), options(change), says)),
        )

    texts = BAD_JSON.map(str.encode) | st.binary(max_size=40)
    wrong = [{"seed": -1}, {"gamma": 2.0}, {"num_cells": [0]}, {"max_steps": "5"}, {"word": 1}]
    wrong += [{name: "lacking"} for name in about["options"]]
    return st.one_of(
        damaged("last"),
        damaged("best"),
        st.just(("last", Path("checkpoints"), None, ("no last checkpoint",))),
        st.just(("best", Path("checkpoints"), None, ("no best checkpoint",))),
        st.just(("last", Path("run.json"), None, ("run.json",))),
        st.just(("last", Path("scalars"), None, ("evaluation_return",))),
        texts.map(lambda data: ("last", Path("run.json"), data, ("run.json",))),
        st.sampled_from(wrong).map(lambda change: ("last", Path("run.json"), options(change), (*change,))),
        BAD_ROW.map(
            lambda row: ("last", Path("scalars/evaluation_return.csv"), row.encode(), ("evaluation_return.csv",))
        ),
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("malformed")


@cache
def strategy(name: str, root: Path) -> st.SearchStrategy[Misuse]:
    make = STRATEGIES[name]
    return make(root) if inspect.signature(make).parameters else make()


FIXED = settings(derandomize=True, deadline=None, database=None, phases=[Phase.generate])


def test_every_public_name_is_misused():
    public = {*bicnet.__all__, *analysis.__all__, *rendering.__all__, *runs.__all__} - {"LearningCurve"}  # a result
    assert STRATEGIES.keys() == public


@pytest.mark.filterwarnings("ignore:No target network updater:UserWarning")
@pytest.mark.parametrize("name", STRATEGIES)
@settings(FIXED, max_examples=60)
@given(data=st.data())
def test_misuse_is_refused_by_name(name, data, root):
    MESSAGES.setdefault(name, set()).add(refused(data.draw(strategy(name, root))))


@settings(FIXED, max_examples=250)  # of some 40 options with about 5 values
@given(arguments=options())
def test_train_vmas_refuses_a_wrong_option_before_anything_is_written(arguments, root):
    before = fingerprint(root)
    # An option that is accepted shall not train for minutes.
    with patch.object(train_vmas, "train", side_effect=AssertionError(f"accepted {arguments}")):
        said = script([*arguments, "--run-folder", root / "run"])
    # Of the scenario's options the message names the one, of a flag what follows it. Elsewhere the value proves little:
    # "0" or "x" may stand in any message.
    named_by_value = arguments[0] in ("--scenario-options", "--checkpoint-buffer")
    name = arguments[1] if named_by_value else arguments[0].removeprefix("--")
    assert any(choice in said for choice in (name, name.replace("-", "_"))), said
    assert fingerprint(root) == before
    MESSAGES.setdefault("train_vmas.py", set()).add(said)


@settings(FIXED, max_examples=60)
@given(data=st.data())
def test_train_vmas_does_not_resume_a_damaged_run_and_leaves_it_as_it_is(data, finished):
    file, content, says = data.draw(damages(finished))
    folder = finished.with_name("damaged_run")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(finished, folder)
    if (folder / file).is_dir():
        shutil.rmtree(folder / file)
    (folder / file).write_bytes(content)
    before = fingerprint(folder)
    said = script(["--resume", folder / file if "copy" in str(file) else folder])
    assert all(part in said for part in says), said
    assert fingerprint(folder) == before
    MESSAGES.setdefault("train_vmas.py --resume", set()).add(said)


@settings(FIXED, max_examples=15)
@given(word=WORD, seed=st.integers(1, 9))
def test_train_vmas_resumes_nothing_but_a_run_with_its_own_options(word, seed, finished):
    before = fingerprint(finished.parent)
    assert word in script(["--resume", finished / word])
    assert "seed beside --resume" in script(["--resume", finished, "--seed", seed])
    assert fingerprint(finished.parent) == before


@settings(FIXED, max_examples=5)
@given(row=BAD_ROW)
def test_train_vmas_restores_a_damaged_csv_file_from_the_checkpoint(row, finished):
    folder = shutil.copytree(finished, finished.with_name("damaged_csv"), dirs_exist_ok=True)
    (folder / "scalars/evaluation_return.csv").write_text(row)
    train_vmas.main(train_vmas.Arguments(resume=folder))
    for name in ("evaluation_return", "loss_value"):
        assert (folder / f"scalars/{name}.csv").read_text() == (finished / f"scalars/{name}.csv").read_text()


@settings(FIXED, max_examples=60)
@given(arguments=evaluation_options())
def test_evaluate_vmas_refuses_a_wrong_option_before_anything_is_written(arguments, finished):
    before = fingerprint(finished)
    said = evaluation_script([finished, *arguments])
    name, value = arguments[0].removeprefix("--"), arguments[1]
    assert name in said or name.replace("-", "_") in said, said
    assert value in said
    assert fingerprint(finished) == before
    MESSAGES.setdefault("evaluate_vmas.py", set()).add(said)


@settings(FIXED, max_examples=25)
@given(data=st.data())
def test_evaluate_vmas_refuses_a_damaged_run_and_leaves_it_as_it_is(data, finished):
    which, file, content, says = data.draw(evaluation_damages(finished))
    folder = finished.with_name("damaged_evaluation")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "pictures")  # so that an empty one would be seen
    if (folder / file).is_dir():
        shutil.rmtree(folder / file)
    elif content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    before = fingerprint(folder)
    said = evaluation_script([folder, "--checkpoint", which, "--episodes", 2, "--picture-episodes", 2])
    for part in says:
        assert any(choice in said for choice in ((part,) if isinstance(part, str) else part)), said
    assert fingerprint(folder) == before
    MESSAGES.setdefault("evaluate_vmas.py, a damaged run", set()).add(said)


def test_these_were_two_hundred_and_more():
    if len(MESSAGES) < len(STRATEGIES) + 4:
        pytest.skip("counts what the tests above found, all of them")
    assert sum(map(len, MESSAGES.values())) >= 200
