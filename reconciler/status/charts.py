"""The charts of the status page, as SVG: gaps by hour, and a calendar of proven days.

Everything in a chart is also in a table or a sentence beside it.
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
_BASE: Final = 120  # the bottom of the bars
_TALLEST: Final = 106


def gaps_by_hour(hours: Sequence[datetime], kinds: Mapping[datetime, Mapping[str, int]], highest: int) -> Markup:
    """Return a chart with a bar for each hour, stacked by kind. The tallest bar stands for `highest`."""
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
            # The middle of the first bar is too near to the edge for its text.
            middle = max(14, left + _BAR // 2)
            shapes.append(
                element("text", f"{hour:{'%H:00' if hour.hour else '%d %b'}}", class_="hour", x=middle, y=137)
            )
    width = _BAR * (len(hours) + 1)
    axis = element("line", class_="axis", x1=0, x2=width, y1=_BASE + 0.5, y2=_BASE + 0.5)
    return _picture(f"Gaps found by hour, up to {highest:,} in one", (width, 142), join([axis, shapes]), kind="chart")


def calendar(known: Mapping[date, AccountDay], shown: Sequence[date], label: str) -> Markup:
    """Return a calendar with a square for each day, which shows whether the day is proven."""
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
    """Return the colour and sign of a kind, for a legend."""
    square = element("rect", class_=kind, width=14, height=14, rx=3)
    return element(
        "svg", square, element("text", sign, class_="sign", x=7, y=11), width=14, height=14, aria_hidden="true"
    )  # fmt: skip


def _picture(label: str, size: tuple[int, int], shapes: Markup, *, kind: str = "") -> Markup:
    """Return a drawing of the shapes. If there is no room for all, the newest ones, on the right, are in view."""
    width, height = size
    drawing = element(
        "svg", shapes, class_=kind, viewBox=f"0 0 {width} {height}", width=width, height=height, role="img",
        aria_label=label,
    )  # fmt: skip
    return element("div", drawing, class_="wide newest", tabindex=0, role="region", aria_label=label)
