"""The pictures of the status page, as SVG: gaps by hour, and a calendar of proven days.

A picture never says more than a table or a sentence beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Final

from reconciler.model import Gap
from reconciler.status.markup import Markup, element, join
from reconciler.status.snapshot import AccountDay

KINDS: Final = tuple(gap.value for gap in Gap)
DAY_KINDS: Final = (
    ("proven", "✓", "every call that Twilio lists is held"),
    ("broken", "!", "incomplete"),
    ("unproven", "", "not proven"),
)

_BAR: Final = 15  # units of the chart for an hour
_CELL: Final = 18  # pixels of a day
_BASE: Final = 120  # where the bars stand
_TALLEST: Final = 106


def gaps_by_hour(hours: Sequence[datetime], kinds: Mapping[datetime, Mapping[str, int]], highest: int) -> Markup:
    """A bar for each hour, stacked by kind; as tall as `highest` allows."""
    shapes: list[Markup] = []
    for place, hour in enumerate(hours):
        left, top = place * _BAR, float(_BASE)
        for kind in KINDS:
            if count := kinds.get(hour, {}).get(kind, 0):
                height = max(1.5, _TALLEST * count / highest)
                top -= height
                bar = element(
                    "rect", class_=kind, x=left, y=f"{max(0.0, top):.1f}", width=_BAR - 3, height=f"{height:.1f}"
                )
                shapes.append(element("g", element("title", f"{hour:%d %b %H:00}: {count:,} {kind}"), bar))
        if hour.hour % 6 == 0:
            # The first one's middle lies too near the edge for its text.
            middle = max(14, left + _BAR // 2)
            shapes.append(
                element("text", f"{hour:{'%H:00' if hour.hour else '%d %b'}}", class_="hour", x=middle, y=137)
            )
    width = _BAR * (len(hours) + 1)
    axis = element("line", class_="axis", x1=0, x2=width, y1=_BASE + 0.5, y2=_BASE + 0.5)
    return _picture(f"Gaps found by hour, up to {highest:,} in one", (width, 142), join([axis, shapes]), kind="chart")


def calendar(known: Mapping[date, AccountDay], shown: Sequence[date], label: str) -> Markup:
    """A square for each day, with a sign for what is known of it."""
    shapes: list[Markup] = []
    for place, day in enumerate(shown):
        found = known.get(day)
        kind, sign, name = DAY_KINDS[2 if found is None else 0 if found.is_complete else 1]
        held = "" if found is None else f", {found.held:,} of {found.listed:,} held"
        x = place * (_CELL + 2)
        shapes.append(
            element(
                "g",
                element("title", f"{day:%a %d %b}: {name}{held}"),
                element("rect", class_=kind, x=x, y=0, width=_CELL, height=_CELL, rx=3),
                element("text", sign, class_="sign", x=x + _CELL // 2, y=13),
            )
        )
        if day.weekday() == 0:
            shapes.append(element("text", f"{day:%d %b}", x=x, y=34))
    return _picture(label, (len(shown) * (_CELL + 2), 40), join(shapes))


def swatch(kind: str, sign: str = "") -> Markup:
    """The colour and sign of a kind, for a legend."""
    square = element("rect", class_=kind, width=14, height=14, rx=3)
    return element(
        "svg", square, element("text", sign, class_="sign", x=7, y=11), width=14, height=14, aria_hidden="true"
    )  # fmt: skip


def _picture(label: str, size: tuple[int, int], shapes: Markup, *, kind: str = "") -> Markup:
    """Drawn shapes; where there is no room for all of them, the newest, on the right, are seen first."""
    width, height = size
    drawing = element(
        "svg", shapes, class_=kind, viewBox=f"0 0 {width} {height}", width=width, height=height, role="img",
        aria_label=label,
    )  # fmt: skip
    return element("div", drawing, class_="wide newest", tabindex=0, role="region", aria_label=label)
