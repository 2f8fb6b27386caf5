"""Vocabulary: log-probabilities of tokens from hidden states, a part of the predictions at a time.

The logits of all predictions are never there at once. A log-probability depends on its own hidden state alone, so its
derivative is one vector, found on the way forward while its part of the softmax is at hand:

    ∂ log p(t) / ∂h = (1 - s) · W[t] + s · mean_v W[v] - Σ_v p(v) · W[v]

with label smoothing s (Szegedy et al. 2016, section 7). The way back to h is then a product with the incoming gradient,
and costs no second pass over the vocabulary. Where W itself trains, the softmax is kept if one part held all
predictions, else computed again.

Shape legend: M predictions, V vocabulary, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = {"cpu": 64_000_000, "cuda": 512_000_000}  # of fp32 logits that are there at once


def chunk_rows(vocabulary: int, device: str) -> int:
    """How many predictions' logits are there at once."""
    return max(16, CHUNK_BYTES[device] // (4 * vocabulary))


class LogProbs(torch.autograd.Function):
    """``logprob_M``, fp32, of ``target_M`` under ``softmax(hidden_MD Wᵀ)``, and whether none is likelier."""

    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor, smoothing: float, rows: int
    ) -> tuple[Tensor, Tensor]:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        device = hidden_MD.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
        used_VD = weight_VD.to(dtype)
        logprobs, slopes = [], []
        normaliser_M = hidden_MD.new_empty(len(hidden_MD), dtype=torch.float32)
        best_M = hidden_MD.new_empty(len(hidden_MD), dtype=torch.bool)
        kept: Tensor | None = None
        mean_D = weight_VD.float().mean(0) if smoothing and needs_hidden else None
        with torch.autocast(device, enabled=False):
            for start in range(0, len(hidden_MD), rows):
                part = slice(start, start + rows)
                logit_CV = (hidden_MD[part].to(dtype) @ used_VD.T).float()
                normaliser_M[part] = logit_CV.logsumexp(1)
                target_C = logit_CV.gather(1, target_M[part, None]).squeeze(1)
                best_M[part] = target_C >= logit_CV.amax(1)
                found_C = target_C * (1 - smoothing)
                if smoothing:
                    found_C = found_C + smoothing * logit_CV.mean(1)
                logprobs.append(found_C - normaliser_M[part])
                if not (needs_hidden or needs_weight):
                    continue
                share_CV = logit_CV.sub_(normaliser_M[part, None]).exp_().to(dtype)
                if needs_hidden:
                    slope_CD = used_VD[target_M[part]].float() * (1 - smoothing) - (share_CV @ used_VD).float()
                    slopes.append(slope_CD if mean_D is None else slope_CD + smoothing * mean_D)
                if needs_weight and len(hidden_MD) <= rows:
                    kept = share_CV
        slope_MD = torch.cat(slopes).to(hidden_MD.dtype) if slopes else None
        ctx.save_for_backward(slope_MD, kept, *((hidden_MD, weight_VD, normaliser_M) if needs_weight else ()), target_M)
        ctx.smoothing, ctx.rows, ctx.dtype = smoothing, rows, dtype
        ctx.mark_non_differentiable(best_M)
        return torch.cat(logprobs) if logprobs else hidden_MD.new_empty(0, dtype=torch.float32), best_M

    @staticmethod
    def backward(ctx: Any, grad_M: Tensor, _: None) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        slope_MD, kept, *more, target_M = ctx.saved_tensors
        dhidden_MD = None if slope_MD is None else slope_MD * grad_M[:, None].to(slope_MD.dtype)
        if not more:
            return dhidden_MD, None, None, None, None
        hidden_MD, weight_VD, normaliser_M = more
        with torch.autocast(hidden_MD.device.type, enabled=False):
            used_VD = weight_VD.to(ctx.dtype)
            dweight_VD = torch.zeros_like(used_VD)
            for start in range(0, len(hidden_MD), ctx.rows):
                part = slice(start, start + ctx.rows)
                h_CD, grad_C = hidden_MD[part].to(ctx.dtype), grad_M[part].to(ctx.dtype)
                share_CV = kept
                if share_CV is None:
                    logit_CV = (h_CD @ used_VD.T).float()
                    share_CV = logit_CV.sub_(normaliser_M[part, None]).exp_().to(ctx.dtype)
                pull_CV = share_CV * -grad_C[:, None]
                if ctx.smoothing:
                    pull_CV += (ctx.smoothing / len(used_VD)) * grad_C[:, None]
                pull_CV.scatter_add_(1, target_M[part, None], (grad_C * (1 - ctx.smoothing))[:, None])
                dweight_VD.addmm_(pull_CV.T, h_CD)
        return dhidden_MD, dweight_VD.to(weight_VD.dtype), None, None, None
