"""A server that takes vLLM's command line and requests, and answers greedily by transformers and PEFT."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import torch
import uvicorn
from peft import PeftModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from transformers import AutoModelForCausalLM

CONTEXT = 200
PAUSE_S = 0.005  # between tokens
Json = dict[str, Any]


class Server:
    """One network, with adapters. Every request's body goes into a file, line by line."""

    def __init__(self, folder: str, dtype: str, record: Path) -> None:
        made = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), use_safetensors=True)
        self.network: Any = made.eval()
        self.folder, self.dtype, self.record = folder, dtype, record
        self.adapted: dict[str, Any] = {}

    def _note(self, **what: Any) -> None:
        with self.record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(what) + "\n")

    async def health(self, _: Request) -> Response:
        return Response()

    async def models(self, _: Request) -> Response:
        return JSONResponse({"data": [{"id": "base", "max_model_len": CONTEXT}]})

    async def load(self, request: Request) -> Response:
        body = await request.json()
        self._note(load=body)
        plain = AutoModelForCausalLM.from_pretrained(self.folder, dtype=getattr(torch, self.dtype))
        try:
            self.adapted[body["lora_name"]] = PeftModel.from_pretrained(plain, body["lora_path"]).eval()
        except (OSError, ValueError):
            return JSONResponse({"error": {"message": f"no adapter at {body['lora_path']}"}}, 404)
        return Response("Success")

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self._note(ask=body)
        if body["model"] != "base" and body["model"] not in self.adapted:
            return JSONResponse({"error": {"message": f"The model {body['model']} does not exist."}}, 404)
        if body.get("stream"):
            return StreamingResponse(self._streamed(body), media_type="text/event-stream")
        return JSONResponse({"choices": [self._whole(body)], "usage": self._usage(body)})

    def _usage(self, body: Json) -> Json:
        return {"prompt_tokens": len(body["prompt"]), "prompt_tokens_details": {"cached_tokens": 2}}

    def _logits(self, body: Json, tokens: list[int]) -> torch.Tensor:
        network = self.adapted.get(body["model"], self.network)
        with torch.inference_mode():
            return torch.as_tensor(network(input_ids=torch.tensor([tokens])).logits[0].float())

    def _answer(self, body: Json) -> Iterator[tuple[int, torch.Tensor, str | None]]:
        tokens = list(body["prompt"])
        for place in range(body["max_tokens"]):
            logits_V = self._logits(body, tokens)[-1]
            biased_V = logits_V.clone()
            for token, bias in body.get("logit_bias", {}).items():
                biased_V[int(token)] += bias
            tokens.append(int(biased_V.argmax()))
            ended = tokens[-1] in body["stop_token_ids"]
            reason = "stop" if ended else "length" if place + 1 == body["max_tokens"] else None
            yield tokens[-1], logits_V, reason
            if reason:
                return

    def _logprobs(self, body: Json, tokens: list[int], logits: list[torch.Tensor | None]) -> Json:
        values: list[float | None] = []
        tops: list[Json | None] = []
        for token, logits_V in zip(tokens, logits, strict=True):
            if logits_V is None:
                values, tops = [*values, None], [*tops, None]
                continue
            logprob_V = logits_V.log_softmax(-1)
            best = {token, *logprob_V.topk(body["logprobs"]).indices.tolist()}
            values.append(float(logprob_V[token]))
            tops.append({f"token_id:{one}": float(logprob_V[one]) for one in best})
        said = [f"token_id:{token}" for token in tokens]
        return {"tokens": said, "token_logprobs": values, "top_logprobs": tops}

    def _whole(self, body: Json) -> Json:
        assert body["echo"] and body["return_token_ids"]
        prompt_TV = self._logits(body, body["prompt"])
        answer = list(self._answer(body))
        tokens = [*body["prompt"], *(token for token, _, _ in answer)]
        logits = [None, *prompt_TV[:-1], *(logits_V for _, logits_V, _ in answer)]
        return {
            "logprobs": self._logprobs(body, tokens, logits),
            "finish_reason": answer[-1][2] if answer else "length",
        }

    async def _streamed(self, body: Json) -> AsyncIterator[str]:
        whole = False
        try:
            for token, logits_V, reason in self._answer(body):
                choice = {"logprobs": self._logprobs(body, [token], [logits_V]), "finish_reason": reason}
                yield f"data: {json.dumps({'choices': [choice]})}\n\n"
                await asyncio.sleep(PAUSE_S)
            yield f"data: {json.dumps({'choices': [], 'usage': self._usage(body)})}\n\n"
            yield "data: [DONE]\n\n"
            whole = True
        finally:
            if not whole:
                self._note(left=body["model"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("folder")
    options = ("served-model-name", "dtype", "max-model-len", "gpu-memory-utilization", "max-lora-rank", "max-loras")
    for option in (*options, "max-cpu-loras", "structured-outputs-config", "generation-config", "uds"):
        parser.add_argument(f"--{option}", required=True)
    for option in ("enable-lora", "enable-prompt-tokens-details"):
        parser.add_argument(f"--{option}", action="store_true", required=True)
    said = parser.parse_args()
    if os.environ.get("PLAIN_VLLM_FAILS"):
        print("Loading…\nValueError: no memory left\nEngine core is gone")
        raise SystemExit(3)
    assert os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
    server = Server(said.folder, said.dtype, Path(os.environ["PLAIN_VLLM_RECORD"]))
    routes = [
        Route("/health", server.health),
        Route("/v1/models", server.models),
        Route("/v1/load_lora_adapter", server.load, methods=["POST"]),
        Route("/v1/completions", server.complete, methods=["POST"]),
    ]
    uvicorn.run(Starlette(routes=routes), uds=said.uds, log_level="warning")


if __name__ == "__main__":
    main()
