"""A scenario of a user's runs as its author wrote it; under compile=True it works or is refused by name."""

import importlib.util
import itertools
import traceback

import pytest
import torch
import vmas
from tensordict import TensorDict
from vmas.scenarios.navigation import Scenario as Navigation
from vmas.simulator.core import Agent, Landmark, Sphere, World
from vmas.simulator.scenario import BaseScenario
from vmas.simulator.utils import ScenarioUtils

from tests.helpers_vmas import assert_plays_like_vmas, assert_same, simulator, steps, waits
from torchrl_bicnet import make_vmas_env

B = 32  # makes `logaddexp` round as in VMAS


class Crowd(BaseScenario):
    """Agents that push each other towards a landmark, written as users write."""

    limit = torch.inf

    def make_world(self, batch_dim, device, **kwargs):
        ScenarioUtils.check_kwargs_consumed(kwargs)
        world = World(batch_dim, device)
        for i in range(3):
            world.add_agent(Agent(f"agent_{i}", shape=Sphere(0.2)))
        world.add_landmark(Landmark("goal", collide=False))
        self.reward_of_team = torch.zeros(batch_dim, device=device)
        return world

    def reset_world_at(self, env_index=None):
        for entity in self.world.entities:
            shape = (self.world.batch_dim, 2) if env_index is None else (1, 2)
            entity.set_pos(torch.rand(shape), batch_index=env_index)

    def reward(self, agent):
        apart = self.world.get_distance(agent, self.world.landmarks[0])
        reward = torch.where(apart < 0.1, 1.0, -apart)
        reward[apart > 0.5] -= torch.tensor(0.25)
        for other in self.world.agents:
            if self.world.collides(agent, other):
                reward[self.world.get_distance(agent, other) < 0] -= 1
        return reward

    def observation(self, agent):
        return torch.cat([agent.state.pos, agent.state.vel], -1)

    def done(self):
        return self.world.get_distance(self.world.agents[0], self.world.landmarks[0]) < 0.05


class Curriculum(Crowd):
    """Lighter from step to step, with a list of what each environment has seen, and noise."""

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.lesson = 0
        self.met = [0] * self.world.batch_dim

    def post_step(self):
        self.lesson += 1
        for agent in self.world.agents:
            agent.mass = 1 / self.lesson
        for i, near in enumerate(self.world.is_overlapping(*self.world.agents[:2]).tolist()):
            self.met[i] += near
        self.world.agents[0].state.vel += 0.01 * torch.randn(self.world.batch_dim, 2)

    def observation(self, agent):
        return torch.cat([super().observation(agent), torch.tensor(self.met).unsqueeze(-1)], -1)


class Asserting(Crowd):
    def reward(self, agent):
        assert (agent.state.pos.abs() < self.limit).all(), f"{agent.name} left the place"
        return super().reward(agent)


class Printing(Crowd):
    def post_step(self):
        print("another step")


class PrintingNumbers(Crowd):
    def post_step(self):
        print(f"at {self.world.agents[0].state.pos[0, 0]:.6f}")


def ours_and_stock(scenario):
    return simulator(make_vmas_env(scenario(), B)), vmas.make_env(scenario(), B)


@pytest.mark.parametrize("scenario", [Crowd, Curriculum, Asserting])
def test_it_plays_as_in_vmas_to_the_bit(scenario):
    ours, stock = ours_and_stock(scenario)
    assert_plays_like_vmas(ours, stock, n_steps=30, reset_every=12)
    if scenario is Curriculum:
        assert ours.scenario.lesson == stock.scenario.lesson == 6
        assert ours.scenario.met == stock.scenario.met
        assert any(ours.scenario.met)


class PrintingResets(Curriculum):
    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        print("reset of", env_index)


def test_it_is_reset_one_by_one_as_in_vmas(capsys, recwarn):
    """To the bit, from the same stream; a list of each environment and what is printed too."""
    env, stock = make_vmas_env(PrintingResets(), B), vmas.make_env(PrintingResets(), B)
    ours, printed = simulator(env), []
    for environment in (ours, stock):
        environment.seed(3), environment.reset()
        capsys.readouterr()
        for _ in range(3):
            environment.step([torch.full((B, 2), 0.5)] * 3)
            if environment is stock:
                for index in (1, 4):
                    stock.reset_at(index, return_observations=False)
                expected = stock.get_from_scenario(True, False, True, True)
            else:
                mask = torch.isin(torch.arange(B), torch.tensor([1, 4])).unsqueeze(-1)
                found = env.base_env._reset(TensorDict({"_reset": mask}, [B]))
        printed.append(capsys.readouterr().out)
    assert torch.equal(found["agents", "observation"], torch.stack(expected[0], 1))
    assert printed[0] == printed[1] == "reset of 1\nreset of 4\n" * 3
    assert ours.scenario.met == stock.scenario.met
    assert not recwarn.list


def test_its_file_may_be_named_as_one_of_vmas(tmp_path):
    """Two scenarios of VMAS are known by their names, of which parts are written anew."""
    file = tmp_path / "joint_passage.py"
    own = "class Scenario(Crowd):\n    def info(self, agent):\n        return {}\n"
    file.write_text(f"from tests.test_users_scenario import Crowd\n{own}")
    spec = importlib.util.spec_from_file_location("mine", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make_vmas_env(module.Scenario(), 2).rollout(3)


@pytest.mark.parametrize("scenario", [Crowd, Curriculum, Asserting, Printing])
def test_its_class_is_its_own(scenario):
    assert type(simulator(make_vmas_env(scenario(), B)).scenario) is scenario


@pytest.mark.parametrize("scenario", [Printing, PrintingNumbers])
def test_it_prints_as_in_vmas(scenario, capsys):
    ours, stock = ours_and_stock(scenario)
    printed = []
    for environment in (ours, stock):
        environment.seed(0), environment.reset()
        capsys.readouterr()
        for _ in range(3):
            environment.step([torch.ones(B, 2)] * 3)
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert printed[0].count("\n") == 3


def error_of(environment):
    """The step at which an agent goes too far, the message, and the lines of the scenario's functions."""
    environment.seed(0), environment.reset()
    environment.scenario.limit = 1.5
    for step in itertools.count():
        try:
            environment.step([torch.ones(B, 2)] * 3)
        except AssertionError as error:
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == "reward"]
            lines = [(frame.filename, frame.lineno, frame.line) for frame in frames]
            return step, str(error).splitlines()[0], lines  # pytest adds more


def test_its_assertion_fires_as_in_vmas():
    ours, stock = ours_and_stock(Asserting)
    found = error_of(ours)
    assert found == error_of(stock)
    step, message, ((filename, _, line),) = found
    assert step > 1
    assert message == "agent_1 left the place"
    assert filename == __file__
    assert line.startswith("assert (agent.state.pos.abs() < self.limit).all()")


def test_compiled_it_works():
    outputs = []
    for options in ({}, {"compile": True}):
        env = make_vmas_env(Crowd(), B, seed=0, **options)
        outputs.append(steps(env, env.reset(), 6))
    assert type(simulator(env).scenario).reward is not Crowd.reward  # it asked for more
    for found, expected in zip(*reversed(outputs)):
        for key in ("observation", "reward"):
            torch.testing.assert_close(found["agents", key], expected["agents", key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("scenario", "problem"),
    [
        (Curriculum, r"tolist reads a tensor on the host, in test_users_scenario.py:\d+"),
        (Asserting, r"_local_scalar_dense reads a tensor on the host, in test_users_scenario.py:\d+"),
        (Printing, r"print writes text, in test_users_scenario.py:\d+"),
        (PrintingNumbers, r"_local_scalar_dense reads a tensor on the host, in test_users_scenario.py:\d+"),
    ],
)
def test_compiled_it_is_refused_by_name(scenario, problem):
    with pytest.raises(ValueError, match=f"A step of {scenario.__name__} cannot be compiled: .*{problem}"):
        make_vmas_env(scenario(), B, compile=True)


class Mine(Navigation):
    """VMAS's navigation with one function of the user's own."""

    def done(self):
        done = torch.zeros(self.world.batch_dim, dtype=torch.bool)
        done[self.world.get_distance(*self.world.agents[:2]) < 0] = True
        return done


def test_what_it_inherits_from_vmas_does_not_wait():
    env = make_vmas_env(Mine(), B, seed=0)
    scenario = simulator(env).scenario
    assert type(scenario).done is Mine.done
    assert type(scenario).reward is not Navigation.reward
    td = env.rand_action(env.rand_step(env.reset())["next"])
    assert {problem.split(", in ")[1].split(":")[0] for problem in waits(env.step, td)} == {"test_users_scenario.py"}
    plain = vmas.make_env(Mine(), B)
    assert_plays_like_vmas(simulator(make_vmas_env(Mine(), B)), plain, n_steps=10, reset_every=5)
    assert_same([simulator(env).done()], [Mine.done(scenario)])
