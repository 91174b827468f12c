"""Misuse of every public name, argument by argument: a table of calls with one thing wrong and what their errors say.

Each row ends in an error that names the argument or the value found, and leaves environments, networks and files as
they were. Damaged files are in test_damaged_files.py, options of the scripts with the scripts.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torch import nn
from torchrl.checkpoint import CheckpointError
from torchrl.collectors import Collector
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import ExplorationType, PendulumEnv, set_exploration_type

import torchrl_bicnet as bicnet
from examples.train_vmas import Options
from torchrl_bicnet import analysis, rendering, runs

ROOMS = (bicnet, analysis, rendering, runs)
NO_CALLS = {"EVAL_SEED", "TEST_SEED"}  # constants
NO_CALLS |= {"ChannelValue", "Evaluation", "LearningCurve", "LinearProbe", "OrderSensitivity", "TrainedRun"}  # results
PUBLIC = {name: getattr(room, name) for room in ROOMS for name in room.__all__ if name not in NO_CALLS}

REFUSED = (TypeError, ValueError)
BY_TORCH = (*REFUSED, RuntimeError, AssertionError)  # where torch's own error is as clear
NAN, INF = float("nan"), float("inf")
OBSERVATION, ACTION, MASK = ("agents", "observation"), ("agents", "action"), ("agents", "mask")

# Arguments of which only another type is wrong, and that Python or torch refuse as clearly.
BY_PYTHON = {
    "BiCNetActor": {"mask_key"},
    "Checkpoints": {"folder"},
    "BiCNetCritic": {"mask_key"},
    "ExplorationNoise": {"mask_key"},
    "Run": {"options"},
    "interquartile_mean": {"seed"},
    "load_plain_bicnet": {"device"},
    "options_of_file": {"kind"},
    "validated": {"kind"},
}


class Row(NamedTuple):
    name: str
    argument: str
    call: Callable[[], Any]
    words: tuple[str, ...]  # one of these stands in the message
    errors: tuple[type[Exception], ...]


def row(name: str, argument: str, call: Callable[[], Any], *words: str, errors=REFUSED) -> Row:
    return Row(name, argument, call, words or (argument,), errors)


def each(name: str, good: dict[str, Any], /, call=None, errors=REFUSED, **wrong: list[Any]) -> Iterator[Row]:
    """Rows with one argument wrong, the others good; the message has the argument's name or what was found."""
    for argument, values in wrong.items():
        for value in values:
            words = [argument, *said(value)]
            yield row(name, argument, partial(call or PUBLIC[name], **good | {argument: value}), *words, errors=errors)


def said(value: Any) -> list[str]:
    """How a message may speak of a value; of 0 or -1, which stand in any message, nothing."""
    if isinstance(value, Path):
        return [value.name]
    looks, kind = repr(value), type(value).__name__
    return [looks] * (len(looks) > 2) + [kind] * (len(kind) > 5)


def make_env(num_envs=2, **options):
    return bicnet.make_vmas_env("navigation", num_envs, max_steps=3, seed=0, **{"n_agents": 3} | options)


class Parts:
    """What the calls are made on, and what none of them may change."""

    def __init__(self, folder: Path) -> None:
        self.env, self.two_groups = make_env(), bicnet.make_vmas_env("simple_tag", 2, seed=0)
        small = {"hidden_size": 4, "num_cells": (8,)}
        self.net = bicnet.BiCNet(5, 2, **small)
        self.actor = bicnet.BiCNetActor.from_env(self.env, **small)
        self.critic = bicnet.BiCNetCritic.from_env(self.env, **small)
        self.masked_actor = bicnet.BiCNetActor.from_env(self.env, mask_key=MASK, **small)
        self.masked_critic = bicnet.BiCNetCritic.from_env(self.env, mask_key=MASK, **small)
        self.states = TensorDict({OBSERVATION: torch.zeros(2, 3, 18), ACTION: torch.zeros(2, 3, 2)}, [])
        self.folder, self.runs = folder, [folder / f"run{seed}" for seed in range(3)]
        for seed, run in enumerate(self.runs):
            (run / "scalars").mkdir(parents=True)
            (run / "run.json").write_text(json.dumps({"options": {"scenario": "navigation", "seed": seed}}))
            (run / "scalars/evaluation_return.csv").write_text(f"0,-5.0\n600,{seed}.0\n")
        (folder / "file").touch()
        (folder / "folder.gif").mkdir()
        components = {"net": self.net, "counters": {"frames": 1}}
        self.checkpoints = bicnet.Checkpoints(folder / "saved", components, best_components=["net"])
        self.checkpoints.save(1)

    def fingerprint(self) -> Any:
        worlds = [bicnet.snapshot(env) for env in (self.env, self.two_groups)]
        modules = (self.net, self.actor, self.critic, self.masked_actor, self.masked_critic)
        return (
            [[world.plain, [value.tolist() for value in world.tensors.values()]] for world in worlds],
            [[value.tolist() for value in module.state_dict().values()] for module in modules],
            [[part.training, len(part._forward_hooks), len(part._forward_pre_hooks)] for part in self.net.modules()],
            {path: path.is_file() and hashlib.sha256(path.read_bytes()).digest() for path in self.folder.rglob("*")},
        )


def in_forward(name: str, layer: Callable[..., Any]) -> Iterator[Row]:
    """Wrong inputs of a layer or net that reads 5 features of each agent."""
    for shape in ((2, 3, 6), (5,), (2, 0, 5)):
        yield row(name, "x", partial(layer, torch.zeros(shape)), str(shape), "(2, 0, ")  # of no agents
    for mask in (torch.ones(2, 3), torch.ones(2, 4, dtype=torch.bool), torch.ones(3, dtype=torch.bool)):
        yield row(name, "mask", partial(layer, torch.zeros(2, 3, 5), mask=mask), "mask", "boolean", errors=BY_TORCH)
    if name != "NoCommunication":  # which has no weights
        yield row(name, "x", partial(layer, torch.zeros(2, 3, 5).double()), "float64", "ouble", errors=BY_TORCH)


def layers(parts: Parts) -> Iterator[Row]:
    sizes = {"in_features": [0, 2.5], "out_features": [0, "4"]}
    where = {"device": ["gpu"], "dtype": [torch.int64, "float32"]}
    good = {"in_features": 5, "out_features": 4}
    name = "AttentionCommunication"
    yield from each(name, good, **sizes, num_heads=[0, 3])
    yield from each(name, good, errors=BY_TORCH, **where)
    yield from in_forward(name, bicnet.AttentionCommunication(5, 4))
    name, good = "RecurrentAttentionCommunication", {"in_features": 5, "out_features": 8}
    yield from each(name, good, in_features=[0, 2.5], out_features=[0, "4", 6], num_heads=[0, 3], cell=["transformer"])
    yield from each(name, good, errors=BY_TORCH, **where)
    yield from in_forward(name, bicnet.RecurrentAttentionCommunication(5, 8))
    name, good = "MeanCommunication", {"in_features": 5, "out_features": 4}
    yield from each(name, good, **sizes)
    yield from each(name, good, errors=BY_TORCH, **where)
    yield from in_forward(name, bicnet.MeanCommunication(5, 4))
    name = "NoCommunication"
    yield from each(name, {}, in_features=[0, "5"])
    yield from in_forward(name, bicnet.NoCommunication(5))
    name, good = "RecurrentCommunication", {"in_features": 5, "hidden_size": 4}
    yield from each(name, good, in_features=[0, 2.5], hidden_size=[0, "4"], num_layers=[0, 1.5])
    yield from each(name, good, cell=["transformer", None], implementation=["fast"])
    yield from each(name, good, errors=BY_TORCH, **where)
    yield from in_forward(name, bicnet.RecurrentCommunication(5, 4))
    yield from in_forward(name, bicnet.RecurrentCommunication(5, 4, implementation="loop"))
    fused, mask = bicnet.RecurrentCommunication(5, 4, implementation="fused"), torch.ones(2, 3, dtype=torch.bool)
    yield row(name, "mask", lambda: fused(torch.zeros(2, 3, 5), mask), "fused")


def networks(parts: Parts) -> Iterator[Row]:
    name, good = "BiCNet", {"n_agent_inputs": 5, "n_agent_outputs": 2}
    own = bicnet.BiCNet(5, 2, share_params=False, n_agents=3)
    yield from each(name, good, n_agent_inputs=[0], n_agent_outputs=["2"], hidden_size=[0, 2.5])
    yield from each(name, good, num_cells=[8, (0,), ("8",)], skip=[99, -1], communication=["telepathy", nn.LSTM])
    yield from each(name, good, norm_class=["LayerNorm", nn.BatchNorm1d], activation_class=["relu", nn.ReLU()])
    yield from each(name, good, encoder=["mlp"], decoder=["mlp"], n_frequencies=[-1, 2.5], n_smooth_inputs=[-1, 100])
    yield from each(name, good | {"share_params": False}, n_agents=[0, None])
    yield from each(name, good, errors=BY_TORCH, device=["gpu"])
    yield row(name, "encoder", lambda: bicnet.BiCNet(5, 2, encoder=nn.Identity()), "Identity")
    yield from in_forward(name, parts.net)
    yield from in_forward(name, own)
    yield row(name, "inputs", lambda: own(torch.zeros(2, 4, 5)), "(2, 4, 5)")
    yield row(name, "inputs", lambda: parts.net(torch.zeros(2, 3, 2), torch.zeros(2, 4, 3)), "(2, 4, 3)")
    yield row(name, "inputs", parts.net, "input")

    spec, two_spec = Bounded(-1.0, 1.0, (3, 2)), Bounded(-1.0, 1.0, (2,))
    over_batch = Bounded(torch.tensor([[[0.0]], [[1.0]]]), torch.full((2, 1, 1), 2.0))
    keys = {"group": [3], "in_keys": [OBSERVATION, [3]], "out_keys": [OBSERVATION, [3], []]}
    keys["net"] = ["lstm", nn.ReLU]
    name, actor = "BiCNetActor", partial(bicnet.BiCNetActor, 5)
    yield from each(name, {"n_agent_inputs": 5, "action_spec": spec}, n_agent_inputs=[0, "5"], **keys)
    yield from each(name, {"n_agent_inputs": 5}, action_spec=[Unbounded((3, 2)), Categorical(4, (3,))])
    yield row(name, "action_spec", lambda: actor(Bounded(-1, 1, (3, 2), dtype=torch.int64)), "int64")
    yield row(name, "action_spec", lambda: actor(Bounded(-1.0, INF, (3, 2))), "inf")
    yield row(name, "action_spec", lambda: actor(Bounded(NAN, 1.0, (3, 2))), "nan")
    yield row(name, "action_spec", lambda: actor(two_spec), "(2,)")
    yield row(name, "action_spec", lambda: actor(over_batch), "batch")
    yield row(name, "action_spec", lambda: actor(Composite(a=spec)), "'action'", errors=(KeyError,))
    yield row(name, "net_options", lambda: actor(spec, hiden_size=3), "hiden_size")
    yield row(name, "net_options", lambda: actor(spec, net=own, hidden_size=3), "hidden_size")
    yield row(name, "net", lambda: actor(spec, net=bicnet.BiCNet(7, 1)), "7 and 1")
    name, good = "BiCNetCritic", {"n_agent_inputs": 5, "n_agent_actions": 2}
    yield from each(name, good, n_agent_inputs=[0, "5"], n_agent_actions=[0, "2"], **keys)
    yield row(name, "net_options", lambda: bicnet.BiCNetCritic(5, 2, hiden_size=3), "hiden_size")
    for name in ("BiCNetActor", "BiCNetCritic"):
        from_env, wrong = PUBLIC[name].from_env, {"env": ["navigation", None], "group": ["team", 3]}
        yield from each(name, {"env": parts.env}, call=from_env, **wrong, in_keys=[OBSERVATION])
        yield row(name, "env", partial(from_env, PendulumEnv()), "group")
        yield row(name, "group", partial(from_env, parts.two_groups), "['adversary', 'agent']")
        yield row(name, "in_keys", partial(from_env, parts.env, in_keys=["speed"]), "speed", errors=(KeyError,))
    modules = {parts.actor: OBSERVATION, parts.masked_actor: MASK, parts.critic: ACTION, parts.masked_critic: MASK}
    for module, key in modules.items():
        name, without = type(module).__name__, parts.states.clone().exclude(key)
        yield row(name, "tensordict", partial(module, without), key[-1], errors=(KeyError,))

    name = "load_plain_bicnet"
    yield from each(name, {}, state_dict=[nn.ReLU(), 3])
    yield row(name, "state_dict", lambda: bicnet.load_plain_bicnet({"a.weight": torch.zeros(1)}), "a.weight")


def learning(parts: Parts) -> Iterator[Row]:
    name, actor, critic, make = "make_ddpg_loss", parts.actor, parts.critic, bicnet.make_ddpg_loss
    others = bicnet.BiCNetCritic(18, 2, group="others")
    moves = bicnet.BiCNetCritic(18, 2, in_keys=[OBSERVATION, ("agents", "move")])
    yield from each(name, {"actor": actor, "critic": critic}, gamma=[99, NAN], loss_function=["huber", None])
    yield from each(name, {"actor": actor, "critic": critic}, saturation_penalty=[-1.0, NAN, None])
    yield row(name, "actor", lambda: make(parts.net, critic), "found BiCNet,")
    yield row(name, "critic", lambda: make(actor, actor), "found BiCNetActor, BiCNetActor")
    yield row(name, "critic", lambda: make(actor, others), "'others'")
    yield row(name, "critic", lambda: make(actor, parts.masked_critic), "mask_key")
    yield row(name, "critic", lambda: make(actor, moves), "'move'")

    name = "UpdateStep"
    good = {"loss": make(actor, critic), "actor_lr": 1e-3, "critic_lr": 1e-3, "tau": 0.01}
    numbers = {key: [-1.0, NAN, None] for key in ("actor_lr", "critic_lr", "max_grad_norm")}
    yield from each(name, good, loss=[None, actor], tau=[-0.1, 1.1, NAN, None], **numbers)
    yield from each(name, good, autocast=["bfloat16", torch.int64], compile=["yes", None], actor_warmup=[-1, 2.5])

    name = "RewardScale"
    yield from each(name, {"rms": 0.2}, rms=[0.0, -1.0, NAN, None], reward_key=[3, ("next", 3)])
    yield from each(name, {"rms": 0.2}, errors=BY_TORCH, device=["gpu"])
    yield row(name, "tensordict", partial(bicnet.RewardScale(0.2), parts.states), "next", errors=(KeyError,))

    name, shuffle = "shuffle_agents", bicnet.shuffle_agents
    yield from each(name, {"tensordict": parts.states.clone()}, group=[3, ("agents", 3)])
    yield row(name, "group", lambda: shuffle(parts.states.clone(), "team"), "'team'", errors=(KeyError,))
    yield row(name, "tensordict", lambda: shuffle(TensorDict({"x": torch.zeros(2)}, [2])), "['x']", errors=(KeyError,))

    name, good = "AgentMemory", {"n_agent_inputs": 3, "hidden_size": 4, "n_agents": 2}
    yield from each(name, good, n_agent_inputs=[0, 2.5], hidden_size=[0, None], n_agents=[0, "2"])
    yield from each(name, good, cell=["rnn", None], group=[3], name=[3], in_key=[3], mask_key=[3])
    yield from each(name, good, errors=BY_TORCH, device=["gpu"])

    name, spec = "ExplorationNoise", actor.spec
    good = {"spec": spec, "sigma": 0.5}
    two_actions = Composite(a=spec[ACTION], b=spec[ACTION])
    noise = bicnet.ExplorationNoise(spec, sigma=0.5, correlation=0.5)

    def explore(**entries):
        with set_exploration_type(ExplorationType.RANDOM):
            noise(parts.states.clone().update(entries))

    yield from each(name, good, spec=[None, Composite(a=Unbounded((3, 2)))])
    yield row(name, "spec", lambda: bicnet.ExplorationNoise(two_actions, sigma=0.5), "['a', 'b']")
    yield from each(name, good, sigma=[-0.1, NAN, (0.5, 0.1), (0.1, INF), (0.1, 0.2, 0.3)])
    yield from each(name, good, correlation=[1.0, -0.1, NAN], end_factor=[1.1, -0.1, None])
    yield from each(name, good, annealing_num_steps=[0, 2.5])
    yield from each(name, good, errors=(KeyError,), action_key=["move"])
    yield row(name, "is_init", explore, errors=(KeyError,))
    yield row(name, "is_init", lambda: explore(is_init=torch.zeros(2, 3, 1, dtype=torch.bool)))


def environments(parts: Parts) -> Iterator[Row]:
    name, good, make = "make_vmas_env", {"scenario": "navigation", "num_envs": 2}, bicnet.make_vmas_env
    yield from each(name, good, scenario=["navigatoin", nn.Module], num_envs=[0, "2"], max_steps=[0, 2.5])
    yield from each(name, good, seed=[-1, 2**32, "0"], pad=[True])  # equal agents
    yield from each(name, good, compile=["yes"], grad_enabled=["yes"])
    yield from each(name, good, continuous_actions=["no"], multidiscrete_actions=["no", True])
    yield from each(name, good, errors=BY_TORCH, device=["gpu"])
    groups = [{"team": agents} for agents in (["agent_0"], ["agent_0"] * 2, ["agent_0", "agent_9"])]
    yield from each(name, good | {"n_agents": 2}, group_map=["agents", *groups])
    for option in ({"n_agent": 3}, {"n_agents": "three"}, {"agents_with_same_goal": 99}, {"dict_spaces": True}):
        yield row(name, "scenario_kwargs", partial(make, "navigation", 2, **option), *option)

    world, restore = bicnet.snapshot(parts.env), bicnet.restore
    for name in ("snapshot", "detach"):
        yield from each(name, {}, env=[None, parts.actor, PendulumEnv()])
    yield from each("restore", {"snapshot": world}, env=[None, PendulumEnv()])
    foreign = replace(world, plain={})
    yield from each("restore", {"env": parts.env}, snapshot=[None, world.plain, foreign])
    yield row("restore", "snapshot", lambda: restore(make_env(num_envs=1), world), "num_envs is 2 in the snapshot")
    yield row("restore", "snapshot", lambda: restore(make_env(n_agents=2), world), "n_agents is 3 in the snapshot")
    yield row("restore", "snapshot", lambda: restore(parts.two_groups, world), "navigation.Scenario")

    state = bicnet.CollectorState(Collector(make_env(), parts.actor, frames_per_batch=4, total_frames=8))
    yield from each("CollectorState", {}, collector=[None, parts.env])
    yield from each("CollectorState", {}, call=state.load_state_dict, state=[None, [("a", 1)], {}])


def evaluations(parts: Parts) -> Iterator[Row]:
    env, actor, used = parts.env, parts.actor, make_env()  # the last is of the rows that fail after the reset
    rollout = {"env": env, "policy": actor, "max_steps": 3, "seed": 0}
    wrong = {"env": ["navigation", None], "policy": ["actor", None], "max_steps": [0, 2.5], "seed": [-1, "0", None]}

    def evaluate(policy):
        return partial(bicnet.evaluate, used, policy, max_steps=1)

    yield from each("evaluate", rollout, **wrong | {"seed": [-1, "0"]})
    yield row("evaluate", "policy", evaluate(lambda td: td), "('agents', 'action')", errors=(KeyError,))
    yield row("evaluate", "policy", evaluate(lambda td: td.set(ACTION, torch.zeros(2, 3, 3))), "(2, 3, 3)")
    yield row("evaluate", "policy", evaluate(lambda td: td.set(ACTION, torch.zeros(2, 3, 2).bool())), "bool")
    yield row("evaluate", "policy", evaluate(lambda td: None), "NoneType")
    yield from each("visited_states", rollout, **wrong)
    channels = {"channels": {"cut": analysis.Channel(window=0)}}
    yield from each("channel_value", rollout | channels, **wrong, channels=[["cut"]])
    two = TensorDictSequential(actor, parts.masked_actor)
    yield from each("order_sensitivity", rollout, **wrong, max_orders=[1, 2.5], group=["team"])
    yield row("order_sensitivity", "policy", lambda: analysis.order_sensitivity(**rollout | {"policy": two}), "exactly")

    returns, lengths = {"agents": torch.zeros(2, 3)}, torch.ones(2)
    first = bicnet.Evaluation(returns, lengths, seed=0)
    good = {"returns": returns, "lengths": lengths}
    yield from each("paired_difference", {"first": first, "second": first}, first=[None, returns], second=["x"])
    for changes, words in (
        ({"seed": 1}, "0 and 1"),
        ({"returns": {"agents": torch.zeros(3, 3)}, "lengths": torch.ones(3)}, "(3, 3)"),
        ({"returns": {"team": torch.zeros(2, 3)}}, "team"),
    ):
        other = bicnet.Evaluation(**{"seed": 0} | good | changes)
        yield row("paired_difference", "second", partial(bicnet.paired_difference, first, other), words)


def looks_inside(parts: Parts) -> Iterator[Row]:
    def entered(manager, n_agents=3, **arguments):
        with manager(**arguments):
            parts.net(torch.zeros(2, n_agents, 5))

    name = "Channel"
    yield from each(
        name, {}, direction=["up", None], window=[-1, 1.5], bits=[0, 17, 2.5], radius=[1.0]
    )  # of no positions
    yield from each(name, {}, drop=[1.1, -0.1, NAN, "0.5"], noise=[-0.1, INF, None], positions=[(-1,), ("x",), 3])
    yield from each(name, {"positions": (0, 1)}, radius=[-1.0, NAN])
    yield from each("example_channels", {}, n_agents=[1, "3"])
    name, intervene = "intervene", partial(entered, analysis.intervene)
    good = {"policy": parts.net, "channel": analysis.Channel()}
    far = analysis.Channel(radius=1.0, positions=(0, 99))
    yield from each(name, good, call=intervene, policy=[len, nn.Linear(2, 2)], channel=[None, "cut"])
    yield row(name, "channel", lambda: intervene(policy=parts.net, channel=far), "(0, 99)")
    name, reorder = "reorder", partial(entered, analysis.reorder)
    good, orders = {"policy": parts.net, "order": torch.arange(3)}, (torch.tensor(o) for o in ([0, 0, 1], [1, 2, 3]))
    yield from each(name, good, call=reorder, policy=[len, nn.Linear(2, 2)], order=[[0, 1], torch.zeros(3), *orders])
    yield row(name, "order", lambda: reorder(**good, n_agents=4))

    good = {"actor": parts.actor, "states": parts.states}
    for name in ("influence", "influence_matrix"):
        yield from each(name, good, actor=[parts.net, parts.critic], states=[None, torch.zeros(2, 3, 18)])
        for actor, states, key in ((parts.actor, {}, "agents"), (parts.masked_actor, parts.states, "mask")):
            call = partial(PUBLIC[name], actor, TensorDict(states, [2]))
            yield row(name, "states", call, key, errors=(KeyError,))
    yield row(name, "states", lambda: analysis.influence_matrix(parts.actor, TensorDict({}, [0])), "(0,)")

    yield from each("plot_influence", {}, matrix=[None, [[1.0]], torch.zeros(2, 3)])
    name, knowledge = "linear_probe", parts.states[OBSERVATION][..., :2]
    states = TensorDict({**parts.states, "episode": torch.zeros(len(knowledge))}, knowledge.shape[:1])
    good = {"actor": parts.actor, "states": states, "knowledge": knowledge}
    yield from each(name, good, actor=[None, parts.net], states=[None], knowledge=[None, knowledge[:, :1]])
    yield row(name, "states", partial(analysis.linear_probe, **good), "found 1")  # episode
    truth = torch.rand(4, 3, 2)
    probe = analysis.LinearProbe(truth, *3 * [truth.expand(3, -1, -1, -1)])
    yield from each("plot_linear_probe", {"probe": probe}, probe=[None], receiver=[-1, 3], knower=[-1, 3])
    yield from each("plot_channel_value", {}, value=[None, {"cut": 1.0}])
    yield from each("plot_order_sensitivity", {}, sensitivity=[None, [1.0]])


def pictures(parts: Parts) -> Iterator[Row]:
    rendering.render(parts.env, width=20)  # VMAS notes what is drawn at the first picture
    drawing = {"env_index": [2, -1, 0.5, "0", []], "width": [0, 70.5, 10_001], "columns": [0], "group": ["team", 3]}
    drawing |= {"influence": ["all", torch.ones(2, 2), torch.full((3, 3), NAN), -torch.ones(3, 3)]}
    two = {"env": parts.two_groups, "influence": torch.ones(1, 1)}
    yield from each("render", {"env": parts.env}, **drawing, agent_index_focus=[3, -1])
    yield from each("render", {}, env=["navigation", PendulumEnv()])
    yield row("render", "group", partial(rendering.render, **two), "['adversary', 'agent']")
    rollout = {"env": parts.env, "policy": parts.actor, "max_steps": 2, "seed": 5}
    yield from each("record", rollout, env=["navigation"], policy=["actor"], max_steps=[0], seed=[-1], **drawing)
    yield row("record", "group", partial(rendering.record, **rollout | two), "['adversary', 'agent']")
    yield row("record", "drawing", partial(rendering.record, **rollout, widht=3), "widht")

    name, save, folder = "save_film", rendering.save_film, parts.folder
    frames = [np.full((4, 6, 3), grey, dtype=np.uint8) for grey in (0, 100)]
    yield from each(name, {"frames": frames}, path=[None, 3, folder / "film.avi", folder / "film"])
    yield from each(name, {"frames": frames}, errors=(OSError,), path=[folder / "missing/a.gif", folder / "folder.gif"])
    bad_frames = [None, [], "xx", [frames[0] / 255], [frames[0][..., 0]], [*frames, frames[0][:2]]]
    for path, fps in ((folder / "film.gif", [0, 60, NAN, "10", 0.0001]), (folder / "film.mp4", [-1, INF, 1e6])):
        yield from each(name, {"frames": frames, "path": path}, fps=fps, frames=bad_frames)
    yield row(name, "fps", lambda: save(frames[:1] * 2, folder / "film.gif", fps=0.0025), "655.35")


def files(parts: Parts) -> Iterator[Row]:
    name, folder, kept = "Checkpoints", parts.folder, parts.checkpoints
    good = {"folder": folder / "unused", "components": {"net": parts.net}}
    yield from each(name, good, components=[{"net": 3}], keep_last=[0, 2.5])
    for option in ("best_components", "leave_out"):
        yield row(name, option, partial(bicnet.Checkpoints, **good, **{option: ["critic"]}), "critic")
    yield from each(name, {}, call=kept.save, step=[-1, 2.5])
    yield from each(name, {"step": 3}, call=kept.save_best, metric=[NAN])
    yield from each(name, {}, call=kept.load, path=[])
    yield from each(
        name, {}, call=kept.load, errors=(CheckpointError,), path=[folder, folder / "file", folder / "missing"]
    )
    load = partial(kept.load, kept.latest(), map_location="gpu")
    yield row(name, "map_location", load, "Expected one of cpu, cuda", errors=(CheckpointError,))
    yield from each("verify_checkpoint", {}, errors=(CheckpointError,), path=[folder, folder / "file"])

    name, good = "learning_curves", {"folders": parts.runs}
    yield from each("read_options", {}, errors=(FileNotFoundError,), folder=[folder, folder / "missing"])
    yield from each(name, good, folders=[None, str(parts.runs[0]), [], [parts.runs[0]] * 2])
    yield from each(name, good, metric=["reward", 3], ignore=["seed"])
    yield from each(name, good, normalise=[{}, {"balance": (0, 1)}, {"navigation": (1, 1)}])
    yield from each("plot_learning_curves", {}, curves=[None, [3], []])
    name, good = "interquartile_mean", {"strata": [np.zeros(3)]}
    yield from each(name, good, strata=[[np.zeros((2, 3)), np.zeros((2, 4))], 3])
    yield from each(name, good, confidence_level=[95, 0.0, NAN], n_resamples=[0, 2.5])
    for strata in ([], [np.zeros(1)]):
        yield row(name, "strata", partial(runs.interquartile_mean, strata), "two runs")

    yield from each("load_run", {"folder": parts.runs[0]}, checkpoint=["first"])
    yield from each("load_run", {}, errors=(FileNotFoundError,), folder=[folder, folder / "missing"])
    yield from each("load_run", {"folder": parts.runs[0]}, errors=BY_TORCH, device=["gpu"])
    for option, value in (("seed", -1), ("speed", 1)):
        yield row("validated", "values", partial(runs.validated, Options, {option: value}), option)

    (folder / "wrong.yaml").write_text("speed: 1")
    yield row("options_of_file", "path", partial(runs.options_of_file, Options, folder / "wrong.yaml"), "wrong.yaml")
    missing = partial(runs.options_of_file, Options, folder / "missing.yaml")
    yield row("options_of_file", "path", missing, "missing.yaml", errors=(FileNotFoundError,))

    name = "Run"

    def enter(folder: Path) -> None:
        with bicnet.Run(folder, {}):
            pass

    yield from each(name, {}, call=enter, errors=(FileExistsError,), folder=[*parts.runs, folder / "file"])
    start = {"components": {}, "total_frames": 9}
    call = bicnet.Run(folder / "unused", {}).start
    yield from each(name, start, call=call, total_frames=[0, 2.5], logger=["x"], progress=["x"])


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Parts:
    return Parts(tmp_path_factory.mktemp("misuse"))


@cache
def table(parts: Parts) -> list[Row]:
    rooms = (layers, networks, learning, environments, evaluations, looks_inside, pictures, files)
    return [row for room in rooms for row in room(parts)]


def problem(row: Row, parts: Parts) -> str | None:
    """What is wrong with the end of this call, if anything is."""
    before = parts.fingerprint()
    try:
        found = f"no error, but {row.call()!r}"
    except Exception as error:
        # A message may begin with the argument's name, or speak of one of them.
        said = str(error).lower()
        right = isinstance(error, row.errors) and any(word.lower().removesuffix("s") in said for word in row.words)
        found = None if right else f"{type(error).__name__}: {error}"
    if parts.fingerprint() != before:
        found = f"something changed; {found}"
    return found and f"{row.argument}: expected {row.errors} with one of {row.words}, found {found}"


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_misuse_is_refused_by_name(name, parts):
    rows = [row for row in table(parts) if row.name == name]
    problems = [found for row in rows if (found := problem(row, parts))]
    assert not problems, "\n".join(problems)
    # A bool is taken by its truth where no row says otherwise.
    parameters = inspect.signature(PUBLIC[name]).parameters.values()
    refused = {each.name for each in parameters if each.annotation != "bool"} - BY_PYTHON.get(name, set())
    assert refused <= {row.argument for row in rows}
