"""The OpenAPI document: committed as generated, and whatever it allows is answered."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error

from openapi import DOCUMENT
from saescope.surfaces.server.app import build_app
from served import Served, serving, tiny_chat


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tiny_chat(tmp_path_factory.mktemp("server"))) as server:
        yield server


def document_of(served: Served) -> dict[str, Any]:
    return build_app(served.service).openapi()


def test_the_committed_document_is_the_generated_one(served: Served) -> None:
    """`python -m tests.openapi` writes it."""
    assert json.loads(DOCUMENT.read_text(encoding="utf-8")) == document_of(served)


def test_every_route_describes_its_refusals(served: Served) -> None:
    for path, operations in document_of(served)["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"], path
            assert operation["description"], path
            if path != "/health":
                assert "400" in operation["responses"]


@pytest.mark.slow
def test_nothing_that_the_document_allows_breaks_the_server(served: Served) -> None:
    schema = schemathesis.openapi.from_dict(document_of(served))
    n_calls = 0
    for operation in schema.get_all_operations():

        @settings(
            max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None
        )
        @given(case=operation.ok().as_strategy())
        def call(case: schemathesis.Case) -> None:
            nonlocal n_calls
            if isinstance(case.body, dict) and "max_tokens" in case.body:
                case.body["max_tokens"] = 2
            response = case.call(base_url=served.url)
            case.validate_response(response, checks=[not_a_server_error])
            n_calls += 1

        call()
    assert n_calls > 100
