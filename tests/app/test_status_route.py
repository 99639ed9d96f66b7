from __future__ import annotations

from typing import Any

import httpx
import pytest

from app.schemas import status as schemas
from app.schemas.values import AnswerModel
from cluster_core.errors import Unavailable
from cluster_core.graph.cid import cid_text
from tests.app.fake_database import FakeDatabase, digest_of

KEY = cid_text(digest_of("alice"))


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/", schemas.Root),
        ("/v1/status", schemas.ClusterStatus),
        ("/v1/health", schemas.Health),
        ("/livez", schemas.Live),
        ("/readyz", schemas.Ready),
        ("/v1/partitions", schemas.Partitions),
        ("/v1/partitions/7", schemas.Partition),
        (f"/v1/partitions/of?key={KEY}", schemas.PartitionOfKey),
    ],
)
async def test_an_answer_has_exactly_the_documented_fields(
    client: httpx.AsyncClient, path: str, model: type[AnswerModel]
) -> None:
    answer = await client.get(path)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    document: dict[str, Any] = answer.json()
    assert model.model_validate(document).model_dump(mode="json") == document


async def test_a_sick_cluster_is_no_reason_for_503(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    database.health.is_healthy = False
    database.health.failed_nodes_count = 1
    database.health.reasons = ["node3 has failed"]
    answer = await client.get("/v1/health")
    assert answer.status_code == 200
    assert answer.json() == {
        "is_healthy": False,
        "failed_nodes_count": 1,
        "reasons": ["node3 has failed"],
    }


async def test_a_node_that_cannot_serve_says_so(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    database.health.can_serve = False
    database.ready.is_ready = False
    database.ready.missing = ["no leader for 40 of 64 partitions"]
    for path in ("/v1/health", "/readyz"):
        answer = await client.get(path)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
    assert answer.json()["missing"] == ["no leader for 40 of 64 partitions"]
    assert (await client.get("/livez")).status_code == 200


async def test_a_failing_status_is_a_problem(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    database.failure = Unavailable("not a member yet")
    answer = await client.get("/v1/status")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert answer.headers["retry-after"] == "1"


async def test_a_bug_behind_the_framework_is_logged_once(
    client: httpx.AsyncClient, database: FakeDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    database.failure = KeyError("secret")
    answer = await client.get("/v1/status")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text
    [record] = [r for r in caplog.records if r.name == "kotoba.gateway"]
    assert answer.json()["id"] in record.getMessage()


async def test_the_partition_of_a_key_names_its_nodes(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    answer = await client.get(f"/v1/partitions/of?key={KEY}")
    assert database.call[0] == digest_of("alice")
    document = answer.json()
    assert (document["key"], document["partition"], document["nodes"]) == (KEY, 5, ["node1"])


async def test_the_metrics_count_requests_and_the_cluster_s_work(
    client: httpx.AsyncClient,
) -> None:
    await client.post("/v1/operations", json={"op": "create_node"})
    await client.post("/v1/operations", json={"op": "nothing"})
    await client.get("/livez")
    await client.get(f"/v1/nodes/{KEY}")
    await client.get("/nowhere")
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.text.splitlines()
    for line in (
        'kotoba_http_requests_total{method="POST",route="/v1/operations",status="201"} 1.0',
        'kotoba_http_requests_total{method="POST",route="/v1/operations",status="422"} 1.0',
        'kotoba_http_requests_total{method="GET",route="/livez",status="200"} 1.0',
        'kotoba_http_requests_total{method="GET",route="/v1/nodes/{cid}",status="404"} 1.0',
        'kotoba_http_requests_total{method="GET",route="other",status="404"} 1.0',
        'kotoba_http_request_duration_seconds_count{route="/v1/operations"} 2.0',
        "kotoba_operations_processed_total 10452.0",
        "kotoba_operations_failed_total 2.0",
        "kotoba_partitions_led 21.0",
        "kotoba_meta_leader 1.0",
        'kotoba_replication_lag_seconds{peer="node2"} 0.0031',
    ):
        assert line in lines


async def test_a_node_without_status_still_has_metrics(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    database.failure = Unavailable("not a member yet")
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert "kotoba_http_requests" in answer.text


async def test_a_leader_is_chosen(client: httpx.AsyncClient, database: FakeDatabase) -> None:
    answer = await client.post("/v1/partitions/7/leader", json={"node_id": "node2"})
    assert answer.status_code == 200
    assert (answer.json()["partition"], answer.json()["leader"]) == (7, "node2")
    assert database.calls[-1] == (7, {"node_id": "node2"})


@pytest.mark.parametrize(
    ("path", "body", "status", "where"),
    [
        ("/v1/partitions/first/leader", {"node_id": "node2"}, 422, "path.partition"),
        ("/v1/partitions/7/leader", {"node_id": 2}, 422, "node_id"),
        ("/v1/partitions/7/leader", {"node_id": "node2", "force": True}, 422, "force"),
        ("/v1/partitions/7/leader", {}, 422, "node_id"),
        ("/v1/partitions/7/leader?wait=1", {"node_id": "node2"}, 422, "query.wait"),
        ("/v1/partitions/64/leader", {"node_id": "node2"}, 404, ""),
    ],
)
async def test_a_leader_that_cannot_be_chosen(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], status: int, where: str
) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code == status
    if where:
        assert where in [error["where"] for error in answer.json()["errors"]]
