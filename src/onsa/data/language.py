"""Language: which one some texts are in, by script and stop words. Says nothing rather than guess."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from itertools import islice

LOOKED_AT = 20_000  # letters that decide
MOSTLY = 0.7  # of the letters are of one script
# One letter of these scripts says about as much as this many Latin ones.
DENSITY = {"han": 2.5, "kana": 2.5, "hangul": 2.5}
SCRIPTS = (  # ranges as escapes: some of these letters have look-alikes elsewhere in Unicode
    ("latin", r"A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff"),
    ("kana", r"\u3041-\u3096\u30a1-\u30fa\u30fc\uff66-\uff9d"),
    ("han", r"\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"),
    ("hangul", r"\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3"),
    ("cyrillic", r"\u0400-\u04ff"),
    ("arabic", r"\u0621-\u064a\u0671-\u06d3"),
)
CHINESE = frozenset("这這你您妳们們很嗎吗说說她沒没让讓")  # words that Japanese does not write with these letters
LETTER = re.compile("|".join(f"(?P<{name}>[{letters}])" for name, letters in SCRIPTS))
WORD = re.compile(r"[^\W\d_]+")
STOP_WORDS = {
    language: frozenset(words.split())
    for language, words in {
        "en": "the and of to a in is it that i you was for on with this my but not are have be as at they we he she"
        " so what how your from all an or if do can me would there were which very no",
        "de": "der die das und ist ich nicht ein eine es in zu den mit von auf für im dem auch sich wie war sie wir"
        " du aber sind mir mein hat haben bei oder noch nur einen kann wenn sehr wird kein",
        "fr": "le la les de des et est un une je que pas il elle pour dans ce qui en du sur au avec mais nous vous"
        " plus son sont ne se cette très mon ma ont été être fait ai comme ou où c'est aux",
        "es": "el la los las de y que en un una es no por con para se lo su al del como más pero me mi muy ha está"
        " este esta yo si qué sin son hay fue todo cuando porque también",
        "it": "il lo la i gli le di e che è un una non per con sono mi del della ma come si ho questo questa al nel"
        " più anche molto ci se da dei alla ha stato essere sul hanno perché",
        "pt": "o a os as de e que em um uma é não por com para se do da no na dos das mais mas foi eu muito meu"
        " minha está ao como ele ela isso você são tem também já pelo seu sua",
        "nl": "de het een en van is ik dat niet in op te zijn voor met die maar er ook aan was heb je we als nog"
        " bij naar om dit mijn deze wel hebben geen heeft wat kan door zeer",
    }.items()
}


def detect(texts: Iterable[str]) -> str | None:
    """The ISO 639-1 code of the language that most of these texts are in, or ``None`` where it cannot be told."""
    text = "\n".join(_head(texts))
    scripts = Counter(match.lastgroup or "" for match in LETTER.finditer(text))
    weight = {script: count * DENSITY.get(script, 1.0) for script, count in scripts.items()}
    weight["cjk"] = weight.pop("han", 0) + weight.pop("kana", 0)
    total = sum(weight.values())
    main = max(weight, key=weight.__getitem__)
    if total == 0 or weight[main] < MOSTLY * total:
        return None
    if main == "cjk":
        return _japanese_or_chinese(text, scripts["kana"], scripts["han"])
    if main == "hangul":
        return "ko"
    if main == "cyrillic":
        return _russian(text.lower(), scripts["cyrillic"])
    if main == "arabic":  # Persian and Urdu have letters that Arabic has not
        return "ar" if len(re.findall("[پچژگکیےں]", text)) < 0.01 * scripts["arabic"] else None
    return _latin(WORD.findall(text.casefold()))


def _head(texts: Iterable[str]) -> Iterable[str]:
    left = LOOKED_AT
    for text in texts:
        if left <= 0:
            return
        yield text[: min(left, 1000)]
        left -= min(len(text), 1000)


def _japanese_or_chinese(text: str, kana: int, han: int) -> str | None:
    if kana >= 0.05 * (kana + han):
        return "ja"
    # Without kana it is Chinese, or a list of Japanese names and nouns: letters that only one of them has decide.
    sides = Counter(_side(letter) for letter in islice((c for c in text if "\u4e00" <= c <= "\u9fff"), LOOKED_AT))
    if sides["ja"] == sides["zh"]:
        return None
    return "ja" if sides["ja"] > sides["zh"] else "zh"


@cache
def _side(letter: str) -> str:
    def known(*encodings: str) -> bool:
        for encoding in encodings:
            try:
                letter.encode(encoding)
            except UnicodeEncodeError:
                continue
            return True
        return False

    if letter in CHINESE:
        return "zh"
    japanese, chinese = known("shift_jis"), known("gb2312", "big5")
    return "both" if japanese == chinese else "ja" if japanese else "zh"


def _russian(text: str, letters: int) -> str | None:
    """Russian, unless letters of its neighbours occur, or a long text lacks the letters that only Russian has."""
    if len(re.findall("[іїєґўјљњћђџѓќѕ]", text)) > 0.005 * letters:
        return None
    return None if letters > 200 and not re.search("[ыэё]", text) else "ru"


def _latin(words: list[str]) -> str | None:
    hits = {language: sum(word in stop for word in words) for language, stop in STOP_WORDS.items()}
    (first, most), (_, next_most) = Counter(hits).most_common(2)
    sure = most >= 2 and most >= 0.15 * len(words) and most >= 1.3 * next_most
    return first if sure else None
