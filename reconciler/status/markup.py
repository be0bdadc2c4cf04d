"""HTML as nested calls: `element("p", "some ", element("b", text))`.

Text is escaped, and phone numbers in it are masked, wherever it comes from. Only elements are used unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Final

from reconciler.masking import mask

_VOID: Final = frozenset(("meta", "link", "br", "rect", "line"))  # written without an end; the last two are SVG's


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Content = str | None | Iterable["Content"]


def element(name: str, /, *content: Content, **attributes: str | float | None) -> Markup:
    """Return `<name attributes>content</name>`.

    An attribute that is None is left out. `class_` becomes class, and other underscores become hyphens.
    """
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}='{text(str(value))}'"
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{written}{'/' if name in ('rect', 'line') else ''}>")
    return Markup(f"<{name}{written}>{join(content)}</{name}>")


def join(content: Content) -> Markup:
    """Return elements and texts joined to one."""
    if content is None:
        return Markup("")
    if isinstance(content, str):
        return text(content)
    return Markup("".join(map(join, content)))


def advice(hint: str) -> Content:
    """Return `→ ` and a hint whose commands, which stand between backticks, are code; an option is never split."""
    parts = hint.split("`")
    return ["→ ", *(_command(part) if number % 2 else part for number, part in enumerate(parts))]


def _command(command: str) -> Markup:
    words = (element("span", word, class_="whole") if word.startswith("-") else word for word in command.split(" "))
    return element("code", [[" " if number else "", word] for number, word in enumerate(words)])


def text(value: str) -> Markup:
    """Return text as HTML: escaped and masked. An element is returned unchanged."""
    return value if isinstance(value, Markup) else Markup(escape(mask(value)))
