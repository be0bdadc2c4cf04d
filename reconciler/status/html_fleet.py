"""The section of the status page about a fleet: its workers with what they run, and its queues."""

from __future__ import annotations

from reconciler.database.engine_schema import Queue, Worker
from reconciler.status.html_parts import number, row, section, table
from reconciler.status.markup import Markup, element
from reconciler.status.overview import NAMED
from reconciler.status.snapshot import Fleet
from reconciler.wording import rough, short_sids


def show_fleet(fleet: Fleet | None) -> Markup | None:
    """Return the section; None without a fleet."""
    if fleet is None:
        return None
    headings = ("worker", "since, UTC", "at work on", ("runs",), "state")
    workers = table("The daemons that share the work", headings, [_worker(worker) for worker in fleet.workers])
    headings_of_queues = ("queue", ("waiting",), ("oldest",), ("put off",), ("at work",))
    queues = table("Runs by queue", headings_of_queues, [_queue(queue) for queue in fleet.queues])
    return section(
        "Fleet",
        workers if fleet.workers else element("p", "No daemon works."),
        queues if fleet.queues else element("p", "No run waits, and none is under way."),
    )


def _worker(worker: Worker) -> Markup:
    since = "" if worker.since is None else f"{worker.since:%Y-%m-%d %H:%M:%S}"
    running = [short_sids(job) for job in worker.running[:NAMED]]
    if len(worker.running) > NAMED:
        running.append(f"{len(worker.running) - NAMED} more")
    state = element("span", "✓ works", class_="good")
    if not worker.is_alive:
        state = element("span", f"! silent for {rough(worker.silent_seconds)}", class_="warn")
    runs = number(f"{len(worker.running)} of {worker.slots or '?'}")
    return row(worker.name, (since, ", ".join(running)), runs, element("td", state))


def _queue(queue: Queue) -> Markup:
    oldest = rough(queue.oldest_seconds) if queue.due else ""
    figures = (f"{queue.due:,}", oldest, f"{queue.put_off:,}", f"{queue.at_work:,}")
    return row(queue.queue, (), *(number(figure) for figure in figures))
