"""Mutation testing: small faults are put into a file, one at a time, and its tests must turn red.

``python tests/mutants.py [FILE ...] --sample 100`` writes ``mutants.json``: of each fault its file, line, text before
and after, and the test that saw it, or null for a survivor. It goes on where it stopped, unless a file has changed.

A process that has imported torch, torchrl and vmas forks a child for each fault, in a copy of the repository, so that
processes started by tests have it too. The public tools start a process for each (cosmic-ray; imports take 5 s), or put
a function around every function that chooses its fault at each call (mutmut), which ``torch.compile`` does not trace.
"""

import argparse
import ast
import copy
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from importlib.util import cache_from_source
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Files, by the longest prefix of their path, and their tests, the nearest first.
TESTS = {
    "torchrl_bicnet/communication/": ("communication", "net", "modules"),
    "torchrl_bicnet/net.py": ("net", "modules", "plain", "parameter_sharing"),
    "torchrl_bicnet/modules.py": ("modules", "objectives", "recipes"),
    "torchrl_bicnet/specs.py": ("modules", "exploration", "misuse"),
    "torchrl_bicnet/objectives.py": ("objectives", "recipes"),
    "torchrl_bicnet/exploration.py": ("exploration",),
    "examples/train_vmas.py": ("train_vmas",),
}
OPERATORS = {"Lt": "LtE GtE", "LtE": "Lt Gt", "Gt": "GtE LtE", "GtE": "Gt Lt", "Eq": "NotEq", "NotEq": "Eq"}
OPERATORS |= {"Is": "IsNot", "IsNot": "Is", "In": "NotIn", "NotIn": "In", "And": "Or", "Or": "And", "Add": "Sub"}
OPERATORS |= {"Sub": "Add", "Mult": "Div", "Div": "Mult", "FloorDiv": "Mult", "Pow": "Mult", "Mod": "Mult"}
OPERATORS |= {"BitOr": "BitAnd", "BitAnd": "BitOr"}
FUNCTIONS = {"min": "max", "any": "all", "minimum": "maximum", "clamp_min": "clamp_max", "zeros": "ones"}
FUNCTIONS |= {other: name for name, other in FUNCTIONS.items()}
METHODS = FUNCTIONS | {"sum": "mean", "mean": "sum", "zeros_like": "ones_like"}


def is_check(node: ast.AST) -> bool:
    """Messages, and what refuses arguments, which test_misuse.py holds."""
    if isinstance(node, ast.If):
        return len(node.body) == 1 and isinstance(node.body[0], ast.Raise) and not node.orelse
    called = node.value.func if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else None
    name = getattr(called, "id", getattr(called, "attr", "")).lstrip("_")
    return isinstance(node, (ast.Raise, ast.JoinedStr)) or name.startswith("check_")


def nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All in which a fault makes sense."""
    if not is_check(node):
        yield node
        for name, value in ast.iter_fields(node):
            if name not in ("annotation", "returns", "decorator_list"):
                for part in value if isinstance(value, list) else [value]:
                    yield from nodes(part) if isinstance(part, ast.AST) else ()


def faults(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """What to replace, and by which text."""

    def changed(**fields: object) -> str:
        other = copy.copy(node)
        other.__dict__.update(fields)
        return ast.unparse(other)

    def others(op: ast.AST) -> list[ast.AST]:
        return [getattr(ast, name)() for name in OPERATORS.get(type(op).__name__, "").split()]

    match node:
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                yield from ((node, f"({changed(ops=[*ops[:i], other, *ops[i + 1 :]])})") for other in others(op))
        case ast.BinOp(op=op) | ast.BoolOp(op=op):
            yield from ((node, f"({changed(op=other)})") for other in others(op))
        case ast.UnaryOp(operand=operand):
            yield node, f"({ast.unparse(operand)})"
        case ast.Constant(value=bool() as value):
            yield node, str(not value)
        case ast.Constant(value=int() | float() as value):
            yield node, repr(value + 1)
        case ast.Name(id=name) if name in FUNCTIONS:
            yield node, FUNCTIONS[name]
        case ast.Attribute(attr=name) if name in METHODS:
            yield node, changed(attr=METHODS[name])
        case ast.Expr(value=ast.Call()) | ast.AugAssign():
            yield node, "pass"
        case ast.Return(value=ast.expr()):
            yield node, "return None"
        case ast.Call(args=args, keywords=keywords):
            yield from ((argument, "") for argument in [*args[1:][-1:], *keywords])  # with its comma
    test = getattr(node, "test", None)
    if test is not None and not isinstance(test, (ast.Compare, ast.UnaryOp)):  # which have faults of their own
        yield test, f"(not ({ast.unparse(test)}))"


def mutants(file: str) -> list[dict]:
    source = (ROOT / file).read_bytes()
    starts = [0, *(place.end() for place in re.finditer(b"\n", source))]
    found = []
    for place, text in (fault for node in nodes(ast.parse(source)) for fault in faults(node)):
        begin = starts[place.lineno - 1] + place.col_offset
        end = starts[place.end_lineno - 1] + place.end_col_offset
        before = " ".join(source[begin:end].decode().split())
        end += len(re.match(rb"\s*,?", source[end:])[0]) if not text else 0
        mutated = source[:begin] + text.encode() + source[end:]
        compile(mutated, file, "exec")
        digest = hashlib.sha256(source + mutated).hexdigest()[:16]
        fault = {"file": file, "line": place.lineno, "before": before, "after": text or "nothing", "id": digest}
        found.append((begin, end, text, fault | {"source": mutated}))
    return [fault for *_, fault in sorted(found, key=lambda entry: entry[:3])]


def told(record: dict) -> str:
    before, after = (textwrap.shorten(record[name], 70, placeholder=" ...") for name in ("before", "after"))
    return f"{record['file']}:{record['line']}: {before}  ->  {after}"


def run_tests(root: Path, file: str, result: Path) -> None:
    """In a child: write the first test that fails into ``result``, null if none does."""
    import pytest

    class FirstFailure:
        name: str | None = None

        def pytest_runtest_logreport(self, report):
            if report.failed:
                self.name = self.name or report.nodeid

        pytest_collectreport = pytest_runtest_logreport

    os.setsid()
    os.chdir(root)
    sys.path[0] = os.environ["PYTHONPATH"] = str(root)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    prefix = max((prefix for prefix in TESTS if file.startswith(prefix)), key=len)
    seen, code = FirstFailure(), 0
    for name in TESTS[prefix]:
        options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
        code = code or pytest.main([f"tests/test_{name}.py", *options], [seen])
    result.write_text(json.dumps(seen.name or (f"pytest ended with {code}" if code else None)))


class Worker:
    """A copy of the repository, and the child that tests a fault in it."""

    def __init__(self, folder: Path, source: Path = ROOT) -> None:
        self.root, self.result = folder / "copy", folder / "result.json"
        shutil.copytree(source, self.root, ignore=shutil.ignore_patterns(".git", ".*_cache", "mutants.json"))

    def start(self, file: str, source: bytes) -> None:
        self.file, self.began = file, time.monotonic()
        self.result.unlink(missing_ok=True)
        (self.root / file).write_bytes(source)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                run_tests(self.root, file, self.result)
            finally:
                os._exit(0)

    def finished(self, timeout: float) -> bool:
        """Whether the child has ended, by itself or by the clock."""
        late = time.monotonic() - self.began > timeout
        if late:
            os.killpg(self.pid, signal.SIGKILL)
        ended = os.waitpid(self.pid, 0 if late else os.WNOHANG)[0] != 0
        if ended:
            (self.root / self.file).write_bytes((ROOT / self.file).read_bytes())
            whole = self.result.exists()
            self.killed_by = json.loads(self.result.read_text()) if whole else "timeout" if late else "a crash"
        return ended


def check_unmutated(worker: Worker, files: set[str]) -> float:
    """The seconds that the slowest tests take, all of which pass; they leave compiled files, but none of ``files``."""
    slowest = 0.0
    for file in sorted(files):
        worker.start(file, (ROOT / file).read_bytes())
        while not worker.finished(timeout=1800):
            time.sleep(0.1)
        if worker.killed_by is not None:
            sys.exit(f"error: {worker.killed_by} fails without a fault in {file}.")
        slowest = max(slowest, time.monotonic() - worker.began)
        print(f"{file}: its tests take {time.monotonic() - worker.began:.1f} s", flush=True)
    # Two mutants of one size in one second would be taken for each other.
    sys.dont_write_bytecode, os.environ["PYTHONDONTWRITEBYTECODE"] = True, "1"
    for file in files:
        Path(cache_from_source(worker.root / file)).unlink(missing_ok=True)
    return slowest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="relative to the repository; without any those of the table")
    parser.add_argument("--sample", type=int, help="how many faults; without it all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for one fault, or three times its tests")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("mutants.json"))
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    for module in ("matplotlib.figure", "torchrl.collectors", "torchrl.objectives", "tyro", "vmas"):
        __import__(module)

    every = (path for prefix in TESTS for path in sorted((ROOT / prefix).glob("*.py")) or [ROOT / prefix])
    chosen = [mutant for file in options.files or every for mutant in mutants(str(Path(ROOT, file).relative_to(ROOT)))]
    if options.sample is not None:
        picked = random.Random(options.seed).sample(range(len(chosen)), min(options.sample, len(chosen)))
        chosen = [chosen[index] for index in sorted(picked)]
    done = (
        {record["id"]: record for record in json.loads(options.output.read_text())} if options.output.exists() else {}
    )
    waiting = [mutant for mutant in chosen if mutant["id"] not in done]
    print(f"{len(chosen)} faults, {len(waiting)} to test", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        first = Worker(Path(folder, "0"))
        timeout = max(options.timeout, 3 * check_unmutated(first, {mutant["file"] for mutant in waiting}))
        workers = [first, *(Worker(Path(folder, str(job)), first.root) for job in range(1, options.jobs))]
        busy: dict[Worker, dict] = {}
        while waiting or busy:
            for worker in workers:
                if worker in busy and worker.finished(timeout):
                    record = busy.pop(worker) | {"killed_by": worker.killed_by}
                    done[record["id"]] = record
                    options.output.write_text(json.dumps(list(done.values()), indent=1))
                    print(f"{told(record)}: {worker.killed_by}, {time.monotonic() - worker.began:.1f} s", flush=True)
                if worker not in busy and waiting:
                    busy[worker] = waiting.pop(0)
                    worker.start(busy[worker]["file"], busy[worker].pop("source"))
            time.sleep(0.02)
    survivors = [record for mutant in chosen if (record := done[mutant["id"]])["killed_by"] is None]
    print(f"{len(survivors)} of {len(chosen)} survived", *map(told, survivors), sep="\n")


if __name__ == "__main__":
    main()
