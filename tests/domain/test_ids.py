import multiprocessing
import uuid

from hypothesis import given
from hypothesis import strategies as st

from inf_middleware.domain.ids import uuid7


@given(st.integers(0, 2**47 * 1_000_000))
def test_a_request_id_is_a_uuid_of_version_7_that_tells_its_moment(now_ns: int) -> None:
    parsed = uuid.UUID(uuid7(now_ns))
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert parsed.int >> 80 == now_ns // 1_000_000


def test_request_ids_sort_by_time_and_do_not_repeat() -> None:
    ids = [uuid7(1_700_000_000_000_000_000 + step * 1_000) for step in range(10_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


def test_all_of_an_id_but_its_moment_is_random() -> None:
    made = [uuid.UUID(uuid7(0)).int & (1 << 62) - 1 for _ in range(1_000)]
    assert all(0 < sum(number >> bit & 1 for number in made) < 1_000 for bit in range(62))


def test_a_process_and_its_fork_do_not_make_the_same_ids() -> None:
    here, there = [uuid7(0)], multiprocessing.get_context("fork").SimpleQueue()  # as of a server
    child = multiprocessing.get_context("fork").Process(
        target=lambda: [there.put(uuid7(0)) for _ in range(10)]
    )
    child.start()
    child.join()
    here += [uuid7(0) for _ in range(10)]
    assert child.exitcode == 0
    assert not set(here) & {there.get() for _ in range(10)}
