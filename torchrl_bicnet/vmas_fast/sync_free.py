"""The source of VMAS and of scenarios, rewritten so that a step does not make the host wait for the device.

VMAS and its scenarios are written for a CPU. On a GPU some of their forms make the host wait for the device at each
step, and cannot be traced:

| form                         | why it waits                     | written as                            |
| ---------------------------- | -------------------------------- | ------------------------------------- |
| ``x[mask] = c``              | a number is copied to the device | ``x.masked_fill_(mask, c)``           |
| ``x[mask] += c``             | the rows of the mask are counted | ``where(mask, x + c, x)`` into ``x``  |
| ``x[mask] = -y[mask]``       | the same, twice                  | ``where(mask, -y, x)`` into ``x``     |
| ``x[mask, 0] = c``           | a number is copied to the device | the same as above, into ``x[:, 0]``   |
| ``x[mask][:, 0] = c``        | the rows of the mask are counted | left out: it writes to a copy         |
| ``x[:, 0] = c``              | a number is copied to the device | ``x[:, 0].fill_(c)``                  |
| ``torch.tensor(c)``          | a number is copied to the device | a copy of a tensor made before        |
| ``torch.where(mask, c, x)``  | a tensor is made of a number     | ``x.masked_fill(mask, c)``            |
| ``assert mask.all()``        | a tensor is read                 | left out, unless asked for            |
| ``if world.collides(a, b):`` | a tensor is read                 | a mask more on what is written inside |

and so with ``-=``, ``*=``, ``/=`` and sums of numbers and tensors gathered by the same mask, also clamped. The values
are equal to the bit: the same operations run, on more elements. If at run time the mask is no boolean tensor, or the
value neither a number nor gathered by the same mask, the old form is taken. The new functions live on a subclass made
for the object at hand; VMAS's classes and modules stay as they are.

Functions that are not written in VMAS's own files are left as they are unless asked for: what a user may write is more
than can be tested. What they assert is never left out.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import types
from collections import Counter
from collections.abc import Iterable
from typing import Any

from vmas.simulator import physics

from torchrl_bicnet.vmas_fast.sync_free_ops import HELPERS
from torchrl_bicnet.vmas_state.unwrap import is_shipped

_OPERATORS: dict[type[ast.operator], str] = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "truediv"}
# Side-effect-free calls allowed inside `if world.collides(...)`.
SIDE_EFFECT_FREE = frozenset(
    ("get_distance", "is_overlapping", "vector_norm", "norm", "abs", "sum", "clamp", "exp", "sqrt", "square", "float")
)
# Methods that no step calls.
_NOT_OF_A_STEP = ("__init__", "make_world", "to", "render", "extra_render")


def class_without_syncs(cls: type, *, rewrite_foreign: bool = True, checks: bool = False, **names: Any) -> type:
    """A subclass of ``cls`` whose functions, inherited ones too, are rewritten by :func:`without_syncs`.

    Args:
        cls (type): the class.

    Keyword Args:
        rewrite_foreign (bool): rewrites functions that are not written in VMAS's own files too. Defaults to ``True``.
        checks (bool): keeps VMAS's assertions about tensors. Defaults to ``False``.
        **names: replacements of global functions of ``vmas.simulator.physics``, by their names.

    Returns:
        type: of the same name, module and documentation; ``cls`` itself where nothing is rewritten.
    """
    attributes: dict[str, Any] = {}
    for owner in reversed(cls.__mro__[:-1]):
        attributes.update(vars(owner))
    new: dict[str, Any] = {"__module__": cls.__module__, "__doc__": cls.__doc__}
    for name, function in attributes.items():
        if isinstance(function, types.FunctionType) and name not in _NOT_OF_A_STEP:
            foreign = not is_shipped(function)
            if foreign and not rewrite_foreign:
                continue
            other = without_syncs(function, checks=checks or foreign, **names)
            if other is not function:
                new[name] = other
    return type(cls.__name__, (cls,), new) if len(new) > 2 else cls


def without_syncs(function: types.FunctionType, *, checks: bool = False, **names: Any) -> types.FunctionType:
    """The function with the forms of this file's table replaced; itself if there are none or its source is unknown."""
    if hasattr(function, "__wrapped__"):  # its source would be that of the function inside
        return function
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        return function
    # A name mangled by its class would not be found outside of it.
    if any(not name.endswith("__") for name in re.findall(r"\b__\w+", source)):
        return function
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or ()))
    # A scenario may have a function of its own by the name of one of VMAS's.
    known = {name for name in names if function.__globals__.get(name) is getattr(physics, name, None)}
    names = {**HELPERS, **{name: value for name, value in names.items() if name in known and name not in cells}}
    first_line = function.__code__.co_firstlineno
    code = _sync_free_code(source, function.__code__.co_filename, first_line, (*cells, *names), checks)
    if code is None:
        return function
    cells.update({name: v if isinstance(v, types.CellType) else types.CellType(v) for name, v in names.items()})
    closure = tuple(cells[name] for name in code.co_freevars)
    new = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    new.__kwdefaults__ = function.__kwdefaults__
    functools.update_wrapper(new, function)
    return new


@functools.cache
def _sync_free_code(
    source: str, filename: str, first_line: int, names: tuple[str, ...], checks: bool
) -> types.CodeType | None:
    indented = source[:1].isspace()
    try:
        (definition,) = ast.parse(f"if True:\n{source}" if indented else source).body
        if isinstance(definition, ast.If):
            (definition,) = definition.body
    except (SyntaxError, ValueError):  # a lambda, whose lines need not be one statement, or a file that was edited
        return None
    if not isinstance(definition, ast.FunctionDef):
        return None
    definition.decorator_list = []
    # Names that the function closes over, and ours, are arguments of a function around it.
    parameters = [ast.arg(name) for name in names]
    around = ast.FunctionDef("around", ast.arguments([], parameters, None, [], [], None, []), [], [])
    rewriter = _Rewriter(definition, checks)
    around.body = [rewriter.visit(definition), ast.Return(ast.Name(definition.name, ast.Load()))]
    module = ast.fix_missing_locations(ast.Module([around], []))
    ast.increment_lineno(module, first_line - 1 - indented)
    # Taken from inside the compiled function, which is never run: defaults and decorators are those of the original.
    code: Any = compile(module, filename, "exec", dont_inherit=True)
    for name in ("around", definition.name):
        code = next(part for part in code.co_consts if isinstance(part, types.CodeType) and part.co_name == name)
    return code if rewriter.leaves_out or set(code.co_freevars) & set(names) else None


class _Rewriter(ast.NodeTransformer):
    def __init__(self, definition: ast.FunctionDef, checks: bool) -> None:
        self.checks = checks
        self.leaves_out = False  # an assertion
        self.near: list[str] = []  # variables that hold the answers of the `if world.collides` around the statement
        parts = list(ast.walk(definition))
        questions = [part for part in parts if isinstance(part, ast.If) and _is_collision_check(part.test)]
        inside, everywhere = _names(line for node in questions for line in node.body), _names([definition])
        known = {name for part in parts if isinstance(part, (ast.Global, ast.Nonlocal)) for name in part.names}
        known |= {part.arg for part in parts if isinstance(part, ast.arg)}
        written = {part.id for part in parts if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
        # Variables that occur in the bodies of collision checks alone.
        self.inner = {name for name in written - known if everywhere[name] == inside[name]}

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        of_tensors = any(
            isinstance(part, ast.Attribute) and part.attr in ("all", "any") for part in ast.walk(node.test)
        )
        if self.checks or not of_tensors:
            return self.generic_visit(node)
        self.leaves_out = True
        return ast.copy_location(ast.Pass(), node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if ast.unparse(node.func) in ("torch.tensor", "torch.where"):
            node.func = ast.Name(ast.unparse(node.func).replace("torch.", "sync_free_"), ast.Load())
        return node

    def visit_If(self, node: ast.If) -> Any:
        test: Any = node.test
        if not _is_collision_check(test) or node.orelse or not _only_writes(node.body, self.inner, set()):
            return self.generic_visit(node)
        name = f"near_{len(self.near)}"
        answer = ast.NamedExpr(ast.Name(name, ast.Store()), _call("sync_free_collides", test.func.value, *test.args))
        self.near.append(name)
        self.generic_visit(node)
        self.near.pop()
        node.test = ast.Compare(answer, [ast.IsNot()], [ast.Constant(None)])
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        self.generic_visit(node)
        return self._write_call(node, node.targets[0], None) if _writes_an_entry(node) else node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        self.generic_visit(node)
        return self._write_call(node, node.target, _OPERATORS[type(node.op)]) if _writes_an_entry(node) else node

    def _write_call(self, node: ast.Assign | ast.AugAssign, target: Any, op: str | None) -> ast.AST:
        """``sync_free_write(...)`` in place of an assignment; its arguments are explained in sync_free_ops.py."""
        gathered = _Ungather(target.slice)
        everywhere = gathered.visit(ast.parse(ast.unparse(node.value), mode="eval").body)
        ungathered: ast.expr = ast.Constant(None)
        if gathered.found and gathered.possible:
            ungathered = ast.Tuple([ast.Tuple(gathered.leaves, ast.Load()), _lambda(everywhere)], ast.Load())
        later = op is not None or isinstance(ungathered, ast.Tuple)
        x = target.value
        if isinstance(x, ast.Subscript) and isinstance(node.value, ast.Constant):
            x = _call("sync_free_part", x.value, _index(x.slice))
        write = _call(
            "sync_free_write",
            ast.Constant(None) if later else node.value,
            x,
            _index(target.slice),
            _lambda(node.value) if later else ast.Constant(None),
            ast.Constant(op),
            ungathered,
            ast.Tuple([ast.Name(name, ast.Load()) for name in self.near], ast.Load()),
        )
        return ast.fix_missing_locations(ast.copy_location(ast.Expr(write), node))


class _Ungather(ast.NodeTransformer):
    """``y[mask] - 2 * z[mask]`` without the masks: arithmetic whose other leaves are, at run time, numbers."""

    def __init__(self, index: ast.expr) -> None:
        self.mask = ast.unparse(_first(index))
        self.leaves: list[ast.expr] = []
        self.found = False
        # An index with a call would be evaluated once instead of several times.
        self.possible = not any(isinstance(part, ast.Call) for part in ast.walk(index))
        self.possible = self.possible and not isinstance(_first(index), (ast.Slice, ast.Constant))

    def visit(self, node: Any) -> Any:
        if isinstance(node, ast.Subscript) and ast.unparse(_first(node.slice)) == self.mask:
            self.found = True
            if _first(node.slice) is node.slice:
                return node.value
            node.slice = _call("sync_free_whole", _index(node.slice))
            return node
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            node.operand = self.visit(node.operand)
        elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            node.left, node.right = self.visit(node.left), self.visit(node.right)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.clamp" and not node.keywords:
            node.args = [self.visit(argument) for argument in node.args]
        else:
            self.leaves.append(node)
            self.possible = self.possible and isinstance(node, (ast.Constant, ast.Name, ast.Attribute))
        return node


def _is_collision_check(test: ast.expr) -> bool:
    """Whether it is ``world.collides(a, b)``."""
    match test:
        case ast.Call(func=ast.Attribute(attr="collides"), args=[_, _], keywords=[]):
            return True
    return False


def _names(trees: Iterable[ast.AST]) -> Counter[str]:
    """The number of times that each variable occurs in trees, of which one may be part of another."""
    parts = {id(part): part for tree in trees for part in ast.walk(tree)}
    return Counter(part.id for part in parts.values() if isinstance(part, ast.Name))


def _writes_an_entry(node: ast.AST) -> bool:
    """Whether it is ``x[index] = value`` or ``x[index] += value``, and means the same inside of a lambda."""
    match node:
        case ast.Assign(targets=[ast.Subscript()]):
            return _can_be_moved(node)
        case ast.AugAssign(target=ast.Subscript(), op=op):
            return type(op) in _OPERATORS and _can_be_moved(node)
    return False


def _can_be_moved(node: ast.AST) -> bool:
    tied = (ast.NamedExpr, ast.Yield, ast.YieldFrom, ast.Await)
    return not any(
        isinstance(part, tied) or (isinstance(part, ast.Name) and part.id in ("super", "__class__", "locals"))
        for part in ast.walk(node)
    )


def has_side_effects(node: ast.AST) -> bool:
    """Whether a call in it may do more than compute, though VMAS would not make it where nothing is near."""
    called = [part.func for part in ast.walk(node) if isinstance(part, ast.Call)]
    return not all(isinstance(part, ast.Attribute) and part.attr in SIDE_EFFECT_FREE for part in called)


def _only_writes(body: list[ast.stmt], inner: set[str], assigned: set[str]) -> bool:
    """Whether statements set entries of tensors, and variables of such bodies alone, and do nothing else.

    Args:
        body (list): the statements.
        inner (set of str): variables that occur in such bodies alone.
        assigned (set of str): those set so far; written to.
    """
    for node in body:
        variable: str | None = None
        match node:
            case ast.If(test=read):
                pass
            case ast.Assign(targets=[ast.Name(id=variable)], value=read) if variable in inner and _can_be_moved(node):
                pass
            case ast.Assign(value=read) | ast.AugAssign(value=read) if _writes_an_entry(node):
                pass
            case _:
                return False
        if _names([read]).keys() & (inner - assigned) or has_side_effects(node):
            return False
        if isinstance(node, ast.If):
            branches = {*assigned}, {*assigned}
            if not all(map(_only_writes, (node.body, node.orelse), (inner, inner), branches)):
                return False
            assigned |= branches[0] & branches[1]
        elif variable is not None:
            assigned.add(variable)
    return True


def _first(index: ast.expr) -> ast.expr:
    """``mask`` of ``mask, 0``; others as they are."""
    return index.elts[0] if isinstance(index, ast.Tuple) and index.elts else index


def _index(of: ast.expr) -> ast.expr:
    return ast.Subscript(ast.Name("sync_free_index", ast.Load()), of, ast.Load())


def _lambda(body: ast.expr) -> ast.Lambda:
    return ast.Lambda(ast.arguments([], [], None, [], [], None, []), body)


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])
