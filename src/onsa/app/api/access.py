"""Access: who asks, and what their key allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request

from onsa.app.api.errors import RefusedError
from onsa.spec.messages import say
from onsa.store.aliases import Aliases
from onsa.store.completions import Completions
from onsa.store.database import Database
from onsa.store.files import Files, Uploads
from onsa.store.jobs import Jobs
from onsa.store.key import Key, Scope
from onsa.store.keys import Keys
from onsa.store.models import Models

BEARER = "bearer "


@dataclass(frozen=True)
class Service:
    """What the routes work with; one for the whole of an application."""

    database: Database
    keys: Keys
    files: Files
    uploads: Uploads
    jobs: Jobs
    models: Models
    completions: Completions
    aliases: Aliases

    @classmethod
    def over(cls, database: Database) -> Service:
        """The service over an open database."""
        files = Files(database)
        owned = (Uploads(database, files), Jobs(database), Models(database), Completions(database), Aliases(database))
        return cls(database, Keys(database), files, *owned)


def service(request: Request) -> Service:
    """The application's service."""
    found: Service = request.app.state.service
    return found


def secret(request: Request) -> str:
    """The secret that a request brings: as a bearer token, or in the header that Azure's clients use."""
    given = request.headers.get("authorization", "")
    if given.lower().startswith(BEARER):
        return given[len(BEARER) :].strip()
    return request.headers.get("api-key", "").strip()


def allowed(scope: Scope) -> Callable[..., Key]:
    """A dependency: the key of a request, where it allows this.

    Raises:
        RefusedError: no key, a key that is not known, or one that does not allow it.
    """

    def check(request: Request, service: Annotated[Service, Depends(service)]) -> Key:
        given = secret(request)
        if not given:
            raise RefusedError(401, say("api-no-key"), code="invalid_api_key")
        key = service.keys.find(given)
        if key is None:
            raise RefusedError(401, say("api-wrong-key"), code="invalid_api_key")
        if not key.allows(scope):
            raise RefusedError(403, say("api-scope", scope=scope.value), code="insufficient_permissions")
        return key

    return check


Serving = Annotated[Service, Depends(service)]
Trainer = Annotated[Key, Depends(allowed(Scope.TRAIN))]
Asker = Annotated[Key, Depends(allowed(Scope.INFER))]
Admin = Annotated[Key, Depends(allowed(Scope.ADMIN))]
Object = dict[str, Any]
