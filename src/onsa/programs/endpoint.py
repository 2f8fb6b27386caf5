"""Endpoint: a model behind an OpenAI-compatible API, ``MODEL@URL``; ``ONSA_JUDGE_KEY`` is its key, if it has one."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from onsa.data.compare import Messages
from onsa.spec.errors import MachineError

KEY = "ONSA_JUDGE_KEY"
WAIT_S = 120  # for an answer
WRITTEN = re.compile(r"(?P<model>.+)@(?P<url>https?://\S+)")


@dataclass(frozen=True)
class Endpoint:
    """Where a model answers conversations.

    url: up to ``/v1``; ``/chat/completions`` is put behind it.
    """

    model: str
    url: str

    @staticmethod
    def of(ref: str) -> Endpoint | None:
        """What ``MODEL@URL`` names; nothing where a reference is none of that form."""
        found = WRITTEN.fullmatch(ref)
        return Endpoint(found["model"], found["url"].rstrip("/")) if found else None

    @property
    def name(self) -> str:
        """The two as one word, of which a file can be named."""
        return re.sub(r"[^\w.-]+", "-", f"{self.model}-{self.url.partition('://')[2]}")

    def says(self, messages: Messages, most: int) -> str:
        """Its answer to a conversation, of so many tokens at most; the likeliest one.

        Raises:
            MachineError: it cannot be reached, or answers with an error, or not in the API's form.
        """
        asked = {"model": self.model, "messages": messages, "max_tokens": most, "temperature": 0}
        request = Request(f"{self.url}/chat/completions", json.dumps(asked).encode(), _headers(), method="POST")
        try:
            with urlopen(request, timeout=WAIT_S) as answer:
                said: Any = json.load(answer)
            return str(said["choices"][0]["message"]["content"] or "")
        except HTTPError as error:
            reason = f"{error.code}: {error.read(500).decode(errors='replace').strip()}"
        except (URLError, OSError) as error:
            reason = str(getattr(error, "reason", error))
        except (ValueError, LookupError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
        raise MachineError.of("endpoint-fails", url=self.url, model=self.model, reason=reason)


def _headers() -> dict[str, str]:
    key = os.environ.get(KEY)
    return {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
