"""The report's section on updates per second, from the JSON of update.py alone."""

from __future__ import annotations

from typing import Any

PRODUCTS, COMPILED = "matrix products", "ours, compiled"


def update(results: dict[str, Any]) -> str:
    """Markdown: a table with a row for each contender and a column for each net and batch; what was measured how."""
    about, cells = results["about"], results["cells"]
    options, threads = about["options"], about["threads"]
    names = list(dict.fromkeys(name for cell in cells for name in cell["milliseconds"]))
    lines = [
        f"## One update, {threads} thread{'s' if threads > 1 else ''}",
        "",
        f"Milliseconds of an optimisation step, and in brackets its multiple of the matrix products alone: "
        f"{options['n_agents']} agents of navigation's sizes, recurrences of {options['hidden_size']} a direction; "
        f"medians of {options['turns']} turns.",
        "",
        f"| | {' | '.join(title(cell) for cell in cells)} |",
        f"|---|{'--:|' * len(cells)}",
        *(f"| {name} | {' | '.join(time_and_multiple(cell, name) for cell in cells)} |" for name in names),
        "",
        *(f"- {name}: {what}." for name, what in results["contenders"].items() if name in names),
        *(f"- {name} is left out: {why}." for name, why in results["left_out"].items()),
        *(
            f"- {name} is left out of {title(cell)}: {why}."
            for cell in cells
            for name, why in cell.get("left_out", {}).items()
        ),
        "",
        *filter(None, (compiling(cell) for cell in cells)),
        *(
            f"{title(cell)}: {cell['products']['count']} matrix products, {cell['products']['gflop']:.2f} GFLOP."
            for cell in cells
        ),
    ]
    if described := next((cell["benchmarl"] for cell in cells if "benchmarl" in cell), None):
        nets = "; ".join(f"{net} {', '.join(layers)}" for net, layers in described["nets"].items())
        lines.append(
            f"BenchMARL {described['versions']['benchmarl']}: {nets}, tanh between them. Its critic has one row for a "
            "sample, not one for each agent, and there is no target actor: fewer products than an update of BiCNet has."
        )
    versions = ", ".join(f"{name} {about['versions'][name]}" for name in ("python", "torch", "torchrl", "tensordict"))
    lines.append(
        f"`{about['command']}`, commit {about['commit']}; {about['machine']} ({about['cpu_capability']}), "
        f"{about['date']}; {versions}."
    )
    return "\n".join(lines) + "\n"


def title(cell: dict[str, Any]) -> str:
    return f"{cell['cell'].upper()}, batch {cell['batch_size']:,}"


def time_and_multiple(cell: dict[str, Any], name: str) -> str:
    if name not in cell["milliseconds"]:
        return "-"
    time = cell["milliseconds"][name]
    return f"{time:.1f} ({time / cell['milliseconds'][PRODUCTS]:.2f})"


def compiling(cell: dict[str, Any]) -> str:
    """How long it took and how far the compiled step went from the eager one."""
    if "seconds_to_compile" not in cell:
        return ""
    times = [
        f"{seconds['empty_cache']:.0f} s ({name}"
        + (f"; {seconds['from_cache']:.1f} s in a new process from the cache)" if "from_cache" in seconds else ")")
        for name, seconds in cell["seconds_to_compile"].items()
    ]
    line = f"{title(cell)}: compiled with an empty cache of Inductor in {', '.join(times)}."
    if "difference" in cell:
        line += (
            " After {steps} steps no parameter is further than {compiled:.1e} from the eager one's, which moved by up "
            "to {change:.1e}; an eager recurrence as a loop, which differs in rounding alone, goes {rounding:.1e}: "
            "Adam makes steps of the rounding of gradients near zero.".format(**cell["difference"])
        )
    return line
