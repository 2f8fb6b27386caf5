"""Running: the requests that are being answered, and the forwards that answer them, one token of each at a time.

Requests join and leave between any two forwards (Yu et al. 2022, Orca, section 4.1). A prompt is read in chunks, so
that a long one does not hold up who is already being answered. Where keys and values find no room any more, whoever
came last gives up its own and reads all its tokens anew later (Kwon et al. 2023, section 4.5); its answer stays the
same.

Shape legend: R rows, T tokens of each, P places of a row whose logits are asked for, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from onsa.models.decoding import Decoding, short_way
from onsa.models.few_rows import turn
from onsa.models.load import first_line
from onsa.models.lowering import base_network, soft_prompt
from onsa.models.policy import Policy
from onsa.models.slots import BLOCK, Shelf, Slots, attend_by_slots
from onsa.serve.adapters import Adapter
from onsa.serve.asks import Ask, Done, Event, Read, Reason, Tell, Top
from onsa.serve.drawing import Draw, Fault, draw, scored
from onsa.serve.prefixes import BLOCK_TOKENS, Prefixes, digests
from onsa.serve.stacked import BASE, Stacks

PROBED = 24  # tokens with which it is tried whether a network can be asked row by row
CLOSE = {"fp32": 1e-3, "bf16": 5e-2}  # how far apart logits may be that are the same but for rounding


@dataclass(frozen=True)
class Limits:
    """What a batcher takes.

    rows: answered at once.
    waiting: requests that may wait; more are turned away.
    chunk_tokens: of prompts that are read between two tokens of the others.
    slots_bytes: for keys and values of rows that are being answered.
    prefix_bytes: for keys and values of prompts that are kept.
    adapters: that stay loaded when no request needs them.
    context: tokens that the network can look at; ``None`` is what its configuration says.
    """

    rows: int = 32
    waiting: int = 256
    chunk_tokens: int = 256
    slots_bytes: int = 4 << 30
    prefix_bytes: int = 512 << 20
    adapters: int = 32
    context: int | None = None


class Row:
    """A request on its way: what it has said, and how far its prompt is read."""

    def __init__(self, ask: Ask, tell: Tell, most: int) -> None:
        self.ask, self.most = ask, most
        self.draw = Draw(ask)
        self.known = list(ask.prompt)  # and what was said
        self.digests = digests(ask.adapter, ask.prompt)
        self.place = BASE
        self.cached = 0
        self.held = False  # whether its adapter is held for it
        self.logprobs: list[float | None] = [None]
        self.tops: list[Top] = [()]
        self.cancelled = False
        self.over = False
        self._tell = tell

    @property
    def said(self) -> int:
        """Tokens of the answer."""
        return len(self.known) - len(self.ask.prompt)

    def tell(self, event: Event) -> None:
        """Hand on what happened. Whoever cannot listen is answered no further."""
        try:
            self._tell(event)
        except Exception:
            self.cancelled = True

    def end(self, reason: Reason, message: str = "") -> None:
        """Say the last word."""
        self.over = True
        self.tell(Done(reason, len(self.ask.prompt), self.cached, message))


class Running:
    """Rows that are being answered over one network, by one thread.

    Args:
        find: gives adapters by their names; without it there are none.

    Raises:
        ValueError: the network cannot be asked row by row.
    """

    def __init__(self, policy: Policy, limits: Limits, find: Callable[[str], Adapter] | None = None) -> None:
        network = policy.network
        if soft_prompt(network, 1) is not None:
            raise ValueError("Rows behind a soft prompt are not answered together with others.")
        self.limits = limits
        self.prefixes = Prefixes(limits.prefix_bytes)
        self.tokens = self.prefix_hits = self.prefix_tokens = self.given_up = 0
        self._policy = policy
        self._ready: list[Row] = []
        self._reading: list[Row] = []
        self._arrived: list[Row] = []  # all, in the order in which they came
        dtype = torch.bfloat16 if policy.precision == "bf16" else torch.float32
        self.stacks = None if find is None else Stacks(network, find, limits.adapters, dtype)
        self.slots = Slots(network, limits.rows, limits.slots_bytes)
        config = base_network(network).config.get_text_config(decoder=True)
        self.vocabulary = int(config.vocab_size)
        network.eval()
        self._decoding: Decoding | None = None
        self._laid = 0  # layers with adapters, as the short way knows them
        self._probe()
        most = self.slots.most_tokens()
        known = limits.context or getattr(config, "max_position_embeddings", None) or most
        assert most is not None and known is not None, "a forward has shown what a token takes"
        self.context = min(known, most)
        if self.context < 2:
            raise ValueError(f"slots_bytes: {limits.slots_bytes}; one token takes {self.slots.token_bytes}.")

    @torch.inference_mode()
    def _probe(self) -> None:
        """Try a few tokens: in one go without slots, and the last of them behind the others.

        Raises:
            ValueError: the network says something else to them.
        """
        network = self._policy.network
        token_T = torch.arange(1, PROBED + 1) % self.vocabulary
        tokens = token_T.tolist()
        try:
            with self._policy.autocast():
                wanted_V = network(input_ids=token_T[None].to(self._policy.device), use_cache=False).logits[0, -1]
                attend_by_slots(network)
                decoding = short_way(network)
                turn(network)
                apart = self._apart(tokens, wanted_V.float())
        except Exception as error:  # networks fail in ways of their own
            raise ValueError(f"This network cannot be asked row by row: {first_line(error)}") from error
        close = CLOSE.get(self._policy.precision, CLOSE["bf16"])
        if not apart <= close:
            raise ValueError("This network says something else when it is asked row by row.")
        self._decoding = decoding
        with self._policy.autocast():
            if decoding is not None and not self._apart(tokens, wanted_V.float()) <= close:
                self._decoding = None

    def _apart(self, tokens: list[int], wanted_V: Tensor) -> float:
        """How far from what is wanted the logits of two rows are that are asked for one token behind others."""
        slots = self.slots
        for _ in range(2):
            slots.open(PROBED)
        self._forward(slots.reading, (), [tokens[:9], tokens[:11]], None)
        self._forward(slots.reading, (), [tokens[9:-1], tokens[11:-1]], [PROBED - 11, PROBED - 13])
        slots.settle()
        try:
            found_RV = self._forward(slots.ready, (), [tokens[-1:]] * 2, None)[:, -1]
        finally:
            for row in (1, 0):
                slots.ready.free(row)
        return float((found_RV - wanted_V).norm(dim=1).max() / wanted_V.norm())

    # Who is answered

    @property
    def rows(self) -> list[Row]:
        """All who are being answered."""
        return [*self._ready, *self._reading]

    def takes(self, row: Row) -> bool:
        """Whether a row can join now, and share the chunk with those that have just joined."""
        rows = self.rows
        if not rows:
            return True
        if self._reading:
            longest = max(*self._ahead(), len(row.known) - self._cached_tokens(row))
            alone = any(one.ask.prompt_logprobs for one in (row, *self._reading))
            if alone or longest * (len(self._reading) + 1) > self.limits.chunk_tokens:
                return False
        return self.slots.fits(len(rows) + 1, max(len(one.known) for one in (row, *rows)) + BLOCK)

    def add(self, row: Row) -> None:
        """Let a row join. One whose adapter cannot be loaded ends."""
        try:
            if row.ask.adapter is not None:
                assert self.stacks is not None, "asks with adapters are for networks with adapters"
                row.place = self.stacks.hold(row.ask.adapter)
                row.held = True
        except Exception as error:  # of whoever finds and reads adapters
            row.end("failed", first_line(error))
            return
        blocks = self._cached_tokens(row) // BLOCK_TOKENS
        self._reading.append(row)
        self._arrived.append(row)
        with self._failing([row]):
            index = self.slots.open(len(row.known))
            self.slots.reading.begin(index, self.prefixes.take(row.digests[:blocks]))
            if blocks and not row.said:
                row.cached = blocks * BLOCK_TOKENS
                self.prefix_hits += 1
                self.prefix_tokens += row.cached

    def _cached_tokens(self, row: Row) -> int:
        """Tokens of a prompt that need not be read; its last one is always, as an answer begins with what it says."""
        if row.ask.prompt_logprobs and not row.said:
            return 0
        most = (len(row.ask.prompt) - 1) // BLOCK_TOKENS
        return self.prefixes.known(row.digests[:most]) * BLOCK_TOKENS

    def _ahead(self) -> list[int]:
        """Tokens of each row that is read that have not gone through the network."""
        pairs = zip(self._reading, self.slots.reading.length_R, strict=True)
        return [len(row.known) - length for row, length in pairs]

    def end(self, row: Row, reason: Reason, message: str = "") -> None:
        """End a row; its slot is free."""
        self._leave(row)
        row.end(reason, message)

    def _leave(self, row: Row) -> None:
        rows, shelf = self._where(row)
        index = rows.index(row)
        shelf.free(index)
        last = rows.pop()
        if last is not row:
            rows[index] = last
        self._arrived.remove(row)
        if row.held and self.stacks is not None and row.ask.adapter is not None:
            self.stacks.release(row.ask.adapter)
            row.held = False

    def _where(self, row: Row) -> tuple[list[Row], Shelf]:
        return (self._ready, self.slots.ready) if row in self._ready else (self._reading, self.slots.reading)

    def give_up(self) -> list[Row]:
        """Rows that leave because the next tokens find no room, those that came last; they are to join again first."""
        gone: list[Row] = []
        while len(rows := self.rows) > 1 and not self.slots.fits(len(rows), max(len(one.known) for one in rows)):
            row = self._arrived[-1]
            self._leave(row)
            gone.append(row)
            if not row.said:
                row.logprobs, row.tops = [None], [()]
        self.given_up += len(gone)
        return gone[::-1]

    # Forwards

    def read(self) -> None:
        """One chunk of the prompts that are not yet read; who is at its end says its first token."""
        reading, shelf = list(self._reading), self.slots.reading
        if not reading:
            return
        with self._failing(reading):
            pairs = zip(reading, shelf.length_R, strict=True)
            parts = [row.known[start : start + self.limits.chunk_tokens] for row, start in pairs]
            scoring = reading[0] if reading[0].ask.prompt_logprobs and not reading[0].said else None
            start = shelf.length_R[0]
            logit_RPV = self._forward(shelf, reading, parts, None if scoring else [len(part) - 1 for part in parts])
            if scoring is not None:
                self._score(scoring, start, logit_RPV[0])
            if any(self._ahead()):
                return  # a long prompt, which is read alone
            for index, row in enumerate(reading):
                if not row.said:
                    self.prefixes.keep(row.digests, partial(shelf.copied, index))
            self.slots.settle()
            self._ready += reading
            self._reading.clear()
            self._say(reading, logit_RPV[:, -1])

    def _score(self, row: Row, start: int, logit_TV: Tensor) -> None:
        """Note the log-probabilities of a prompt's tokens that follow those of a chunk."""
        following = row.known[start + 1 : start + 1 + len(logit_TV)]
        logprobs, tops = scored(logit_TV, following, row.ask.alternatives)
        row.logprobs += logprobs
        row.tops += tops
        if len(row.logprobs) == len(row.known):
            row.tell(Read(tuple(row.logprobs), tuple(row.tops)))

    def decode(self) -> None:
        """One token of every row whose prompt is read."""
        rows = list(self._ready)
        if not rows:
            return
        with self._failing(rows):
            logit_RPV = self._forward(self.slots.ready, rows, [row.known[-1:] for row in rows], None)
            self._say(rows, logit_RPV[:, -1])

    def _say(self, rows: Sequence[Row], logit_RV: Tensor) -> None:
        """Draw each row's next token, and end who has said enough."""
        if not rows[0].most:  # its prompt was read, alone, and that was all
            self.end(rows[0], "length")
            return
        for row, found in zip(rows, draw(logit_RV, [row.draw for row in rows]), strict=True):
            if isinstance(found, Fault):
                self._fail(row, found.message)
                continue
            row.known.append(found.token)
            self.tokens += 1
            row.tell(found)
            if found.token in row.ask.stops:
                self.end(row, "stop")
            elif row.said >= row.most:
                self.end(row, "length")

    def _fail(self, row: Row, message: str) -> None:
        rows, shelf = self._where(row)
        shelf.wipe(rows.index(row))
        self.end(row, "failed", message)

    @contextmanager
    def _failing(self, rows: Sequence[Row]) -> Iterator[None]:
        """What fails within fails these rows, and no others."""
        try:
            yield
        except Exception as error:  # of memory, of a network's own code
            for row in reversed(rows):  # so that nothing is moved where memory was too small
                if not row.over:
                    self._fail(row, first_line(error))

    def _forward(
        self, shelf: Shelf, rows: Sequence[Row], parts: Sequence[Sequence[int]], last_R: Sequence[int] | None
    ) -> Tensor:
        """The logits, fp32, of tokens of all rows of a shelf, which go through the network.

        Args:
            last_R: which of each row's tokens they are asked of; ``None`` is all.
        """
        count_R = [len(part) for part in parts]
        token_RT = torch.full((len(parts), max(count_R)), self._policy.pad_id)
        for row, part in enumerate(parts):
            token_RT[row, : len(part)] = torch.tensor(part)
        network, device = self._policy.network, self._policy.device
        answering = nullcontext() if self.stacks is None else self.stacks.answering([row.place for row in rows])
        with self.slots.taking(shelf, count_R) as told, answering, self._asking(last_R):
            if self._decoding is not None and shelf is self.slots.ready:
                if self.stacks is not None and self.stacks.layers != self._laid:
                    self._decoding.lay()
                    self._laid = self.stacks.layers
                logit_RPV = self._decoding(input_ids=token_RT.to(device), **told)
            else:
                logit_RPV = network(input_ids=token_RT.to(device), **told).logits
        return logit_RPV.float()

    @contextmanager
    def _asking(self, last_R: Sequence[int] | None) -> Iterator[None]:
        """Within, the network's head sees one place of each row."""
        if last_R is None:
            yield
            return
        place_R1 = torch.tensor(last_R, device=self._policy.device)[:, None]

        def picked(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden_RTD, *others = given
            return (hidden_RTD.take_along_dim(place_R1[:, :, None], 1), *others)

        output = base_network(self._policy.network).get_output_embeddings()
        handle = output.register_forward_pre_hook(picked)
        try:
            yield
        finally:
            handle.remove()
