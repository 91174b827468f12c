import itertools

import av
import numpy as np
import pytest
import torch
from PIL import Image
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.modules import AdditiveGaussianModule

from tests.helpers_vmas import Countdown
from torchrl_bicnet import BiCNetActor, make_vmas_env
from torchrl_bicnet.rendering import record, render, save_film


class MovingCountdown(Countdown):
    """As Countdown, and the agents move to the right by 0.1 a step."""

    def post_step(self):
        super().post_step()
        for agent in self.world.agents:
            agent.set_pos(agent.state.pos + torch.tensor([0.1, 0.0]), batch_index=None)


def still(env):
    """A policy that does nothing."""
    return TensorDictModule(
        lambda observation: observation.new_zeros(*observation.shape[:-1], 2),
        in_keys=[("agents", "observation")],
        out_keys=[("agents", "action")],
    )


class TestRecord:
    def test_the_frames_are_the_states_of_the_episode(self):
        env = make_vmas_env("navigation", 3, n_agents=2)
        actor = BiCNetActor.from_env(env)
        frames = record(env, actor, max_steps=4, seed=3, env_index=1, width=70)
        env.set_seed(3)
        td = env.reset()
        with torch.no_grad():
            for frame in frames:
                assert np.array_equal(frame, render(env, 1, width=70))
                td = env.step_mdp(env.step(actor(td)))
        assert len(frames) == 5

    def test_an_episode_that_ended_shows_its_last_state(self):
        env = make_vmas_env(MovingCountdown(), 5)
        frames = record(env, still(env), max_steps=50, env_index=[0, 2], width=70)
        assert len(frames) == 1 + 3  # environment 2 ends after 3 steps
        first = [frame[:, :70] for frame in frames]
        second = [frame[:, 72:] for frame in frames]
        assert not np.array_equal(first[0], first[1])
        assert np.array_equal(first[1], first[3])
        assert all(not np.array_equal(a, b) for a, b in itertools.pairwise(second))

    def test_the_time_limit_ends_it(self):
        env = make_vmas_env(MovingCountdown(), 5, max_steps=2)
        assert len(record(env, still(env), max_steps=50, env_index=4, width=20)) == 1 + 2

    def test_it_acts_as_an_evaluation_does(self):
        """Without noise, in eval mode; the global stream and the modes stay."""
        env = make_vmas_env("navigation", 2)
        actor = BiCNetActor.from_env(env)
        modes, modules = [], list(actor.modules())
        noise = AdditiveGaussianModule(actor.spec, sigma_init=1.0, sigma_end=1.0)
        actor.register_forward_hook(lambda module, *_: modes.append(module.training))
        state = torch.get_rng_state()
        quiet = record(env, actor, max_steps=2, seed=1, width=70)
        noisy = record(env, TensorDictSequential(actor, noise), max_steps=2, seed=1, width=70)
        assert all(np.array_equal(a, b) for a, b in zip(quiet, noisy))
        assert torch.equal(torch.get_rng_state(), state)
        assert modes == [False] * 4
        assert all(module.training for module in modules)

    def test_influence_of_each_state(self):
        env = make_vmas_env(MovingCountdown(), 2)
        env.base_env._env.agents[1].set_pos(torch.tensor([[0.5, 0.5], [0.5, 0.5]]), batch_index=None)
        seen = []

        def influence(td):
            assert torch.is_grad_enabled()
            seen.append(td["agents", "observation"].clone())
            return torch.tensor([[0.0, 1], [0, 0]]).expand(2, 2, 2) * (len(seen) % 2)

        frames = record(env, still(env), max_steps=2, env_index=1, width=70, influence=influence)
        assert [observation[1, 0].item() for observation in seen] == [2, 1, 0]
        pink = [((frame[..., 0] > 200) & (frame[..., 1] < 120) & (frame[..., 2] > 100)).any() for frame in frames]
        assert len(frames) == len(pink) == 3

    def test_what_cannot_be_drawn_is_refused_before_anything_happens(self):
        env = make_vmas_env("navigation", 2, seed=0)
        twin = make_vmas_env("navigation", 2, seed=0)
        actor = BiCNetActor.from_env(env)
        for options, message in (
            ({"seed": -1}, r"seed must be between 0 and 4294967295, found -1"),
            ({"env_index": 2}, "env_index must be between 0 and 1, found 2"),
            ({"influence": torch.ones(3, 3)}, "influence must be of shape"),
        ):
            with pytest.raises(ValueError, match=message):
                record(env, actor, **{"max_steps": 2, "seed": 5, **options})
        assert torch.equal(env.reset()["agents", "observation"], twin.reset()["agents", "observation"])


def grey(n, height=40, width=60):
    """Frames of rising brightness with a black square that moves."""
    frames = [np.full((height, width, 3), 100 + 10 * number, dtype=np.uint8) for number in range(n)]
    for number, frame in enumerate(frames):
        frame[8:16, 4 * number : 4 * number + 8] = 0
    return frames


class TestSaveFilm:
    @pytest.mark.parametrize("name", ["film.gif", "FILM.GIF"])
    def test_a_gif_read_back(self, tmp_path, name):
        frames = grey(7)
        save_film(frames, tmp_path / name, fps=20)
        with Image.open(tmp_path / name) as film:
            assert film.n_frames == 7
            assert film.size == (60, 40)
            assert film.info["loop"] == 0
            for number, frame in enumerate(frames):
                film.seek(number)
                assert film.info["duration"] == 50
                assert np.abs(np.asarray(film.convert("RGB")).astype(int) - frame).max() == 0

    def test_a_gif_holds_the_colors_of_all_its_frames(self, tmp_path):
        colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 128, 0)]
        frames = [np.full((8, 8, 3), color, dtype=np.uint8) for color in colors for _ in range(2)]
        save_film(frames, str(tmp_path / "film.gif"))
        with Image.open(tmp_path / "film.gif") as film:
            # Pillow makes one longer frame of equal ones.
            shown = []
            for number in range(film.n_frames):
                film.seek(number)
                shown.append((film.convert("RGB").getpixel((4, 4)), film.info["duration"]))
        assert shown == [(color, 200) for color in colors]

    def test_a_gif_of_too_many_colors_keeps_those_of_large_areas(self, tmp_path):
        frames = [np.full((64, 64, 3), (77, 176, 74), dtype=np.uint8) for _ in range(3)]
        for frame, seed in zip(frames, range(3)):
            frame[:20] = np.random.default_rng(seed).integers(0, 256, (20, 64, 3))
            frame[20, :32] = 74 + np.arange(96).reshape(32, 3) % 5  # near to the next
            frame[21:40] = 255
            frame[40, :50] = 250 + np.arange(150).reshape(50, 3) % 5
        save_film(frames, tmp_path / "film.gif")
        with Image.open(tmp_path / "film.gif") as film:
            for number, frame in enumerate(frames):
                film.seek(number)
                found = np.asarray(film.convert("RGB")).astype(int)
                assert (found[21:40] == 255).all()
                assert (found[41:] == (77, 176, 74)).all()
                assert np.abs(found[:20] - frame[:20]).mean() < 20

    @pytest.mark.parametrize(("height", "width"), [(40, 60), (41, 59)])
    def test_an_mp4_read_back(self, tmp_path, height, width):
        frames = grey(7, height, width)
        save_film(frames, tmp_path / "film.mp4", fps=12.5)
        with av.open(str(tmp_path / "film.mp4")) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert stream.average_rate == 12.5
            found = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert len(found) == 7
        for frame, expected in zip(found, frames):
            assert frame.shape == (height + height % 2, width + width % 2, 3)
            assert np.abs(frame[:height, :width].astype(int) - expected).mean() < 8
            assert frame[-1, -1].min() > 80  # a row and a column more continue the picture

    def test_a_gif_cannot_stand_still_for_ten_minutes(self, tmp_path):
        with pytest.raises(ValueError, match=r"found equal frames for 1000.0 s at fps=0.01; write an .mp4"):
            save_film(grey(1) * 10, tmp_path / "film.gif", fps=0.01)
        assert list(tmp_path.iterdir()) == []
