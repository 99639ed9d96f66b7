from __future__ import annotations

from pathlib import Path

import pytest

from app.settings import (
    ClientSettings,
    NodeSettings,
    SettingError,
    configuration_markdown,
    load_settings,
    option_of,
    parse_address,
)

DOCUMENT = Path(__file__).parents[3] / "docs" / "configuration.md"


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("KOTOBA_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("cls", [NodeSettings, ClientSettings])
def test_every_setting_is_described_and_documented(
    cls: type[NodeSettings | ClientSettings],
) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, field in cls.model_fields.items():
        assert field.description, f"{name} has no description"
        assert f"`{option_of(name)}`" in text
        assert f"`KOTOBA_{name.upper()}`" in text


def test_the_document_is_what_the_settings_generate() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == configuration_markdown(), (
        "say: python -m app.settings > docs/configuration.md"
    )


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KOTOBA_NODE_ID", "from-environment")
    monkeypatch.setenv("KOTOBA_ZONE", "a")
    settings = load_settings(NodeSettings, {"node_id": "from-option", "zone": None})
    assert (settings.node_id, settings.zone) == ("from-option", "a")


def test_peers_are_separated_by_commas_in_both_places(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ("127.0.0.1:8081", "127.0.0.1:8082")
    assert load_settings(NodeSettings, {"peers": "127.0.0.1:8081, 127.0.0.1:8082,"}).peers == (
        expected
    )
    monkeypatch.setenv("KOTOBA_PEERS", "127.0.0.1:8081,127.0.0.1:8082")
    assert load_settings(NodeSettings, {}).peers == expected


def test_the_data_folder_is_named_for_the_node() -> None:
    assert load_settings(NodeSettings, {"node_id": "node7"}).data_path == Path("data/node7")
    assert load_settings(NodeSettings, {"data_dir": "/x"}).data_path == Path("/x")


def test_the_database_gets_what_was_set() -> None:
    settings = load_settings(
        NodeSettings, {"tick_ms": "20", "partition_count": "8", "zone": "b", "timeout_ms": "70"}
    )
    config = settings.cluster_config()
    assert config.raft.tick_ms == 20
    assert config.partition_count == 8
    assert config.zone == "b"
    assert config.limits.timeout_ms == 70


def test_a_secret_is_not_printed() -> None:
    settings = load_settings(NodeSettings, {"cluster_secret": "hush"})
    assert "hush" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("node1.example:1", ("node1.example", 1)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_addresses_are_host_and_port(text: str, expected: tuple[str, int]) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize("text", ["", "8080", ":8080", "host", "host:", "h:0", "h:65536", "::1:80"])
def test_other_texts_are_no_addresses(text: str) -> None:
    with pytest.raises(ValueError, match=r"host:port|port must be|brackets"):
        parse_address(text)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"address": "nowhere"}, "--address: must be host:port"),
        ({"peers": "127.0.0.1:1,x"}, "--peers: must be host:port"),
        ({"node_id": "a b"}, "--node-id: must be 1 to 64"),
        ({"partition_count": "0"}, "--partition-count: input should be greater"),
        ({"tick_ms": "soon"}, "--tick-ms: input should be a valid integer"),
        ({"address": "0.0.0.0:80", "peers": "10.0.0.1:80"}, "--advertise is needed"),
        ({"suspect_after_ms": "9", "fail_after_ms": "99"}, "--suspect-after-ms: input should"),
        ({"suspect_after_ms": "99", "fail_after_ms": "50"}, "must not be below"),
    ],
)
def test_what_cannot_be_is_one_line(given: dict[str, str], expected: str) -> None:
    with pytest.raises(SettingError) as raised:
        load_settings(NodeSettings, given)
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_wrong_variable_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KOTOBA_TICK_MS", "soon")
    with pytest.raises(SettingError, match=r"^KOTOBA_TICK_MS: "):
        load_settings(NodeSettings, {})


def test_the_url_of_the_client_is_checked() -> None:
    assert load_settings(ClientSettings, {"url": "http://a:1/"}).url == "http://a:1"
    with pytest.raises(SettingError, match="--url"):
        load_settings(ClientSettings, {"url": "a:1"})
