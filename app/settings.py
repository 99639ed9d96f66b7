"""Every setting of a node and of the client: the only place that reads the environment.

An option ``--data-dir`` of the command line is the setting ``data_dir`` and the environment
variable ``KOTOBA_DATA_DIR``; the command line wins. ``python -m app.settings`` prints the table of
``docs/configuration.md``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from cluster_core.config import ClusterConfig

__all__ = [
    "ClientSettings",
    "NodeSettings",
    "SettingError",
    "child_environment",
    "configuration_markdown",
    "load_settings",
    "option_of",
    "parse_address",
]

PREFIX: Final = "KOTOBA_"
_DEFAULTS: Final = ClusterConfig()
_NODE_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_WILDCARD_HOSTS: Final = ("0.0.0.0", "::")


class SettingError(ValueError):
    """A setting that cannot be: one line that names the option and says why."""


def parse_address(text: str) -> tuple[str, int]:
    """``host:port``, IPv6 in brackets, as (host, port); a ValueError says what is wrong."""
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isascii() or not port.isdigit():
        raise ValueError(f"must be host:port, for example 127.0.0.1:8080, not {text!r}")
    if not 1 <= int(port) <= 65535:
        raise ValueError(f"the port must be 1 to 65535, not {port}")
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1], int(port)
    if ":" in host:
        raise ValueError(f"an IPv6 address stands in brackets: [{host}]:{port}")
    return host, int(port)


class NodeSettings(BaseSettings):
    """One node of a cluster."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    node_id: str = Field(
        "node1", description="Name of this node, unique in the cluster: letters, digits, . _ -"
    )
    address: str = Field(
        "127.0.0.1:8080", description="Where this node listens, for clients and for its peers."
    )
    advertise: str | None = Field(
        None,
        description="The address under which the others reach this node. Default: the address.",
    )
    peers: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Addresses of the nodes that form the cluster, separated by commas; the own "
        "one may be among them. None: a cluster of one.",
    )
    data_dir: Path | None = Field(
        None, description="Folder of this node's data. Default: ./data/<node id>."
    )
    zone: str | None = Field(
        None, description="Rack, room or availability zone: replicas are spread over zones."
    )
    role: Literal["voter", "witness"] = Field(
        "voter",
        description="A witness has a copy of every partition and serves reads; it never votes, "
        "never leads, and no write waits for it.",
    )
    cluster_secret: SecretStr | None = Field(
        None,
        description="Shared by all nodes; peers without it are refused. Prefer the environment "
        "variable: a command line is visible to every user of the machine.",
    )
    replication_factor: int = Field(
        _DEFAULTS.replication_factor,
        ge=1,
        le=7,
        description="Replicas of each partition. Decided when a cluster forms.",
    )
    partition_count: int = Field(
        _DEFAULTS.partition_count,
        ge=1,
        le=1024,
        description="Slices of the key space, each a Raft group. Decided when a cluster forms.",
    )
    forward: bool = Field(
        False,
        description="Forward a write to its leader instead of answering 307, unless a request "
        "says otherwise (?forward=).",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="How much is logged, to stderr."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Lines for people, or one JSON object a line."
    )
    tick_ms: int = Field(
        _DEFAULTS.raft.tick_ms,
        ge=5,
        le=10_000,
        description="The unit of Raft's time: a leader sends a heartbeat each tick.",
    )
    election_ticks: int = Field(
        _DEFAULTS.raft.election_ticks,
        ge=3,
        le=1_000,
        description="Ticks of silence after which a follower campaigns (one to two times this). "
        "A crash is noticed at once by its broken connection; this is for silence.",
    )
    suspect_after_ms: int = Field(
        _DEFAULTS.membership.suspect_after_ms,
        ge=10,
        description="Silence after which a node is suspected.",
    )
    fail_after_ms: int = Field(
        _DEFAULTS.membership.fail_after_ms,
        ge=10,
        description="Silence after which a node is called failed.",
    )
    timeout_ms: int = Field(
        _DEFAULTS.limits.timeout_ms,
        ge=1,
        le=_DEFAULTS.limits.timeout_ms_max,
        description="How long a request may take when it does not say so itself (?timeout_ms=).",
    )
    body_bytes_max: int = Field(
        _DEFAULTS.limits.body_bytes_max,
        ge=1_024,
        description="The largest request body.",
    )
    inflight_requests_max: int = Field(
        _DEFAULTS.limits.inflight_requests_max,
        ge=1,
        description="Writes that may wait for their outcome; beyond it 503 overloaded.",
    )
    detach_edges_max: int = Field(
        _DEFAULTS.limits.detach_edges_max,
        ge=1,
        le=100_000_000,
        description="Edges that a node may have to be deleted with them (detach); beyond it 413 "
        "too_large.",
    )
    transaction_operations_max: int = Field(
        _DEFAULTS.limits.transaction_operations_max,
        ge=1,
        le=10_000,
        description="Operations of one transaction; beyond it 413 too_large.",
    )
    transaction_bytes_max: int = Field(
        _DEFAULTS.limits.transaction_bytes_max,
        ge=1 << 20,
        le=16 << 20,
        description="What a transaction may write in one partition, as one entry of its log; "
        "beyond it 413 too_large.",
    )
    transaction_detach_edges_max: int = Field(
        _DEFAULTS.limits.transaction_detach_edges_max,
        ge=1,
        le=10_000,
        description="As detach_edges_max, for a deletion that is one of the operations of a "
        "transaction.",
    )
    disk_reserve_bytes: int = Field(
        _DEFAULTS.storage.reserve_bytes,
        ge=0,
        description="Room on the disk that is kept for the database's own bookkeeping, by a file "
        "in the data folder; on a small disk at most a sixteenth of it. With less than half of it "
        "free, writes are refused with storage_full, until as much is free beside it.",
    )
    history_retention_ms: int = Field(
        _DEFAULTS.replication.history_retention_ms,
        ge=1_000,
        description="How long old versions, deletions and changes are kept, for as_of, /history "
        "and feeds that resume; up to a sixteenth longer. Requests with an Idempotency-Key are "
        "remembered for an hour, but no longer than this.",
    )
    full_sync_interval_ms: int = Field(
        _DEFAULTS.replication.full_sync_interval_ms,
        ge=1_000,
        description="How often the replicas of a partition compare what they have; one that "
        "differs is reported, and made anew.",
    )
    full_sync_share: float = Field(
        _DEFAULTS.replication.full_sync_share,
        gt=0,
        le=1,
        description="Of a core: what reading for these comparisons may take, all together.",
    )
    snapshot_bytes_per_s: int = Field(
        _DEFAULTS.replication.snapshot_bytes_per_s,
        ge=1_024,
        description="How fast this node takes in snapshots of partitions, all together: of "
        "replicas that were away for too long, or are new here.",
    )
    stop_on_stdin_eof: bool = Field(
        False,
        description="Stop when stdin is closed, so that a node never outlives the program that "
        "started it.",
    )

    @field_validator("peers", mode="before")
    @classmethod
    def _split_peers(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("peers")
    @classmethod
    def _check_peers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for peer in value:
            parse_address(peer)
        return value

    @field_validator("address", "advertise")
    @classmethod
    def _check_address(cls, value: str | None) -> str | None:
        if value is not None:
            parse_address(value)
        return value

    @field_validator("node_id")
    @classmethod
    def _check_node_id(cls, value: str) -> str:
        if not _NODE_ID.fullmatch(value):
            raise ValueError("must be 1 to 64 letters, digits, dots, underscores or hyphens")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> NodeSettings:
        host, _ = parse_address(self.advertised)
        if host in _WILDCARD_HOSTS and self.peers:
            raise ValueError(
                f"--advertise is needed: peers cannot reach {self.advertised}, which only says "
                "that this node listens everywhere"
            )
        if self.fail_after_ms < self.suspect_after_ms:
            raise ValueError("--fail-after-ms must not be below --suspect-after-ms")
        return self

    @property
    def advertised(self) -> str:
        """The address under which peers and redirected clients reach this node."""
        return self.advertise or self.address

    @property
    def data_path(self) -> Path:
        """The folder of this node's data."""
        return self.data_dir if self.data_dir is not None else Path("data") / self.node_id

    def cluster_config(self) -> ClusterConfig:
        """What the database itself needs to know of these settings."""
        return replace(
            _DEFAULTS,
            replication_factor=self.replication_factor,
            partition_count=self.partition_count,
            zone=self.zone,
            role=self.role,
            raft=replace(_DEFAULTS.raft, tick_ms=self.tick_ms, election_ticks=self.election_ticks),
            membership=replace(
                _DEFAULTS.membership,
                suspect_after_ms=self.suspect_after_ms,
                fail_after_ms=self.fail_after_ms,
            ),
            storage=replace(_DEFAULTS.storage, reserve_bytes=self.disk_reserve_bytes),
            replication=replace(
                _DEFAULTS.replication,
                history_retention_ms=self.history_retention_ms,
                full_sync_interval_ms=self.full_sync_interval_ms,
                full_sync_share=self.full_sync_share,
                snapshot_bytes_per_s=self.snapshot_bytes_per_s,
                dedupe_retention_ms=min(
                    _DEFAULTS.replication.dedupe_retention_ms, self.history_retention_ms
                ),
            ),
            limits=replace(
                _DEFAULTS.limits,
                timeout_ms=self.timeout_ms,
                body_bytes_max=self.body_bytes_max,
                inflight_requests_max=self.inflight_requests_max,
                detach_edges_max=self.detach_edges_max,
                transaction_operations_max=self.transaction_operations_max,
                transaction_bytes_max=self.transaction_bytes_max,
                transaction_detach_edges_max=self.transaction_detach_edges_max,
            ),
        )


class ClientSettings(BaseSettings):
    """The client, ``kotoba``."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    url: str = Field(
        "http://127.0.0.1:8080", description="Any node of the cluster; redirects are followed."
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        if not re.fullmatch(r"https?://[^/\s]+/?", value):
            raise ValueError(f"must be like http://127.0.0.1:8080, not {value!r}")
        return value.rstrip("/")


Settings = NodeSettings | ClientSettings
S = TypeVar("S", bound=Settings)


def load_settings(cls: type[S], given: Mapping[str, Any]) -> S:
    """Settings from what the command line gave (None: not given), else environment, else default.

    Raises :class:`SettingError` with one line for the first thing that is wrong.
    """
    try:
        return cls(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise SettingError(_explain(error, given)) from None


def option_of(name: str) -> str:
    """The command line's name of the setting ``name``."""
    return "--" + name.replace("_", "-")


def child_environment() -> dict[str, str]:
    """This process's environment for a child, without settings that were meant for ourselves."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}


def _explain(error: ValidationError, given: Mapping[str, Any]) -> str:
    first = error.errors(include_url=False)[0]
    why = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return why
    name = str(first["loc"][0])
    where = option_of(name) if given.get(name) is not None else PREFIX + name.upper()
    return f"{where}: {why[:1].lower()}{why[1:]}"


@dataclass(frozen=True, slots=True)
class _Row:
    option: str
    variable: str
    default: str
    description: str


def _rows(cls: type[Settings]) -> list[_Row]:
    rows = []
    for name, field in cls.model_fields.items():
        default = field.default
        shown = "" if default is None or default == () else f"`{_shown(default)}`"
        rows.append(_Row(option_of(name), PREFIX + name.upper(), shown, field.description or ""))
    return rows


def _shown(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)


def configuration_markdown() -> str:
    """The text of ``docs/configuration.md``."""
    lines = [
        "# Configuration",
        "",
        "Every setting is an option of the command line and an environment variable; the option",
        "wins. This page is generated: `python -m app.settings > docs/configuration.md`.",
    ]
    for title, cls in (
        ("A node: `kotoba-cluster`", NodeSettings),
        ("The client: `kotoba`", ClientSettings),
    ):
        lines += [
            "",
            f"## {title}",
            "",
            "| option | variable | default | |",
            "| --- | --- | --- | --- |",
        ]
        lines += [
            f"| `{row.option}` | `{row.variable}` | {row.default} | {row.description} |"
            for row in _rows(cls)
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(configuration_markdown(), end="")
