"""Which rows stay: an expression over scores and labels, such as `music > 0.8 and speech < 0.2 and text <
0.1`.

A comparison whose score a row does not have is left out for that row; nothing is dropped for what nobody
measured. A label that a row does not have equals none: `kind == "MV"` keeps what is known to be one.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

OPERATORS: dict[type[ast.cmpop], tuple[str, Callable[[Any, Any], bool]]] = {
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
}
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """`name < wanted`."""

    name: str
    sign: str
    holds: Callable[[Any, Any], bool]
    wanted: float | str

    def reason(self, values: Values) -> str | None:
        """Why the row goes, or None."""
        value = values.get(self.name)
        if value is None:
            return f"{self.name} is not known" if self.needs_label else None
        if self._holds(value):
            return None
        return f"{self.name} is {value:g}" if isinstance(value, float) else f"{self.name} is {value}"

    @property
    def needs_label(self) -> bool:
        """Whether it asks for a label by name, which a row without one cannot have."""
        return self.sign == "==" and isinstance(self.wanted, str)

    def _holds(self, value: float | str) -> bool:
        try:
            return self.holds(value, self.wanted)
        except TypeError as error:
            raise ValueError(f"--keep: {self} compares {value!r} with a value of another kind") from error

    def __str__(self) -> str:
        wanted = f"{self.wanted:g}" if isinstance(self.wanted, float) else repr(self.wanted)
        return f"{self.name} {self.sign} {wanted}"


@dataclass(frozen=True)
class AllOf:
    terms: tuple[Term, ...]

    def reason(self, values: Values) -> str | None:
        """The first term that does not hold."""
        for term in self.terms:
            if reason := term.reason(values):
                return f"{reason}, wanted {term}" if isinstance(term, Comparison) else reason
        return None

    def __str__(self) -> str:
        return " and ".join(map(str, self.terms))


@dataclass(frozen=True)
class AnyOf:
    terms: tuple[Term, ...]

    def reason(self, values: Values) -> str | None:
        """None where a measured term holds, or nothing was measured."""
        known = {name for name, value in values.items() if value is not None}
        measured = tuple(term for term in self.terms if _can_tell(term, known))
        reasons = [term.reason(values) for term in measured]
        if not reasons or None in reasons:
            return None
        wanted = measured[0] if len(measured) == 1 else AnyOf(measured)
        return f"{', '.join(reason for reason in reasons if reason)}, wanted {wanted}"

    def __str__(self) -> str:
        return f"({' or '.join(map(str, self.terms))})"


Term = Comparison | AllOf | AnyOf


def parse_keep(text: str) -> AllOf:
    """The expression. Raises ValueError that says what is not understood."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"--keep {text!r}: not an expression; wants e.g. 'music > 0.8 and text < 0.1'"
        ) from error
    term = _term(tree, text)
    return term if isinstance(term, AllOf) else AllOf((term,))


def names(term: Term) -> set[str]:
    """The scores and labels that an expression asks for."""
    if isinstance(term, Comparison):
        return {term.name}
    return set().union(*(names(t) for t in term.terms))


def _can_tell(term: Term, known: set[str]) -> bool:
    """Whether a row of which so much is known can be asked."""
    if isinstance(term, Comparison):
        return term.needs_label or term.name in known
    return all(_can_tell(each, known) for each in term.terms)


def _term(node: ast.expr, text: str) -> Term:
    if isinstance(node, ast.BoolOp):
        terms = tuple(_term(value, text) for value in node.values)
        return AllOf(terms) if isinstance(node.op, ast.And) else AnyOf(terms)
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.left, ast.Name):
        right, sign = node.comparators[0], OPERATORS.get(type(node.ops[0]))
        wanted = _constant(right)
        if sign and wanted is not None:
            return Comparison(node.left.id, *sign, wanted)
    shown = ast.get_source_segment(text.strip(), node) or text
    raise ValueError(
        f"--keep: {shown!r} is not understood; wants a name, one of < <= > >= == !=, and a value"
    )


def _constant(node: ast.expr) -> float | str | None:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _constant(node.operand)
        return -inner if isinstance(inner, float) else None
    if (
        isinstance(node, ast.Constant)
        and isinstance(node.value, int | float)
        and not isinstance(node.value, bool)
    ):
        return float(node.value)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None
