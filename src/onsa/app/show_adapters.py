"""How adapters, merges and folds look in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onsa.app.console import show_problems, table
from onsa.app.listing import result
from onsa.evaluate.wording import metric_name, short, signed, storage
from onsa.spec.messages import say

if TYPE_CHECKING:
    from rich.console import Console

    from onsa.evaluate.document import Range
    from onsa.programs.fold import Folded
    from onsa.programs.merge import Merged, Side


def show_families(console: Console, found: Sequence[dict[str, Any]]) -> None:
    """Adapters under the base that they share."""
    if not found:
        console.print(say("adapters-none"))
    for family in found:
        console.print(say("adapters-base", base=family["base"], sha256=family["sha256"][:8]), style="bold")
        names = ["id", *(say(code) for code in ("runs-task", "adapters-method", "runs-result", "adapters-size"))]
        rows = [
            (entry["id"], entry["task"], _method(entry), result(entry), storage(entry["bytes"]))
            for entry in family["adapters"]
        ]
        console.print(table([*names, say("runs-created")], _dated(rows, family), right=(4,)))


def show_merge(console: Console, made: Merged) -> None:
    """Each parent's headline metric: base, the parent alone, the merge, and the difference of the last two."""
    proof = made.proof
    console.print(say("merge-made", run=made.run.id, method=proof["method"], rank=proof["rank"]), style="bold")
    codes = ("merge-weight", "runs-task", "show-metric", "show-base", "merge-before", "merge-after", "show-difference")
    rows = [_side(side) for side in proof["parents"]]
    console.print(table(["id", *map(say, codes)], rows, right=(1, 4, 5, 6, 7)))
    console.print(say("merge-next", run=made.run.id, folder=made.run.folder), soft_wrap=True)


def show_fold(console: Console, folded: Folded) -> None:
    """The largest difference of logits, and every metric, folded against apart."""
    console.print(say("fold-made", folder=folded.folder), style="bold", soft_wrap=True)
    show_problems(console, folded.problems)
    apart = f"{folded.apart:.2g}"
    console.print(say("fold-logits", apart=apart, rows=folded.rows, logits=f"{folded.logits:,}"), soft_wrap=True)
    rows = [
        (metric_name(entry["metric"]), _ranged(entry["base"]), _ranged(entry["tuned"]), _gain(entry["difference"]))
        for entry in folded.comparisons
    ]
    names = [say(code) for code in ("show-metric", "fold-apart", "fold-whole", "show-difference")]
    if rows:
        console.print(table(names, rows, right=(1, 2, 3)))


def _dated(rows: Sequence[tuple[str, ...]], family: dict[str, Any]) -> list[tuple[str, ...]]:
    return [(*row, entry["created"][:10]) for row, entry in zip(rows, family["adapters"], strict=True)]


def _method(entry: dict[str, Any]) -> str:
    return f"{entry['method']} ({' + '.join(entry['parents'])})" if entry["parents"] else entry["method"]


def _side(side: Side) -> tuple[str, ...]:
    begins = (side["run"], f"{side['weight']:g}", side["task"], metric_name(side["metric"]))
    found = next((entry for entry in side["comparisons"] if entry["metric"] == side["metric"]), None)
    base = side["base"].get(side["metric"])
    if found is None:
        return (*begins, _ranged(base), "–", "–", "–")
    return (*begins, _ranged(base), _ranged(found["base"]), _ranged(found["tuned"]), _gain(found["difference"]))


def _ranged(entry: Range | None) -> str:
    return f"{short(entry['value'])}  [{short(entry['low'])}, {short(entry['high'])}]" if entry else "–"


def _gain(entry: Range | None) -> str:
    if entry is None:
        return "–"
    return f"{signed(entry['value'], 3)}  [{signed(entry['low'], 3)}, {signed(entry['high'], 3)}]"
