"""Bytes to text: which encoding a file is in, and where it breaks.

The order is: what the user says, a byte order mark, UTF-8, Japanese (cp932, EUC-JP, ISO-2022-JP), Korean, and then what
charset-normalizer finds. Every decoding is strict: a byte that does not fit is an error with its offset, never a ``�``.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TextIO

from onsa.data.language import detect
from onsa.spec.errors import DataError

# UTF-32 before UTF-16: its little-endian mark begins with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
OTHERS = ("gb18030", "big5", "cp1251", "koi8_r", "cp1250", "cp1252", "cp1253", "cp1254", "cp1255", "cp1256")
ESCAPE_JIS = re.compile(rb"\x1b(?:\$[@B]|\([BJI])")
# Half-width katakana that stand together; single ones between Latin letters are accents of another encoding.
HALF_WIDTH = re.compile(r"(?<![A-Za-z])[\uff66-\uff9f]{2,}(?![A-Za-z])")
SAMPLE = 65_536  # bytes or characters that are enough to judge by
PART, TELLING = 2**20, 2**24  # bytes that are decoded at once; of a file by which its encoding is told


@dataclass(frozen=True)
class Text:
    """A file of which every byte is text in its encoding.

    blank: it holds nothing but spaces; ``sha256`` is that of its bytes.
    """

    path: Path
    encoding: str
    sha256: str
    blank: bool

    def opened(self, newline: str = "") -> TextIO:
        """The text without its byte order mark; line ends stay as they are."""
        return self.path.open(encoding=self.encoding, newline=newline)


def decode(path: Path, file: str, given: str | None = None) -> Text:
    """What a file's bytes are as text; it is read through once, a part at a time.

    Raises:
        DataError: ``encoding-unknown``, ``byte-undecodable`` (with its offset and line), ``encoding-unsure``,
            ``file-binary`` (a zero byte, where nothing is ``given``).
    """
    name = _named(given, path, file) if given else detect_encoding(_telling(path)) or ""
    if given is None and not name.startswith(("utf-16", "utf-32")):
        _refuse_binary(path, file)
    if not name:
        raise DataError.of("encoding-unsure", file=file)
    digest, blank, offset, lines, pending = hashlib.sha256(), True, 0, 0, b""
    try:
        io.TextIOWrapper(io.BytesIO(), name)  # refuses a codec from bytes to bytes
        decoder = codecs.getincrementaldecoder(name)()
        for part in _parts(path, PART):
            digest.update(part)
            blank &= not decoder.decode(part, final=not part).strip()
            pending = decoder.getstate()[0]
            offset += len(part)
            lines += part.count(b"\n")
    except UnicodeDecodeError as error:
        around, at = error.object, error.start
        line = lines - pending.count(b"\n") + around.count(b"\n", 0, at) + 1
        byte = f"0x{around[at]:02X}" if at < len(around) else "-"
        at += offset - len(pending)
        raise DataError.of(
            "byte-undecodable", file=file, line=line, byte=byte, offset=at, encoding=error.encoding
        ) from None
    except (LookupError, UnicodeError) as error:
        raise DataError.of("encoding-refused", file=file, value=name, reason=str(error)) from None
    return Text(path, name, digest.hexdigest(), blank)


def _named(given: str, path: Path, file: str) -> str:
    try:
        name = codecs.lookup(given).name
    except LookupError:
        raise DataError.of("encoding-unknown", file=file, value=given) from None
    marked = name == "utf-8" and next(_parts(path, PART)).startswith(codecs.BOM_UTF8)
    return "utf-8-sig" if marked else name


def _refuse_binary(path: Path, file: str) -> None:
    for number, part in enumerate(_parts(path, PART)):
        if b"\0" in part:
            raise DataError.of("file-binary", file=file, offset=number * PART + part.index(b"\0"))


def _parts(path: Path, size: int) -> Iterator[bytes]:
    """A file in parts of so many bytes, and an empty one at its end."""
    with path.open("rb") as source:
        part = source.read(size)
        while part:
            yield part
            part = source.read(size)
    yield b""


def _telling(path: Path) -> bytes:
    """What an encoding is told by: a file as a whole or, of a large one, some lines that are not all ASCII."""
    first = b""
    for part in _parts(path, TELLING):
        lines = part[part.find(b"\n") + 1 :] if first else part
        if len(part) == TELLING:
            lines = lines[: lines.rfind(b"\n") + 1] or lines
        if not lines.isascii():
            return lines
        first = first or lines
    return first


def detect_encoding(data: bytes) -> str | None:
    """The encoding these bytes are most likely in, or ``None``; UTF-8 also for UTF-8 with a few broken bytes."""
    for mark, name in MARKS:
        if data.startswith(mark):
            return name
    if b"\0" in data[:SAMPLE]:
        return _wide(data[:SAMPLE])
    if ESCAPE_JIS.search(data) and _fits(data, "iso2022_jp"):
        return "iso2022_jp"
    if _fits(data, "utf-8") or _mostly_utf8(data):
        return "utf-8"
    return _japanese(data) or _korean(data) or _other(data)


def _fits(data: bytes, name: str) -> bool:
    try:
        data.decode(name)
    except UnicodeDecodeError:
        return False
    return True


def _wide(data: bytes) -> str | None:
    """UTF-16 without a mark: its line feeds and commas have their zero bytes all at odd, or all at even places."""
    even, odd = data[0::2].count(0), data[1::2].count(0)
    for name, zeros, others in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
        if zeros and not others and _fits(data[: len(data) // 2 * 2], name):
            return name
    return None


def _mostly_utf8(data: bytes) -> bool:
    """Whether this is UTF-8 with faults, not another encoding: four good sequences or more for each broken byte."""
    text = data[:SAMPLE].decode("utf-8", errors="replace")
    bad = text.count("\ufffd")
    good = sum(ord(letter) > 0x7F for letter in text) - bad
    return good >= 4 * bad > 0


def _japanese(data: bytes) -> str | None:
    """cp932 or EUC-JP where that gives Japanese, judged by the kind of its letters.

    Read in the wrong one, Japanese turns into half-width katakana and rare kanji. In EUC-JP, Korean and Chinese text
    reads as common kanji without any kana, so there a text of some length must have kana.
    """
    best: tuple[float, str] = (0.6, "")
    for name in ("cp932", "euc_jis_2004"):
        if not _fits(data, name):
            continue
        text = data.decode(name)[:SAMPLE]
        letters = [letter for letter in text if ord(letter) > 0x7F]
        kana = sum("\u3040" <= letter <= "\u30ff" for letter in letters)
        if name != "cp932" and len(letters) > 12 and kana < 0.05 * len(letters):
            continue
        halves = sum(map(len, HALF_WIDTH.findall(text)))
        score = (sum(map(_weight, letters)) + 0.7 * halves) / max(1, len(letters))
        best = max(best, (score, name))
    return best[1] or None


@cache
def _weight(letter: str) -> float:
    """How much a letter speaks for Japanese that was read in the right encoding, from 0 to 1."""
    if "\u3000" <= letter <= "\u30ff" or "\uff01" <= letter <= "\uff5e":
        return 1.0
    if "\u4e00" <= letter <= "\u9fff":
        try:
            row = letter.encode("euc_jp")[0]
        except UnicodeEncodeError:
            return 0.1
        return 0.9 if row <= 0xCF else 0.3  # JIS level 1 ends at row 0xCF
    if letter in "―…‥※○●◎△▲▽▼□■◇◆★☆→←↑↓×÷±°′″℃№℡㈱㈲㎝㎏㎡" or "\u2460" <= letter <= "\u2473":
        return 0.7
    return 0.0


def _korean(data: bytes) -> str | None:
    if not _fits(data, "cp949"):
        return None
    letters = [letter for letter in data.decode("cp949")[:SAMPLE] if ord(letter) > 0x7F]
    hangul = sum("\uac00" <= letter <= "\ud7a3" for letter in letters)
    return "cp949" if hangul >= 0.8 * len(letters) else None


def _other(data: bytes) -> str | None:
    from charset_normalizer import from_bytes

    best = from_bytes(data[: SAMPLE * 4], cp_isolation=list(OTHERS)).best()
    found = str(best.encoding) if best is not None and _fits(data, best.encoding) else None
    # The Western and the Central European sets differ in few letters; a text in a Western language settles it.
    western = found in (None, "cp1250", "cp1252", "cp1254") and _fits(data, "cp1252")
    if western and (found is None or detect([data.decode("cp1252")]) in ("de", "en", "es", "fr", "it", "nl", "pt")):
        return "cp1252"
    return found
