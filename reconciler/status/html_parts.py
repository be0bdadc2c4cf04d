"""The parts that the sections of the status page are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reconciler.status.markup import Content, Markup, element
from reconciler.wording import short_sids


def section(title: str, *body: Content) -> Markup:
    """Return a section under a heading."""
    name = title.split(maxsplit=1)[0].lower()
    return element("section", element("h2", title, id=name), body, aria_labelledby=name)


def table(caption: str, headings: Iterable[str | tuple[str]], rows: Content) -> Markup:
    """Return a table. A heading in a tuple belongs to a column of numbers."""
    cells = [
        element("th", heading, scope="col")
        if isinstance(heading, str)
        else element("th", heading, scope="col", class_="n")
        for heading in headings
    ]
    inner = element(
        "table",
        element("caption", element("div", caption, class_="soft fit")),
        element("thead", element("tr", cells)),
        element("tbody", rows),
    )
    return element("div", inner, class_="wide", tabindex=0, role="region", aria_label=caption)


def row(head: str, texts: Sequence[str], *cells: Markup) -> Markup:
    """Return a row: its head, cells of text, and cells that are elements already."""
    return element("tr", element("th", head, scope="row"), [element("td", text) for text in texts], cells)


def number(text: str) -> Markup:
    """Return a cell that holds a number."""
    return element("td", text, class_="n")


def code(name: str) -> Markup:
    """Return a name with shortened SIDs; the tooltip shows it in full."""
    short = short_sids(name)
    return element("code", short, title=None if short == name else name)
