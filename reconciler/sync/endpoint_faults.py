"""Endpoints that send no webhook at a call's end, or send it to another host; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from urllib.parse import urlsplit

from reconciler.database.webhook_evidence import EndpointFault
from reconciler.masking import bare_url
from reconciler.twilio.webhook_records import Endpoint


def find_faults(endpoints: Sequence[Endpoint]) -> list[EndpointFault]:
    """Return the endpoints of one account without a status callback, or with one on another host than most of them.

    An endpoint that names a TwiML app has the callback of that app. If no host has more than half of the callbacks, no
    endpoint counts as on another host.
    """
    endpoints = list({each.sid: each for each in endpoints}.values())  # a page asked for again may repeat some
    apps = {each.sid: each.status_callback for each in endpoints if each.kind == "application"}
    callbacks = [(each, apps.get(each.application_sid, each.status_callback)) for each in endpoints]
    hosts = Counter(host_of(url) for _, url in callbacks if url)
    usual = next((host for host, number in hosts.most_common(1) if 2 * number > hosts.total()), None)
    found = []
    for endpoint, url in callbacks:
        fault = "no_callback" if not url else "other_host" if usual not in (None, host_of(url)) else None
        if fault is not None:
            found.append(EndpointFault(endpoint.sid, endpoint.kind, endpoint.address, fault, bare_url(url)))
    return found


def host_of(url: str) -> str:
    """Return the host of a URL; empty if it has none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
