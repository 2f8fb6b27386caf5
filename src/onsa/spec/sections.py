"""The sections of a recipe that are settings, not kinds: model, data, training, evaluation, speed.

``None`` means: to be found out. :func:`onsa.programs.resolve.resolve` fills every ``None`` it can and writes it down.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from onsa.spec.component import Section

# The file formats that are read, by suffix. What has another suffix, or none, may be a hub id.
FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
Share = Annotated[float, Field(ge=0, lt=1)]


class Model(Section):
    """What training starts from.

    name: a packaged model's short name, a hub id, a local folder, or a GGUF file.
    revision: the hub revision, where ``name`` is a hub id.
    head_dropout: dropout before a new task head; ``None`` keeps the base's own.
    quantize: hold the matrices of the base's blocks, which must stay frozen, in 4-bit NormalFloat with double
        quantisation (``nf4``) or in 8 bits (``int8``).
    trust_remote_code: let a hub model run its own code. Off; turning it on is the user's explicit act.
    """

    shorthand: ClassVar[str] = "name"
    name: str
    revision: str | None = None
    head_dropout: Share | None = None
    quantize: Literal["nf4", "int8"] | None = None
    trust_remote_code: bool = False


class Split(Section):
    """How rows are dealt to train, validation and test.

    ratio: parts for train, validation, test. ``"8:1:1"`` and ``[8, 1, 1]`` say the same.
    stratify: exact shares within each class (a row near a quota's edge may then move when rows are added); off, a
        row's side depends on its own content alone.
    group: rows with the same value in this column stay together.
    column: this column says ``train``, ``validation`` or ``test`` for each row.
    """

    shorthand: ClassVar[str] = "ratio"
    ratio: tuple[float, float, float] = (8, 1, 1)
    stratify: bool = False
    group: str | None = None
    column: str | None = None

    @field_validator("ratio", mode="before")
    @classmethod
    def _parts(cls, value: Any) -> Any:
        parts = value.split(":") if isinstance(value, str) else value
        try:
            if isinstance(parts, list | tuple) and len(parts) == 3:
                return tuple(map(float, parts))
        except (TypeError, ValueError):
            pass
        raise PydanticCustomError("ratio-refused", "ratio-refused")

    @field_validator("ratio")
    @classmethod
    def _usable(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if not min(value) >= 0 or value[0] == 0:
            raise PydanticCustomError("ratio-refused", "ratio-refused")
        return value


class Data(Section):
    """Where rows come from and what their columns mean.

    path: a file (CSV, TSV, JSON, JSONL, Parquet) or a hub data set id.
    validation, test: further files, where the split is given as files.
    format, encoding, delimiter: detected where not given.
    columns: the task's role to the file's column, such as ``{text: review, label: stars}``.
    language: an ISO 639-1 code; detected where not given.
    normalise: Unicode NFKC over all text, or nothing.
    subset: the configuration of a hub data set.
    """

    shorthand: ClassVar[str] = "path"
    path: str
    validation: str | None = None
    test: str | None = None
    format: Literal["csv", "tsv", "json", "jsonl", "parquet", "hub"] | None = None
    encoding: str | None = None
    delimiter: str | None = None
    columns: dict[str, str] | None = None
    language: str | None = None
    normalise: Literal["none", "nfkc"] = "none"
    subset: str | None = None
    split: Split = Split()


class EarlyStop(Section):
    """Stop when the validation metric named by ``train.best`` no longer improves.

    patience: evaluations without an improvement above ``min_delta`` before the run stops.
    """

    patience: Annotated[int, Field(ge=1)] = 3
    min_delta: Annotated[float, Field(ge=0)] = 0.0


class Train(Section):
    """The loop's settings.

    epochs: passes over the training rows; ``max_steps`` ends earlier.
    batch_tokens: tokens an optimizer step sees (whole rows, at least one).
    batch_rows: rows an optimizer step sees, instead of ``batch_tokens``.
    accumulate: micro-batches a step is computed in: memory, never the result.
    max_length: tokens a row keeps; longer rows are cut and counted.
    precision: fp32, or bf16 arithmetic with fp32 values for what trains.
    clip: the largest norm of the gradient; ``None`` in a resolved recipe is no clipping.
    eval_steps, save_steps: optimizer steps between evaluations and between checkpoints.
    keep: checkpoints kept beside the best one.
    best: the validation metric that names the best checkpoint, and that early stopping watches: the loss, or of tasks
        without one the metric that their verdict is about.
    """

    epochs: Annotated[int, Field(ge=1)] | None = None
    max_steps: Annotated[int, Field(ge=1)] | None = None
    batch_tokens: Annotated[int, Field(ge=1)] | None = None
    batch_rows: Annotated[int, Field(ge=1)] | None = None
    accumulate: Annotated[int, Field(ge=1)] = 1
    max_length: Annotated[int, Field(ge=2)] | None = None
    precision: Literal["fp32", "bf16"] | None = None
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    eval_steps: Annotated[int, Field(ge=1)] | None = None
    save_steps: Annotated[int, Field(ge=1)] | None = None
    keep: Annotated[int, Field(ge=1)] = 2
    best: str | None = None
    early_stop: EarlyStop | None = None

    @model_validator(mode="after")
    def _one_size(self) -> Train:
        if self.batch_tokens and self.batch_rows:
            sizes = {"tokens": self.batch_tokens, "rows": self.batch_rows}
            raise PydanticCustomError("batch-sized-twice", "batch-sized-twice", sizes)
        return self


class Evaluate(Section):
    """What is measured after training, on the test rows.

    bootstrap: resamples behind each 95 % interval.
    baseline: measure the base as well, and compare.
    answers: held-out prompts answered side by side by base and tuned (generating tasks).
    max_new_tokens: the longest answer, in tokens.
    judge: a finished run, a reward model or one that talks, or a model behind an OpenAI-compatible API (``MODEL@URL``),
        that says which of base's and tuned's answers is better.
    judged: held-out prompts on whose answers it does.
    """

    bootstrap: Annotated[int, Field(ge=100)] = 1000
    baseline: bool = True
    answers: Annotated[int, Field(ge=0)] = 5
    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    judge: str | None = None
    judged: Annotated[int, Field(ge=1)] = 50


class Accel(Section):
    """Speed passes.

    mode: ``auto`` lets each decide, ``off`` is the plain path, and ``verify`` computes a run's first step both ways
        before it begins, and stops where they differ.
    skip: passes to leave out, by name.
    states: hold the hidden states of frozen layers as they were computed (``exact``), or in half the room (``fp16``).
    states_gb: room on disk that such states may take, of all runs together, in GB.
    """

    shorthand: ClassVar[str] = "mode"
    mode: Literal["auto", "off", "verify"] = "auto"
    skip: tuple[str, ...] = ()
    states: Literal["exact", "fp16"] = "exact"
    states_gb: Annotated[float, Field(ge=0)] = 20.0

    @model_validator(mode="before")
    @classmethod
    def _yaml_booleans(cls, value: Any) -> Any:
        # YAML 1.1 reads a bare `off` as false.
        if isinstance(value, bool):
            return {"mode": "auto" if value else "off"}
        if isinstance(value, dict) and isinstance(value.get("mode"), bool):
            return {**value, "mode": "auto" if value["mode"] else "off"}
        return value
