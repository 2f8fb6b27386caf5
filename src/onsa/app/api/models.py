"""``/models``: the catalogue's bases, and what a project has made of them or may ask."""

from __future__ import annotations

from fastapi import APIRouter

from onsa.app.api.access import Asker, Object, Service, Serving, Trainer
from onsa.app.api.errors import RefusedError
from onsa.app.api.objects import deleted, model_object
from onsa.models.catalog import catalog
from onsa.spec.messages import say
from onsa.store.aliases import Alias

router = APIRouter()
CATALOGUE = {"created": 0, "owned_by": "onsa"}


def known_base(service: Service, project: str, name: str) -> bool:
    """Whether a project can begin a job from a model of this name."""
    return name in catalog() or service.models.find(project, name) is not None


def _alias(alias: Alias) -> Object:
    return {"id": alias.name, "object": "model", "created": int(alias.created), "owned_by": alias.project}


@router.get("/models")
def list_models(key: Asker, service: Serving) -> Object:
    own = [model_object(served) for served in service.models.list(key.project)]
    aliases = [_alias(alias) for alias in service.aliases.list(key.project)]
    bases = [{"id": name, "object": "model", **CATALOGUE} for name in catalog()]
    return {"object": "list", "data": [*bases, *own, *aliases]}


@router.get("/models/{model}")
def retrieve_model(key: Asker, service: Serving, model: str) -> Object:
    if model in catalog():
        return {"id": model, "object": "model", **CATALOGUE}
    alias = service.aliases.find(key.project, model)
    if alias is not None:
        return _alias(alias)
    served = service.models.find(key.project, model)
    if served is None:
        raise RefusedError(404, say("api-no-model", model=model), "model", "model_not_found")
    return model_object(served)


@router.delete("/models/{model}")
def delete_model(key: Trainer, service: Serving, model: str) -> Object:
    if model in catalog():
        raise RefusedError(403, say("api-base-stays", model=model), "model")
    service.models.remove(key.project, model)
    return deleted("model", model)
