"""The text of a representation: ``"8*Vector + 4*Trivial"``."""

from __future__ import annotations

import ast

from equidial.errors import ArgumentError, explain
from equidial.groups import Group
from equidial.representations._base import DirectSum, Representation
from equidial.representations._elementary import Trivial, Vector
from equidial.representations._pixels import Pixels
from equidial.representations._regular import Regular
from equidial.representations._tensor import Tensor


def parse(text: str, group: Group) -> Representation:
    """The representation written ``"8*Vector + 4*Trivial"`` or ``"3*Pixels(14,14)"``, for this group.

    Terms are joined by ``+``, tensor products by ``@``, copies by ``n*``; parentheses group. Names: ``Trivial``,
    ``Vector``, ``Tensor(k)``, ``Regular``, ``Pixels(h,w)`` (``Pixels(h,w,'construction')``), ``Tokens(h,w)`` (one extra
    token; ``Tokens(h,w,extra)``), ``Dual(..)``. Raises ``ArgumentError`` for anything else.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body if isinstance(text, str) else None
    except SyntaxError:
        tree = None
    found = _build(tree, group) if tree is not None else None
    if found is None:
        raise ArgumentError(
            explain(
                "terms '[copies*]NAME' joined by '+', with NAME one of Trivial, Vector, Tensor(k), Regular, "
                "Pixels(h,w), Tokens(h,w), Dual(..), or products NAME @ NAME",
                repr(text),
                "e.g. '8*Vector + 4*Trivial'",
            )
        )
    return found


def tokens(group: Group, shape: tuple[int, ...], extra: int = 1) -> Representation:
    """A grid of tokens behind ``extra`` tokens that stay in place (class token, registers)."""
    grid = Pixels(group, shape)
    return extra * Trivial(group) + grid if extra else grid


def _build(node: ast.expr, group: Group) -> Representation | None:
    if isinstance(node, ast.BinOp):
        if isinstance(node.op, ast.Mult):
            copies, rep = _integer(node.left), _build(node.right, group)
            return None if copies is None or copies < 1 or rep is None else copies * rep
        left, right = _build(node.left, group), _build(node.right, group)
        if left is None or right is None:
            return None
        if isinstance(node.op, ast.Add):
            # "a + (b + c)" keeps its own term, so that names and copies read back as they were written
            return left + right if not isinstance(right, DirectSum) or _is_term(node.right) else left + 1 * right
        return left @ right if isinstance(node.op, ast.MatMult) else None
    if isinstance(node, ast.Name):
        plain = {"Trivial": Trivial, "Vector": Vector, "Regular": Regular}
        return plain[node.id](group) if node.id in plain else None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return _call(node.func.id, node.args, group)
    return None


def _is_term(node: ast.expr) -> bool:
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)


def _call(name: str, arguments: list[ast.expr], group: Group) -> Representation | None:
    if name == "Dual" and len(arguments) == 1:
        inner = _build(arguments[0], group)
        return inner.dual if inner is not None else None
    construction = None
    if name == "Pixels" and len(arguments) > 1 and isinstance(arguments[-1], ast.Constant):
        construction = arguments[-1].value if isinstance(arguments[-1].value, str) else None
    numbers = [_integer(a) for a in (arguments[:-1] if construction else arguments)]
    if not numbers or any(n is None for n in numbers):
        return None
    shape = tuple(n for n in numbers if n is not None)
    if name == "Pixels":
        return Pixels(group, shape, construction)
    if name == "Tensor" and len(shape) == 1:
        return Tensor(group, shape[0])
    if name == "Tokens" and len(shape) in (2, 3):
        return tokens(group, shape[:2], *shape[2:])
    return None


def _integer(node: ast.expr) -> int | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, int) and not isinstance(node.value, bool):
        return node.value
    return None
