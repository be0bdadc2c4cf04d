"""The endpoints of an account: its numbers, SIP domains and TwiML apps, and where each sends its webhooks.

Shapes: OpenAPI `api.v2010.account.incoming_phone_number`, `…sip.sip_domain`, `…application`. Rules:
- a number with a TwiML app uses the URLs of the app; Twilio ignores the number's own
  (https://www.twilio.com/docs/phone-numbers/api/incomingphonenumber-resource);
- for a number without a status callback Twilio sends no webhook at a call's end. It still asks the voice URL for
  TwiML.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from reconciler.simulator.calls import Record, SimulatedCall
from reconciler.simulator.wire import API, formatted

HOOKS = "https://hooks.example.com"
VOICE_URL = f"{HOOKS}/twilio/voice/inbound"
STATUS_CALLBACK = f"{HOOKS}/twilio/voice/status"

_CREATED = "Thu, 01 Jan 2026 00:00:00 +0000"


class Urls(NamedTuple):
    """The URLs of an inbound call: one for TwiML, one for the webhook at its end. Empty means none."""

    voice_url: str
    status_callback: str


DEFAULT_URLS = Urls(VOICE_URL, STATUS_CALLBACK)


class PhoneNumber(msgspec.Struct, frozen=True):
    """A number of the account."""

    sid: str
    account_sid: str
    phone_number: str
    urls: Urls
    application_sid: str
    trunk_sid: str | None

    def render(self) -> Record:
        """Twilio's record."""
        return {
            **_head(self.sid, self.account_sid, "IncomingPhoneNumbers", formatted(self.phone_number)),
            "address_requirements": "none", "address_sid": None, "beta": False, "bundle_sid": None,
            "capabilities": {"fax": False, "mms": True, "sms": True, "voice": True},
            "emergency_address_sid": None, "emergency_address_status": "unregistered", "emergency_status": "Inactive",
            "identity_sid": None, "origin": "twilio", "phone_number": self.phone_number, "sms_application_sid": "",
            "sms_fallback_method": "POST", "sms_fallback_url": "", "sms_method": "POST", "sms_url": "",
            "status": "in-use", "status_callback": self.urls.status_callback, "status_callback_method": "POST",
            "trunk_sid": self.trunk_sid, "type": "local", "voice_application_sid": self.application_sid,
            "voice_caller_id_lookup": False, "voice_receive_mode": "voice", **_voice(self.urls.voice_url),
        }  # fmt: skip


class SipDomain(msgspec.Struct, frozen=True):
    """A SIP domain. Its inbound calls have `sip:somebody@<domain_name>` as their `to`."""

    sid: str
    account_sid: str
    domain_name: str
    urls: Urls

    def render(self) -> Record:
        """Twilio's record. A missing status callback is null here; a number has an empty string instead."""
        head = _head(self.sid, self.account_sid, "SIP/Domains", self.domain_name)
        base = str(head["uri"]).removesuffix(".json")
        return {
            **head,
            "auth_type": "IP_ACL", "byoc_trunk_sid": None, "domain_name": self.domain_name,
            "emergency_caller_sid": None, "emergency_calling_enabled": False, "secure": False,
            "sip_registration": False,
            "subresource_uris": {"credential_list_mappings": f"{base}/CredentialListMappings.json"},
            "voice_status_callback_method": "POST",
            "voice_status_callback_url": self.urls.status_callback or None, **_voice(self.urls.voice_url),
        }  # fmt: skip


class Application(msgspec.Struct, frozen=True):
    """A TwiML app: the target of `app:AP…`, or of numbers that name it."""

    sid: str
    account_sid: str
    friendly_name: str
    urls: Urls

    def render(self) -> Record:
        """Twilio's record."""
        return {
            **_head(self.sid, self.account_sid, "Applications", self.friendly_name),
            "message_status_callback": None, "public_application_connect_enabled": False,
            "sms_fallback_method": "POST", "sms_fallback_url": None, "sms_method": "POST",
            "sms_status_callback": None, "sms_url": None, "status_callback": self.urls.status_callback or None,
            "status_callback_method": "POST", "voice_caller_id_lookup": False, **_voice(self.urls.voice_url),
        }  # fmt: skip


class Endpoints:
    """All endpoints of an account. A call to an address that is not among them uses the default URLs."""

    def __init__(self, account_sid: str) -> None:
        self._account_sid = account_sid
        self.numbers: dict[str, PhoneNumber] = {}
        self.sip_domains: dict[str, SipDomain] = {}
        self.applications: dict[str, Application] = {}

    def add_number(
        self, phone_number: str, *, voice_url: str = VOICE_URL, status_callback: str = STATUS_CALLBACK,
        application_sid: str = "", trunk_sid: str | None = None, sid: str | None = None,
    ) -> PhoneNumber:  # fmt: skip
        """Add a number, or change the one that is there; its SID stays. An empty URL means none."""
        known = self.numbers.get(phone_number)
        sid = sid or (known.sid if known else f"PN{0xA000 + len(self.numbers):032x}")
        urls = Urls(voice_url, status_callback)
        number = PhoneNumber(sid, self._account_sid, phone_number, urls, application_sid, trunk_sid)
        self.numbers[phone_number] = number
        return number

    def add_sip_domain(
        self, domain_name: str, *, voice_url: str = VOICE_URL, status_callback: str = STATUS_CALLBACK
    ) -> SipDomain:
        """Add a SIP domain, or change the one that is there; its SID stays."""
        sid = f"SD{len(self.sip_domains) + 1:032x}"
        if known := self.sip_domains.get(domain_name):
            sid = known.sid
        domain = SipDomain(sid, self._account_sid, domain_name, Urls(voice_url, status_callback))
        self.sip_domains[domain_name] = domain
        return domain

    def add_application(
        self, friendly_name: str, *, voice_url: str = VOICE_URL, status_callback: str = STATUS_CALLBACK,
        sid: str | None = None,
    ) -> Application:  # fmt: skip
        """Add a TwiML app, or change the one of that SID."""
        sid = sid or f"AP{len(self.applications) + 1:032x}"
        application = Application(sid, self._account_sid, friendly_name, Urls(voice_url, status_callback))
        self.applications[sid] = application
        return application

    def urls_of(self, call: SimulatedCall) -> Urls:
        """Return the URLs that Twilio uses for an inbound call."""
        if number := self.numbers.get(call.to):
            application = self.applications.get(number.application_sid)
            return application.urls if application else number.urls
        if application := self.applications.get(call.to.removeprefix("app:")):
            return application.urls
        host = call.to.partition("@")[2].partition(";")[0].partition(":")[0]
        domain = self.sip_domains.get(host)
        return domain.urls if domain else DEFAULT_URLS


def _head(sid: str, account_sid: str, path: str, friendly_name: str) -> Record:
    return {
        "account_sid": account_sid, "api_version": "2010-04-01", "date_created": _CREATED, "date_updated": _CREATED,
        "friendly_name": friendly_name, "sid": sid, "uri": f"{API}/Accounts/{account_sid}/{path}/{sid}.json",
    }  # fmt: skip


def _voice(url: str) -> Record:
    return {
        "voice_fallback_method": "POST", "voice_fallback_url": None, "voice_method": "POST", "voice_url": url or None,
    }  # fmt: skip
