"""lm-eval: a generated answer over the chat, and a log-likelihood task over completions."""

import json
import os
import subprocess
import sys
from pathlib import Path

CAPITALS = [
    ("France", "Paris", "Rome"),
    ("Italy", "Rome", "Tokyo"),
    ("Japan", "Tokyo", "Paris"),
    ("Spain", "Madrid", "Oslo"),
]
CHOICE = """task: capitals_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{rows}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "The capital of {{{{country}}}} is"
doc_to_choice: "{{{{[right, wrong]}}}}"
doc_to_target: 0
metric_list: [{{metric: acc}}]
"""
SAY = """task: capitals_say
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{rows}"}}}}
test_split: test
output_type: generate_until
doc_to_text: "Name the capital of {{{{country}}}}."
doc_to_target: "{{{{right}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 12, temperature: 0}}
metric_list: [{{metric: exact_match}}]
"""


def main() -> None:
    rows = Path("rows.jsonl").absolute()
    rows.write_text("\n".join(json.dumps({"country": c, "right": r, "wrong": w}) for c, r, w in CAPITALS))
    Path("tasks").mkdir(exist_ok=True)
    for name, text in (("choice", CHOICE), ("say", SAY)):
        Path("tasks", f"{name}.yaml").write_text(text.format(rows=rows))
    base = os.environ["OPENAI_BASE_URL"]
    chosen = run("local-completions", f"{base}/completions", "capitals_choice", [])
    run("local-chat-completions", f"{base}/chat/completions", "capitals_say", ["--apply_chat_template"])
    right = chosen["results"]["capitals_choice"]["acc,none"]
    assert right >= 0.75, right  # the base knows these
    print(f"lm-eval: {right:.2f} of the capitals are likelier than others")


def run(model: str, url: str, task: str, more: list[str]) -> dict:
    arguments = f"model=smollm2-135m,base_url={url},num_concurrent=2,max_retries=2,tokenized_requests=False"
    arguments += f",tokenizer_backend=huggingface,tokenizer={os.environ['TOKENIZER']}"
    tasks = ["--tasks", task, "--include_path", "tasks", "--output_path", "out", *more]
    command = [sys.executable, "-m", "lm_eval", "--model", model, "--model_args", arguments, *tasks]
    subprocess.run(command, check=True, capture_output=True, text=True)
    newest = max(Path("out").rglob("results_*.json"), key=lambda path: path.stat().st_mtime)
    return json.loads(newest.read_text())


main()
