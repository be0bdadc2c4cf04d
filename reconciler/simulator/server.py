"""The simulated Twilio on loopback: accounts, clock, switches and faults behind one base URL."""

from __future__ import annotations

import itertools
import ssl
import threading
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

from reconciler.simulator import messages
from reconciler.simulator.access import all_accounts
from reconciler.simulator.account import SimulatedAccount
from reconciler.simulator.clock import Clock
from reconciler.simulator.faults import Fault, FaultPlan
from reconciler.simulator.http import HttpServer
from reconciler.simulator.journal import Journal
from reconciler.simulator.messages import Answer, Headers, Request
from reconciler.simulator.resources import Resources
from reconciler.simulator.road import causes_of_gaps
from reconciler.simulator.switches import Switches
from reconciler.simulator.wire import http_date, seconds

ABOUT_ITSELF = "/_simulator"


class SimulatedTwilio:
    """A simulated Twilio: a context manager that serves its accounts over HTTP while it is open.

    Attributes:
        base_url: the URL of the server, on 127.0.0.1.
        requests: the log of requests (`Journal`).
        faults: the plan of faults; may be changed at any time.
        page_delay: real time that each answer of the API takes; may be changed at any time.
        record_delay: real time that each listed record adds.

    For other processes there is the path `/_simulator`, which Twilio does not have. GET returns the requests so far
    and the lost webhooks; DELETE forgets the requests. Neither is logged, meets a fault or needs credentials.

    An exception inside the simulator is answered with 500 and raised again when the context ends. A fault of the
    simulator is therefore never mistaken for one of the client.
    """

    def __init__(
        self,
        accounts: Sequence[SimulatedAccount],
        *,
        clock: Clock,
        switches: Switches | None = None,
        faults: FaultPlan | None = None,
        page_delay: timedelta = timedelta(0),
        record_delay: timedelta = timedelta(0),
        tls: ssl.SSLContext | None = None,
        port: int = 0,
    ) -> None:
        self.clock = clock
        self.faults = faults or FaultPlan()
        self.page_delay = page_delay
        self.record_delay = record_delay
        self.requests = Journal()
        self._resources = Resources(accounts, clock, switches or Switches())
        self._numbers = itertools.count(1)
        self._stopping = threading.Event()
        self._server = HttpServer(port, self._answer, tls)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.port: int = self._server.server_address[1]
        self.base_url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many connections clients have opened since the start."""
        return self._server.connections

    @property
    def switches(self) -> Switches:
        """The contested points of Twilio's behaviour; may be replaced at any time."""
        return self._resources.switches

    @switches.setter
    def switches(self, switches: Switches) -> None:
        self._resources.switches = switches

    def start(self) -> Self:
        """Start serving in a thread; return the simulator itself."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop serving, release hanging requests and close every connection; raise the first exception from inside."""
        self._stopping.set()
        self._server.shutdown()
        self._thread.join()
        self.faults.release()
        self._server.close_connections()
        self._server.server_close()
        if self._server.errors:
            raise self._server.errors[0]

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _answer(self, request: Request) -> tuple[Answer, Headers, bool]:
        """Answer one request: with the fault that the plan chooses, or as the resources do."""
        if request.path == ABOUT_ITSELF:
            return self._about_itself(request), (), False
        entry, in_flight = self.requests.begin(request, self.faults.others)
        try:
            fault = self._fault(request, in_flight)
            if fault is not None and fault.spoil == "hang":
                entry.fault = fault.name
                self.faults.hang()
            answer = fault.instead if fault is not None and fault.instead is not None else self._ask(request)
            now = self.clock.now()
            if fault is not None:
                answer = fault.applied_to(answer)
                entry.fault = fault.name
                now = fault.dated(now)
                if fault.then is not None:
                    fault.then()
            entry.status = answer.status
            compress = self.switches.gzip and "gzip" in request.headers.get("accept-encoding", "")
            return answer, self._headers(in_flight, time.monotonic() - entry.started, now), compress
        finally:
            self.requests.end(request, entry)

    def _about_itself(self, request: Request) -> Answer:
        if request.method == "DELETE":
            self.requests.clear()
            return Answer(204, body=b"")
        accounts = all_accounts(self._resources.accounts).values()
        gaps = causes_of_gaps(accounts)
        lost = Counter(loss.cause for account in accounts for loss in account.losses)
        return Answer(payload={**self.requests.summary(), "lost": dict(lost), "causes_of_gaps": gaps})

    def _fault(self, request: Request, in_flight: int) -> Fault | None:
        limit = self.faults.max_concurrent
        if limit is not None and in_flight > limit:
            return Fault.too_many_requests()
        return self.faults.decide(request)

    def _ask(self, request: Request) -> Answer:
        if self.page_delay:
            self._stopping.wait(self.page_delay.total_seconds())
        try:
            answer = self._resources.answer(request)
        except Exception as error:
            self._server.errors.append(error)
            return messages.error(500, 20500, "Internal Server Error")
        if self.record_delay:
            self._stopping.wait(self.record_delay.total_seconds() * answer.record_count)
        return answer

    def _headers(self, in_flight: int, took: float, now: datetime) -> Headers:
        headers = (
            ("Twilio-Concurrent-Requests", str(in_flight)),
            ("Twilio-Request-Id", f"RQ{next(self._numbers):032x}"),
            ("Twilio-Request-Duration", f"{took:.3f}"),
            ("X-Home-Region", "us1"),
            ("X-Api-Domain", "api.twilio.com"),
        )
        if not self.switches.date_header:
            return headers
        return (("Date", http_date(seconds(now))), *headers)
