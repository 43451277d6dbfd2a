"""The archive of step maxima on each blob store: nothing invented, nothing lost, nothing counted twice."""

from __future__ import annotations

import pytest

from markserve.adapters.memory import MemoryBlobStore
from markserve.adapters.s3 import S3BlobStore
from markserve.archive import APPEND_STEPS, StepArchive
from markserve.ports import BlobStore
from tests.contract.conftest import BACKENDS

DAY = 1440
TODAY = 19_675 * DAY


@pytest.fixture(params=BACKENDS)
def blobs(request: pytest.FixtureRequest) -> BlobStore:
    if request.param == "memory":
        return MemoryBlobStore()
    client = request.getfixturevalue("aws")("s3")
    client.create_bucket(Bucket="artefacts")
    return S3BlobStore(client, "artefacts")


def an_archive(blobs: BlobStore, **overrides: object) -> StepArchive:
    return StepArchive(**{"blobs": blobs, "model": "digits", "step_s": 60.0, **overrides})  # type: ignore[arg-type]


def minutes(start: int, count: int, rate: float = 2.5) -> dict[int, float | None]:
    return {start + at: rate + at for at in range(count)}


def test_archive_is_unknown_where_nothing_was_recorded(blobs: BlobStore) -> None:
    assert an_archive(blobs).read(first_step=TODAY - 2, end_step=TODAY + 2) == [None] * 4


def test_archive_returns_what_was_appended_across_midnight(blobs: BlobStore) -> None:
    archive = an_archive(blobs)

    archive.append(minutes(TODAY - 20, 40))

    assert an_archive(blobs).read(first_step=TODAY - 21, end_step=TODAY + 21) == [None, *(2.5 + at for at in range(40)), None]


def test_missing_stays_missing_and_known_stays_known(blobs: BlobStore) -> None:
    archive = an_archive(blobs)
    archive.append({**minutes(TODAY, 20), TODAY + 5: None})

    archive.append({TODAY + at: None for at in range(20)})

    assert archive.read(first_step=TODAY + 4, end_step=TODAY + 7) == [6.5, None, 8.5]


def test_repeated_cycle_writes_nothing(blobs: BlobStore) -> None:
    archive = an_archive(blobs)

    assert archive.append(minutes(TODAY, 20, 0.1)) == 20
    assert archive.append(minutes(TODAY, 20, 0.1)) == 0


def test_new_steps_wait_until_some_have_come_but_the_last_of_a_day_do_not(blobs: BlobStore) -> None:
    archive = an_archive(blobs)

    assert archive.append(minutes(TODAY + DAY - APPEND_STEPS + 1, APPEND_STEPS - 1)) == 0
    assert archive.append(minutes(TODAY + DAY - APPEND_STEPS + 1, APPEND_STEPS)) == APPEND_STEPS - 1


def test_late_report_corrects_a_step(blobs: BlobStore) -> None:
    archive = an_archive(blobs)
    archive.append(minutes(TODAY, 20))

    archive.append(dict.fromkeys(minutes(TODAY, 20), 9.0))

    assert archive.read(first_step=TODAY, end_step=TODAY + 1) == [9.0]


def test_damaged_day_is_unknown_and_is_written_anew(blobs: BlobStore) -> None:
    archive = an_archive(blobs)
    archive.append(minutes(TODAY, 20))
    blobs.put(f"forecasters/digits/history/60s/{TODAY // DAY:06d}.f32", b"torn")

    assert archive.read(first_step=TODAY, end_step=TODAY + 1) == [None]
    assert archive.append(minutes(TODAY, 20)) == 20


def test_days_that_are_over_are_read_once(blobs: BlobStore) -> None:
    cache: dict[str, bytes] = {}
    archive = an_archive(blobs, cache=cache)
    archive.append(minutes(TODAY - 20, 40))

    archive.read(first_step=TODAY - 20, end_step=TODAY + 20)

    assert list(cache) == [f"forecasters/digits/history/60s/{TODAY // DAY - 1:06d}.f32"]


def test_archives_of_models_and_of_steps_are_apart(blobs: BlobStore) -> None:
    an_archive(blobs).append(minutes(TODAY, 20))

    assert an_archive(blobs, model="other").read(first_step=TODAY, end_step=TODAY + 1) == [None]
    assert an_archive(blobs, step_s=5.0).read(first_step=TODAY, end_step=TODAY + 1) == [None]
