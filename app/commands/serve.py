"""``kotoba-cluster``: run one node until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from app.commands import CommandFailed
from app.logs import configure_logs
from app.settings import NodeSettings, SettingError, load_settings, parse_address
from cluster_core.errors import CannotListen, KotobaError

if TYPE_CHECKING:
    from cluster_core.cluster import KotobaCluster

__all__ = ["serve"]

_FIRST_REMINDER_S: Final = 3.0
_REMINDER_S: Final = 15.0
"""How often a node that waits for its peers says again what is missing."""


def serve(given: dict[str, Any]) -> None:
    """Run the node that the settings describe; returns after a graceful stop."""
    try:
        settings = load_settings(NodeSettings, given)
    except SettingError as error:
        raise CommandFailed(str(error), exit_code=2) from None
    _check_data_path(settings.data_path)
    configure_logs(settings.log_level, settings.log_format)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(settings))


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:  # it does not exist for every platform
        return None
    return uvloop.new_event_loop


async def _serve(settings: NodeSettings) -> None:
    stopped = asyncio.Event()
    _stop_on_signals(stopped)
    if settings.stop_on_stdin_eof:
        await _stop_on_stdin_eof(stopped)
    cluster = _compose(settings)
    _print_introduction(settings)
    try:
        await cluster.start(settings.address)
    except CannotListen as error:
        raise CommandFailed(f"--address: {error}", exit_code=2) from None
    except KotobaError as error:
        raise CommandFailed(f"cannot start: {error}") from None
    announcing = asyncio.create_task(_announce(cluster, settings))
    try:
        await stopped.wait()
        _say("stopping: handing over leaderships, finishing requests in flight")
    finally:
        announcing.cancel()
        await cluster.stop()
    _say("stopped")


def _compose(settings: NodeSettings) -> KotobaCluster:
    # Here, so that a wrong option is reported before half a second of imports.
    from app.internal.transport import HttpTransport
    from app.main import create_app
    from cluster_core.cluster import KotobaCluster

    config = settings.cluster_config()
    secret = settings.cluster_secret
    transport = HttpTransport(
        secret=secret.get_secret_value() if secret else "",
        config=config.raft,
        random=random.Random(),
    )
    cluster = KotobaCluster(
        settings.node_id,
        config,
        data_dir=settings.data_path,
        peers=settings.peers,
        advertise=settings.advertise,
        transport=transport,
    )
    transport.app = create_app(cluster, forward_default=settings.forward)
    return cluster


def _stop_on_signals(stopped: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        # A shell that puts us in the background without job control ignores SIGINT on purpose.
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, _stop_or_exit, stopped, number)


def _stop_or_exit(stopped: asyncio.Event, number: int) -> None:
    if stopped.is_set():
        _say("stopping at once")
        os._exit(128 + number)
    stopped.set()


class _StdinEnd(asyncio.Protocol):
    def __init__(self, stopped: asyncio.Event) -> None:
        self._stopped = stopped

    def connection_lost(self, exc: Exception | None) -> None:
        self._stopped.set()


async def _stop_on_stdin_eof(stopped: asyncio.Event) -> None:
    await asyncio.get_running_loop().connect_read_pipe(lambda: _StdinEnd(stopped), sys.stdin)


async def _announce(cluster: KotobaCluster, settings: NodeSettings) -> None:
    """Say when the node is ready; until then, now and then, what is missing."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    remind_at = began + _FIRST_REMINDER_S
    while not (ready := await cluster.readiness()).is_ready:
        if loop.time() >= remind_at:
            remind_at += _REMINDER_S
            _say(f"still waiting: {'; '.join(ready.missing) or 'not ready yet'}")
        await asyncio.sleep(0.05)
    status = await cluster.get_status()
    names = ", ".join(member.node_id for member in status.membership.nodes)
    _say(
        f"ready in {loop.time() - began:.1f} s: cluster of {names}; "
        f"API docs at http://{settings.advertised}/docs"
    )
    # What lives now lives as long as the process: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _print_introduction(settings: NodeSettings) -> None:
    _say(f"kotoba-db-cluster {version('kotoba-db-cluster')}: {settings.node_id}")
    _say(f"  listening on  http://{settings.address}")
    if settings.advertised != settings.address:
        _say(f"  reachable at  http://{settings.advertised}")
    _say(f"  data in       {settings.data_path}")
    peers = [peer for peer in settings.peers if peer != settings.advertised]
    if peers:
        _say(f"  peers         {', '.join(peers)}")
    if settings.cluster_secret is None and not _is_loopback(settings.advertised):
        _say("  caution: without --cluster-secret everybody who reaches this address is a peer")


def _is_loopback(address: str) -> bool:
    host, _ = parse_address(address)
    return host in {"localhost", "::1"} or host.startswith("127.")


def _say(line: str) -> None:
    try:
        print(line, flush=True)
    except OSError:  # whoever read our output is gone; a node goes on without
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def _check_data_path(path: Path) -> None:
    probe = path / ".writable"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise CommandFailed(f"--data-dir: cannot write in {path}: {why}", exit_code=2) from None
