"""Faults between Twilio and its client, and the plan that decides which request meets which fault.

    plan = FaultPlan(seed=7)
    plan.next(Fault.too_many_requests(retry_after=2), Fault.reset())        # the next two requests
    plan.when(lambda request: request.param("Page") == "3", Fault.hang(), times=1)
    plan.rates({Fault.server_error(503): 0.05, Fault.reset(): 0.01})        # of all other requests
    plan.max_concurrent = 4                                                 # 429 above it, per account
    plan.others = 2                                                         # other programs hold so many of these
    plan.large_pages(above=100, path="Usage")                               # 500 where PageSize is larger

The shapes are reported ones, of Twilio or of gateways before it: HTML and empty bodies from gateways
(kevinburke/twilio-go README), resets of idle connections (twilio/twilio-python#506, twilio/twilio-node#1023).
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal
from zlib import crc32

from reconciler.simulator import messages
from reconciler.simulator.breakage import Breakage
from reconciler.simulator.messages import Answer, Delivery, Request

_HTML = b"<html>\r\n<head><title>%(status)d</title></head>\r\n<body><h1>%(status)d</h1></body>\r\n</html>"
_MESSAGES = {500: "Internal Server Error", 502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout"}


def _html(status: int) -> Answer:
    return Answer(status, body=_HTML % {b"status": status}, content_type="text/html")


def _without_records(answer: Answer) -> Answer:
    """Return an empty last page instead of a page, and 404 instead of one record."""
    payload: Any = answer.payload
    if answer.status != 200 or not isinstance(payload, dict):
        return answer
    key = next((name for name, value in payload.items() if isinstance(value, list)), None)
    if key is None:
        return messages.not_found(str(payload.get("uri", "")))
    if "meta" in payload and "next_page_url" in payload["meta"]:
        return replace(answer, payload={key: [], "meta": {**payload["meta"], "next_page_url": None}})
    return replace(answer, payload={**payload, key: [], "start": 0, "end": 0, "next_page_uri": None})


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of one request. The class methods build it.

    With `instead` the simulator never makes Twilio's own answer. Otherwise it makes the answer and then spoils it.
    """

    name: str
    instead: Answer | None = None
    delivery: Delivery = Delivery.WHOLE
    spoil: Literal["", "truncate", "array", "hang", "nothing"] = ""
    breakage: Breakage | None = None
    date: datetime | timedelta | None = None
    then: Callable[[], object] | None = None

    def applied_to(self, answer: Answer) -> Answer:
        """Return the answer that the client gets instead of `answer`."""
        if self.breakage is not None and answer.body is None:
            answer = replace(answer, body=self.breakage.encode(answer.payload))
        match self.spoil:
            case "truncate":
                answer = replace(answer, body=answer.encoded()[: len(answer.encoded()) // 2])
            case "array":
                answer = replace(answer, body=b"[" + answer.encoded() + b"]")
            case "nothing":
                answer = _without_records(answer)
            case _:
                pass
        return replace(answer, delivery=self.delivery)

    def dated(self, now: datetime) -> datetime:
        """Return the time for the Date header; `now` is the right time."""
        if isinstance(self.date, timedelta):
            return now + self.date
        return self.date or now

    @classmethod
    def too_many_requests(cls, retry_after: int | None = None) -> Fault:
        """429/20429, with or without Retry-After."""
        return cls("429", instead=messages.too_many_requests(retry_after))

    @classmethod
    def server_error(cls, status: int = 500, *, html: bool = False) -> Fault:
        """500, 502, 503 or 504, with Twilio's JSON body or with a gateway's HTML."""
        answer = _html(status) if html else messages.error(status, 20500, _MESSAGES.get(status, "Error"))
        return cls(str(status), instead=answer)

    @classmethod
    def reset(cls) -> Fault:
        """The connection is reset instead of an answer."""
        return cls("reset", instead=Answer(delivery=Delivery.RESET), delivery=Delivery.RESET)

    @classmethod
    def reset_mid_body(cls) -> Fault:
        """The connection is reset in the middle of the body."""
        return cls("reset mid-body", delivery=Delivery.RESET_MID_BODY)

    @classmethod
    def closed_early(cls) -> Fault:
        """Content-Length gives the whole body, but the connection closes after half of it."""
        return cls("closed early", delivery=Delivery.CLOSED_EARLY)

    @classmethod
    def truncated_json(cls) -> Fault:
        """The body is half of the JSON; as HTTP the answer is complete."""
        return cls("truncated", spoil="truncate")

    @classmethod
    def hang(cls) -> Fault:
        """No answer until the plan releases the request, the server stops or 30 seconds pass; then the real answer."""
        return cls("hang", spoil="hang")

    @classmethod
    def html_with_200(cls) -> Fault:
        """A page of HTML with status 200 instead of JSON."""
        return cls("html", instead=_html(200))

    @classmethod
    def empty_body(cls, status: int = 200) -> Fault:
        """An answer without a body."""
        return cls("empty", instead=Answer(status, body=b""))

    @classmethod
    def proxy(cls, status: int) -> Fault:
        """An error status from a proxy: HTML, without the headers that Twilio's errors have."""
        return cls(f"proxy {status}", instead=_html(status))

    @classmethod
    def nothing_found(cls) -> Fault:
        """An empty list, and 404 for a single record, as from a wrong region, which holds no calls of ours.

        Applied to a later page of a listing, it is the case where a promised page comes back empty.
        """
        return cls("nothing found", spoil="nothing")

    @classmethod
    def wrong_date(cls, date: datetime | timedelta) -> Fault:
        """The right answer with a wrong Date header: a fixed time, or an offset from the right time."""
        return cls("wrong date", date=date)

    @classmethod
    def followed_by(cls, then: Callable[[], object]) -> Fault:
        """The right answer. `then` is called before it is sent, so that the next request sees the change.

        Examples: a call is deleted between two pages, or changes between two answers of one second.
        """
        return cls("followed by a change", then=then)

    @classmethod
    def array(cls) -> Fault:
        """Good JSON of the wrong shape: the envelope inside an array."""
        return cls("array", spoil="array")

    @classmethod
    def unauthorized(cls) -> Fault:
        """401/20003."""
        return cls("401", instead=messages.not_authenticated())

    @classmethod
    def forbidden(cls, code: int = 20403) -> Fault:
        """403 with 20403, 20005 or 70051."""
        return cls("403", instead=messages.forbidden(code))

    @classmethod
    def not_found(cls) -> Fault:
        """404/20404."""
        return cls("404", instead=messages.not_found(""))

    @classmethod
    def error(cls, status: int, code: int | None, message: str) -> Fault:
        """Any other error, in Twilio's format."""
        return cls(str(status), instead=messages.error(status, code, message))

    @classmethod
    def redirect(cls, location: str, status: int = 307) -> Fault:
        """A redirect, for example to another host."""
        return cls("redirect", instead=Answer(status, body=b"", headers=(("Location", location),)))

    @classmethod
    def broken_record(cls, kind: str, *, index: int = 0, sid: str | None = None) -> Fault:
        """One record of the answer is broken (see `breakage.BREAKAGES`)."""
        return cls(f"broken record: {kind}", breakage=Breakage(kind, index, sid))


@dataclass(slots=True)
class _Rule:
    applies: Callable[[Request], bool]
    fault: Fault
    times: int | None


@dataclass(eq=False)
class FaultPlan:
    """Decides which fault, if any, each request meets; thread-safe.

    Rules (`when`) come first, then the queue (`next`), then the rates, then the fault of `always`. A rate depends
    only on the request and on how often it was made before. The same requests therefore meet the same faults, in
    whatever order threads run.

    Attributes:
        max_concurrent: an account with more requests under way gets 429/20429. Twilio publishes no number.
        others: number of requests that other programs have under way all the time. They count towards
            `max_concurrent` and appear in Twilio-Concurrent-Requests.

    """

    seed: int = 0
    max_concurrent: int | None = None
    others: int = 0
    hanging: int = 0
    _rules: list[_Rule] = field(default_factory=list)
    _queue: deque[Fault] = field(default_factory=deque)
    _rates: dict[Fault, float] = field(default_factory=dict)
    _always: Fault | None = None
    _seen: Counter[int] = field(default_factory=Counter)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _released: int = 0

    def next(self, *faults: Fault) -> None:
        """Spoil each of the next requests with one of these faults, in order."""
        with self._changed:
            self._queue.extend(faults)

    def always(self, fault: Fault | None) -> None:
        """Spoil every request for which nothing else is planned; None ends this."""
        with self._changed:
            self._always = fault

    def when(self, predicate: Callable[[Request], bool], fault: Fault, times: int | None = None) -> None:
        """Spoil the requests for which `predicate` is true, `times` times or for ever."""
        with self._changed:
            self._rules.append(_Rule(predicate, fault, times))

    def large_pages(self, above: int, fault: Fault | None = None, *, path: str = "") -> None:
        """Spoil each request for pages of more than `above` records whose path contains `path`; default: 500.

        Users reported this of Usage and of Calls.
        """

        def is_large(request: Request) -> bool:
            return path in request.path and int(request.param("PageSize") or 50) > above

        self.when(is_large, fault or Fault.server_error(500))

    def rates(self, rates: Mapping[Fault, float]) -> None:
        """Spoil these shares of all requests (each from 0 to 1, together at most 1); replaces earlier rates."""
        with self._changed:
            self._rates = dict(rates)

    def clear(self) -> None:
        """Remove every fault from the plan, and release the requests that hang."""
        with self._changed:
            self._rules.clear()
            self._queue.clear()
            self._rates.clear()
            self._always = None
        self.release()

    def decide(self, request: Request) -> Fault | None:
        """Return the fault of this request; None if it is to be answered normally."""
        with self._changed:
            for rule in self._rules:
                if rule.times != 0 and rule.applies(request):
                    rule.times = None if rule.times is None else rule.times - 1
                    return rule.fault
            if self._queue:
                return self._queue.popleft()
            return self._by_chance(request) or self._always

    def hang(self, at_most: float = 30.0) -> None:
        """Block a request until `release`, at most `at_most` seconds; the server calls this."""
        with self._changed:
            generation = self._released
            self.hanging += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._released > generation, at_most)
            self.hanging -= 1

    def release(self) -> None:
        """Let every request that hangs now go on."""
        with self._changed:
            self._released += 1
            self._changed.notify_all()

    def wait_until_hanging(self, requests: int = 1, timeout: float = 10.0) -> bool:
        """Wait until `requests` requests hang; return False if that did not happen within `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self.hanging >= requests, timeout)

    def _by_chance(self, request: Request) -> Fault | None:
        if not self._rates:
            return None
        which = crc32(repr((request.path, request.params)).encode())
        self._seen[which] += 1
        drawn = crc32(f"{self.seed}:{which}:{self._seen[which]}".encode()) / 0x1_0000_0000
        for fault, rate in self._rates.items():
            if drawn < rate:
                return fault
            drawn -= rate
        return None
