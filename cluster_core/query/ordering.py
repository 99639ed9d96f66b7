"""The order of rows: keys of :mod:`~cluster_core.graph.ordering`, joined as ``order_by`` says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from cluster_core.graph.ordering import order_key
from cluster_core.graph.values import Value
from cluster_core.query.plan import OrderBy

__all__ = ["COMPLEMENT", "compile_order", "order_key"]

COMPLEMENT: Final = bytes(range(255, -1, -1))
"""A translation table: the complement of a key sorts the other way around."""


def compile_order(order_by: tuple[OrderBy, ...]) -> Callable[[Mapping[str, Value]], bytes]:
    """A function from properties to the key that sorts rows as ``order_by`` says."""
    parts = tuple((order.property, order.descending) for order in order_by)

    def key(properties: Mapping[str, Value]) -> bytes:
        return b"".join(
            order_key(properties.get(name)).translate(COMPLEMENT)
            if descending
            else order_key(properties.get(name))
            for name, descending in parts
        )

    return key
