"""What a run of train_vmas.py learned, in numbers, film and pictures: ``python examples/evaluate_vmas.py runs/first``.

Prints returns, success and collisions with 95% intervals over episodes, and writes into the run folder's ``pictures/``
a film with arrows for who influences whom and, for each group of agents that talk, the influence matrix, what its
channel is worth and what the order of its agents does; and the learning curve.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
import tyro
from scipy.stats import binomtest, t
from tensordict.nn import TensorDictSequential
from torchrl import torchrl_logger
from torchrl.checkpoint import CheckpointError

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from examples.train_vmas import TEST_SEED, Options, load_run, make_env  # noqa: E402
from torchrl_bicnet import BiCNetActor, Evaluation, evaluate  # noqa: E402
from torchrl_bicnet.analysis import (  # noqa: E402
    channel_value,
    example_channels,
    influence,
    influence_matrix,
    order_sensitivity,
    plot_channel_value,
    plot_influence,
    plot_order_sensitivity,
    visited_states,
)
from torchrl_bicnet.checks import check_device  # noqa: E402
from torchrl_bicnet.rendering import record, save_film  # noqa: E402
from torchrl_bicnet.rendering.worlds import MAX_WIDTH  # noqa: E402
from torchrl_bicnet.runs import learning_curves, plot_learning_curves  # noqa: E402
from torchrl_bicnet.runs.learning_curves import LearningCurve  # noqa: E402


@dataclass
class Arguments:
    run: tyro.conf.Positional[Path]
    """run folder of train_vmas.py"""
    checkpoint: Literal["last", "best"] = "last"
    """the policy at the end, or the one with the best evaluation during training"""
    episodes: int = 1000
    """episodes of the evaluation"""
    seed: int = TEST_SEED
    """of the start states; with as many episodes as the test at the end of training, the default gives the same"""
    device: str = "cpu"
    """where to simulate and to act: cpu, cuda, cuda:1, ..."""

    film: str = "film.gif"
    """name of the film, .gif or .mp4"""
    film_episodes: int = 6
    """episodes in the film, from start states of their own"""
    film_columns: int | None = None
    """how many side by side. Default: as near to a square as can be"""
    film_width: int = 240
    """width of an episode in the film, in pixels"""
    film_steps: int | None = None
    """length of the film. Default: the time limit"""
    film_arrows: bool = True
    """draw who influences whom, in the largest group"""

    pictures: bool = True
    """draw influence, channel, order and learning curve; they take about forty short evaluations"""
    picture_episodes: int = 100
    """episodes of each of these evaluations"""
    output: Path | None = None
    """folder of film and pictures. Default: `pictures` in the run folder"""


def check(arguments: Arguments) -> None:
    """Fail before anything is loaded or written."""
    for name, least in (("episodes", 2), ("picture_episodes", 2), ("film_episodes", 1), ("film_width", 1)):
        if getattr(arguments, name) < least:
            raise ValueError(f"{name} must be at least {least}, found {getattr(arguments, name)}.")
    if arguments.film_width > MAX_WIDTH:
        raise ValueError(f"film_width must be at most {MAX_WIDTH}, found {arguments.film_width}.")
    if arguments.film_columns is not None and not 1 <= arguments.film_columns <= arguments.film_episodes:
        raise ValueError(
            f"film_columns must be from 1 to film_episodes, {arguments.film_episodes}, found {arguments.film_columns}."
        )
    if arguments.film_steps is not None and arguments.film_steps < 1:
        raise ValueError(f"film_steps must be at least 1, found {arguments.film_steps}.")
    if not 0 <= arguments.seed < 2**32:
        raise ValueError(f"seed must be in [0, 2**32), found {arguments.seed}.")
    if Path(arguments.film).suffix not in (".gif", ".mp4") or Path(arguments.film).name != arguments.film:
        raise ValueError(f"film must be the name of a .gif or an .mp4, found {arguments.film!r}.")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", arguments.device):
        raise ValueError(f"device must be cpu, cuda or cuda:INDEX, found {arguments.device!r}.")
    check_device(arguments.device)
    if arguments.film.endswith(".mp4") and find_spec("av") is None:
        raise ValueError("A film as .mp4 needs PyAV: pip install av.")
    if arguments.output is not None and arguments.output.exists() and not arguments.output.is_dir():
        raise ValueError(f"output must be a folder, found the file {arguments.output}.")


def main(arguments: Arguments) -> None:
    options, policy = load_run(arguments.run, arguments.checkpoint, arguments.device)
    curves = learning_curves([arguments.run]) if arguments.pictures else []  # of a damaged run: refused at once
    output = arguments.output or arguments.run / "pictures"
    output.mkdir(parents=True, exist_ok=True)
    env = make_env(options, arguments.episodes, arguments.seed)
    evaluation = evaluate(env, policy, max_steps=options.max_steps, seed=arguments.seed)
    print(f"{options.scenario}: {arguments.episodes} episodes of at most {options.max_steps} steps")
    print(table(evaluation, env.group_map))

    actors = {actor.group: actor for actor in policy if len(env.group_map[actor.group]) > 1}
    write_film(arguments, options, policy, actors, output / arguments.film)
    if arguments.pictures:
        write_pictures(arguments, options, policy, actors, curves, output)
    print(f"Film and pictures are in {output}")


def table(evaluation: Evaluation, group_map: dict[str, list[str]]) -> str:
    """Means and rates with their 95% intervals: Student's for means over episodes, Wilson's for rates."""
    rows = {}
    for group, returns in evaluation.returns.items():
        rows[f"{group}, return of the team"] = mean_interval(returns.mean(-1))
        if len(group_map[group]) > 1:
            rows |= {f"  {name}": mean_interval(each) for name, each in zip(group_map[group], returns.unbind(-1))}
    rows["steps"] = mean_interval(evaluation.lengths)
    if evaluation.success is not None:
        rows["success rate"] = rate_interval(evaluation.success)
    if evaluation.collisions is not None:
        rows["collision rate"] = rate_interval(evaluation.collisions > 0)
    width = max(map(len, rows))
    lines = [f"{'':{width}}      mean    95% interval"]
    lines += [f"{name:{width}} {mean:9.3f}  [{low:.3f}, {high:.3f}]" for name, (mean, low, high) in rows.items()]
    return "\n".join(lines)


def mean_interval(values: torch.Tensor) -> tuple[float, float, float]:
    """Mean over episodes and its interval; values: (E,)."""
    values = values.double()
    mean, error = values.mean().item(), values.std().item() / len(values) ** 0.5
    margin = float(t.ppf(0.975, len(values) - 1)) * error
    return mean, mean - margin, mean + margin


def rate_interval(happened: torch.Tensor) -> tuple[float, float, float]:
    """Share of the episodes and its interval; happened: (E,), boolean."""
    count = int(happened.sum())
    interval = binomtest(count, len(happened)).proportion_ci(method="wilson")
    return count / len(happened), interval.low, interval.high


def write_film(
    arguments: Arguments, options: Options, policy: TensorDictSequential, actors: dict[str, BiCNetActor], path: Path
) -> None:
    env = make_env(options, arguments.film_episodes, arguments.seed)
    group = max(actors, key=lambda group: len(env.group_map[group]), default=None)
    arrows = {}
    if arguments.film_arrows and group is not None:
        arrows = {"influence": lambda td: influence(actors[group], td), "group": group}
    frames = record(
        env,
        policy,
        max_steps=arguments.film_steps or options.max_steps,
        seed=arguments.seed,
        env_index=range(arguments.film_episodes),
        columns=arguments.film_columns,
        width=arguments.film_width,
        **arrows,
    )
    save_film(frames, path)


def write_pictures(
    arguments: Arguments,
    options: Options,
    policy: TensorDictSequential,
    actors: dict[str, BiCNetActor],
    curves: list[LearningCurve],
    output: Path,
) -> None:
    env = make_env(options, arguments.picture_episodes, arguments.seed)
    same = {"max_steps": options.max_steps, "seed": arguments.seed}
    figures = {"learning_curve": plot_learning_curves(curves)}
    if actors:
        states = visited_states(env, policy, **same)
        n_agents = max(len(env.group_map[group]) for group in actors)
        figures["channel"] = plot_channel_value(channel_value(env, policy, example_channels(n_agents), **same))
    for group, actor in actors.items():
        suffix = "" if len(actors) == 1 else f"_{group}"
        figures[f"influence{suffix}"] = plot_influence(influence_matrix(actor, states))
        order = order_sensitivity(env, policy, group=group, **same)
        figures[f"order{suffix}"] = plot_order_sensitivity(order)
    for name, figure in figures.items():
        figure.savefig(output / f"{name}.png", dpi=120)


if __name__ == "__main__":
    torchrl_logger.setLevel("WARNING")
    chosen = tyro.cli(Arguments, description=__doc__)
    try:
        check(chosen)
        main(chosen)
    except (ValueError, TypeError, OSError, CheckpointError) as error:
        sys.exit(f"error: {error}")
