"""Files: the bytes that came, for their project alone, until they expire; and uploads in parts."""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from onsa.spec.errors import ConflictError, DataError, MissingError, StoreError
from onsa.store.blobs import Blobs
from onsa.store.database import Database
from onsa.store.files import EXPIRED, Files, Uploads
from onsa.store.keys import Keys
from onsa.store.records import Page

CONTENT = bytes(range(256)) * 9000  # more than one chunk


@pytest.fixture
def database() -> Iterator[Database]:
    with Database() as opened:
        yield opened


@pytest.fixture
def mine(database: Database) -> str:
    return Keys(database).project("mine")


def test_a_file_comes_back_byte_for_byte(database: Database, mine: str) -> None:
    files = Files(database)
    made = files.create(mine, "../../etc/passwd", "fine-tune", [CONTENT[:7], CONTENT[7:]])
    assert b"".join(files.content(made)) == CONTENT
    assert (made.bytes, made.filename) == (len(CONTENT), "../../etc/passwd")


def test_a_name_never_reaches_the_disk(database: Database, mine: str, onsa_home: Path, tmp_path: Path) -> None:
    files = Files(database)
    made = files.create(mine, "../../outside.jsonl", "fine-tune", [b"x"])
    assert files.fetch(made, tmp_path).parent == tmp_path
    assert [path.name for path in (onsa_home / "files").iterdir()] == [made.id]


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "/etc/passwd"])
def test_blobs_take_no_paths(name: str) -> None:
    with pytest.raises(StoreError):
        Blobs().write(name, [b"x"])
    with pytest.raises(StoreError):
        list(Blobs().read(name))


def test_another_project_sees_nothing(database: Database, mine: str) -> None:
    files, other = Files(database), Keys(database).project("other")
    made = files.create(mine, "a.jsonl", "fine-tune", [b"x"])
    for call in (files.get, files.remove):
        with pytest.raises(MissingError) as hidden:
            call(other, made.id)
        with pytest.raises(MissingError) as absent:
            call(other, "file-none")
        assert str(hidden.value).replace(made.id, "file-none") == str(absent.value)
    assert files.page(other, Page()) == ([], False)
    with pytest.raises(MissingError):
        files.page(other, Page(after=made.id))


def test_pages_follow_each_other(database: Database, mine: str) -> None:
    files = Files(database)
    made = [files.create(mine, f"{number}.jsonl", "fine-tune", [b"x"]).id for number in range(5)]
    first, more = files.page(mine, Page(limit=2))
    assert ([file.id for file in first], more) == (made[:2:-1], True)
    rest, more = files.page(mine, Page(after=first[-1].id, limit=3))
    assert ([file.id for file in rest], more) == (made[2::-1], False)
    assert [file.id for file in files.page(mine, Page(order="asc"))[0]] == made
    assert files.page(mine, Page(), "batch") == ([], False)


def test_what_has_expired_is_gone(database: Database, mine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Files(database)
    made, stays = (files.create(mine, "a", "batch", [b"x"], lasts_s) for lasts_s in (3600, None))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3601)
    with pytest.raises(MissingError):
        files.get(mine, made.id)
    assert [file.id for file in files.page(mine, Page())[0]] == [stays.id]
    assert files.sweep() == 1
    assert [path.name for path in Path(files.blobs._root).iterdir()] == [stays.id]


def test_a_write_that_fails_leaves_nothing(database: Database, mine: str) -> None:
    files = Files(database)

    def broken() -> Iterator[bytes]:
        yield b"x"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        files.create(mine, "a", "fine-tune", broken())
    assert files.page(mine, Page()) == ([], False)
    assert not list(Path(files.blobs._root).iterdir())


def test_parts_become_a_file(database: Database, mine: str) -> None:
    files = Files(database)
    uploads = Uploads(database, files)
    upload = uploads.create(mine, "big.jsonl", "fine-tune", len(CONTENT), "text/jsonl", None)
    second, first = (uploads.add_part(mine, upload.id, [part]).id for part in (CONTENT[99:], CONTENT[:99]))
    with pytest.raises(DataError, match="bytes together"):
        uploads.complete(mine, upload.id, [first], None)
    with pytest.raises(DataError, match="MD5"):
        uploads.complete(mine, upload.id, [first, second], "0" * 32)
    done = uploads.complete(mine, upload.id, [first, second], hashlib.md5(CONTENT).hexdigest())
    assert b"".join(files.content(files.get(mine, done.file or ""))) == CONTENT
    assert [path.name for path in Path(files.blobs._root).iterdir()] == [done.file]
    with pytest.raises(ConflictError):
        uploads.add_part(mine, upload.id, [b"x"])


def test_an_upload_ends_by_itself(database: Database, mine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads = Uploads(database, Files(database))
    upload = uploads.create(mine, "a", "fine-tune", 1, "text/jsonl", None)
    uploads.add_part(mine, upload.id, [b"x"])
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3601)
    uploads.sweep()
    assert uploads.get(mine, upload.id).status == EXPIRED
    with pytest.raises(ConflictError):
        uploads.cancel(mine, upload.id)


def test_a_part_of_another_upload_is_none(database: Database, mine: str) -> None:
    uploads = Uploads(database, Files(database))
    one, other = (uploads.create(mine, "a", "fine-tune", 1, "text/jsonl", None) for _ in range(2))
    part = uploads.add_part(mine, other.id, [b"x"])
    with pytest.raises(MissingError):
        uploads.complete(mine, one.id, [part.id], None)


def test_another_place_by_url(database: Database, mine: str) -> None:
    files = Files(database, Blobs("memory://bucket/onsa"))
    made = files.create(mine, "a", "fine-tune", [CONTENT])
    assert b"".join(files.content(made)) == CONTENT
    files.remove(mine, made.id)
    with pytest.raises(MissingError):
        files.get(mine, made.id)
