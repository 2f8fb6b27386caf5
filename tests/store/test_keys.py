"""Keys: told once, kept as a digest, good until revoked, each for its own project and scopes."""

from pathlib import Path

import pytest

from onsa.spec.errors import ConflictError, MissingError
from onsa.store.database import Database
from onsa.store.key import Scope
from onsa.store.keys import Keys

TRAIN = frozenset({Scope.TRAIN})


def test_a_key_is_found_by_its_secret_alone() -> None:
    with Database() as database:
        keys = Keys(database)
        made, secret = keys.create(keys.project(), "laptop", TRAIN)
        assert keys.find(secret) == made
        assert keys.find(secret[:-1]) is None and keys.find(made.id) is None
        assert secret.endswith(made.shown) and len(secret) > 50


def test_the_secret_is_nowhere_on_the_disk(onsa_home: Path) -> None:
    with Database() as database:
        keys = Keys(database)
        _, secret = keys.create(keys.project(), "laptop", TRAIN)
    assert not any(secret.encode() in path.read_bytes() for path in onsa_home.rglob("*") if path.is_file())


def test_a_revoked_key_is_no_key() -> None:
    with Database() as database:
        keys = Keys(database)
        made, secret = keys.create(keys.project(), "laptop", TRAIN)
        keys.revoke(made.shown)
        assert keys.find(secret) is None
        with pytest.raises(MissingError):
            keys.revoke(made.id)
        assert [key.revoked is not None for key in keys.list()] == [True]


def test_scopes_allow_what_they_say_and_admin_all() -> None:
    with Database() as database:
        keys = Keys(database)
        trains, _ = keys.create(keys.project(), "trains", TRAIN)
        rules, _ = keys.create(keys.project(), "rules", frozenset({Scope.ADMIN}))
    assert trains.allows(Scope.TRAIN) and not trains.allows(Scope.INFER) and not trains.allows(Scope.ADMIN)
    assert all(rules.allows(scope) for scope in Scope)


def test_a_project_has_one_id_and_secrets_are_not_shared() -> None:
    with Database() as database:
        keys = Keys(database)
        assert keys.project("a") == keys.project("a") != keys.project("b")
        keys.create(keys.project("a"), "one", TRAIN, secret="mine")
        with pytest.raises(ConflictError):
            keys.create(keys.project("b"), "other", TRAIN, secret="mine")
