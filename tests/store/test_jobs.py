"""Jobs: legal steps alone, one worker at a time, fenced, fair, and never lost."""

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from onsa.spec.errors import ConflictError, MissingError, StoreError
from onsa.store.database import Database
from onsa.store.job import Job, JobEvent, Lease, Order, Status, Wish, model_name
from onsa.store.jobs import CHECKPOINTS, MOST_ATTEMPTS, Jobs
from onsa.store.keys import Keys
from onsa.store.models import Models
from onsa.store.process import this_process
from onsa.store.records import Page

ORDER = Order("smollm2-135m", "file-x", {"type": "supervised"}, 7, metadata={"team": "blue"})


@pytest.fixture
def database() -> Iterator[Database]:
    with Database() as opened:
        yield opened


@pytest.fixture
def jobs(database: Database) -> Jobs:
    return Jobs(database)


@pytest.fixture
def mine(database: Database) -> str:
    return Keys(database).project("mine")


def queued(jobs: Jobs, project: str) -> Job:
    job = jobs.create(project, ORDER)
    lease = jobs.take(job, Status.VALIDATING)
    assert lease is not None
    jobs.end(lease, Status.QUEUED)
    return jobs.get(project, job.id)


def running(jobs: Jobs, project: str) -> tuple[Job, Lease]:
    job = queued(jobs, project)
    lease = jobs.take(job, Status.RUNNING)
    assert lease is not None
    return jobs.get(project, job.id), lease


def test_a_job_from_order_to_end(jobs: Jobs, database: Database, mine: str) -> None:
    job, lease = running(jobs, mine)
    assert (job.status, job.order, job.attempts) == (Status.RUNNING, ORDER, 1)
    jobs.tell(lease, JobEvent("step", type="metrics", data={"step": 1}), run="r")
    given = {
        "fine_tuned_model": model_name(job),
        "folder": "somewhere",
        "result_files": ["file-a"],
        "trained_tokens": 5,
    }
    jobs.end(lease, Status.SUCCEEDED, JobEvent("done"), **given)
    ended = jobs.get(mine, job.id)
    assert (ended.status, ended.model, ended.result_files, ended.trained_tokens) == (
        Status.SUCCEEDED,
        model_name(job),
        ["file-a"],
        5,
    )
    assert ended.finished is not None and ended.lease_until is None
    events, more = jobs.events(mine, job.id, Page(limit=2))
    assert ([event.message for event in events], more) == (["done", "step"], True)
    assert Models(database).get(mine, model_name(job)).folder == "somewhere"


def test_a_woken_worker_changes_nothing(jobs: Jobs, mine: str) -> None:
    job, stale = running(jobs, mine)
    jobs.give_up(job)
    fresh = jobs.take(jobs.get(mine, job.id), Status.RUNNING)
    assert fresh is not None
    before = (jobs.get(mine, job.id), jobs.events(mine, job.id, Page()))
    for write in (
        lambda: jobs.tell(stale, JobEvent("late")),
        lambda: jobs.beat(stale, this_process()),
        lambda: jobs.checkpoint(stale, 4, "late", {}, "folder"),
        lambda: jobs.end(stale, Status.SUCCEEDED, JobEvent("late"), fine_tuned_model="late", folder="x"),
    ):
        with pytest.raises(StoreError, match="no longer"):
            write()
    assert (jobs.get(mine, job.id), jobs.events(mine, job.id, Page())) == before
    jobs.end(fresh, Status.SUCCEEDED)


def test_what_was_let_go_of_is_not_held_again(jobs: Jobs, mine: str) -> None:
    job, lease = running(jobs, mine)
    jobs.end(lease, Status.PAUSED)
    with pytest.raises(StoreError, match="no longer"):
        jobs.beat(lease, this_process())
    assert jobs.get(mine, job.id).lease_until is None
    assert jobs.resume(mine, job.id).status is Status.QUEUED


def test_one_of_many_takes_a_job(jobs: Jobs, mine: str) -> None:
    job = queued(jobs, mine)
    with ThreadPoolExecutor(8) as pool:
        leases = list(pool.map(lambda _: jobs.take(job, Status.RUNNING), range(16)))
    assert sum(lease is not None for lease in leases) == 1


def test_a_job_whose_workers_die_is_given_up_unless_it_comes_further(jobs: Jobs, mine: str) -> None:
    job, lease = running(jobs, mine)
    for attempt in range(MOST_ATTEMPTS):
        assert job.attempts == attempt + 1
        jobs.give_up(job)
        job = jobs.get(mine, job.id)
        if job.status is Status.FAILED:
            break
        lease = jobs.take(job, Status.RUNNING)
        assert lease is not None
        job = jobs.get(mine, job.id)
    assert job.status is Status.FAILED and job.error is not None and job.error["code"] == "server_error"

    job, lease = running(jobs, mine)
    for step in range(2 * MOST_ATTEMPTS):
        jobs.checkpoint(lease, step, f"m{step}", {}, "folder")
        jobs.give_up(jobs.get(mine, job.id))
        again = jobs.take(jobs.get(mine, job.id), Status.RUNNING)
        assert again is not None
        lease = again


def test_turns_are_fair_between_projects(jobs: Jobs, database: Database, mine: str) -> None:
    other = Keys(database).project("other")
    for _ in range(5):
        queued(jobs, mine)
    queued(jobs, other)
    taken = []
    for _ in range(3):
        job = jobs.next(Status.QUEUED)
        assert job is not None and jobs.take(job, Status.RUNNING) is not None
        taken.append(job.project)
        time.sleep(0.01)
    assert taken == [mine, other, mine]


def test_what_a_user_wants_reaches_the_worker(jobs: Jobs, mine: str) -> None:
    job, lease = running(jobs, mine)
    assert jobs.beat(lease, this_process()) is None
    jobs.pause(mine, job.id)
    assert jobs.beat(lease, this_process()) is Wish.PAUSE
    jobs.resume(mine, job.id)
    assert jobs.beat(lease, this_process()) is None
    jobs.cancel(mine, job.id)
    assert jobs.beat(lease, this_process()) is Wish.CANCEL
    with pytest.raises(ConflictError):
        jobs.pause(mine, job.id)
    jobs.give_up(jobs.get(mine, job.id))  # its worker dies before it hears of it
    assert jobs.get(mine, job.id).status is Status.CANCELLED


@pytest.mark.parametrize(
    ("wish", "status"), [("cancel", Status.CANCELLED), ("pause", Status.PAUSED), (None, Status.QUEUED)]
)
@pytest.mark.parametrize("begun", [False, True])
def test_what_a_user_wants_until_the_last_moment_is_done(
    jobs: Jobs, mine: str, wish: str | None, status: Status, begun: bool
) -> None:
    job = queued(jobs, mine) if begun else jobs.create(mine, ORDER)
    lease = jobs.take(job, Status.RUNNING if begun else Status.VALIDATING)
    assert lease is not None
    if wish is not None:
        getattr(jobs, wish)(mine, job.id)
    jobs.end(lease, Status.QUEUED, JobEvent("put down"))
    found = jobs.get(mine, job.id)
    assert (found.status, found.wanted, found.finished is None) == (status, None, wish != "cancel")
    (event,), _ = jobs.events(mine, job.id, Page(limit=1))
    assert (event.message == "put down") is (wish is None)


def test_a_checkpoint_is_told_from_what_a_job_came_to(jobs: Jobs, database: Database, mine: str) -> None:
    job, lease = running(jobs, mine)
    jobs.checkpoint(lease, 1, "on the way", {}, f"runs/{job.id}/served/step-0000001")
    jobs.end(lease, Status.SUCCEEDED, fine_tuned_model="done", folder=f"runs/{job.id}")
    assert [Models(database).get(mine, name).whole for name in ("on the way", "done")] == [False, True]


def test_at_rest_at_once_where_nobody_works_on_it(jobs: Jobs, mine: str) -> None:
    job = jobs.create(mine, ORDER)
    assert jobs.pause(mine, job.id).status is Status.PAUSED
    assert jobs.next(Status.VALIDATING) is None
    assert jobs.resume(mine, job.id).status is Status.VALIDATING
    assert jobs.cancel(mine, job.id).status is Status.CANCELLED
    for call in (jobs.cancel, jobs.pause, jobs.resume):
        with pytest.raises(ConflictError):
            call(mine, job.id)


LEGAL = {
    Status.VALIDATING: {Status.QUEUED, Status.PAUSED, Status.CANCELLED, Status.FAILED},
    Status.QUEUED: {Status.RUNNING, Status.PAUSED, Status.CANCELLED},
    Status.RUNNING: {Status.QUEUED, Status.PAUSED, Status.CANCELLED, Status.FAILED, Status.SUCCEEDED},
    Status.PAUSED: {Status.QUEUED, Status.VALIDATING, Status.CANCELLED},
}


def test_races_make_legal_steps_alone(jobs: Jobs, mine: str) -> None:
    """Users pause, resume and cancel while a worker takes, beats and ends: whatever the order, steps are legal."""
    dice = random.Random(7)
    for _ in range(60):
        job, _ = running(jobs, mine)
        seen = [job.status]

        def look(name: str = job.id, seen: list[Status] = seen) -> None:
            seen.append(jobs.get(mine, name).status)

        def user(name: str = job.id) -> None:
            call = dice.choice([jobs.pause, jobs.resume, jobs.cancel])
            try:
                call(mine, name)
            except ConflictError:
                return

        def worker(name: str = job.id) -> None:
            found = jobs.get(mine, name)
            try:
                if found.status is Status.QUEUED:
                    jobs.take(found, Status.RUNNING)
                elif found.status is Status.RUNNING:
                    lease = Lease(name, found.fence)
                    wish = jobs.beat(lease, this_process())
                    ends = {Wish.PAUSE: Status.PAUSED, Wish.CANCEL: Status.CANCELLED, None: Status.SUCCEEDED}
                    if wish or dice.random() < 0.3:
                        jobs.end(lease, ends[wish])
            except StoreError:
                return

        with ThreadPoolExecutor(3) as pool:
            for _ in range(6):
                for done in [pool.submit(one) for one in dice.sample([user, worker, user], 3)]:
                    done.result()
                look()
        for before, after in pairwise(seen):
            assert before is after or reachable(before, after), (before, after)


def reachable(before: Status, after: Status) -> bool:
    """Whether a few legal steps lead from one to the other; none leads away from an end."""
    front, seen = {before}, set[Status]()
    while front:
        seen |= front
        front = {step for one in front for step in LEGAL.get(one, set())} - seen
    return after in seen


def test_another_project_sees_nothing(jobs: Jobs, database: Database, mine: str) -> None:
    other = Keys(database).project("other")
    job = jobs.create(mine, ORDER)
    for call in (jobs.get, jobs.cancel, jobs.pause, jobs.resume):
        with pytest.raises(MissingError):
            call(other, job.id)
    for list_of in (jobs.events, jobs.checkpoints):
        with pytest.raises(MissingError):
            list_of(other, job.id, Page())
    assert jobs.page(other, Page()) == ([], False)


def test_jobs_are_found_by_their_metadata(jobs: Jobs, mine: str) -> None:
    job = jobs.create(mine, ORDER)
    assert [found.id for found in jobs.page(mine, Page(), {"team": "blue"})[0]] == [job.id]
    assert jobs.page(mine, Page(), {"team": "red"}) == ([], False)


def test_the_last_checkpoints_can_be_asked(jobs: Jobs, database: Database, mine: str) -> None:
    job, lease = running(jobs, mine)
    gone = [jobs.checkpoint(lease, step, f"m{step}", {"loss": 1.0}, f"f{step}") for step in range(CHECKPOINTS + 2)]
    assert gone == [*[[]] * CHECKPOINTS, ["f0"], ["f1"]]
    assert [row.step for row in jobs.checkpoints(mine, job.id, Page())[0]] == [4, 3, 2]
    assert {served.id for served in Models(database).list(mine)} == {"m2", "m3", "m4"}
    assert jobs.checkpoint(lease, 4, "m4", {}, "f4") == []
