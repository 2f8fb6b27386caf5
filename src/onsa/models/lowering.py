"""Lowering: rows laid out as the inputs of a network.

Padded rows lie beside each other in a block; packed ones behind each other in one line, each with positions of its own,
and a mask keeps them apart, or where each row ends is told to a way to attend that goes by that. Folded rows hold a
prompt once with all answers to it, which a mask keeps apart.

A soft prompt (prefix, prompt, p-tuning; PEFT's ``get_prompt``) acts before the network, not in it, so it is laid out
here: virtual tokens in front of every row's embeddings, or keys and values that every row sees.

Shape legend: R rows, T the longest row's tokens, P virtual tokens, N tokens of all rows in one line, S places in one
line (N, and each row's P where virtual tokens stand in front), D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn

from onsa.models.batch import Batch

Layout = Literal["padded", "packed", "folded"]
BY_ENDS = ("onsa_line", "onsa_line_products")  # ways to attend that are told where packed rows end


@dataclass(frozen=True)
class Block:
    """What to call with which inputs, and where each of the N tokens lies in its output when that is flattened."""

    network: Any
    inputs: dict[str, Any]
    flat_N: Tensor


def base_network(network: nn.Module) -> Any:
    """The transformers model inside a network that an adaptation may have wrapped."""
    unwrap = getattr(network, "get_base_model", None)
    return unwrap() if unwrap else network


def soft_prompt(network: nn.Module, rows: int) -> Any:
    """The soft prompt for some rows, ``prompt_RPD`` or a cache of keys and values; ``None`` where there is none."""
    if getattr(network, "prompt_encoder", None) is None or not network.has_active_enabled_adapter:
        return None
    return network.get_prompt(rows)  # type: ignore[operator]  # a PEFT model


def padded(network: nn.Module, batch: Batch, pad_id: int, left: bool = False) -> Block:
    """Rows beside each other, padded to the longest.

    Args:
        left: pad before a row, and count its positions from its first token.
    """
    length_R = torch.tensor(batch.length_R, device=batch.token_N.device)
    place_T = torch.arange(int(max(batch.length_R)), device=length_R.device)
    mask_RT = place_T >= len(place_T) - length_R[:, None] if left else place_T < length_R[:, None]
    token_RT = torch.full(mask_RT.shape, pad_id, device=length_R.device)
    token_RT[mask_RT] = batch.token_N
    inputs: dict[str, Any] = {"input_ids": token_RT, "attention_mask": mask_RT.long()}
    # A tokenizer may tell a pair's texts apart for a network that does not: RoBERTa knows one type, a decoder none.
    if batch.type_N is not None and getattr(base_network(network).config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = torch.zeros_like(token_RT)
        inputs["token_type_ids"][mask_RT] = batch.type_N
    soft = soft_prompt(network, len(length_R))
    flat_N, once = mask_RT.flatten().nonzero().squeeze(1), _once(network)
    if soft is None:
        return Block(network, inputs | once, flat_N)
    inner = base_network(network)
    if not isinstance(soft, Tensor):
        inputs["attention_mask"] = _front(inputs["attention_mask"], soft.get_seq_length(), 1)
        return Block(inner, {**inputs, "past_key_values": soft} | once, flat_N)
    virtual = soft.shape[1]
    inputs = {name: _front(value, virtual, int(name == "attention_mask")) for name, value in inputs.items()}
    inputs["inputs_embeds"] = _behind(soft, inner.get_input_embeddings()(token_RT))
    del inputs["input_ids"]
    if left:
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    return Block(inner, inputs | once, _front(mask_RT, virtual, 0).flatten().nonzero().squeeze(1))


def _once(network: nn.Module) -> dict[str, bool]:
    """What tells a network that no token will follow, so that it copies no keys and values for any."""
    takes = "use_cache" in signature(type(base_network(network)).forward).parameters
    return {"use_cache": False} if takes else {}


def for_row_head(network: nn.Module, batch: Batch, pad_id: int) -> Block:
    """Rows beside each other, as a row head finds its way in them."""
    block = padded(network, batch, pad_id)
    if "past_key_values" in block.inputs:  # few row heads hand keys on to their base; PEFT knows a way
        return replace(padded(base_network(network), batch, pad_id), network=network)
    # PEFT's name of a row head that reads the last token, which it finds by its id, or else at the row's very end.
    if "inputs_embeds" in block.inputs and getattr(network, "cls_layer_name", None) == "score":
        return padded(network, batch, pad_id, left=True)
    return block


def packed(network: nn.Module, batch: Batch) -> Block:
    """Rows behind each other, for a network in which tokens see those before them; none sees another row's."""
    device, length_R = batch.token_N.device, batch.length_R
    soft = soft_prompt(network, 1)
    virtual = soft.shape[1] if isinstance(soft, Tensor) else 0
    place_S = torch.cat([torch.arange(virtual + n, device=device) for n in length_R])
    flat_N = (place_S >= virtual).nonzero().squeeze(1)
    inputs: dict[str, Any] = {"input_ids": batch.token_N[None]}
    if isinstance(soft, Tensor):
        token_ND = base_network(network).get_input_embeddings()(batch.token_N)
        parts = [_behind(soft[0], token_TD, 0) for token_TD in token_ND.split(list(length_R))]
        inputs = {"inputs_embeds": torch.cat(parts)[None]}
    elif soft is not None:  # keys and values that every row sees
        inputs["past_key_values"] = soft
    apart = _ends if base_network(network).config._attn_implementation in BY_ENDS else _mask
    inputs |= apart([virtual + n for n in length_R], place_S, 0 if soft is None or virtual else soft.get_seq_length())
    return Block(network if soft is None else base_network(network), inputs | _once(network), flat_N)


def folded(network: nn.Module, batch: Batch, pad_id: int) -> Block:
    """Rows beside each other, each a prompt with all its answers: an answer sees the prompt and itself.

    Raises:
        ValueError: something stands in front of every row.
    """
    if soft_prompt(network, 1) is not None:
        raise ValueError("rows behind a soft prompt are not folded")
    assert batch.answers is not None, "rows that hold answers"
    block, device = padded(network, batch, pad_id), batch.token_N.device
    place_N, part_N = (torch.from_numpy(found).to(device) for found in batch.answers.paths())
    place_RT = torch.zeros_like(block.inputs["input_ids"])
    place_RT.view(-1)[block.flat_N] = place_N
    part_RT = torch.full_like(place_RT, -1)  # padding is a part of its own, which sees but itself
    part_RT.view(-1)[block.flat_N] = part_N
    index_T = torch.arange(place_RT.shape[1], device=device)
    sees_RTT = (part_RT[:, None, :] == 0) & (part_RT[:, :, None] >= 0) | (part_RT[:, None, :] == part_RT[:, :, None])
    sees_RTT &= index_T[None, :, None] >= index_T[None, None, :]
    return replace(block, inputs={**block.inputs, "attention_mask": sees_RTT[:, None], "position_ids": place_RT})


def _mask(length_R: Sequence[int], place_S: Tensor, shared: int) -> dict[str, Tensor]:
    """What keeps packed rows apart: each token sees those before it in its row, and the ``shared`` keys of all."""
    row_S = torch.repeat_interleave(torch.tensor(length_R, device=place_S.device))
    sees_SS = _front((row_S[:, None] == row_S) & (place_S[:, None] >= place_S), shared, 1)
    mask_SS = torch.zeros(sees_SS.shape, device=place_S.device).masked_fill(~sees_SS, torch.finfo(torch.float32).min)
    return {"attention_mask": mask_SS[None, None], "position_ids": place_S[None] + shared}


def _ends(length_R: Sequence[int], place_S: Tensor, shared: int) -> dict[str, Any]:
    """Where packed rows end, by transformers' names of that, in place of a mask.

    Raises:
        ValueError: there are keys that all rows share, which no row's end tells of.
    """
    if shared:
        raise ValueError("rows that share keys are kept apart by a mask")
    end_R = torch.tensor([0, *length_R], dtype=torch.int32, device=place_S.device).cumsum(0, dtype=torch.int32)
    return {
        "attention_mask": place_S.new_zeros((1, 1, 1, 1)),  # one of four dimensions is handed on as it is
        "position_ids": place_S[None],
        "cu_seq_lens_q": end_R,
        "cu_seq_lens_k": end_R,
        "max_length_q": max(length_R),
        "max_length_k": max(length_R),
    }


def opening(network: nn.Module, prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> Block:
    """Prompts as a model's ``generate`` takes them: padded on the left, a soft prompt next to the text.

    ``flat_N`` then holds one number: at which place of what ``generate`` returns the answers begin.
    """
    longest = max(map(len, prompts))
    token_RT = torch.full((len(prompts), longest), pad_id)
    for row, prompt in enumerate(prompts):
        token_RT[row, longest - len(prompt) :] = torch.tensor(prompt)
    token_RT = token_RT.to(device)
    length_R = torch.tensor([len(prompt) for prompt in prompts], device=device)
    mask_RT = (torch.arange(longest, device=device) >= longest - length_R[:, None]).long()
    inputs: dict[str, Any] = {"input_ids": token_RT, "attention_mask": mask_RT}
    soft = soft_prompt(network, len(prompts))
    if soft is None:
        return Block(network, inputs, torch.tensor([longest]))
    inner = base_network(network)
    if not isinstance(soft, Tensor):  # generate skips as many tokens as there are keys: they may be any
        virtual = soft.get_seq_length()
        inputs = {"input_ids": _front(token_RT, virtual, pad_id), "attention_mask": _front(mask_RT, virtual, 1)}
        return Block(inner, {**inputs, "past_key_values": soft}, torch.tensor([virtual + longest]))
    rows = []
    for prompt_PD, token_TD, length in zip(
        soft, inner.get_input_embeddings()(token_RT), map(len, prompts), strict=True
    ):
        pad_TD, text_TD = token_TD.split([longest - length, length])
        rows.append(torch.cat([pad_TD, _behind(prompt_PD, text_TD, 0)]))
    mask_RT = torch.cat([mask_RT, torch.ones_like(mask_RT[:, :1]).expand(-1, soft.shape[1])], 1)
    return Block(inner, {"inputs_embeds": torch.stack(rows), "attention_mask": mask_RT}, torch.tensor([0]))


def _front(what_RT: Tensor, virtual: int, value: int) -> Tensor:
    """Columns of a value in front of others."""
    return torch.cat([what_RT.new_full((len(what_RT), virtual), value), what_RT], 1)


def _behind(prompt: Tensor, token: Tensor, dim: int = 1) -> Tensor:
    """Embeddings behind those of a soft prompt."""
    return torch.cat([prompt.to(token.dtype), token], dim)
