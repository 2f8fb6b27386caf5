"""Languages: told where they can be told, and left open where not."""

from __future__ import annotations

import pytest

from onsa.data.language import detect


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("This is a very good movie and I liked it", "en"),
        ("I love this product", "en"),
        ("Das ist ein sehr guter Film und ich mag ihn", "de"),
        ("C'est un très bon film et je l'aime", "fr"),
        ("Es una película muy buena y me gusta", "es"),
        ("È un film molto bello e mi piace", "it"),
        ("É um filme muito bom e eu gosto", "pt"),
        ("Het is een heel goede film en ik vind hem leuk", "nl"),
        ("とても良い映画でした。iPhone で見た", "ja"),
        ("東京都渋谷区 広島県 売上", "ja"),
        ("东京发生了什么", "zh"),
        ("這部電影非常好看", "zh"),
        ("정말 좋은 영화", "ko"),
        ("Это хороший фильм", "ru"),
        ("هذا فيلم جيد جدا", "ar"),
    ],
)
def test_told(text: str, language: str) -> None:
    assert detect([text]) == language
    assert detect([text] * 100) == language


@pytest.mark.parametrize(
    "text",
    [
        "",
        "123 :-)",
        "hello",
        "東京",
        "Це дуже гарний фільм і мені сподобалось",
        "این فیلم خیلی خوب است پدر",
        "Det är en mycket bra film och jag gillar den",
        "To jest bardzo dobry film i podoba mi się",
        "とても良い映画でした This is a very good movie and I liked it a lot",
        "Много хубав филм, препоръчвам го на всички, които обичат доброто кино. " * 4,
    ],
)
def test_left_open(text: str) -> None:
    assert detect([text]) is None


def test_long_texts_do_not_drown_the_others() -> None:
    assert detect(["x" * 1_000_000, *["This is what the others say and it is English"] * 1000]) in ("en", None)
    assert detect([]) is None
