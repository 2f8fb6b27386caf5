"""Tiny random models with real tokenizers, made in a second: a BERT for row heads, a Llama with a chat template."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TOPICS = {
    "weather": ["rain", "sun", "wind", "snow", "cloud", "storm"],
    "food": ["bread", "soup", "rice", "apple", "cheese", "salt"],
    "music": ["piano", "song", "drum", "violin", "chord", "choir"],
}
FRAMES = [
    "tell me about the {}",
    "what is {} like",
    "i like {} today",
    "do you know any {}",
    "is there {} here",
    "{} please",
]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def questions() -> list[tuple[str, str]]:
    """108 distinct questions with their topic."""
    return [(frame.format(word), topic) for topic, words in TOPICS.items() for word in words for frame in FRAMES]


def write_csv(path: Path) -> Path:
    """Questions and topics as a CSV file."""
    lines = ["text,label", *(f"{text},{topic}" for text, topic in questions())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_chat(path: Path) -> Path:
    """Questions answered with their topic, as OpenAI chat JSONL."""
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": f"that is about {topic}"}]}
        for text, topic in questions()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_pairs(path: Path) -> Path:
    """Questions with the answer that names their topic, and a worse one that names another."""
    others = dict(zip(TOPICS, [*list(TOPICS)[1:], next(iter(TOPICS))], strict=True))
    rows = [
        {"prompt": text, "chosen": f"that is about {topic}", "rejected": f"about {others[topic]}"}
        for text, topic in questions()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_bert(folder: Path) -> Path:
    """A BERT of 2 layers, 32 wide, 64 positions."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    known = sorted({word for text, _ in questions() for word in text.split()} - set(letters))
    # A vocabulary by hand: WordPiece's trainer gives another one each time.
    vocabulary = [*special, *known, *letters, *(f"##{letter}" for letter in letters)]
    words = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer()
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_llama(folder: Path) -> Path:
    """A Llama of 2 layers, 32 wide, 256 positions, with a chat template."""
    bytes_ = Tokenizer(models.BPE())
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = ByteLevelDecoder()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = [text for text, _ in questions()] + ["user assistant system that is about"]
    bytes_.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
