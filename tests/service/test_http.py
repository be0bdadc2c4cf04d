"""What monitoring reads over HTTP."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from reconciler.errors import ConfigError
from reconciler.service.http_server import Health, StatusPage, Web
from tests.harness.names import ACCOUNT

from .conftest import eventually

FINE = Health(is_alive=True, is_ready=True, reason="fine")


def test_what_is_served(command, twilio, database):
    """Each path, HEAD, an unknown path; and all of it also while there is no database to be asked."""
    daemon = command.start()
    daemon.settle()
    eventually(lambda: daemon.get("/readyz")[0] == 200)
    assert daemon.get("/readyz")[1].startswith("leading, hot ")
    assert daemon.get("/healthz") == (200, "alive\n")
    assert daemon.get("/healthz?verbose") == (200, "alive\n")
    assert daemon.get("/nothing")[0] == daemon.get("/metrics/more")[0] == 404
    assert daemon.get("/metrics", "HEAD") == (200, "")
    assert daemon.get("/", "POST")[0] == 501
    database.down()
    daemon.wait_for("lead.dropped")
    families = {family.name for family in text_string_to_metric_families(daemon.get("/metrics")[1])}
    assert families >= {"reconciler_build_info", "reconciler_leading", "reconciler_runs", "reconciler_interval_seconds"}
    assert all(name.startswith("reconciler_") for name in families)
    assert daemon.metric("reconciler_leading") == 0
    assert daemon.metric("reconciler_runs_total", job_name="hot", account=ACCOUNT, outcome="succeeded") >= 1
    assert daemon.metric("reconciler_requests_total", outcome="answered") > 0
    assert daemon.metric("reconciler_last_success_timestamp_seconds", job_name="hot") > 1e9
    assert daemon.get("/healthz") == (200, "alive\n")


def test_without_the_setting_nothing_is_served(command):
    """Off by default."""
    daemon = command.start(RECONCILER_HTTP_LISTEN="")
    assert daemon.wait_for("daemon.started")["http_port"] is None
    daemon.wait_for_runs()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_address_is_taken_once(host):
    """Of either family; the second time it is an error that names the setting."""
    page = StatusPage(lambda: "", "default-src 'none'")
    web = Web((host, 0), health=lambda: FINE, status_page=page)
    web.start()
    try:
        with pytest.raises(ConfigError, match="RECONCILER_HTTP_LISTEN"):
            Web((host, web.port), health=lambda: FINE, status_page=page)
    finally:
        web.close()
