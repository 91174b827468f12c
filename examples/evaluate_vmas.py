"""Evaluate a run of train_vmas.py in numbers, film and pictures: ``python examples/evaluate_vmas.py runs/first``.

Prints returns, success and collisions with 95% intervals over episodes, and writes into the run folder's ``pictures/``
a film with arrows for who influences whom and, for each group of agents that talk, the influence matrix, what its
channel is worth and what the order of its agents does; and the learning curve. The numbers of table and pictures are
in JSON files beside them.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from pydantic import Field, PositiveInt
from scipy.stats import binomtest, t
from torchrl import torchrl_logger
from torchrl.checkpoint import CheckpointError

from torchrl_bicnet import Evaluation, evaluate, load_run
from torchrl_bicnet.analysis import (
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
from torchrl_bicnet.rendering import record, save_film
from torchrl_bicnet.runs import TEST_SEED, TrainedRun, learning_curves, plot_learning_curves, validated

Episodes = Annotated[int, Field(ge=2)]  # of one there is no standard error
Interval = tuple[float, float, float]  # estimate, low, high


@dataclass
class Arguments:
    run: tyro.conf.Positional[Path]
    """run folder of train_vmas.py"""
    checkpoint: Literal["last", "best"] = "last"
    """the policy at the end, or the one with the best evaluation during training"""
    n_agents: PositiveInt | None = None
    """agents of a team, also another number than in training. Default: as in training; of several sizes, numbers are of
    all of them, film and pictures of the largest"""
    episodes: Episodes = 1000
    """episodes of the evaluation"""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = TEST_SEED
    """of the start states; with as many episodes as the test at the end of training, the default gives the same"""
    device: str = "cpu"
    """where to simulate and to act: cpu, cuda, cuda:1, ..."""

    film: Annotated[str, Field(pattern=r"^[^/]+\.(gif|mp4)$")] = "film.gif"
    """name of the film, .gif or .mp4"""
    film_episodes: PositiveInt = 6
    """episodes in the film, from start states of their own"""
    film_columns: PositiveInt | None = None
    """how many side by side. Default: as near to a square as can be"""
    film_width: Annotated[int, Field(ge=1, le=10_000)] = 240
    """width of an episode in the film, in pixels"""
    film_steps: PositiveInt | None = None
    """length of the film. Default: the time limit"""
    film_arrows: bool = True
    """draw who influences whom, in the largest group"""

    pictures: bool = True
    """draw influence, channel, order and learning curve, and write their numbers; about forty short evaluations"""
    picture_episodes: Episodes = 100
    """episodes of each of these evaluations"""
    output: Path | None = None
    """folder of film and pictures. Default: `pictures` in the run folder, for --n-agents a folder of its own there"""


def main(arguments: Arguments) -> None:
    run = load_run(arguments.run, checkpoint=arguments.checkpoint, device=arguments.device)
    n_agents = arguments.n_agents or max(run.options.get("n_agents", ()), default=None)
    curves = learning_curves([arguments.run]) if arguments.pictures else []  # of a damaged run: refused at once
    own = f"{arguments.n_agents}_agents" if arguments.n_agents else ""  # beside those of the training's size
    output = arguments.output or arguments.run / "pictures" / own
    output.mkdir(parents=True, exist_ok=True)

    scenario, max_steps = run.options["scenario"], run.options["max_steps"]
    env = run.make_env(arguments.episodes, seed=arguments.seed, n_agents=arguments.n_agents)
    intervals = evaluation_intervals(evaluate(env, run.policy, max_steps=max_steps, seed=arguments.seed), env.group_map)
    print(f"{scenario}: {arguments.episodes} episodes of at most {max_steps} steps")
    print(table(intervals))

    talking = [group for group, names in env.group_map.items() if len(names) > 1]
    write_film(arguments, run, n_agents, talking, output / arguments.film)
    if arguments.pictures:
        chosen = {"checkpoint": arguments.checkpoint, "episodes": arguments.episodes, "seed": arguments.seed}
        rows = {name.strip(): dict(zip(("mean", "low", "high"), interval)) for name, interval in intervals.items()}
        about = {
            "scenario": scenario,
            "n_agents": arguments.n_agents or run.options.get("n_agents") or None,
            "max_steps": max_steps,
            **chosen,
        }
        write_json(output / "evaluation.json", {**about, "results": rows})
        plot_learning_curves(curves).savefig(output / "learning_curve.png", dpi=120)
        write_pictures(arguments, run, n_agents, talking, output)
    print(f"{'Film, pictures and their numbers are' if arguments.pictures else 'The film is'} in {output}")


def evaluation_intervals(evaluation: Evaluation, group_map: dict[str, list[str]]) -> dict[str, Interval]:
    """Means and rates with their 95% intervals: Student's for means over episodes, Wilson's for rates."""
    rows = {}
    for group, returns in evaluation.returns.items():
        of_team = evaluation.team_returns()[group]
        rows[f"{group}, return of the team"] = mean_interval(of_team)
        if len(group_map[group]) > 1:
            present = torch.ones_like(returns).bool() if evaluation.present is None else evaluation.present[group]
            sizes = present.sum(-1)
            several = sizes.unique().tolist() if sizes.unique().numel() > 1 else []
            rows |= {
                f"  teams of {size}": mean_interval(of_team[sizes == size])
                for size in several
                if (sizes == size).sum() > 1
            }
            rows |= {
                f"  {name}": mean_interval(each[here])
                for name, each, here in zip(group_map[group], returns.unbind(-1), present.unbind(-1))
                if here.sum() > 1
            }
    rows["steps"] = mean_interval(evaluation.lengths)
    if evaluation.success is not None:
        rows["success rate"] = rate_interval(evaluation.success)
    if evaluation.collisions is not None:
        rows["collision rate"] = rate_interval(evaluation.collisions > 0)
    return rows


def mean_interval(values: torch.Tensor) -> Interval:
    """Mean over episodes and its interval; values: (E,)."""
    values = values.double()
    mean, error = values.mean().item(), values.std().item() / len(values) ** 0.5
    margin = float(t.ppf(0.975, len(values) - 1)) * error
    return mean, mean - margin, mean + margin


def rate_interval(happened: torch.Tensor) -> Interval:
    """Share of the episodes and its interval; happened: (E,), boolean."""
    count = int(happened.sum())
    interval = binomtest(count, len(happened)).proportion_ci(method="wilson")
    return count / len(happened), interval.low, interval.high


def table(rows: dict[str, Interval]) -> str:
    width = max(map(len, rows))
    lines = [f"{'':{width}}      mean    95% interval"]
    lines += [f"{name:{width}} {mean:9.3f}  [{low:.3f}, {high:.3f}]" for name, (mean, low, high) in rows.items()]
    return "\n".join(lines)


def write_film(arguments: Arguments, run: TrainedRun, n_agents: int | None, talking: list[str], path: Path) -> None:
    env = run.make_env(arguments.film_episodes, seed=arguments.seed, n_agents=n_agents)
    arrows = {}
    if arguments.film_arrows and talking:
        group = max(talking, key=lambda group: len(env.group_map[group]))
        arrows = {"influence": lambda td: influence(run.actors[group], td), "group": group}
    frames = record(
        env,
        run.policy,
        max_steps=arguments.film_steps or run.options["max_steps"],
        seed=arguments.seed,
        env_index=range(arguments.film_episodes),
        columns=arguments.film_columns,
        width=arguments.film_width,
        **arrows,
    )
    save_film(frames, path)


def write_pictures(
    arguments: Arguments, run: TrainedRun, n_agents: int | None, talking: list[str], output: Path
) -> None:
    """Influence, channel and order, each as a picture and, under the same name, its numbers."""
    if not talking:
        return
    env = run.make_env(arguments.picture_episodes, seed=arguments.seed, n_agents=n_agents)
    same = {"max_steps": run.options["max_steps"], "seed": arguments.seed}
    states = visited_states(env, run.policy, **same)
    channels = example_channels(max(len(env.group_map[group]) for group in talking))
    value = channel_value(env, run.policy, channels, **same)
    results = {"channel": (plot_channel_value(value), value.summary())}
    for group in talking:
        suffix = "" if len(talking) == 1 else f"_{group}"
        matrix = influence_matrix(run.actors[group], states)
        numbers = {"agents": env.group_map[group], "influence": matrix.tolist()}
        results[f"influence{suffix}"] = plot_influence(matrix), numbers
        order = order_sensitivity(env, run.policy, group=group, **same)
        numbers = {**order.summary(), "orders": order.by_order(), "action_std": order.action_std.tolist()}
        results[f"order{suffix}"] = plot_order_sensitivity(order), numbers
    for name, (figure, numbers) in results.items():
        figure.savefig(output / f"{name}.png", dpi=120)
        write_json(output / f"{name}.json", numbers)


def write_json(path: Path, numbers: dict[str, Any]) -> None:
    path.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    torchrl_logger.setLevel("WARNING")
    try:
        main(validated(Arguments, asdict(tyro.cli(Arguments, description=__doc__))))
    except (ValueError, OSError, CheckpointError) as error:
        sys.exit(f"error: {error}")
