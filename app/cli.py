"""The two commands: ``kotoba-cluster`` runs nodes, ``kotoba`` talks to them.

A wrong option is one line on stderr and exit code 2; a command that fails is one line and 1.
"""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin

import typer

from app.commands import CommandFailed
from app.settings import ClientSettings, NodeSettings, SettingError, load_settings, option_of

__all__ = ["client", "server"]

server_app = typer.Typer(
    add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)
client_app = typer.Typer(
    add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)

indexes_app = typer.Typer(help="List, declare and drop property indexes.")
client_app.add_typer(indexes_app, name="indexes")


def server() -> None:
    """The entry point of ``kotoba-cluster``."""
    raise SystemExit(run(server_app, "kotoba-cluster", sys.argv[1:]))


def client() -> None:
    """The entry point of ``kotoba``."""
    raise SystemExit(run(client_app, "kotoba", sys.argv[1:] or ["--help"]))


def run(app: typer.Typer, name: str, arguments: list[str]) -> int:
    """Run a command line; its exit code."""
    try:
        code = app(arguments, prog_name=name, standalone_mode=False)
    except typer.TyperException as error:
        return _complain(name, f"{error.format_message()} (see {name} --help)", error.exit_code)
    except CommandFailed as error:
        return _complain(name, str(error), error.exit_code)
    except BrokenPipeError:
        # The reader of our output had enough; nothing may be flushed into the pipe any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code if isinstance(code, int) else 0


def _complain(name: str, message: str, exit_code: int) -> int:
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    return exit_code


# --- kotoba-cluster ---------------------------------------------------------------------------


def _serve(context: typer.Context, **given: Any) -> None:
    """Run one node of a kotoba-db cluster, or a whole local cluster.

    \b
    Three nodes on this machine:
      kotoba-cluster --node-id=node1 --address=127.0.0.1:8080 --peers=127.0.0.1:8081,127.0.0.1:8082 &
      kotoba-cluster --node-id=node2 --address=127.0.0.1:8081 --peers=127.0.0.1:8080,127.0.0.1:8082 &
      kotoba-cluster --node-id=node3 --address=127.0.0.1:8082 --peers=127.0.0.1:8080,127.0.0.1:8081 &

    The same in one command: kotoba-cluster dev

    Every option is also an environment variable: KOTOBA_NODE_ID is --node-id.
    """  # noqa: E501
    if context.invoked_subcommand is not None:
        _refuse_node_options(context.invoked_subcommand, given)
        return
    from app.commands.serve import serve

    serve(given)


def _refuse_node_options(command: str, given: dict[str, Any]) -> None:
    for name, value in given.items():
        if value is not None:
            raise CommandFailed(f"{option_of(name)} does not go with {command}", exit_code=2)


def _options_of_settings() -> inspect.Signature:
    """The signature that gives ``_serve`` an option for every setting of a node."""
    parameters = [
        inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    ]
    for name, field in NodeSettings.model_fields.items():
        option = typer.Option(
            *_declarations(name, field.annotation),
            help=_help(field.description or "", field.default),
            show_default=False,
            metavar=_metavar(field.annotation),
        )
        kind = bool if field.annotation is bool else str
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[kind | None, option],
            )
        )
    return inspect.Signature(parameters)


def _help(description: str, default: object) -> str:
    return description if default in (None, (), False) else f"{description}  [{default}]"


def _declarations(name: str, annotation: Any) -> tuple[str, ...]:
    option = option_of(name)
    return (f"{option}/--no-{option[2:]}",) if annotation is bool else (option,)


def _metavar(annotation: Any) -> str | None:
    if annotation is bool:
        return None
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    return "N" if annotation is int else "TEXT"


_serve.__signature__ = _options_of_settings()  # type: ignore[attr-defined]
server_app.callback(invoke_without_command=True)(_serve)


@server_app.command("dev")
def _dev(
    nodes: Annotated[int, typer.Option(min=1, max=9, help="How many nodes.")] = 3,
    port: Annotated[
        int, typer.Option(min=1, max=65_000, help="Port of the first node; the others follow it.")
    ] = 8080,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Keep the data here. Default: a temporary folder, removed at the end."),
    ] = None,
) -> None:
    """Start a local cluster in one command; Ctrl-C stops it."""
    from app.commands.dev import dev

    dev(nodes, port, data_dir)


@server_app.command("demo")
def _demo() -> None:
    """See it work: a real graph, a killed leader (2-3 minutes)."""
    from app.demo.story import demo

    raise typer.Exit(demo())


# --- kotoba -----------------------------------------------------------------------------------


@client_app.callback()
def _client(
    context: typer.Context,
    url: Annotated[
        str | None,
        typer.Option(
            help="Any node of the cluster; also KOTOBA_URL.  [http://127.0.0.1:8080]",
            metavar="URL",
        ),
    ] = None,
) -> None:
    """Talk to a kotoba-db cluster.

    \b
    kotoba status
    kotoba op '{"op": "create_node", "labels": ["Person"], "properties": {"name": "Alice"}}'
    kotoba query '{"kind": "find_nodes", "labels": ["Person"]}'
    kotoba events

    Any node will do: kotoba follows redirects to leaders.
    """
    try:
        context.obj = load_settings(ClientSettings, {"url": url}).url
    except SettingError as error:
        raise CommandFailed(str(error), exit_code=2) from None


_JSON_ARGUMENT: Final = "JSON, or @file, or - for stdin."
_AS_JSON: Final = "Print the answer as JSON."
_CONSISTENCY: Final = "strong (default), read_your_writes or eventual."


@client_app.command("status")
def _status(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help=_AS_JSON)] = False,
) -> None:
    """Show the members, who leads, the partitions and the health."""
    from app.commands.client import status

    status(context.obj, as_json=as_json)


@client_app.command("query")
def _query(
    context: typer.Context,
    query: Annotated[str, typer.Argument(help=_JSON_ARGUMENT, metavar="QUERY")],
    as_json: Annotated[bool, typer.Option("--json", help=_AS_JSON)] = False,
    consistency: Annotated[str | None, typer.Option(help=_CONSISTENCY, metavar="LEVEL")] = None,
    as_of: Annotated[
        str | None, typer.Option(help="Read the past: a timestamp or RFC 3339.", metavar="TIME")
    ] = None,
    timeout_ms: Annotated[
        int | None, typer.Option(help="How long it may take.", metavar="N")
    ] = None,
) -> None:
    """Ask a question.

    \b
    All persons of 30 or more:
      kotoba query '{"kind": "find_nodes", "labels": ["Person"], "where": {"property": "age", "op": "ge", "value": 30}}'

    \b
    Whom somebody knows, over up to three steps:
      kotoba query '{"kind": "traverse", "start": ["bafy…"], "edge_labels": ["KNOWS"], "max_depth": 3}'

    \b
    How many, of each name:
      kotoba query '{"kind": "count", "of": "nodes", "labels": ["Person"], "group_by": "name"}'
    """  # noqa: E501
    from app.commands.client import query as ask

    ask(
        context.obj,
        query,
        as_json=as_json,
        consistency=consistency,
        as_of=as_of,
        timeout_ms=timeout_ms,
    )


@client_app.command("op")
def _op(
    context: typer.Context,
    operation: Annotated[str, typer.Argument(help=_JSON_ARGUMENT, metavar="OPERATION")],
    idempotency_key: Annotated[
        str | None,
        typer.Option(help="Makes a second try of the same command safe.", metavar="KEY"),
    ] = None,
    consistency: Annotated[
        str | None, typer.Option(help="strong (default) or eventual.", metavar="LEVEL")
    ] = None,
) -> None:
    """Write: one operation, or a list of them as a batch.

    \b
      kotoba op '{"op": "create_node", "labels": ["Person"], "properties": {"name": "Alice", "age": 30}}'
      kotoba op '{"op": "create_edge", "label": "KNOWS", "source_cid": "bafy…", "target_cid": "bafy…"}'
      kotoba op '{"op": "update_node", "cid": "bafy…", "properties": {"age": 31}}'

    \b
    In a list, "ref" names an operation for later ones:
      kotoba op '[{"op": "create_node", "ref": "a", "labels": ["Person"], "properties": {}},
                  {"op": "create_edge", "label": "KNOWS", "source_cid": "$a", "target_cid": "$a"}]'
    """  # noqa: E501
    from app.commands.client import op

    op(context.obj, operation, idempotency_key=idempotency_key, consistency=consistency)


@client_app.command("events")
def _events(
    context: typer.Context,
    types: Annotated[
        str | None,
        typer.Option(help="Only these, for example NodeFailed,LeaderElected.", metavar="LIST"),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(help="Changes since the timestamp of a Resolved message.", metavar="TIME"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the messages as they are.")
    ] = False,
) -> None:
    """Print what happens in the cluster and in the graph, until Ctrl-C."""
    from app.commands.client import events

    events(context.obj, types=types, since=since, as_json=as_json)


@client_app.command("members")
def _members(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help=_AS_JSON)] = False,
) -> None:
    """List the nodes of the cluster: addresses, states, what each leads."""
    from app.commands.client import members

    members(context.obj, as_json=as_json)


_LABEL = Annotated[str, typer.Argument(help="A label of nodes or edges.", metavar="LABEL")]
_PROPERTY = Annotated[str, typer.Argument(help="The property.", metavar="PROPERTY")]


@indexes_app.command("list")
def _indexes_list(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help=_AS_JSON)] = False,
) -> None:
    """The declared indexes, and how far they are."""
    from app.commands.indexes import show

    show(context.obj, as_json=as_json)


@indexes_app.command("add")
def _indexes_add(
    context: typer.Context,
    label: _LABEL,
    name: _PROPERTY,
    wait_s: Annotated[
        float,
        typer.Option(
            min=0, help="Wait until queries use it, for so long at most.", metavar="SECONDS"
        ),
    ] = 0.0,
) -> None:
    """Declare an index; it is built while writes go on.

    \b
      kotoba indexes add Person name
    """
    from app.commands.indexes import add

    add(context.obj, label, name, wait_s=wait_s)


@indexes_app.command("drop")
def _indexes_drop(context: typer.Context, label: _LABEL, name: _PROPERTY) -> None:
    """Drop an index; queries go on without it."""
    from app.commands.indexes import drop

    drop(context.obj, label, name)


@client_app.command("import")
def _import(
    context: typer.Context,
    *,
    nodes: Annotated[
        list[str] | None,
        typer.Option(help="A file of nodes; may be given several times.", metavar="[LABELS=]FILE"),
    ] = None,
    edges: Annotated[
        list[str] | None,
        typer.Option(help="A file of edges; may be given several times.", metavar="[LABEL=]FILE"),
    ] = None,
    map_: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            help="What a column is, whatever its header says: 'Age (years)=age:int', 'no=:ID'.",
            metavar="COLUMN=NAME:TYPE",
        ),
    ] = None,
    node_header: Annotated[
        str | None,
        typer.Option(help="The header of CSV files of nodes that have none.", metavar="TEXT"),
    ] = None,
    edge_header: Annotated[
        str | None,
        typer.Option(help="The header of CSV files of edges that have none.", metavar="TEXT"),
    ] = None,
    format_: Annotated[
        Literal["csv", "ndjson"] | None,
        typer.Option(
            "--format",
            help="csv or ndjson. Default: as the names say (.csv .tsv .ndjson .jsonl, also .gz).",
        ),
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(help="Between the fields of CSV.  [, or in .tsv: tab]", metavar="CHARACTER"),
    ] = None,
    list_delimiter: Annotated[
        str, typer.Option(help="Between the items of a list.", metavar="TEXT")
    ] = ";",
    state: Annotated[
        Path | None,
        typer.Option(
            help="What is done is remembered here. Default: beside the first file.", metavar="FILE"
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Forget the state: import everything once more.")
    ] = False,
    chunk: Annotated[
        int, typer.Option(min=1, max=10_000, help="Rows in one request, at most.", metavar="N")
    ] = 1_000,
    connections: Annotated[
        int, typer.Option(min=1, max=64, help="Requests at a time.", metavar="N")
    ] = 6,
    errors_max: Annotated[
        int,
        typer.Option(
            min=0,
            help="Give up when more rows than this failed in this run; 0: never.",
            metavar="N",
        ),
    ] = 1_000,
    errors_file: Annotated[
        Path | None,
        typer.Option(help="Rows that failed. Default: beside the state.", metavar="FILE"),
    ] = None,
    patience_s: Annotated[
        float,
        typer.Option(
            min=0, help="Give up when the cluster takes nothing for so long.", metavar="SECONDS"
        ),
    ] = 300.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Import nodes, and edges that name them, from CSV and NDJSON files.

    \b
      kotoba import --nodes Person=people.csv --edges KNOWS=knows.csv

    \b
    people.csv:  personId:ID,name,age:int,tags:string[],:LABEL
                 p1,Alice,30,kind;tall,Admin
    knows.csv:   :START_ID,:END_ID,since:int
                 p1,p2,2020

    \b
    Files with headers of their own:
      kotoba import --nodes Person=people.csv --map 'no=:ID' --map 'Age (years)=age:int'

    \b
    What kotoba export wrote:
      kotoba import --nodes nodes.ndjson --edges edges.ndjson

    An interrupted import goes on where it was when the same command is given again; nothing is
    written twice. Exit code 3: done, but some rows failed; they are listed in the errors file.
    See docs/bulk.md.
    """
    from app.commands.bulk_import import ImportOptions, import_files

    options = ImportOptions(
        nodes=nodes or [],
        edges=edges or [],
        columns=map_ or [],
        node_header=node_header,
        edge_header=edge_header,
        format=format_,
        delimiter=delimiter,
        list_delimiter=list_delimiter,
        state=state,
        again=again,
        chunk_rows=chunk,
        connections=connections,
        errors_max=errors_max or None,
        errors_file=errors_file,
        patience_s=patience_s,
        as_json=as_json,
    )
    raise typer.Exit(import_files(context.obj, options))


@client_app.command("export")
def _export(
    context: typer.Context,
    nodes: Annotated[
        str | None, typer.Option(help="Nodes as NDJSON; - for stdout.", metavar="FILE")
    ] = None,
    edges: Annotated[
        str | None, typer.Option(help="Edges as NDJSON; - for stdout.", metavar="FILE")
    ] = None,
    car: Annotated[
        str | None,
        typer.Option(help="Every version's block as a CAR archive.", metavar="FILE"),
    ] = None,
    as_of: Annotated[
        str | None, typer.Option(help="Of a past time: a timestamp or RFC 3339.", metavar="TIME")
    ] = None,
    connections: Annotated[
        int, typer.Option(min=1, max=256, help="Blocks asked for at once.", metavar="N")
    ] = 32,
    patience_s: Annotated[
        float,
        typer.Option(
            min=0, help="Give up when the cluster answers nothing for so long.", metavar="SECONDS"
        ),
    ] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Export the graph, all of it in one snapshot.

    \b
      kotoba export --nodes nodes.ndjson --edges edges.ndjson
      kotoba export --car graph.car
      kotoba export --nodes - | jq .properties.name

    kotoba import reads the NDJSON again. The archive is CAR version 1, for IPLD tools; every
    block's hash is checked on the way. The summary goes to stderr. See docs/bulk.md.
    """
    from app.commands.bulk_export import export_files

    export_files(
        context.obj,
        nodes=nodes,
        edges=edges,
        car=car,
        as_of=as_of,
        connections=connections,
        patience_s=patience_s,
        as_json=as_json,
    )
