"""Batching: whoever is answered beside others hears what he would hear alone, and nobody is left out."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import decoders
from decoders import VOCABULARY, Heard, send
from onsa.models.fetch import locate
from onsa.models.heads import Head
from onsa.models.load import load
from onsa.models.policy import Policy
from onsa.models.sampling import Sampling, sample
from onsa.models.slots import Shelf
from onsa.serve.adapters import Adapter
from onsa.serve.asks import Ask, Busy, Done, Said
from onsa.serve.batching import Batcher
from onsa.serve.prefixes import BLOCK_TOKENS
from onsa.serve.running import Limits
from onsa.spec.sections import Model

Open = Callable[..., Batcher]
LONG = tuple(random.Random(5).randrange(VOCABULARY) for _ in range(150))


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens batchers, and closes them."""
    made: list[Batcher] = []

    def make(policy: Policy | None = None, find: Any = None, **limits: Any) -> Batcher:
        made.append(Batcher(policy or decoders.policy(), Limits(**limits), find))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Adapter]:
    folder = tmp_path_factory.mktemp("adapters")
    return {f"a{place}": decoders.adapter(folder, f"a{place}", r=1 + place) for place in range(8)}


def prompts(count: int, seed: int = 0, longest: int = 40) -> list[tuple[int, ...]]:
    dice = random.Random(seed)
    return [tuple(dice.randrange(VOCABULARY) for _ in range(dice.randint(1, longest))) for _ in range(count)]


def generated(network: Any, prompt: tuple[int, ...], most: int) -> list[int]:
    """Greedy tokens, by the library."""
    given = torch.tensor([prompt])
    found = network.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=most, do_sample=False)
    return list(found[0, len(prompt) :].tolist())


def logprobs(network: Any, prompt: tuple[int, ...], tokens: list[int]) -> torch.Tensor:
    """The log-probabilities of all tokens wherever one was said, in one forward."""
    with torch.inference_mode():
        logit_TV = network(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0]
    return logit_TV[len(prompt) - 1 : -1].log_softmax(1)


class Gate:
    """Holds a batcher's thread where it tells the first event, until it is opened."""

    def __init__(self, batcher: Batcher) -> None:
        self._go, self._here = threading.Event(), threading.Event()
        self.heard = Heard()
        batcher.submit(Ask((1, 2), 1, 0.0), self._tell)
        assert self._here.wait(20)

    def _tell(self, event: Any) -> None:
        self._here.set()
        assert self._go.wait(20)
        self.heard(event)

    def open(self) -> None:
        self._go.set()


@pytest.mark.parametrize("family", decoders.FAMILIES)
def test_greedy_tokens_are_the_librarys(family: str, opened: Open) -> None:
    batcher, plain = opened(decoders.policy(family)), decoders.network(family)
    asked = [*prompts(6), LONG]
    heard = [send(batcher, Ask(prompt, 20, 0.0)) for prompt in asked]
    for prompt, one in zip(asked, heard, strict=True):
        assert one.tokens == generated(plain, prompt, 20)
        assert one.done == Done("length", len(prompt), 0)


def test_32_rows_of_8_adapters_are_each_as_alone(adapters: dict[str, Adapter], opened: Open) -> None:
    batcher = opened(find=adapters.__getitem__)
    names = [*adapters, None] * 3 + [*adapters][:5]
    asks = [Ask(prompt, 8, 0.0, adapter=name) for prompt, name in zip(prompts(32), names, strict=True)]
    heard = [send(batcher, ask) for ask in asks]
    alone = {name: decoders.alone(one) for name, one in adapters.items()} | {None: decoders.network()}
    for ask, one in zip(asks, heard, strict=True):
        assert one.tokens == generated(alone[ask.adapter], ask.prompt, 8)
        wanted_TV = logprobs(alone[ask.adapter], ask.prompt, one.tokens)
        wanted_T = wanted_TV.gather(1, torch.tensor(one.tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor([said.logprob for said in one.said]), wanted_T, rtol=0, atol=2e-5)
    state = batcher.state()
    assert (state.running, state.waiting, state.tokens) == (0, 0, 32 * 8) and set(state.adapters) == {*adapters}


def test_a_seed_says_the_same_whoever_stands_beside(opened: Open, adapters: dict[str, Adapter]) -> None:
    batcher = opened(find=adapters.__getitem__, prefix_bytes=0)
    ways = [{}, {"temperature": 0.7}, {"top_p": 0.8}, {"frequency_penalty": 0.5, "temperature": 1.3}, {"adapter": "a3"}]
    asks = [Ask(prompt, 12, seed=seed, **ways[seed % 5]) for seed, prompt in enumerate(prompts(20))]
    together = [one.tokens for one in [send(batcher, ask) for ask in asks]]
    alone = [send(batcher, ask).tokens for ask in asks]
    assert together == alone
    other = [send(batcher, replace(ask, seed=ask.seed + 100)).tokens for ask in asks]
    assert other != alone
    plain = [place for place, ask in enumerate(asks) if ask.seed % 5 == 0]
    answers = sample(
        decoders.policy(),
        [asks[place].prompt for place in plain],
        [[asks[place].seed] for place in plain],
        Sampling(12),
    )
    assert [list(one.tokens) for (one,) in answers] == [alone[place] for place in plain], "as rollouts are drawn"


def test_a_prompt_in_chunks_is_as_whole(opened: Open) -> None:
    asks = [Ask(LONG, 10, 0.0, alternatives=3, prompt_logprobs=True), *(Ask(p, 10, 0.0) for p in prompts(9, 2))]
    found = []
    for chunk in (7, 64, 1000):
        batcher = opened(chunk_tokens=chunk)
        heard = [send(batcher, ask) for ask in asks]
        found.append([one.tokens for one in heard])
        read = heard[0].read
        assert len(read.logprobs) == len(read.tops) == len(LONG) and read.logprobs[0] is None and read.tops[0] == ()
        wanted_TV = logprobs(decoders.network(), LONG[:1], list(LONG[1:]))
        wanted_T = wanted_TV.gather(1, torch.tensor(LONG[1:])[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(read.logprobs[1:]), wanted_T, rtol=0, atol=2e-5)
        for top, wanted_V in zip(read.tops[1:], wanted_TV, strict=True):
            best = wanted_V.topk(3)
            assert [token for token, _ in top] == best.indices.tolist()
    assert found[0] == found[1] == found[2]


def test_only_the_prompt_is_read_where_no_token_is_asked_for(opened: Open) -> None:
    heard = send(opened(), Ask((3, 4, 5), 0, prompt_logprobs=True))
    assert heard.said == [] and heard.done == Done("length", 3) and len(heard.read.logprobs) == 3


def test_prefixes_change_nothing_and_are_found(opened: Open, adapters: dict[str, Adapter]) -> None:
    with_, without = opened(find=adapters.__getitem__), opened(find=adapters.__getitem__, prefix_bytes=0)
    begin = LONG[: 3 * BLOCK_TOKENS]
    first = Ask((*begin, 5, 6), 12, seed=3)
    asks = [
        first,
        first,
        Ask((*begin, 9), 12, 0.0),
        Ask(begin, 12, 0.0),
        replace(first, adapter="a2"),
        replace(first, prompt_logprobs=True),
    ]
    cached = []
    for ask in asks:
        found, wanted = send(with_, ask), send(without, ask)
        assert found.tokens == wanted.tokens and wanted.done.cached_tokens == 0
        assert [said.logprob for said in found.said] == pytest.approx([said.logprob for said in wanted.said], abs=2e-5)
        cached.append(found.done.cached_tokens)
    assert cached == [0, 96, 96, 64, 0, 0], "the last token is always read anew, and each adapter has its own"
    state = with_.state()
    assert (state.prefix_hits, state.prefix_tokens) == (3, 256)
    assert (
        state.prefix_bytes == 6 * BLOCK_TOKENS * with_._running.slots.token_bytes and without.state().prefix_bytes == 0
    )


def test_prefixes_stay_within_their_budget(opened: Open) -> None:
    block = BLOCK_TOKENS * 2 * 2 * 2 * 8 * 4
    batcher = opened(prefix_bytes=3 * block)
    one, other = (tuple([start] * 70) for start in (3, 4))
    for prompt, cached in ((one, 0), (one, 64), (other, 0), (other, 64), (one, 32)):
        assert send(batcher, Ask(prompt, 1, 0.0)).done.cached_tokens == cached
        assert batcher.state().prefix_bytes <= 3 * block


def test_a_cancelled_request_makes_room(opened: Open) -> None:
    batcher = opened(rows=1, context=400)
    endless, waits, gone = Ask(LONG, 250), Ask((3, 4), 2, 0.0), Ask((5,), 2)
    gate = Gate(batcher)
    heard = [send(batcher, ask) for ask in (endless, gone, waits)]
    heard[1].ticket.cancel()
    gate.open()
    assert heard[0].begun.wait(20)
    heard[0].ticket.cancel()
    assert heard[0].done.reason == "cancelled" and 0 < len(heard[0].said) < 250
    assert heard[1].events == [Done("cancelled", 1)]
    assert heard[2].done.reason == "length"
    heard[2].ticket.cancel()
    assert batcher.state().running == 0 and len(heard[2].events) == 3


def test_many_requests_of_one_sender_do_not_hold_up_another(opened: Open) -> None:
    batcher = opened(rows=2)
    order: list[str] = []
    gate = Gate(batcher)
    heard = []
    for sender in ["many"] * 100 + ["few"] * 3:
        heard.append(Heard())

        def tell(event: Any, sender: str = sender, one: Heard = heard[-1]) -> None:
            if isinstance(event, Done):
                order.append(sender)
            one(event)

        batcher.submit(Ask((3, 4), 2, 0.0, sender=sender), tell)
    assert batcher.state().waiting == 103
    gate.open()
    assert all(one.done.reason == "length" for one in heard)
    assert Counter(order[:8])["few"] == 3 and len(order) == 103


def test_who_comes_when_too_many_wait_is_turned_away(opened: Open) -> None:
    batcher = opened(rows=1, waiting=2)
    gate = Gate(batcher)
    heard = [send(batcher, Ask((3,), 1)) for _ in range(2)]
    with pytest.raises(Busy) as caught:
        send(batcher, Ask((3,), 1))
    assert 1 <= caught.value.retry_after_s <= 60
    gate.open()
    assert [one.done.reason for one in heard] == ["length"] * 2
    assert send(batcher, Ask((3,), 1)).done.reason == "length"


class Grammar:
    """Allows every third token; fails at a place."""

    def __init__(self, packed: bool, fails_at: int = 99) -> None:
        self.packed, self.fails_at = packed, fails_at
        self.taken: list[int] = []

    def mask(self) -> Any:
        if len(self.taken) == self.fails_at:
            raise LookupError("no such state")
        allowed = np.zeros(60, np.bool_)
        allowed[len(self.taken) % 3 :: 3] = True
        allowed.setflags(write=False)
        return np.packbits(allowed, bitorder="little") if self.packed else allowed

    def take(self, token: int) -> None:
        self.taken.append(token)


class Nothing(Grammar):
    """Allows no token."""

    def mask(self) -> Any:
        return np.zeros(VOCABULARY, np.bool_)


@pytest.mark.parametrize("packed", [False, True])
def test_only_what_is_allowed_is_said(packed: bool, opened: Open) -> None:
    batcher = opened()
    grammars = [Grammar(packed) for _ in range(4)]
    ways = [{"temperature": 0.0}, {"temperature": 1.5}, {"top_p": 0.5}, {"logit_bias": {90: 3e38}, "temperature": 1e-4}]
    heard = [send(batcher, Ask((3, 4), 9, allowed=one, **way)) for one, way in zip(grammars, ways, strict=True)]
    for one, grammar in zip(heard, grammars, strict=True):
        assert one.tokens == grammar.taken and len(one.tokens) == 9
        assert all(token % 3 == place % 3 and token < 60 for place, token in enumerate(one.tokens))


def test_biases_and_penalties(opened: Open) -> None:
    batcher = opened()
    assert send(batcher, Ask((3, 4), 4, logit_bias={11: 1000.0})).tokens == [11] * 4
    once = send(batcher, Ask((3, 4), 20, 0.0, presence_penalty=1000.0)).tokens
    assert len(set(once)) == 20
    twice = send(batcher, Ask((3, 4), 5, 0.0, frequency_penalty=100.0, logit_bias={7: 1150.0, 8: 1000.0})).tokens
    assert twice == [7, 7, 8, 7, 8], "each time takes as much again"


def test_it_ends_with_a_stop(opened: Open) -> None:
    batcher = opened()
    tokens = send(batcher, Ask(LONG[:9], 20, seed=1)).tokens
    stop = tokens[7]
    heard = send(batcher, Ask(LONG[:9], 20, seed=1, stops=(stop, 5)))
    assert heard.tokens == tokens[: tokens.index(stop) + 1] and heard.done.reason == "stop"


def test_alternatives_are_the_likeliest(opened: Open) -> None:
    heard = send(opened(), Ask(LONG[:9], 5, temperature=2.0, alternatives=20, presence_penalty=1.0))
    wanted_TV = logprobs(decoders.network(), LONG[:9], heard.tokens)
    for said, wanted_V in zip(heard.said, wanted_TV, strict=True):
        best = wanted_V.topk(20)
        assert [token for token, _ in said.top] == best.indices.tolist()
        assert [value for _, value in said.top] == pytest.approx(best.values.tolist(), abs=2e-5)
        assert said.logprob == pytest.approx(float(wanted_V[said.token]), abs=2e-5)


def test_draws_have_the_networks_distribution(opened: Open) -> None:
    """Of one token over many seeds: the chi-square of what is drawn, with a cut at the top and without."""
    count = 1500
    batcher = opened(rows=64, waiting=2 * count, prefix_bytes=0)
    chance_V = logprobs(decoders.network(), LONG[:3], [0])[0].exp().double().numpy()
    for top_p in (1.0, 0.6):
        order = np.argsort(-chance_V)
        inside = order[np.cumsum(chance_V[order]) - chance_V[order] < top_p]
        wanted_V = np.zeros_like(chance_V)
        wanted_V[inside] = chance_V[inside] / chance_V[inside].sum()
        heard = [send(batcher, Ask(LONG[:3], 1, seed=seed, top_p=top_p)) for seed in range(count)]
        drawn_V = np.bincount([one.tokens[0] for one in heard], minlength=VOCABULARY)
        assert drawn_V[wanted_V == 0].sum() == 0
        often = wanted_V * count >= 5
        square = ((drawn_V[often] - count * wanted_V[often]) ** 2 / (count * wanted_V[often])).sum()
        assert square < often.sum() + 5 * np.sqrt(2 * often.sum())


def test_who_fails_leaves_the_others(opened: Open, adapters: dict[str, Adapter]) -> None:
    batcher = opened(find=adapters.__getitem__)
    gate = Gate(batcher)
    good = [Ask(prompt, 12, 0.0, adapter=name) for prompt, name in zip(prompts(3), ("a1", None, "a2"), strict=True)]
    bad = [
        Ask((3, 4), 9, adapter="nobody"),
        Ask((3, 4), 9, allowed=Grammar(False, fails_at=2)),
        Ask((3, 4), 9, logit_bias={5: 1e39}),
        Ask((3, 4), 9, allowed=Nothing(False)),
    ]
    fine, failed = [send(batcher, ask) for ask in good], [send(batcher, ask) for ask in bad]

    def deaf(event: Any) -> None:
        raise OSError("gone")

    batcher.submit(Ask((3, 4), 50), deaf)
    gate.open()
    assert [one.done.reason for one in failed] == ["failed"] * 4
    messages = ["'nobody'", "LookupError: no such state", "The logits are not finite.", "No token may be said."]
    assert [one.done.message for one in failed] == messages
    assert len(failed[1].said) == 2
    for ask, one in zip(good, fine, strict=True):
        plain = decoders.network() if ask.adapter is None else decoders.alone(adapters[ask.adapter])
        assert one.tokens == generated(plain, ask.prompt, 12)


def test_a_row_whose_numbers_are_not_finite_fails_alone(opened: Open) -> None:
    policy = decoders.policy()
    policy.network.get_input_embeddings().weight.data[96] = torch.nan
    policy.network.lm_head = torch.nn.Linear(32, VOCABULARY, bias=False)
    batcher = opened(policy, rows=4)
    asks = [Ask((3, 96, 5), 6, 0.0), *(Ask(tuple(p[:5] or (1,)), 6, 0.0) for p in ([7, 8], [9], [11, 12, 13], [14]))]
    found = [send(batcher, ask) for ask in asks]
    assert found[0].done == Done("failed", 3, 0, "The logits are not finite.")
    alone = [send(batcher, ask) for ask in asks[1:]]
    assert [one.tokens for one in found[1:]] == [one.tokens for one in alone]


def test_a_forward_that_fails_takes_only_those_in_it(opened: Open) -> None:
    policy = decoders.policy()
    batcher = opened(policy)
    broken = threading.Event()
    handle = policy.network.register_forward_pre_hook(lambda *_: broken.is_set() and 1 / 0, with_kwargs=False)
    gate = Gate(batcher)
    heard = [send(batcher, Ask(prompt, 30)) for prompt in prompts(3)]
    broken.set()
    gate.open()
    for one in heard:
        assert one.done.reason == "failed" and one.done.message == "division by zero"
    broken.clear()
    handle.remove()
    assert send(batcher, Ask((3, 4), 3)).done.reason == "length" and batcher.state().running == 0


@pytest.mark.parametrize("failing", range(1, 9))
def test_too_little_memory_fails_some_and_the_next_are_answered(
    failing: int, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher = opened()
    calls: list[int] = []
    made = Shelf._new

    def scarce(shelf: Shelf, *given: Any) -> Any:
        calls.append(1)
        if len(calls) == failing:
            raise RuntimeError("out of memory")
        return made(shelf, *given)

    gate = Gate(batcher)
    monkeypatch.setattr(Shelf, "_new", scarce)
    asks = [Ask(prompt, 70, 0.0) for prompt in prompts(4, longest=150)]
    heard = [send(batcher, ask) for ask in asks]
    gate.open()
    reasons = [one.done.reason for one in heard]
    assert "failed" in reasons and len(calls) >= failing
    assert {one.done.message for one in heard if one.done.reason == "failed"} == {"out of memory"}
    for ask, one in zip(asks, heard, strict=True):
        again = send(batcher, ask)
        assert again.done.reason == "length" and again.tokens[: len(one.said)] == one.tokens
    assert batcher._running.slots.rows == batcher.state().running == 0


def test_requests_from_many_threads_all_end(opened: Open, adapters: dict[str, Adapter]) -> None:
    batcher = opened(find=adapters.__getitem__, rows=6, waiting=1000, adapters=2, chunk_tokens=32)

    def ask(thread: int) -> None:
        dice = random.Random(thread)
        for number, prompt in enumerate(prompts(12, thread, 60)):
            name = dice.choice([None, *adapters])
            heard[thread].append(send(batcher, Ask(prompt, 9, seed=number, adapter=name, sender=str(thread))))
            if dice.random() < 0.3:
                heard[thread][dice.randrange(number + 1)].ticket.cancel()

    heard: list[list[Heard]] = [[] for _ in range(4)]
    threads = [threading.Thread(target=ask, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reasons = Counter(one.done.reason for part in heard for one in part)
    assert reasons["length"] + reasons["cancelled"] == 48 and reasons["length"] > 20
    state = batcher.state()
    assert (state.running, state.waiting) == (0, 0) and len(state.adapters) <= 2


def test_who_came_last_makes_room_and_goes_on_later(opened: Open) -> None:
    """Keys and values for five rows of 64 tokens, or two of 128."""
    token = 2 * 2 * 2 * 8 * 4
    tight, ample = opened(slots_bytes=5 * 64 * token, prefix_bytes=0), opened(prefix_bytes=0)
    asks = [Ask(prompt, 150, seed=seed) for seed, prompt in enumerate(prompts(4, longest=30))]
    found = [[one.tokens for one in [send(batcher, ask) for ask in asks]] for batcher in (tight, ample)]
    assert found[0] == found[1]
    assert tight.state().given_up > 0 and ample.state().given_up == 0
    assert tight.context == 5 * 64 and ample.context == 512


def test_an_answer_ends_where_the_network_can_look_no_further(opened: Open) -> None:
    batcher = opened(context=20)
    heard = send(batcher, Ask(LONG[:15], 100))
    assert len(heard.said) == 5 and heard.done.reason == "length"
    with pytest.raises(ValueError, match="20 tokens; with an answer 20 are the most"):
        send(batcher, Ask(LONG[:20], 1))
    assert send(batcher, Ask(LONG[:20], 0, prompt_logprobs=True)).done.reason == "length"


def test_what_cannot_be_asked_is_refused_at_once(opened: Open) -> None:
    batcher = opened()
    for ask, said in (
        (Ask((97,), 1), "token 97"),
        (Ask((1,), 1, logit_bias={-1: 1.0}), "token -1"),
        (Ask((1,), 1, adapter="x"), "x"),
    ):
        with pytest.raises(ValueError, match=said):
            send(batcher, ask)
    for wrong in (
        {"prompt": ()},
        {"most": 0},
        {"temperature": -1},
        {"top_p": 0},
        {"alternatives": 21},
        {"seed": -1},
        {"presence_penalty": float("nan")},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Ask(**{"prompt": (1,), "most": 1, **wrong})  # type: ignore[arg-type]
    batcher.close()
    with pytest.raises(RuntimeError, match="closed"):
        send(batcher, Ask((1,), 1))


def test_closing_cancels_what_runs_and_waits(opened: Open) -> None:
    batcher = opened(rows=1)
    heard = [send(batcher, Ask(LONG, 300)) for _ in range(3)]
    assert heard[0].begun.wait(20)
    batcher.close()
    assert [one.done.reason for one in heard] == ["cancelled"] * 3


def test_a_network_that_says_something_else_by_slots_is_refused() -> None:
    from transformers import BloomConfig, BloomForCausalLM

    bloom = BloomForCausalLM(BloomConfig(vocab_size=97, hidden_size=32, n_layer=1, n_head=4)).requires_grad_(False)
    with pytest.raises(ValueError, match="row by row"):
        Batcher(Policy(bloom, 0, torch.device("cpu")))


def test_an_adapted_network_answers_by_itself(adapters: dict[str, Adapter], opened: Open) -> None:
    """Of an adapter that cannot be stacked, the model is loaded as it is."""
    policy = Policy(decoders.alone(adapters["a1"]), 0, torch.device("cpu"))
    assert send(opened(policy), Ask(LONG, 9, 0.0)).tokens == generated(decoders.alone(adapters["a1"]), LONG, 9)


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """The packaged model in the user's own home, which no test's home hides yet."""
    return locate(Model(name="smollm2-135m")).folder


@pytest.mark.packaged
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_smollm2_says_what_the_library_says(precision: str, smollm2: Path, opened: Open) -> None:
    loaded = load(smollm2, Model(name="smollm2-135m"), Head.TOKENS, (), None, 0)
    network: Any = loaded.network.requires_grad_(False).to(torch.bfloat16 if precision == "bf16" else torch.float32)
    texts = ["The capital of Japan is", "Once upon a time, there was", "1, 2, 3, 4,"]
    asked = [tuple(loaded.tokenizer(text)["input_ids"]) for text in texts]
    wanted = [generated(network, prompt, 12) for prompt in asked]
    batcher = opened(Policy(network, loaded.tokenizer.pad_token_id, torch.device("cpu"), precision))
    heard = [send(batcher, Ask(prompt, 12, 0.0)) for prompt in asked]
    if precision == "fp32":
        assert [one.tokens for one in heard] == wanted
    for one, tokens in zip(heard, wanted, strict=True):
        assert one.tokens[:3] == tokens[:3] and all(isinstance(said, Said) and said.logprob <= 0 for said in one.said)
