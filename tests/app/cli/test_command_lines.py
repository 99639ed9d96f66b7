from __future__ import annotations

from pathlib import Path

import pytest

from app.cli import client_app, run, server_app
from app.settings import NodeSettings, option_of


def server(*arguments: str) -> int:
    return run(server_app, "kotoba-cluster", list(arguments))


def client(*arguments: str) -> int:
    return run(client_app, "kotoba", list(arguments))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nonsense"], "--nonsense"),
        (["nonsense"], "nonsense"),
        (["--address=nowhere"], "--address: must be host:port"),
        (["--node-id=a/b"], "--node-id: must be"),
        (["--replication-factor=many"], "--replication-factor"),
        (["--log-level=loud"], "--log-level"),
        (["--peers"], "--peers"),
        (["--data-dir=/dev/null/data"], "--data-dir: cannot write in /dev/null/data"),
        (["dev", "--nodes=0"], "--nodes"),
        (["dev", "--port=x"], "--port"),
        (["--zone=a", "demo"], "--zone does not go with demo"),
    ],
)
def test_a_bad_option_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert server(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("kotoba-cluster: ")
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_every_setting_of_a_node_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert server("--help") == 0
    text = capsys.readouterr().out
    for name in NodeSettings.model_fields:
        assert option_of(name) in text


@pytest.mark.parametrize(
    "command", ["status", "members", "query", "op", "events", "import", "export"]
)
def test_the_help_of_the_client_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert client(command, "--help") == 0
    assert "Usage: kotoba " + command in capsys.readouterr().out
    assert client("--help") == 0
    assert command in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["query"], "QUERY"),
        (["query", "{"], "no JSON"),
        (["query", "[]"], "a JSON object is needed"),
        (["query", "@/nowhere/query.json"], "cannot read /nowhere/query.json"),
        (["op", "3"], "a JSON object is needed"),
        (["--url=nowhere", "status"], "--url: must be like"),
        (["import"], "nothing to import"),
        (["import", "--nodes=/nowhere.csv"], "cannot read /nowhere.csv"),
        (["import", "--nodes=/dev/null"], "say --format"),
        (["import", "--edges=A:B=/nowhere.csv"], "an edge has one label"),
        (["import", "--nodes=x", "--map=a:int"], "--map: 'a:int' is not like"),
        (["import", "--nodes=x", "--map=a=b:date"], "--map: 'b:date'"),
        (["import", "--format=xml"], "--format"),
        (["export"], "nothing to export"),
    ],
)
def test_the_client_reports_bad_input_in_one_line_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert client(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("kotoba: ")
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_nobody_at_the_url_is_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], unused_tcp_port: int
) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    assert client(f"--url={url}", "status") == 1
    assert client(f"--url={url}", "events") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"kotoba: cannot reach {url}: ") for line in lines)


def test_a_file_is_an_argument(tmp_path: Path) -> None:
    from app.commands.client import read_argument

    path = tmp_path / "query.json"
    path.write_text('{"kind": "count"}')
    assert read_argument(f"@{path}") == '{"kind": "count"}'
    assert read_argument("{}") == "{}"
