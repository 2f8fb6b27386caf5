"""The commands beside the service: keys, aliases, webhooks and the queue."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest
from typer.testing import CliRunner

from onsa.app.cli import app
from onsa.spec.errors import DataError, MissingError
from onsa.store.database import Database
from onsa.store.job import Order
from onsa.store.jobs import Jobs
from onsa.store.key import Scope
from onsa.store.keys import Keys


def said(*arguments: str) -> Any:
    ran = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert ran.exit_code == 0
    return json.loads(ran.stdout)


def test_keys_are_made_listed_and_revoked() -> None:
    made = said("keys", "create", "laptop", "--project", "blue", "--scope", "infer")
    with Database() as database:
        found = Keys(database).find(made["secret"])
    assert found is not None and found.scopes == {Scope.INFER}
    (listed,) = said("keys", "list")
    assert (listed["project"], listed["name"], listed["revoked"]) == ("blue", "laptop", None)
    assert made["secret"].endswith(listed["last_letters"]) and made["secret"] not in json.dumps(listed)
    said("keys", "revoke", made["id"])
    with Database() as database:
        assert Keys(database).find(made["secret"]) is None
    with pytest.raises(MissingError):
        CliRunner().invoke(app, ["keys", "revoke", made["id"]], catch_exceptions=False)


def test_aliases_lead_to_models_by_weight() -> None:
    assert said("aliases", "set", "gpt-4o-mini", "a=3", "b")["targets"] == {"a": 3.0, "b": 1.0}
    assert said("aliases", "list")[0]["name"] == "gpt-4o-mini"
    with pytest.raises(DataError):
        CliRunner().invoke(app, ["aliases", "set", "x", "a=many"], catch_exceptions=False)
    said("aliases", "remove", "gpt-4o-mini")
    assert said("aliases", "list") == []


def test_webhooks_are_added_and_removed() -> None:
    made = said("webhooks", "add", "https://example.org/hook")
    assert made["secret"].startswith("whsec_")
    assert said("webhooks", "list") == [{"id": made["id"], "project": "default", "url": "https://example.org/hook"}]
    said("webhooks", "remove", made["id"])
    assert said("webhooks", "list") == []


@pytest.mark.parametrize("command", [["jobs"], ["keys", "list"], ["aliases", "list"], ["webhooks", "list"]])
def test_tables_are_for_people(command: list[str]) -> None:
    with Database() as database:
        project = Keys(database).project()
        Jobs(database).create(project, Order("smollm2-135m", "file-x", {"type": "supervised"}, 7))
    ran = CliRunner().invoke(app, command, catch_exceptions=False)
    assert ran.exit_code == 0 and ran.stdout.strip()
    assert command != ["jobs"] or ("validating" in ran.stdout and "supervised" in ran.stdout)


def test_an_address_that_is_taken_is_said_to_be() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ran = subprocess.run(
            [sys.executable, "-c", "from onsa.app.cli import main; main()", "serve", "--port", port],
            capture_output=True,
            text=True,
            check=False,
        )
    assert ran.returncode == 2 and f"127.0.0.1:{port}" in ran.stderr and "--port" in ran.stderr


def test_help_still_answers_at_once() -> None:
    code = "import sys; import onsa.app.cli; print([n for n in ('sqlalchemy', 'fastapi', 'torch') if n in sys.modules])"
    began = time.monotonic()
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]", time.monotonic() - began
