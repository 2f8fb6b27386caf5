"""langchain-openai: chat models and embeddings of LangChain."""

from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel


class Person(BaseModel):
    """Somebody."""

    name: str
    age: int


def main() -> None:
    chat = ChatOpenAI(model="smollm2-135m", temperature=0, max_completion_tokens=60)
    said = chat.invoke("Say hello.").content
    assert said and "".join(part.content for part in chat.stream("Say hello.")) == said
    person = chat.with_structured_output(Person, method="json_schema").invoke("Ann is 31 years old.")
    assert isinstance(person, Person)
    found = OpenAIEmbeddings(model="minilm-l6", check_embedding_ctx_length=False).embed_documents(["a cat", "a dog"])
    assert [len(vector) for vector in found] == [384, 384]
    print(f"langchain-openai: {said!r}, {person}")


main()
