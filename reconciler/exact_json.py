"""A JSON reader that keeps every number as text."""

from __future__ import annotations

import json
from typing import Any

from reconciler.errors import BadObservation


def parse_json(text: str) -> Any:
    """Decode JSON and return every number as its text, exactly as Twilio sent it: no float, no limit of length.

    Raises:
        BadObservation: the text is not JSON, or is nested too deep.

    """
    try:
        return json.loads(text, parse_float=str, parse_int=str, parse_constant=str)
    except RecursionError:
        raise BadObservation("the payload is nested deeper than can be read") from None
    except ValueError:
        raise BadObservation("the record is not JSON") from None
