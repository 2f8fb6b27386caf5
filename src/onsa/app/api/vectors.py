"""``/embeddings`` and ``/classify``: what models that read rows whole say of texts."""

from __future__ import annotations

import base64
import struct
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from onsa.app.api.access import Asker, Object, Serving
from onsa.app.api.asking import Models, meant, while_there
from onsa.app.api.errors import RefusedError
from onsa.spec.messages import say

router = APIRouter()
MOST_TEXTS = 2048
Token = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
Tokens = Annotated[list[Token], Field(min_length=1)]
Texts = Annotated[list[Text] | list[Tokens], Field(min_length=1, max_length=MOST_TEXTS)]


class EmbeddingCreate(BaseModel):
    """Texts, or tokens, whose places are asked for."""

    model_config = ConfigDict(extra="forbid")
    model: Annotated[str, Field(min_length=1, max_length=256)]
    input: Text | Tokens | Texts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None


class Classify(BaseModel):
    """Texts to classify."""

    model_config = ConfigDict(extra="forbid")
    model: Annotated[str, Field(min_length=1, max_length=256)]
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=MOST_TEXTS)]


@router.post("/embeddings")
async def create_embeddings(request: Request, key: Asker, service: Serving, body: EmbeddingCreate) -> Object:
    models: Models = request.app.state.models
    target = await meant(service, key, body.model, body.user)
    single = isinstance(body.input, str) or isinstance(body.input[0], int)
    asked = {"target": target.handed, "texts": [body.input] if single else body.input}
    said = await while_there(request, models.say("/embed", asked))
    vectors = said["vectors"]
    if body.dimensions is not None:
        if body.dimensions > len(vectors[0]):
            raise RefusedError(400, say("api-dimensions", most=len(vectors[0])), "dimensions", "invalid_value")
        vectors = [_unit(vector[: body.dimensions]) for vector in vectors]
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector, body.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": said["tokens"], "total_tokens": said["tokens"]}
    return {"object": "list", "data": data, "model": target.name, "usage": usage}


@router.post("/classify")
async def classify(request: Request, key: Asker, service: Serving, body: Classify) -> Object:
    """Labels with their probabilities, of a model that was tuned to tell them apart."""
    models: Models = request.app.state.models
    target = await meant(service, key, body.model)
    texts = [body.input] if isinstance(body.input, str) else body.input
    said = await while_there(request, models.say("/classify", {"target": target.handed, "texts": texts}))
    data = [{"object": "classification", "index": index, **answer} for index, answer in enumerate(said["answers"])]
    return {"object": "list", "data": data, "model": target.name}


def _unit(vector: list[float]) -> list[float]:
    length = sum(value * value for value in vector) ** 0.5 or 1.0
    return [value / length for value in vector]


def _encoded(vector: list[float], encoding: str) -> list[float] | str:
    if encoding == "float":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
