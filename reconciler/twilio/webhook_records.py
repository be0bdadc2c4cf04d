"""Twilio's wire form of alerts and endpoints, decoded strictly; no I/O.

Alerts: OpenAPI `monitor.v1.alert`. Numbers, SIP domains and TwiML apps: OpenAPI `api.v2010.account`, the schemas
`incoming_phone_number`, `sip.sip_domain` and `application`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec

from reconciler.errors import Unavailable
from reconciler.masking import bare_url
from reconciler.model import CALL_SID


class Alert(NamedTuple):
    """A webhook that failed at `generated`. Twilio lists it by `created`, seconds later. `url` has no query."""

    sid: str
    generated: datetime
    created: datetime
    error_code: str
    url: str
    call_sid: str | None

    def __repr__(self) -> str:
        return f"<Alert {self.sid}: {self.error_code}>"


class Endpoint(NamedTuple):
    """A number, SIP domain or TwiML app that receives calls, and its status callback.

    `address` is the called number of its calls; for an app it is the SID. With an `application_sid` Twilio uses that
    app's status callback instead.
    """

    sid: str
    kind: str  # phone_number, sip_domain, application
    address: str
    status_callback: str
    application_sid: str = ""

    def __repr__(self) -> str:
        return f"<Endpoint {self.sid}>"


class _Alert(msgspec.Struct, gc=False):
    sid: str
    date_created: str
    date_generated: str | None = None
    error_code: str | None = None
    request_url: str | None = None
    resource_sid: str | None = None


class _Meta(msgspec.Struct, gc=False):
    next_page_url: str | None = None


class _Alerts(msgspec.Struct, gc=False):
    alerts: list[_Alert]
    meta: _Meta


class _Number(msgspec.Struct, gc=False):
    sid: str
    phone_number: str
    status_callback: str | None = None
    voice_application_sid: str | None = None
    trunk_sid: str | None = None
    capabilities: dict[str, Any] | None = None

    def endpoint(self) -> Endpoint | None:
        """Return the endpoint; None if webhooks do not report its calls: a trunk's number, or one without voice."""
        if self.trunk_sid or not (self.capabilities or {}).get("voice", True):
            return None
        application_sid = self.voice_application_sid or ""
        return Endpoint(self.sid, "phone_number", self.phone_number, self.status_callback or "", application_sid)


class _Domain(msgspec.Struct, gc=False):
    sid: str
    domain_name: str
    voice_status_callback_url: str | None = None

    def endpoint(self) -> Endpoint | None:
        return Endpoint(self.sid, "sip_domain", self.domain_name.lower(), self.voice_status_callback_url or "")


class _Application(msgspec.Struct, gc=False):
    sid: str
    status_callback: str | None = None
    voice_url: str | None = None

    def endpoint(self) -> Endpoint | None:
        """Return the endpoint; None if the app is for messages only."""
        return Endpoint(self.sid, "application", self.sid, self.status_callback or "") if self.voice_url else None


class _Numbers(msgspec.Struct, gc=False):
    records: list[_Number] = msgspec.field(name="incoming_phone_numbers")
    next_page_uri: str | None = None


class _Domains(msgspec.Struct, gc=False):
    records: list[_Domain] = msgspec.field(name="domains")
    next_page_uri: str | None = None


class _Applications(msgspec.Struct, gc=False):
    records: list[_Application] = msgspec.field(name="applications")
    next_page_uri: str | None = None


_alerts: Final = msgspec.json.Decoder(_Alerts).decode
_ENDPOINTS: Final = {
    "IncomingPhoneNumbers": msgspec.json.Decoder(_Numbers).decode,
    "SIP/Domains": msgspec.json.Decoder(_Domains).decode,
    "Applications": msgspec.json.Decoder(_Applications).decode,
}
ENDPOINT_LISTS: Final = tuple(_ENDPOINTS)  # under an account's path


def decode_alerts(body: bytes) -> tuple[list[Alert], str | None]:
    """Return one page of `/v1/Alerts`, and the URL of the next page, which names Twilio's own host.

    Raises:
        Unavailable: this is no such page.

    """
    try:
        page = _alerts(body)
        return [_read(alert) for alert in page.alerts], page.meta.next_page_url
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, OverflowError):
        raise Unavailable("Twilio's answer is not a list of alerts") from None


def decode_endpoints(kind: str, body: bytes) -> tuple[list[Endpoint], str | None]:
    """Return one page of one of ENDPOINT_LISTS, and the URI of the next page.

    Raises:
        Unavailable: this is no such page.

    """
    try:
        page: Any = _ENDPOINTS[kind](body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise Unavailable(f"Twilio's answer is not a list of {kind}") from None
    found = (record.endpoint() for record in page.records)
    return [endpoint for endpoint in found if endpoint is not None], page.next_page_uri


def _read(alert: _Alert) -> Alert:
    created = _moment(alert.date_created)
    return Alert(
        sid=alert.sid,
        generated=_moment(alert.date_generated) if alert.date_generated else created,
        created=created,
        error_code=alert.error_code or "",
        url=bare_url(alert.request_url or ""),
        call_sid=alert.resource_sid if CALL_SID.fullmatch(alert.resource_sid or "") else None,
    )


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
