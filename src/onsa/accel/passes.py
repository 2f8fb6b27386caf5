"""The order of the passes, in one list."""

from __future__ import annotations

from onsa.accel import fused_optimizer, like_lengths, supervised_head

PASSES = (like_lengths, supervised_head, fused_optimizer)
