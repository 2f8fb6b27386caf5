"""llm: models on the command line."""

import os
import subprocess
import sys
from pathlib import Path


def main() -> None:
    folder = Path("llm").absolute()
    folder.mkdir(exist_ok=True)
    base = os.environ["OPENAI_BASE_URL"]
    (folder / "extra-openai-models.yaml").write_text(
        f"- model_id: smol\n  model_name: smollm2-135m\n  api_base: {base}\n  api_key_name: onsa\n"
    )
    environ = {**os.environ, "LLM_USER_PATH": str(folder)}
    llm = str(Path(sys.executable).with_name("llm"))
    subprocess.run([llm, "keys", "set", "onsa", "--value", os.environ["OPENAI_API_KEY"]], env=environ, check=True)
    command = [llm, "-m", "smol", "Say hello.", "-o", "max_tokens", "8", "-o", "temperature", "0"]
    said = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout.strip()
    whole = subprocess.run([*command, "--no-stream"], env=environ, capture_output=True, text=True, check=True)
    assert said and whole.stdout.strip() == said
    print(f"llm: {said!r}")


main()
