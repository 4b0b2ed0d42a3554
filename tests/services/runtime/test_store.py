import base64
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from ltxtrain.v1.artifact_pb2 import Artifact, Blob
from ltxtrain.v1.train_pb2 import CreateJobRequest, Job
from ltxtrain.v1.work_pb2 import Event, ListOrder, Progress, State

from ltxtrain_services.runtime.blobs import Blobs
from ltxtrain_services.runtime.database import Database
from ltxtrain_services.runtime.errors import NotFound, NotReady, PageTokenInvalid, QueueFull, RequestIdReused
from ltxtrain_services.runtime.paging import MAX_PAGE_BYTES, make_token, request_digest
from ltxtrain_services.runtime.store import StaleAttempt, Store

BACKENDS = ("sqlite", "postgresql")
REQUEST = "0f0e0d0c-0000-0000-0000-000000000001"


async def make(jobs: Store[Job], number: int, owner: str = "ann") -> Job:
    job = await jobs.create(Job(name=f"jobs/{number:03}"), owner=owner, request_id="", digest=b"")
    assert job is not None
    return job


async def finish(jobs: Store[Job], name: str) -> None:
    async with jobs.edit(name) as edit:
        edit.enter(State.STATE_SUCCEEDED)


async def test_a_repeated_request_returns_the_first_resource(jobs: Store[Job]) -> None:
    first = await jobs.create(Job(name="jobs/1"), owner="ann", request_id=REQUEST, digest=b"a")
    again = await jobs.create(Job(name="jobs/2"), owner="ann", request_id=REQUEST, digest=b"a")
    other_owner = await jobs.create(Job(name="jobs/3"), owner="bob", request_id=REQUEST, digest=b"b")
    assert (first.name, again.name, other_owner.name) == ("jobs/1", "jobs/1", "jobs/3")
    with pytest.raises(RequestIdReused):
        await jobs.create(Job(name="jobs/4"), owner="ann", request_id=REQUEST, digest=b"other")


def test_the_request_id_is_not_part_of_the_request() -> None:
    one, two = CreateJobRequest(request_id="1"), CreateJobRequest(request_id="2")
    assert request_digest(one) == request_digest(two)
    two.validate_only = True
    assert request_digest(one) != request_digest(two)


async def test_an_owner_sees_only_what_is_theirs(jobs: Store[Job]) -> None:
    await make(jobs, 1, "ann")
    with pytest.raises(NotFound):
        await jobs.get("jobs/001", "bob")
    assert (await jobs.get("jobs/001")).name == "jobs/001"
    assert (await jobs.page("bob", 10, ""))[0] == []


async def test_pages_hold_everything_once_newest_first(jobs: Store[Job]) -> None:
    for number in range(7):
        await make(jobs, number)
    names: list[str] = []
    token = ""
    while True:
        page, token = await jobs.page("ann", 3, token)
        names += [job.name for job in page]
        if not token:
            break
    assert names == [f"jobs/{number:03}" for number in reversed(range(7))]


async def test_pages_of_long_resources_fit_into_messages(jobs: Store[Job]) -> None:
    text = "x" * (MAX_PAGE_BYTES * 2 // 5)
    for number in range(5):
        job = Job(name=f"jobs/{number:03}")
        job.spec.extend_prefix.trigger_phrase = text
        await jobs.create(job, owner="ann", request_id="", digest=b"")
    async with jobs.edit("jobs/000") as edit:
        for number in range(5):
            edit.put_child("artifacts", str(number), Artifact(name=str(number), blob=Blob(key=text)))
        edit.put_child("artifacts", "5", Artifact(name="5", blob=Blob(key=3 * text)))
    pages: list[list[str]] = []
    token = ""
    while token or not pages:
        listed, token = await jobs.page("ann", 500, token)
        pages.append([job.name for job in listed])
    assert pages == [["jobs/004", "jobs/003"], ["jobs/002", "jobs/001"], ["jobs/000"]]
    pages.clear()
    while token or not pages:
        children, token = await jobs.children("jobs/000", "artifacts", Artifact, 500, token)
        pages.append([child.name for child in children])
    assert pages == [["0", "1"], ["2", "3"], ["4"], ["5"]]


async def test_a_page_token_belongs_to_its_arguments(jobs: Store[Job]) -> None:
    for number in range(3):
        await make(jobs, number)
    _, token = await jobs.page("ann", 1, "")
    with pytest.raises(PageTokenInvalid):
        await jobs.page("ann", 1, token, [State.STATE_FAILED])
    other = make_token("jobs|ann|[]", 2**63)
    unlike = base64.urlsafe_b64encode(base64.urlsafe_b64decode(token).replace(b"|", b"|x", 1)).decode()
    for forged in ("rubbish", other, unlike, "ä", "AA=="):
        with pytest.raises(PageTokenInvalid):
            await jobs.page("ann", 1, forged)
    with pytest.raises(PageTokenInvalid):
        await jobs.page("ann", -1, "")


async def test_a_name_with_what_no_database_keeps_is_unknown(jobs: Store[Job]) -> None:
    for name in ("jobs/\0", "jobs/1\0", "\0"):
        with pytest.raises(NotFound):
            await jobs.get(name)
        with pytest.raises(NotFound):
            await jobs.delete(name)
        with pytest.raises(NotFound):
            async with jobs.edit(name):
                pass
        assert await jobs.children(name, "artifacts", Artifact, 1, "") == ([], "")
        assert await jobs.child("jobs/1", "artifacts", name, Artifact) is None


async def test_lists_can_be_limited_to_states(jobs: Store[Job]) -> None:
    await make(jobs, 1)
    await make(jobs, 2)
    await finish(jobs, "jobs/001")
    page, _ = await jobs.page("ann", 10, "", [State.STATE_SUCCEEDED])
    assert [job.name for job in page] == ["jobs/001"]


async def test_lists_find_by_label_and_text_in_every_order(jobs: Store[Job]) -> None:
    named = {
        "jobs/1": ("Drone Café", {"project": "film", "take": ""}),
        "jobs/2": ("", {"project": "film"}),
        "jobs/3": ("anna", {"project": "test", "take": "2"}),
        "jobs/4": ("100%_drone", {}),
        "jobs/5": ("", {}),
    }
    for name, (display_name, labels) in named.items():
        made = Job(name=name, display_name=display_name, labels=labels)
        await jobs.create(made, owner="ann", request_id="", digest=b"")
    await jobs.create(Job(name="jobs/6", labels={"project": "film"}), owner="bob", request_id="", digest=b"")

    async def found(size: int = 10, **filters: Any) -> str:
        numbers, token = "", ""
        while True:
            page, token = await jobs.page("ann", size, token, **filters)
            numbers += "".join(job.name[-1] for job in page)
            if not token:
                return numbers

    assert await found(labels=["project=film"]) == "21"
    assert await found(labels=["project", "take"]) == "31" and await found(labels=["take="]) == "1"
    assert await found(labels=["project=film", "project=test"]) == await found(labels=["none", ""]) == ""
    assert await found(text="DRONE") == "41" and await found(text="CAFÉ") == "1" and await found(text="jobs/5") == "5"
    assert await found(text="%_d") == "4" and await found(text="_") == "4", "no pattern but a text"
    for size in (1, 2, 10):
        assert await found(size) == "54321"
        assert await found(size, order=ListOrder.LIST_ORDER_OLDEST_FIRST) == "12345"
        assert await found(size, order=ListOrder.LIST_ORDER_DISPLAY_NAME) == "43152"
    _, token = await jobs.page("ann", 1, "", labels=["project"])
    for other in ({"labels": ["take"]}, {"text": "a"}, {"order": ListOrder.LIST_ORDER_DISPLAY_NAME}):
        with pytest.raises(PageTokenInvalid):
            await jobs.page("ann", 1, token, **{"labels": ["project"], **other})  # type: ignore[arg-type]
    assert (await jobs.get("jobs/1")).lifecycle.created_by == "ann"


async def test_labels_go_with_their_resource(jobs: Store[Job]) -> None:
    for _ in range(2):
        await jobs.create(Job(name="jobs/1", labels={"a": "1"}), owner="ann", request_id="", digest=b"")
        await finish(jobs, "jobs/1")
        await jobs.delete("jobs/1")
    assert await jobs.page("ann", 10, "", labels=["a"]) == ([], "")


async def test_an_edit_is_all_or_nothing(jobs: Store[Job]) -> None:
    await make(jobs, 1)
    with pytest.raises(ZeroDivisionError):
        async with jobs.edit("jobs/001") as edit:
            edit.body.checkpoint_step = 7
            edit.add_event(Event(progress=Progress(completed=1)))
            edit.put_child("artifacts", "a", Artifact(name="a"))
            raise ZeroDivisionError
    job = await jobs.get("jobs/001")
    assert (job.checkpoint_step, job.lifecycle.last_sequence) == (0, 1)
    assert await jobs.all_children("jobs/001", "artifacts", Artifact) == []


async def test_children_keep_their_place_when_put_again(jobs: Store[Job]) -> None:
    await make(jobs, 1)
    for name, step in (("a", 1), ("b", 2), ("a", 3), ("c", 4)):
        async with jobs.edit("jobs/001") as edit:
            edit.put_child("artifacts", name, Artifact(name=name, step=step))
    async with jobs.edit("jobs/001") as edit:
        edit.drop_child("artifacts", "b")
    children = await jobs.all_children("jobs/001", "artifacts", Artifact)
    assert [(child.name, child.step) for child in children] == [("a", 3), ("c", 4)]
    page, token = await jobs.children("jobs/001", "artifacts", Artifact, 1, "")
    rest, end = await jobs.children("jobs/001", "artifacts", Artifact, 1, token)
    assert [child.name for child in (*page, *rest)] == ["a", "c"] and end == ""


async def test_an_old_attempt_cannot_write(jobs: Store[Job]) -> None:
    await make(jobs, 1)
    async with jobs.edit("jobs/001") as edit:
        edit.attempt += 1
    with pytest.raises(StaleAttempt):
        async with jobs.edit("jobs/001", attempt=0):
            pass
    await finish(jobs, "jobs/001")
    with pytest.raises(StaleAttempt):
        async with jobs.edit("jobs/001", attempt=1):
            pass


async def test_only_what_is_finished_can_be_deleted(jobs: Store[Job]) -> None:
    await make(jobs, 1)
    with pytest.raises(NotReady):
        await jobs.delete("jobs/001", "ann")
    await finish(jobs, "jobs/001")
    with pytest.raises(NotFound):
        await jobs.delete("jobs/001", "bob")
    await jobs.delete("jobs/001", "ann")
    with pytest.raises(NotFound):
        await jobs.get("jobs/001")


async def test_a_full_queue_makes_nothing(jobs: Store[Job]) -> None:
    await make(jobs, 1)
    limits: list[dict[str, Any]] = [{"limit": 1}, {"owner_limit": 1}]
    for full in limits:
        with pytest.raises(QueueFull):
            await jobs.create(Job(name="jobs/2"), owner="ann", request_id="", digest=b"", **full)
    await jobs.create(Job(name="jobs/3"), owner="bob", request_id="", digest=b"", owner_limit=1)
    await finish(jobs, "jobs/001")
    await jobs.create(Job(name="jobs/2"), owner="ann", request_id="", digest=b"", limit=2, owner_limit=1)


async def test_what_is_to_be_sent_outlives_the_end_and_goes_with_the_resource(jobs: Store[Job]) -> None:
    def tell(job: Job) -> None:
        job.webhook.tries += 1

    for number in (1, 2):
        name, message = f"jobs/{number:03}", StringValue(value=f"message {number}")
        await jobs.create(Job(name=name), owner="ann", request_id="", digest=b"", outgoing=message)
        await finish(jobs, name)
    assert [item.value for item in (await jobs.outbox(StringValue)).values()] == ["message 1", "message 2"]
    last = (await jobs.get("jobs/001")).lifecycle.last_sequence
    await jobs.settle("jobs/001", tell, sent=False)
    assert (await jobs.outgoing("jobs/001", StringValue)) == StringValue(value="message 1")
    await jobs.settle("jobs/001", tell, sent=True)
    assert await jobs.outgoing("jobs/001", StringValue) is None
    settled = await jobs.get("jobs/001")
    assert (settled.webhook.tries, settled.lifecycle.last_sequence) == (2, last)
    await jobs.delete("jobs/002")
    await jobs.settle("jobs/002", tell, sent=False)
    assert await jobs.outbox(StringValue) == {}
    assert (await jobs.keep("keys", "current", StringValue(value="a"))).value == "a"
    assert (await jobs.keep("keys", "current", StringValue(value="b"))).value == "a"


async def test_a_blob_lives_as_long_as_something_refers_to_it(database: Database, jobs: Store[Job]) -> None:
    blobs = Blobs(database)
    for number in (1, 2):
        await make(jobs, number)
    await blobs.add("key", 5, b"what it is", "jobs/001")
    assert await blobs.find("key", "jobs/002") == b"what it is"
    assert await blobs.find("other", "jobs/002") is None
    for number in (1, 2):
        assert await blobs.unused(keep_seconds=0) == []
        await finish(jobs, f"jobs/00{number}")
        await jobs.delete(f"jobs/00{number}")
    assert await blobs.unused() == []
    assert await blobs.unused(keep_seconds=0) == ["key"]
    assert await blobs.forget("key") and not await blobs.forget("key")


async def test_a_list_of_states_may_be_long_and_wrong(jobs: Store[Job]) -> None:
    """As a caller's request may hold it: twenty thousand numbers are not so many parameters of a query."""
    await jobs.create(Job(name="jobs/1"), owner="ann", request_id="", digest=b"")
    pending: list[Any] = [State.STATE_PENDING] * 20_000
    nowhere: list[Any] = [2**31 - 1, -1, *range(50, 20_000)]
    assert [job.name for job in (await jobs.page("ann", 10, "", pending + nowhere))[0]] == ["jobs/1"]
    assert await jobs.page("ann", 10, "", nowhere) == ([], "")
