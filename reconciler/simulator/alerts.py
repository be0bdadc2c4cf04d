"""Monitor Alerts: Twilio's notes about webhooks that failed. Shape: OpenAPI `monitor.v1.alert`."""

from __future__ import annotations

from urllib.parse import quote

import msgspec

from reconciler.simulator.calls import Record
from reconciler.simulator.wire import iso8601

URL = "https://monitor.twilio.com/v1/Alerts"
BUFFERED = 30  # seconds between date_generated and date_created: "due to buffering, this can be different"


class Alert(msgspec.Struct, frozen=True):
    """One failure. If a webhook failed, `resource_sid` is the call and `request_url` the receiver, query included."""

    sid: str
    account_sid: str
    generated: int
    error_code: str
    request_url: str
    resource_sid: str | None
    log_level: str

    @property
    def created(self) -> int:
        """The second from which on Twilio lists the alert."""
        return self.generated + BUFFERED

    def render(self) -> Record:
        """Return Twilio's record in a list. Request and response are not in it: only a fetch of one alert has them."""
        text = f"sourceComponent=14100&ErrorCode={self.error_code}&url={quote(self.request_url, safe='')}"
        return {
            "account_sid": self.account_sid,
            "alert_text": f"{text}&LogLevel={self.log_level.upper()}",
            "api_version": "2010-04-01",
            "date_created": iso8601(self.created),
            "date_generated": iso8601(self.generated),
            "date_updated": iso8601(self.created),
            "error_code": self.error_code,
            "log_level": self.log_level,
            "more_info": f"https://www.twilio.com/docs/errors/{self.error_code}",
            "request_method": "POST",
            "request_url": self.request_url,
            "resource_sid": self.resource_sid,
            "service_sid": None,
            "sid": self.sid,
            "url": f"{URL}/{self.sid}",
        }
