"""The OpenAPI file against a running gateway: schemathesis sends requests that fit it and requests that do not, and checks the
answers.
"""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any, Final

import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from requests.adapters import HTTPAdapter
from twisted.internet.threads import deferToThread
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

from ._support.api import ApiClient, connect_unix
from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Lab
from ._support.waiting import reactor_test, within
from .test_http import http_port
from .test_workers import devices_on_each, processes

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of its dependencies
    import schemathesis
    from schemathesis import GenerationMode

FULL, READING = "full-0123456789abcdef", "reading-0123456789abcdef"

EXAMPLES: Final = 6
"""Requests of each kind to each path at each address."""

STREAMS: Final = frozenset({"/api/v1/trace/{id}", "/api/v1/live"})
"""Paths whose answers have no end."""

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "positive_data_acceptance",
    "unsupported_method",
    "allow_header_conformance",
)


class _UnixPool(HTTPConnectionPool):
    """Connections to a unix socket."""

    path: Path

    def _new_conn(self) -> HTTPConnection:
        connection = HTTPConnection("localhost")
        connection.sock = connect_unix(self.path)
        return connection


class UnixAdapter(HTTPAdapter):
    """Adapter of `requests` to a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._pool = _UnixPool("localhost")
        self._pool.path = path

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        return self._pool

    def close(self) -> None:
        self._pool.close()
        super().close()


class Address:
    """An address at which the API is served."""

    def __init__(self, where: Path | int, token: str | None = None) -> None:
        self.session = requests.Session()
        self.session.trust_env = False
        self.url = "http://localhost" if isinstance(where, Path) else f"http://127.0.0.1:{where}"
        if isinstance(where, Path):
            self.session.mount("http://", UnixAdapter(where))
        if token is not None:
            self.session.headers["Authorization"] = f"Bearer {token}"
        self.acts = token in (FULL, None) and (isinstance(where, Path) or token == FULL)
        self.answers: Counter[int] = Counter()
        """Number of answers by status."""

    def try_all(self, document: dict[str, Any], ids: list[str]) -> None:
        """Send requests to all paths, and check the answers. `ids` are those of connected devices."""
        loaded = schemathesis.openapi.from_dict(document)
        loaded.config.update(base_url=self.url)
        found: Any
        for found in loaded.get_all_operations():
            operation = found.ok()
            if operation.path in STREAMS or (self.acts and operation.path.endswith("/drain")):
                continue
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                self._try(operation, mode)
            if "{id}" in operation.path and operation.method == "get":
                for each in ids:
                    self._send(operation.Case(path_parameters={"id": each}))

    def _try(self, operation: Any, mode: GenerationMode) -> None:
        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def run(case: Any) -> None:
            if mode is GenerationMode.POSITIVE:
                case.query.pop("after", None)  # a cursor is that of an earlier answer
            self._send(case)

        try:
            run()
        except Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE, operation.path  # without parameters nothing can be wrong

    def _send(self, case: Any) -> None:
        response = case.call(session=self.session, timeout=10)
        self.answers[response.status_code] += 1
        case.validate_response(response, checks=schemathesis.checks.CHECKS.get_by_names(list(CHECKS)))


@reactor_test
async def test_gateway(lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path) -> None:
    """All answers of a gateway with workers and devices, on its socket and with each token, are as the file describes them."""
    full, reading = tmp_path / "full", tmp_path / "reading"
    full.write_text(FULL)
    reading.write_text(READING)
    gateway = await lab.gateway(
        embedded.url, workers=2, http=0, http_token_file=full, http_read_token_file=reading, max_rate=100000
    )
    await processes(gateway.owsla, 2)
    ids = [each for devices in (await devices_on_each(gateway, lab, 2)).values() for _, each in devices][:2]
    port = await http_port(gateway.owsla)
    path = gateway.owsla.folder / "owsla.sock"
    document = await ApiClient(path).get("/openapi.json")
    for where, token in ((path, None), (port, FULL), (port, READING), (port, None)):
        address = Address(where, token)
        with address.session:
            await within(deferToThread(address.try_all, document, ids), 120)
        expected = {401} if (where, token) == (port, None) else {200, 400, 404} if address.acts else {200, 400, 403, 404}
        assert address.answers.keys() == expected
