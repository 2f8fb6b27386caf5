"""One way to turn values into bytes, wherever something is hashed or compared."""

from __future__ import annotations

import json
from typing import Any


def canonical(value: Any) -> bytes:
    """The same bytes for equal values: JSON with sorted keys; what JSON does not know goes by its ``str``."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")
