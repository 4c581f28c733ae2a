"""What a PromQL query needs: which metrics, which of their labels, and which values of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import promql_parser

TARGET_LABELS = frozenset({"instance", "job"})
"""Labels that Prometheus itself gives to each series of a target."""


@dataclass
class Needed:
    """A metric as a query uses it."""

    name: str
    labels: set[str] = field(default_factory=set)
    values: dict[str, set[str]] = field(default_factory=dict)
    """For each label that the query compares: the values that it may have, of which some must be there."""


def metrics_of(query: str) -> list[Needed]:
    """The metrics that a query uses. Raises ValueError where it is no PromQL."""
    return list(_walk(promql_parser.parse(query), frozenset()))


def _walk(node: Any, grouped: frozenset[str]) -> Iterator[Needed]:
    """`grouped` are the labels by which the value of this node is grouped or matched."""
    match node:
        case promql_parser.VectorSelector():
            yield _needed(node, grouped)
        case promql_parser.MatrixSelector():
            yield _needed(node.vector_selector, grouped)
        case promql_parser.AggregateExpr():
            own = frozenset(node.modifier.labels) if node.modifier is not None else frozenset()
            yield from _walk(node.expr, own)
        case promql_parser.BinaryExpr():
            matched = (
                frozenset(node.modifier.matching.labels) if node.modifier and node.modifier.matching else frozenset()
            )
            for side in (node.lhs, node.rhs):
                yield from _walk(side, grouped | matched)
        case promql_parser.Call():
            for argument in node.args:
                yield from _walk(argument, grouped)
        case promql_parser.ParenExpr() | promql_parser.UnaryExpr() | promql_parser.SubqueryExpr():
            yield from _walk(node.expr, grouped)
        case promql_parser.NumberLiteral() | promql_parser.StringLiteral():
            pass
        case _:
            raise AssertionError(f"a part of PromQL that nobody looks into: {type(node).__name__}")


def _needed(selector: Any, grouped: frozenset[str]) -> Needed:
    needed = Needed(selector.name, set(grouped))
    for matcher in selector.matchers.matchers:
        needed.labels.add(matcher.name)
        # Of a regular expression only alternatives of plain words are looked at.
        needed.values[matcher.name] = set(matcher.value.split("|"))
    return needed
