"""What the learning curves say: where a run began to overfit, and a curve of readable length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onsa.evaluate.document import History

RISE = 0.01  # a validation loss within 1 % of its least is noise, not a rise


def validation_losses(history: History) -> list[tuple[int, float]]:
    """Step and loss of every evaluation that has a loss."""
    found = [(entry["step"], entry["metrics"].get("loss")) for entry in history["evaluations"]]
    return [(step, loss) for step, loss in found if loss is not None]


def train_losses(history: History) -> list[tuple[int, float]]:
    """Step and loss of every optimizer step that has a loss."""
    return [(point["step"], point["loss"]) for point in history["train"] if point["loss"] is not None]


def overfitting(history: History) -> int | None:
    """The step from which validation loss rises while train loss goes on falling, or ``None``.

    That step is the one of the least validation loss, where the loss never comes back to within 1 % of it in the end
    and the mean train loss after it is below that just before it (so a diverging run is not called overfitting).
    """
    validation, train = validation_losses(history), train_losses(history)
    if len(validation) < 3 or len(train) < 2:
        return None
    step, least = min(validation, key=lambda point: point[1])
    if validation[-1][0] <= step or validation[-1][1] <= least + RISE * abs(least):
        return None
    after = [loss for at, loss in train if at > step]
    before = [loss for at, loss in train if at <= step][-max(1, len(after)) :]
    if not after or not before or float(np.mean(after)) >= float(np.mean(before)):
        return None
    return step


def thinned(x: Sequence[float], y: Sequence[float], points: int = 200) -> tuple[list[float], list[float]]:
    """A noisy curve as the means of at most ``points`` bins of neighbouring steps; a short one as it is."""
    if len(x) <= points:
        return list(x), list(y)
    size = -(-len(x) // points)  # bins of one size: unlike ones would show unlike noise
    parts = np.split(np.arange(len(x)), range(size, len(x), size))
    x_N, y_N = np.asarray(x, float), np.asarray(y, float)
    return [float(x_N[part].mean()) for part in parts], [float(y_N[part].mean()) for part in parts]


def smooth(y: Sequence[float], window: int) -> list[float]:
    """A centred running mean over ``window`` points, narrower at the ends."""
    half, y_N = max(0, window // 2), np.asarray(y, float)
    total_N = np.concatenate([[0.0], np.cumsum(y_N)])
    at = np.arange(len(y_N))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(y_N))
    return [float(value) for value in (total_N[high] - total_N[low]) / (high - low)]
