"""Log-probabilities a part at a time: the same as from all logits at once, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from onsa.models.vocabulary import CHUNK_BYTES, LogProbs, chunk_rows

M, V, D = 23, 61, 16


@pytest.mark.parametrize("rows", [1, 7, 23, 100])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("trains", ["hidden", "weight", "both"])
def test_values_and_gradients(rows: int, smoothing: float, trains: str) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden_MD = torch.randn(M, D, generator=generator, requires_grad=trains != "weight")
    weight_VD = torch.randn(V, D, generator=generator, requires_grad=trains != "hidden")
    target_M = torch.randint(V, (M,), generator=generator)
    weight_M = torch.rand(M, generator=generator)
    asked = [value for value in (hidden_MD, weight_VD) if value.requires_grad]
    wanted = -functional.cross_entropy(hidden_MD @ weight_VD.T, target_M, reduction="none", label_smoothing=smoothing)
    found, best_M = LogProbs.apply(hidden_MD, weight_VD, target_M, smoothing, rows)
    assert torch.equal(best_M, (hidden_MD @ weight_VD.T).argmax(1) == target_M)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    one = torch.autograd.grad((found * weight_M).sum(), asked)
    other = torch.autograd.grad((wanted * weight_M).sum(), asked)
    for mine, theirs in zip(one, other, strict=True):
        assert float((mine - theirs).norm() / theirs.norm()) <= 1e-5


def test_without_gradients_and_without_predictions() -> None:
    hidden_MD, weight_VD = torch.randn(M, D), torch.randn(V, D)
    found, _ = LogProbs.apply(hidden_MD, weight_VD, torch.zeros(M, dtype=torch.long), 0.0, 5)
    torch.testing.assert_close(found, (hidden_MD @ weight_VD.T).log_softmax(1)[:, 0])
    none, best_M = LogProbs.apply(hidden_MD[:0], weight_VD, torch.zeros(0, dtype=torch.long), 0.0, 5)
    assert none.shape == best_M.shape == (0,)


@pytest.mark.parametrize("device", CHUNK_BYTES)
def test_parts_stay_within_their_bytes(device: str) -> None:
    assert chunk_rows(49_152, device) * 49_152 * 4 <= CHUNK_BYTES[device]
    assert chunk_rows(10**9, device) == 16
