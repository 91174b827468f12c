"""The report's section on the communication layer, and its picture, from the JSON of communication_layer.py alone."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

FORWARD, BACKWARD, PRODUCTS, COMPILED = "forward", "forward and backward", "matrix products", "loop, compiled"
IMPLEMENTATIONS = ("fused", "loop", COMPILED)

Results = dict[str, Any]


def communication_layer(results: Results) -> str:
    """Markdown: times of all contenders, which implementation is fastest, and the time per agent of long teams."""
    about, cells = results["about"], results["cells"]
    options = about["options"]
    lines = [
        "## What the communication layer costs",
        "",
        f"Recurrences of {options['hidden_size']} a direction, rivals of as many outputs and, for MultiAgentMLP, as "
        f"many parameters. Milliseconds, and in brackets their multiple of the matrix products alone, which a "
        f"recurrence needs and the others do not; medians of {options['repeats']} turns.",
        "",
    ]
    for kind in (BACKWARD, FORWARD):
        without = ", without autograd" if kind == FORWARD else ""
        lines += [f"{kind.capitalize()}{without}:", "", *times(cells, kind), ""]
    lines += [
        *times_per_agent(results),
        "",
        "Megabytes that autograd keeps from the forward pass for the backward pass:",
        "",
        *memory(cells),
        "",
        "The fastest implementation of the recurrence, and how many times longer the others take:",
        "",
        *fastest(cells),
        "",
        *compiling(cells),
        "",
        provenance(about),
        "",
        "![Time over that of the matrix products, over the number of agents](results/communication_layer/cpu.png)",
        "",
    ]
    return "\n".join(lines)


def times(cells: list[Results], kind: str) -> list[str]:
    return table(
        ["", *map(title, cells)],
        [[name, *(time_and_multiple(cell, name, kind) for cell in cells)] for name in contenders(cells)],
    )


def memory(cells: list[Results]) -> list[str]:
    names = [name for name in contenders(cells) if name not in (PRODUCTS, COMPILED)]
    kept = [[cell["megabytes_kept"][in_cell(cell, name)] for cell in cells] for name in names]
    rows = [[name, *(f"{megabytes:.1f}" for megabytes in row)] for name, row in zip(names, kept, strict=True)]
    return table(["", *map(title, cells)], rows)


def communication_layer_memory_kept(results: Results) -> str:
    """Markdown: the same for long teams, where glibc keeps the memory that is freed."""
    lines = [
        "## What long teams cost when freed memory is kept",
        "",
        "glibc gives large blocks back to the system and gets them again, page by page. Its settings in the command "
        "below keep them. Measured at another time than the section above: compare what is within a table alone.",
        "",
        *times_per_agent(results),
        "",
        f"{BACKWARD.capitalize()}:",
        "",
        *times(results["cells"], BACKWARD),
        "",
        provenance(results["about"]),
        "",
    ]
    return "\n".join(lines)


def provenance(about: Results) -> str:
    threads = about["threads"]
    versions = ", ".join(f"{name} {about['versions'][name]}" for name in ("python", "torch", "torchrl"))
    return (
        f"`{about['command']}` took {about['seconds']:.0f} s. {about['machine']}, {threads} "
        f"thread{'s' if threads > 1 else ''}, {about['options']['device']}, {about['date']}, commit {about['commit']}; "
        f"{versions}."
    )


def times_per_agent(results: Results) -> list[str]:
    """Ratios of medians, and the least and largest ratio within a turn."""
    few, many = results["about"]["options"]["teams"]
    names = [f"{name}, {kind}" for kind in (BACKWARD, FORWARD) for name in ("fused", "loop", PRODUCTS)]
    rows = []
    for team in results["teams"]:
        row = [f"{team['cell'].upper()}, batch {team['batch_size']}"]
        for name in names:
            small, large = f"{few} agents, {name}", f"{many} agents, {name}"
            ratio = team["milliseconds"][large] / team["milliseconds"][small] * few / many
            pairs = zip(team["seconds"][small], team["seconds"][large], strict=True)
            turns = [of_large / of_small * few / many for of_small, of_large in pairs]
            row.append(f"{ratio:.2f} ({min(turns):.2f} to {max(turns):.2f})")
        rows.append(row)
    lines = [
        f"Time per agent of a team of {many} over that of a team of {few}, which took turns with each other, and in "
        "brackets the least and the largest of a turn:",
        "",
    ]
    return lines + table(["", *names], rows)


def fastest(cells: list[Results]) -> list[str]:
    rows = []
    for cell in cells:
        row = [title(cell)]
        for kind in (BACKWARD, FORWARD):
            found = {name: time(cell, name, kind) for name in IMPLEMENTATIONS if f"{name}, {kind}" in cell["seconds"]}
            first, *others = sorted(found, key=found.__getitem__)
            row.append(f"{first} ({', '.join(f'{name} {found[name] / found[first]:.2f}' for name in others)})")
        rows.append(row)
    return table(["", BACKWARD, FORWARD], rows)


def compiling(cells: list[Results]) -> list[str]:
    """How long it took where it was done, and where it was left out."""
    took = [
        f"{title(cell)} {cell['seconds_to_compile'][BACKWARD]:.0f} s" for cell in cells if "seconds_to_compile" in cell
    ]
    without = [title(cell) for cell in cells if COMPILED in cell.get("left_out", {})]
    start = "Compiling the loop forward and backward, or finding it in Inductor's cache"
    lines = [f"{start}: {'; '.join(took)}."] if took else []
    if without:
        lines.append(
            f"The compiled loop is left out of {'; '.join(without)}: it is unrolled, and the time to compile it grows "
            "with the team."
        )
    return lines


def draw_communication_layer(results: Results) -> Figure:
    """Times of the matrix products alone, forward and backward, over the number of agents: a panel for each cell."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    names = list(dict.fromkeys(cell["cell"] for cell in results["cells"]))
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    batch_size = results["cells"][0]["batch_size"]
    for axes, name in zip(panels, names, strict=True):
        cells = [cell for cell in results["cells"] if (cell["cell"], cell["batch_size"]) == (name, batch_size)]
        for contender in contenders(cells):
            shown = [cell for cell in cells if find(cell, contender, BACKWARD)]
            agents = [cell["n_agents"] for cell in shown]
            multiples = [time(cell, contender, BACKWARD) / time(cell, PRODUCTS, BACKWARD) for cell in shown]
            style = "k--" if contender == PRODUCTS else "-"
            axes.plot(agents, multiples, style, marker="o", markersize=3, label=contender)
        axes.set(xscale="log", xlabel="agents", title=f"{name.upper()}, batch {batch_size}")
        axes.set_xticks([cell["n_agents"] for cell in cells], [str(cell["n_agents"]) for cell in cells])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="time / matrix products alone", ylim=(0, None))
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize="small", loc="outside right center")
    return figure


def contenders(cells: list[Results]) -> list[str]:
    """Implementations first, the others in their order; torch's layer under one name, whatever its cell."""
    keys = [key for cell in cells for key in cell["seconds"] if key.endswith(f", {BACKWARD}")]
    names = [key.removesuffix(f", {BACKWARD}") for key in keys]
    found = dict.fromkeys("torch.nn" if name.startswith("torch.nn") else name for name in names)
    return [
        *(name for name in IMPLEMENTATIONS if name in found),
        *(name for name in found if name not in IMPLEMENTATIONS),
    ]


def find(cell: Results, name: str, kind: str) -> float | None:
    return cell["milliseconds"].get(f"{in_cell(cell, name)}, {kind}")


def in_cell(cell: Results, name: str) -> str:
    return f"torch.nn.{cell['cell'].upper()}" if name == "torch.nn" else name


def time(cell: Results, name: str, kind: str) -> float:
    milliseconds = find(cell, name, kind)
    assert milliseconds is not None
    return milliseconds


def time_and_multiple(cell: Results, name: str, kind: str) -> str:
    milliseconds = find(cell, name, kind)
    if milliseconds is None:
        return "-"
    return f"{milliseconds:.1f} ({milliseconds / time(cell, PRODUCTS, kind):.2f})"


def title(cell: Results) -> str:
    return f"{cell['cell'].upper()}, {cell['batch_size']:,} x {cell['n_agents']}"


def table(names: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (names, ["---", *["--:"] * (len(names) - 1)], *rows)]
