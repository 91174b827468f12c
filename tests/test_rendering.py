import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import vmas
from torchrl.record import CSVLogger, PixelRenderTransform, VideoRecorder
from vmas.simulator.core import Agent, Box, Landmark, Line, Sphere, World
from vmas.simulator.scenario import BaseScenario
from vmas.simulator.utils import ScenarioUtils

from tests.helpers_vmas import SCENARIOS, Countdown
from torchrl_bicnet import BiCNetActor, make_vmas_env
from torchrl_bicnet.drawing.canvas import Canvas
from torchrl_bicnet.rendering import render

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)

# Every scenario after some random steps, in a process that can import no pyglet, beside a twin that is never drawn.
EVERY_SCENARIO = """
import json, sys, warnings
import torch
from torch.utils._pytree import tree_leaves
from torchrl_bicnet import make_vmas_env
from torchrl_bicnet.rendering import render

class NoPyglet:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "pyglet":
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, NoPyglet())
warnings.simplefilter("ignore")  # of scenarios
found = {}
for scenario in json.loads(sys.argv[1]):
    drawn, twin = (make_vmas_env(scenario, 2, seed=0).base_env._env for _ in range(2))
    equal = []

    def same(outputs):
        equal.extend(torch.equal(a, b) for a, b in zip(*map(tree_leaves, outputs)))

    for _ in range(2):
        same([env.step(env.get_random_actions()) for env in (drawn, twin)])
        before = torch.get_rng_state()
        picture = render(drawn, 1, width=140)
        equal.append(torch.equal(torch.get_rng_state(), before))
    same([env.reset() for env in (drawn, twin)])
    found[scenario] = [picture.shape, drawn.scenario.viewer_size, int((picture < 250).any(-1).sum()), all(equal)]
loaded = [name for name in sys.modules if name.startswith("pyglet") or name == "vmas.simulator.rendering"]
print(json.dumps([found, loaded]))
"""


@pytest.mark.parametrize("scenarios", [SCENARIOS[::9], pytest.param(SCENARIOS, marks=pytest.mark.slow)], ids=len)
def test_every_scenario_is_drawn_without_a_display_and_goes_on_as_if_it_were_not(scenarios):
    environ = {name: value for name, value in os.environ.items() if name != "DISPLAY"}
    command = [sys.executable, "-c", EVERY_SCENARIO, json.dumps(scenarios)]
    result = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=Path(__file__).parents[1])
    assert result.returncode == 0, result.stderr
    found, loaded = json.loads(result.stdout.splitlines()[-1])
    assert loaded == []
    assert list(found) == scenarios
    for scenario, (shape, viewer_size, n_drawn, equal) in found.items():
        assert shape == [round(140 * viewer_size[1] / viewer_size[0]), 140, 3], scenario
        assert n_drawn > 20, scenario
        assert equal, scenario


class Shapes(BaseScenario):
    """In environment i everything is i / 2 further right. The camera shows x from -2 to 2 and y from -1 to 1, 50 pixels
    a unit: the point (x, y) is in row 50 - 50 y and column 100 + 50 x."""

    def make_world(self, batch_dim, device, **kwargs):
        ScenarioUtils.check_kwargs_consumed(kwargs)
        self.viewer_size, self.viewer_zoom, self.plot_grid = (200, 100), 1, False
        world = World(batch_dim, device)
        for i in range(2):
            world.add_agent(Agent(f"agent_{i}", shape=Sphere(0.2), color=(1.0, 0, 0), alpha=1.0))
        shapes = {"box": Box(0.4, 0.2), "line": Line(0.6), "hidden": Sphere(0.5)}
        for name, shape in shapes.items():
            world.add_landmark(Landmark(name, shape=shape, color=(0, 0, 1.0) if name == "box" else (0, 1.0, 0)))
        world.landmarks[2].is_rendering[:] = False
        return world

    def reset_world_at(self, env_index=None):
        assert env_index is None
        right = torch.arange(self.world.batch_dim) / 2
        places = {"agent_0": (-1.0, 0.5), "agent_1": (1.0, 0.5), "box": (-1.0, -0.5), "line": (0.5, -0.5)}
        for entity in self.world.entities:
            x, y = places.get(entity.name, (0.0, 0.0))
            entity.set_pos(torch.stack([x + right, torch.full_like(right, y)], -1), batch_index=None)
        self.world.landmarks[0].set_rot(torch.full((self.world.batch_dim, 1), torch.pi / 2), batch_index=None)

    def observation(self, agent):
        return agent.state.pos

    def reward(self, agent):
        return agent.state.pos[:, 0]


def shapes_env(num_envs=2):
    return make_vmas_env(Shapes(), num_envs)


class TestWhereThingsAre:
    def test_spheres_boxes_lines_and_the_background(self):
        picture = render(shapes_env())
        assert picture.shape == (100, 200, 3)
        assert picture.dtype == np.uint8

        def color(row, column):
            return tuple(picture[row, column])

        # Spheres of radius 10 pixels around (row 25, column 50) and (row 25, column 150).
        for column in (50, 150):
            assert color(25, column) == color(25, column - 8) == color(32, column) == RED
            assert color(25, column - 12) == color(12, column) == WHITE
        # The box stands upright: 20 pixels high and 10 wide around (row 75, column 50).
        assert color(75, 50) == color(67, 50) == color(82, 53) == BLUE
        assert color(75, 57) == color(75, 42) == color(63, 50) == WHITE
        # The line is 2 pixels wide around the upper edge of row 75, from column 110 to column 140.
        assert color(74, 112) == color(75, 137) == GREEN
        assert color(72, 125) == color(77, 125) == color(75, 107) == color(75, 143) == WHITE
        # What is not rendered is not.
        assert color(50, 100) == color(0, 0) == color(99, 199) == WHITE

    def test_the_environment_asked_for(self):
        pictures = render(shapes_env(), 0), render(shapes_env(), 1)
        # The camera is the same: agent 1 of environment 1 is at x = 1.5, in column 175.
        assert np.array_equal(pictures[0][:, 20:160], pictures[1][:, 45:185])

    def test_width_is_in_pixels(self):
        small, large = render(shapes_env(), width=100), render(shapes_env(), width=400)
        assert small.shape == (50, 100, 3)
        assert large.shape == (200, 400, 3)
        assert tuple(small[12, 25]) == tuple(large[50, 100]) == RED
        # Lines get wider with the rest: 4 pixels at twice the size.
        assert [tuple(large[row, 250]) for row in (147, 148, 151, 152)] == [WHITE, GREEN, GREEN, WHITE]

    def test_the_camera_follows_an_agent_and_shows_all_agents(self):
        followed = render(shapes_env(), agent_index_focus=1)
        assert tuple(followed[50, 100]) == RED  # in the middle
        env = shapes_env()
        env.base_env._env.agents[0].set_pos(torch.tensor([10.0, 0.0]), batch_index=0)
        # The camera shows x from -(10 + 2 * 0.2) to that, for a circumscribed radius of 0.2, on 200 pixels.
        column = round(100 + 100 * 10 / 10.4)
        found = render(env)[50, column]  # beside its dark edge
        assert found[0] > 200
        assert (found[1:] == 0).all()

    def test_transparent_colors_are_mixed_with_white(self):
        env = shapes_env()
        env.base_env._env.agents[0]._alpha = 0.5
        found = render(env)[25, 50]
        assert np.abs(found.astype(int) - (255, 127.5, 127.5)).max() < 2


class TestMosaic:
    def test_rows_of_environments_on_grey(self):
        env = shapes_env(5)
        picture = render(env, [4, 0, 1, 2, 3], width=60, columns=3)
        assert picture.shape == (30 + 2 + 30, 60 + 2 + 60 + 2 + 60, 3)
        for place, index in enumerate([4, 0, 1, 2, 3]):
            top, left = place // 3 * 32, place % 3 * 62
            assert np.array_equal(picture[top : top + 30, left : left + 60], render(env, index, width=60)), place
        assert (picture[30:32] == 128).all()
        assert (picture[:, 60:62] == 128).all()
        assert (picture[32:, 124:] == 255).all()  # left over

    @pytest.mark.parametrize(("n", "shape"), [(1, (1, 1)), (2, (1, 2)), (4, (2, 2)), (7, (3, 3))])
    def test_it_is_as_near_to_a_square_as_can_be(self, n, shape):
        height, width, _ = render(shapes_env(7), range(n), width=20).shape
        assert (height, width) == (shape[0] * 12 - 2, shape[1] * 22 - 2)


class TestInfluence:
    """Agent 0 is at row 25, column 50, agent 1 at row 25, column 150; both have a radius of 10 pixels."""

    @staticmethod
    def rows(picture, column):
        """Which rows of a column an arrow covers (of the upper half, outside the agents)."""
        return [row for row in range(50) if tuple(picture[row, column]) != WHITE]

    def test_an_arrow_goes_from_who_is_observed_to_who_acts(self):
        # Agent 0's action is moved by agent 1's observation: from the right to the left, drawn on its right, above.
        picture = render(shapes_env(), influence=torch.tensor([[0.0, 1], [0, 0]]))
        shaft, tip = self.rows(picture, 120), self.rows(picture, 65)
        assert shaft == list(range(15, 25))  # ARROW_WIDTH, with its lower edge on the line between the agents
        mixed = [255 - 0.8 * (255 - 255 * part) for part in (0.8, 0.1, 0.5)]
        assert np.abs(picture[20, 120].astype(int) - mixed).max() < 2
        assert len(self.rows(picture, 78)) > len(shaft)  # the head
        assert len(tip) < len(self.rows(picture, 75))  # which ends in a point
        other = render(shapes_env(), influence=torch.tensor([[0.0, 0], [1, 0]]))
        assert self.rows(other, 80) == list(range(25, 35))

    def test_width_and_opacity_follow_the_strength(self):
        picture = render(shapes_env(), influence=torch.tensor([[9.0, 0.5], [0.25, 9.0]]))
        assert self.rows(picture, 100) == [*range(15, 25), *range(27, 33)]  # 0.25 is half of 0.5: 5 pixels around 30
        assert (picture[20, 100] < picture[30, 100]).all()

    def test_the_diagonal_draws_nothing(self):
        plain = render(shapes_env())
        assert np.array_equal(render(shapes_env(), influence=torch.eye(2)), plain)
        assert np.array_equal(render(shapes_env(), influence=torch.zeros(2, 2)), plain)

    def test_one_matrix_for_each_environment(self):
        matrices = torch.tensor([[[0.0, 1], [0, 0]], [[0, 0], [0, 0]]])
        env = shapes_env()
        assert np.array_equal(render(env, 0, influence=matrices), render(env, 0, influence=matrices[0]))
        assert np.array_equal(render(env, 1, influence=matrices), render(env, 1))

    def test_a_group_of_several(self):
        env = make_vmas_env("simple_tag", 2, seed=0)
        influence = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 0, 0]])
        assert not np.array_equal(render(env, influence=influence, group="adversary"), render(env))
        with pytest.raises(ValueError, match=r"several groups; choose one with group=, found \['adversary', 'agent'\]"):
            render(env, influence=influence)
        with pytest.raises(ValueError, match="no group 'predators'"):
            render(env, influence=influence, group="predators")


class Painter(Countdown):
    """Draws random numbers in its rendering."""

    def extra_render(self, env_index=0):
        torch.rand(1), np.random.rand(), random.random()
        return []


class TestNothingIsDisturbed:
    def test_random_streams_even_if_the_scenario_draws_from_them(self):
        env = make_vmas_env(Painter(), 2, seed=0)
        own = str(env.base_env._env.random_stream._state)
        outside = torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()
        render(env)
        assert str(env.base_env._env.random_stream._state) == own
        assert (torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()) == outside

    def test_a_window_that_is_open(self):
        env = shapes_env()
        vmas_env = env.base_env._env
        vmas_env.viewer, vmas_env.visible_display, vmas_env.text_lines = window = object(), True, []
        render(env)
        assert (vmas_env.viewer, vmas_env.visible_display, vmas_env.text_lines) == window

    @pytest.mark.parametrize("fails", [False, True])
    def test_imported_modules(self, monkeypatch, fails):
        monkeypatch.setitem(sys.modules, "pyglet", "a module")
        monkeypatch.setitem(sys.modules, "pyglet.gl", None)  # import is blocked
        monkeypatch.setattr(vmas.simulator, "rendering", "another", raising=False)
        before = dict(sys.modules)
        if fails:
            monkeypatch.setattr(Shapes, "extra_render", lambda self, env_index: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                render(shapes_env())
        else:
            render(shapes_env())
        assert vmas.simulator.rendering == "another"
        for name in ("pyglet", "pyglet.gl", "vmas.simulator.rendering"):
            assert sys.modules.get(name, "absent") is before.get(name, "absent")


class EveryGeometry(Shapes):
    """All that VMAS's rendering module has, at places that no other test looks at."""

    def extra_render(self, env_index=0):
        from vmas.simulator import rendering

        point, line, capsule, text = (
            rendering.Point(),
            rendering.make_polyline([(0.0, 0.0), (0.2, 0.0), (0.2, 0.2)]),
            rendering.make_capsule(0.4, 0.2),
            rendering.TextLine("Mi", x=150, y=60),
        )
        point.add_attr(rendering.Transform(translation=(-1.51, -0.91)))  # in the middle of row 95, column 24
        line.set_linewidth(4)
        capsule.add_attr(rendering.Transform(translation=(1.0, -0.6), rotation=np.pi / 2, scale=(1, 2)))
        capsule.set_color(0, 0, 1)
        frame = rendering.make_polygon([(-0.6, -0.6), (-0.2, -0.6), (-0.2, -0.2), (-0.6, -0.2)], filled=False)
        frame.set_linewidth(2)
        frame.set_color(0, 2, 0)  # more than there is of a colour
        thin = rendering.Line((-1.9, -0.69), (-1.7, -0.69), width=0.05)  # in the middle of row 84
        plotted = rendering.render_function_util(lambda xy: xy[:, :1], ((-2.0, -1.0), (0.7, 1.0)), precision=0.1)
        return [point, line, capsule, text, frame, thin, plotted]


def test_every_kind_of_geometry():
    picture = render(make_vmas_env(EveryGeometry(), 1))
    assert tuple(picture[95, 24]) == (0, 0, 0)
    assert (picture[95, [22, 26]] == 255).all()
    assert [tuple(picture[row, 105]) for row in (47, 49, 50, 52)] == [WHITE, (0, 0, 0), (0, 0, 0), WHITE]
    # The colour map goes from dark (left) to yellow (right) on columns 0 to 50, rows 0 to 15.
    left, right = picture[5, 3].astype(int), picture[5, 47].astype(int)
    assert right[:2].min() > left.max() > 0
    assert (picture[20, 3] == 255).all()
    # The capsule: 20 pixels up from (row 80, column 150), twice its width of 10 at both sides together, that is 20.
    assert tuple(picture[70, 150]) == tuple(picture[70, 143]) == BLUE
    assert tuple(picture[70, 136]) == WHITE  # its edge is as wide as the line drawn before, as in OpenGL
    # All four sides of the frame, from column 70 to 90 and row 60 to 80; and no line is thinner than a pixel.
    assert {tuple(picture[row, column]) for row, column in ((70, 70), (70, 90), (60, 80), (80, 80))} == {GREEN}
    assert tuple(picture[70, 80]) == WHITE
    assert tuple(picture[84, 10]) == (0, 0, 0)
    # The text starts at column 150 and stands on the 60th row from below.
    rows, columns = np.nonzero((picture[:, 145:] < 128).all(-1) & (picture[:, 145:] >= 0).all(-1))
    text = rows < 45
    assert 145 + columns[text].min() >= 150
    assert 20 < rows[text].min() < rows[text].max() < 40


def vmas_picture(env, index, monkeypatch):
    """By the renderer of VMAS, in a window of the X display."""
    import matplotlib
    import pyglet

    load_library = pyglet.lib.load_library

    def load_no_egl(*names, **options):
        if "EGL" in names:  # whose surfaces may have 5 bits per colour
            raise ImportError("X is wanted")
        return load_library(*names, **options)

    def get_cmap(name, size):
        return matplotlib.colormaps[name].resampled(size)

    monkeypatch.setattr(pyglet.lib, "load_library", load_no_egl)
    monkeypatch.setattr(matplotlib.cm, "get_cmap", get_cmap, raising=False)  # Matplotlib 3.9 removed it
    vmas_env = env.base_env._env
    vmas_env.render(mode="rgb_array", env_index=index)  # the first picture of a hidden window is empty
    rendering = sys.modules["vmas.simulator.rendering"]
    monkeypatch.setattr(rendering.TextLine, "render1", lambda self: None)
    rendering.glLineWidth(2.0)  # as it was at first
    picture = vmas_env.render(mode="rgb_array", env_index=index)
    vmas_env.viewer.close()
    return picture.astype(int)


def near(drawn):
    """What is drawn, and one pixel around it."""
    rows = drawn | np.roll(drawn, 1, 0) | np.roll(drawn, -1, 0)
    return rows | np.roll(rows, 1, 1) | np.roll(rows, -1, 1)


def overlap(a, b):
    """Of the pixels that are not white in a or b: the part that is not white in both, the part where this holds within
    one pixel, and the part whose colours differ by an eighth of the scale at most."""
    drawn = [(255 - picture).max(-1) > 5 for picture in (a, b)]
    either = drawn[0] | drawn[1]
    closely = near(drawn[0]) & near(drawn[1])
    alike = abs(a - b).max(-1) <= 32
    return [part[either].mean() for part in (drawn[0] & drawn[1], closely, alike)]


@pytest.mark.display
@pytest.mark.skipif("DISPLAY" not in os.environ, reason="no display")
@pytest.mark.filterwarnings("ignore")  # of scenarios
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_it_agrees_with_the_renderer_of_vmas(scenario, monkeypatch):
    """Only edges differ: VMAS's filled shapes have jagged ones, and lines are smoothed a little differently. So nothing
    is further than a pixel from where VMAS draws it, and few pixels differ visibly: 4% of what is drawn where that is
    three small discs, 0.1% of a football field; moved by a single pixel, the discs lose 20%, fields of rays 50%."""
    monkeypatch.setattr(Canvas, "_draw_text", lambda *_: None)  # the fonts differ
    env = make_vmas_env(scenario, 2, seed=0)
    torch.manual_seed(0)
    env.rollout(5, break_when_any_done=False)
    ours, theirs = render(env, 1).astype(int), vmas_picture(env, 1, monkeypatch)
    both, closely, alike = overlap(ours, theirs)
    moved = max(overlap(np.roll(ours, 1, axis), theirs)[2] for axis in (0, 1))
    print(f"{scenario:24} both {both:.3f}, within a pixel {closely:.4f}, alike {alike:.3f} (moved {moved:.3f})")
    assert both > 0.94
    assert closely > 0.999
    assert alike > 0.95
    assert alike > moved


def test_a_bare_environment_of_vmas_has_no_groups():
    env = vmas.make_env("navigation", 2, n_agents=2)
    assert render(env, influence=torch.ones(2, 2)).shape == (700, 700, 3)
    with pytest.raises(ValueError, match="Environment has no groups of agents, found group='agents'"):
        render(env, influence=torch.ones(2, 2), group="agents")
    assert render(vmas.make_env("navigation", 1, wrapper="gym"), width=70).shape == (70, 70, 3)


class TestTorchRLsTools:
    def test_the_environment_draws_itself(self):
        env = make_vmas_env("navigation", 3, seed=0, n_agents=2)
        env.rollout(3)
        assert np.array_equal(env.render(), render(env))
        whole = env.render(mode="rgb_array", env_index=None, width=60, agent_index_focus=1)
        assert np.array_equal(whole, [render(env, index, width=60, agent_index_focus=1) for index in range(3)])
        assert len({picture.tobytes() for picture in whole}) == 3
        with pytest.raises(ValueError, match="env_index must be between 0 and 2, found 3"):
            env.render(env_index=3)
        with pytest.raises(ValueError, match="agent_index_focus must be between 0 and 1, found 2"):
            env.render(agent_index_focus=2)
        painted = env.render(width=60, plot_position_function=lambda points: points[:, :1])
        assert not np.array_equal(painted, env.render(width=60))

    def test_absent_agents_are_not_drawn(self):
        env = make_vmas_env("dispersion_energy", 2, seed=0, n_agents=3, energy=4)
        td = env.reset()
        for _ in range(3):
            td = env.step(td.set(("agents", "action"), torch.ones(2, 3, 2)))["next"]
        assert not td["agents", "mask"][0].all()
        assert np.array_equal(env.render(width=100), render(env, width=100))

    def test_of_mixed_teams_those_of_one_size(self):
        env = make_vmas_env("navigation", 2, seed=0, n_agents=[3])
        assert np.array_equal(env.render(width=50), render(env, width=50))
        with pytest.raises(ValueError, match="Teams of one size can be drawn"):
            make_vmas_env("navigation", 2, seed=0, n_agents=[2, 3]).render()

    def test_pixels_are_in_the_rollout_which_is_what_it_was(self):
        env = make_vmas_env("navigation", 3, seed=0, n_agents=2, max_steps=4)
        actor = BiCNetActor.from_env(env)
        plain = env.rollout(6, actor, break_when_any_done=False)
        env = make_vmas_env("navigation", 3, seed=0, n_agents=2, max_steps=4)
        env = env.append_transform(PixelRenderTransform(mode="rgb_array", env_index=None, width=50))
        env.set_seed(0)
        drawn = env.rollout(6, actor, break_when_any_done=False)
        assert drawn["pixels"].shape == (3, 6, 50, 50, 3)
        assert drawn["agents", "observation"].equal(plain["agents", "observation"])
        assert (drawn["pixels"][:, 0] != drawn["pixels"][:, 1]).flatten(1).any(1).all()

    def test_a_video_is_logged(self, tmp_path):
        logger = CSVLogger("run", log_dir=str(tmp_path))
        env = make_vmas_env("navigation", 3, seed=0, n_agents=2)
        env = env.append_transform(PixelRenderTransform(mode="rgb_array", width=50))
        env = env.append_transform(VideoRecorder(logger, tag="film", make_grid=False))
        env.rollout(5)
        env.transform.dump()
        [file] = tmp_path.rglob("film*.pt")
        assert torch.load(file)[0].shape == (6, 3, 50, 50)  # the start state and five steps
