"""litellm: one call for many providers."""

import os

import litellm

GIVEN = {"api_base": os.environ["OPENAI_BASE_URL"], "api_key": os.environ["OPENAI_API_KEY"]}
MESSAGES = [{"role": "user", "content": "Say hello."}]


def main() -> None:
    said = litellm.completion(model="openai/smollm2-135m", messages=MESSAGES, max_tokens=8, temperature=0, **GIVEN)
    parts = litellm.completion(
        model="openai/smollm2-135m", messages=MESSAGES, max_tokens=8, temperature=0, stream=True, **GIVEN
    )
    whole = "".join(part.choices[0].delta.content or "" for part in parts)
    assert whole == said.choices[0].message.content
    found = litellm.embedding(model="openai/minilm-l6", input=["hello"], **GIVEN)
    assert len(found.data[0]["embedding"]) == 384
    try:
        litellm.completion(model="openai/no-such", messages=MESSAGES, **GIVEN)
    except litellm.NotFoundError:
        print(f"litellm: {whole!r}")
        return
    raise AssertionError("a model that is not there was answered")


main()
