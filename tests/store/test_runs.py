"""The store: ids, references, states, races between processes, metrics, artifacts, lineage."""

import math
import multiprocessing
import os
import platform
import subprocess
import sys
import textwrap
from datetime import UTC, datetime
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from sqlalchemy import select, update

from onsa.spec.errors import StoreError
from onsa.store import schema
from onsa.store.database import Database
from onsa.store.run import Link, Metric, State
from onsa.store.runs import Store

IDENTITY = "0123456789abcdef" * 4
OTHER = "01ff" * 16


def test_a_new_run(store: Store, onsa_home: Path) -> None:
    recipe = {"model": {"name": "m"}, "seed": 7}
    run = store.create(IDENTITY, task="chat", model="m", data="d.csv", adaptation="lora", recipe=recipe)
    assert (run.id, run.identity, run.state, run.task) == ("01234567", IDENTITY, State.CREATED, "chat")
    assert run.folder == onsa_home / "runs/01234567"
    assert run.folder.is_dir()
    assert (run.recipe, run.summary, run.error, run.worker) == (recipe, {}, None, None)
    assert abs((datetime.now(UTC) - run.created).total_seconds()) < 60
    assert store.get(run.id) == run


def test_an_identity_run_anew_counts_up(store: Store) -> None:
    ids = [store.create(IDENTITY).id for _ in range(3)]
    assert ids == ["01234567", "01234567-2", "01234567-3"]
    newest = store.by_identity(IDENTITY)
    assert newest is not None
    assert newest.id == "01234567-3"
    assert store.by_identity(OTHER) is None


def test_find(store: Store, onsa_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="nothing has been tuned yet"):
        store.find("latest")
    first, again, other = (store.create(identity) for identity in (IDENTITY, IDENTITY, OTHER))
    assert store.find("01234567") == first  # exact, though it is also the beginning of another
    assert store.find("01234567-") == again
    assert store.find("01f") == other
    assert store.find("latest") == other
    assert store.find(str(first.folder)) == first
    monkeypatch.chdir(onsa_home)
    assert store.find("runs/01234567-2") == again
    monkeypatch.chdir(again.folder)
    assert store.find(".") == again
    with pytest.raises(StoreError, match=r"several runs.*01ff01ff, 01234567-2, 01234567"):
        store.find("01")
    with pytest.raises(StoreError, match=r"no run '0123457'\. Nearest: 01234567"):
        store.find("0123457")
    with pytest.raises(StoreError, match="Nearest: 01ff01ff"):
        store.find("zzzz")
    with pytest.raises(StoreError, match="no run '%'"):
        store.find("%")


def test_list_is_newest_first(store: Store) -> None:
    ids = [store.create(f"{number:064x}"[::-1]).id for number in range(4)]
    assert [run.id for run in store.list()] == ids[::-1]
    assert [run.id for run in store.list(limit=2)] == ids[:1:-1]


def test_states(store: Store) -> None:
    run = store.start(store.create(IDENTITY))
    assert run.state is State.RUNNING
    assert run.worker is not None
    assert (run.worker.pid, run.worker.host) == (os.getpid(), platform.node())
    assert store.start(run).state is State.RUNNING  # its own process may say so again
    failed = store.set_state(run, State.FAILED, error="loss is NaN")
    assert (failed.state, failed.error) == (State.FAILED, "loss is NaN")
    assert store.start(run).error is None
    assert store.set_state(run, "paused").state is State.PAUSED
    assert store.set_state(run, State.FINISHED).updated > run.updated
    with pytest.raises(StoreError, match="has finished"):
        store.start(run)
    for refused in (State.RUNNING, State.DIED):
        with pytest.raises(ValueError, match="by itself"):
            store.set_state(run, refused)
    assert store.set_summary(run, {"metric": "accuracy", "value": 0.9}).summary["value"] == 0.9


def _elsewhere(script: str) -> subprocess.Popen[str]:
    """Another process that has started the run 01234567, prints a line, and waits to be killed."""
    code = "from onsa.store.runs import Store\nimport time\nstore = Store()\n" + textwrap.dedent(script)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_run_whose_process_is_killed_has_died(store: Store) -> None:
    store.create(IDENTITY)
    process = _elsewhere("store.start('01234567'); print('ready', flush=True); time.sleep(60)")
    with process:
        assert store.get("01234567").state is State.RUNNING
        with pytest.raises(StoreError, match=f"running already, in process {process.pid} on {platform.node()}"):
            store.start("01234567")
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays a zombie
        assert store.get("01234567").state is State.DIED
    assert store.list()[0].state is State.DIED
    assert store.start("01234567").state is State.RUNNING


def test_a_pid_given_out_again_is_not_the_run(store: Store) -> None:
    store.start(store.create(IDENTITY))
    with Database() as database, database.writing() as connection:
        connection.execute(update(schema.runs).values(pid_started=schema.runs.c.pid_started - 100))
    assert store.get("01234567").state is State.DIED


def test_a_run_on_another_host_is_left_alone(store: Store) -> None:
    store.start(store.create(IDENTITY))
    with Database() as database, database.writing() as connection:
        connection.execute(update(schema.runs).values(host="elsewhere", pid=1))
    assert store.get("01234567").state is State.RUNNING
    with pytest.raises(StoreError, match="process 1 on elsewhere"):
        store.start("01234567")
    # A job's worker knows better: its fence leaves nobody else at the run, whatever the host is called now.
    assert store.start("01234567", fenced=True).state is State.RUNNING


def _race(barrier: Barrier, results: "multiprocessing.Queue[tuple[str, bool]]") -> None:
    with Store() as store:  # the first opening races too: nobody has made the tables
        barrier.wait(30)
        made = store.create(OTHER).id
        barrier.wait(30)
        try:
            store.start("01ff01ff")
            won = True
        except StoreError:
            won = False
        for step in range(20):
            store.add_metrics(made, step, {"loss": 1 / (step + 1)})
        results.put((made, won))
        barrier.wait(30)  # the winner lives until all have tried


def test_of_processes_that_race_exactly_one_wins() -> None:
    context = multiprocessing.get_context("spawn")
    count = 4
    barrier, results = context.Barrier(count), context.Queue()
    processes = [context.Process(target=_race, args=(barrier, results)) for _ in range(count)]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(30)
    assert sum(won for _, won in outcomes) == 1
    assert {made for made, _ in outcomes} == {"01ff01ff", "01ff01ff-2", "01ff01ff-3", "01ff01ff-4"}
    with Store() as store:
        assert all(len(store.metrics(made)) == 20 for made, _ in outcomes)
        assert store.get("01ff01ff").state is State.DIED


def test_metrics_are_replaced_where_a_resumed_run_repeats_a_step(store: Store) -> None:
    run = store.create(IDENTITY)
    store.add_metrics(run, 1, {"loss": 2.0, "lr": 0.1})
    store.add_metrics(run, 2, {"loss": math.inf})
    store.add_metrics(run, 1, {"loss": 1.5})
    assert store.metrics(run) == (Metric(1, "loss", 1.5), Metric(1, "lr", 0.1), Metric(2, "loss", math.inf))
    store.add_metrics(run, 3, {"loss": math.nan})
    assert math.isnan(store.metrics(run)[-1].value)
    store.add_metrics(run, 4, {})
    with pytest.raises(StoreError, match="no run 'nope'"):
        store.add_metrics("nope", 1, {"loss": 1.0})


def test_artifacts(store: Store, tmp_path: Path) -> None:
    run = store.create(IDENTITY)
    (run.folder / "model").mkdir()
    (run.folder / "model/config.json").write_bytes(b"{}")
    (run.folder / "model/weights").write_bytes(b"1234")
    (tmp_path / "report.html").write_bytes(b"old")
    model = store.add_artifact(run, "model", run.folder / "model")
    assert (model.path, model.bytes, len(model.sha256)) == ("model", 6, 64)
    store.add_artifact(run, "report", tmp_path / "report.html")
    (tmp_path / "report.html").write_bytes(b"abc")
    report = store.add_artifact(run, "report", tmp_path / "report.html")
    assert report.sha256.startswith("ba7816bf8f01cfea")
    assert store.artifacts(run) == (report, model)


def test_lineage_reaches_all_generations(store: Store) -> None:
    a, b, c, d = (store.create(f"{name}" * 64).id for name in "abcd")
    store.link(b, a, "tuned-from")
    store.link(c, b, "resumed")
    store.link(c, b, "resumed")
    store.link(d, a, "tuned-from")
    assert store.lineage(c) == (Link(c, b, "resumed"), Link(b, a, "tuned-from"))
    assert set(store.lineage(a)) == {Link(b, a, "tuned-from"), Link(d, a, "tuned-from"), Link(c, b, "resumed")}
    with pytest.raises(StoreError, match="no run 'nope'"):
        store.link(a, "nope", "resumed")
    assert len(store.lineage(a)) == 3


def test_a_moved_home_keeps_its_runs(
    store: Store, onsa_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create(IDENTITY)
    store.close()
    onsa_home.rename(tmp_path / "moved")
    monkeypatch.setenv("ONSA_HOME", str(tmp_path / "moved"))
    with Store() as moved:
        run = moved.find(str(tmp_path / "moved/runs/01234567"))
    assert run.folder.is_dir()


def test_another_database(tmp_path: Path, onsa_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONSA_DB", f"sqlite:///{tmp_path / 'other.db'}")
    with Store() as store:
        store.create(IDENTITY)
    assert (tmp_path / "other.db").exists()
    assert not (onsa_home / "onsa.db").exists()


@pytest.mark.parametrize(
    "url",
    ["nonsense", "mysql+nodriver://user:secret@host/db", "oracle://user:secret@host/db", "sqlite:////not/there/x.db"],
)
def test_a_database_that_cannot_be_opened(url: str) -> None:
    with pytest.raises(StoreError, match="Check ONSA_DB") as raised:
        Store(url)
    assert "secret" not in str(raised.value)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"not a database, but long enough to be read as the head of one" * 9)
    with pytest.raises(StoreError, match="not a database"):
        Store(f"sqlite:///{tmp_path / 'x.db'}")


def test_a_newer_database_is_refused(store: Store) -> None:
    store.close()
    with Database() as database, database.writing() as connection:
        connection.execute(update(schema.schema).values(version=99))
    with pytest.raises(StoreError, match="newer Onsa"):
        Store()


@pytest.mark.skipif("ONSA_TEST_DB" in os.environ, reason="of SQLite")
def test_sqlite_is_set_for_several_processes(store: Store) -> None:
    with Database() as database, database.reading() as connection:
        for pragma, value in {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 30000}.items():
            assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar() == value


@pytest.mark.skipif("ONSA_TEST_DB" not in os.environ, reason="of PostgreSQL")
def test_who_stands_still_while_writing_does_not_keep_others_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onsa.store.database.BUSY_S", 0.3)
    with Database() as stopped, Database() as other, pytest.raises(StoreError), stopped.writing() as connection:
        connection.execute(update(schema.schema).values(version=99))
        with other.writing() as second:
            assert second.scalar(select(schema.schema.c.version)) != 99
        connection.execute(select(schema.schema))


def test_the_store_starts_without_heavy_imports() -> None:
    heavy = {"torch", "numpy", "transformers", "pydantic", "psutil"}
    code = f"import sys, onsa.store.runs; print(sorted({heavy} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
