"""Report: a run's report and model card, rendered again from its ``metrics.json``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onsa.evaluate.card import model_card
from onsa.evaluate.document import Document, read_document, verdict
from onsa.evaluate.report import render
from onsa.serve.predictor import MODEL
from onsa.spec.errors import StoreError
from onsa.store.atomic import write_text
from onsa.store.run import Run
from onsa.store.runs import Store

METRICS = "metrics.json"
REPORT = "report.html"
CARD = "README.md"


@dataclass(frozen=True)
class Written:
    """Where a run's report is, and what it says."""

    run: Run
    report: Path
    document: Document

    @property
    def verdict(self) -> str:
        return verdict(self.document)


def write_report(ref: str | Run) -> Written:
    """Render the report and the model card of a finished run.

    Raises:
        StoreError: no such run, or it has no metrics yet.
    """
    if isinstance(ref, str):
        with Store() as store:
            ref = store.find(ref)
    metrics = ref.folder / METRICS
    if not metrics.exists():
        raise StoreError.of("run-without-metrics", file=ref.id, state=ref.state.value)
    document = read_document(metrics)
    write_text(ref.folder / REPORT, render(document))
    write_text(ref.folder / MODEL / CARD, model_card(document))
    return Written(ref, ref.folder / REPORT, document)
