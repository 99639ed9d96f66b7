"""What the endpoints that FastAPI serves get from their application and their request."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header, Request

from app.metrics import Metrics
from app.ports import Database
from app.requests import parameters_of
from app.schemas.reads import NoParameters
from cluster_core.hlc import parse_timestamp
from cluster_core.types import Timestamp

__all__ = ["ServedDatabase", "ServedMetrics", "Session", "no_parameters"]


def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


def _metrics(request: Request) -> Metrics:
    metrics: Metrics = request.app.state.metrics
    return metrics


def _session(
    kotoba_session: Annotated[
        str | None,
        Header(alias="Kotoba-Session", description="A timestamp that the answer must include."),
    ] = None,
) -> Timestamp | None:
    if kotoba_session is None:
        return None
    return parse_timestamp(kotoba_session, where="header.kotoba-session")


def no_parameters(request: Request) -> None:
    """Refuse query parameters where none are known."""
    if request.scope["query_string"]:
        parameters_of(request.scope["query_string"], NoParameters)


ServedDatabase = Annotated[Database, Depends(_database)]
ServedMetrics = Annotated[Metrics, Depends(_metrics)]
Session = Annotated[Timestamp | None, Depends(_session)]
