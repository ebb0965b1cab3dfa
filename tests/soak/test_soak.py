"""What a soak is made of: its schedule by the seed, and what it takes for flat and left open."""

from tests.soak import rest, schedule, watch


def test_a_seed_and_a_length_are_one_schedule() -> None:
    assert schedule.plan(7, 300.0) == schedule.plan(7, 300.0)
    assert schedule.plan(7, 300.0) != schedule.plan(8, 300.0)
    longer, shorter = schedule.plan(7, 600.0), schedule.plan(7, 300.0)
    assert [lane[: len(short)] for lane, short in zip(longer, shorter, strict=True)] == shorter


def test_five_minutes_see_every_kind_of_fault_and_all_end_within_them() -> None:
    for seed in range(50):
        for lane, kinds in zip(
            schedule.plan(seed, 300.0), (schedule.HARD, schedule.SOFT), strict=True
        ):
            assert {planned.name for planned in lane} == set(kinds)
            ends = [planned.at_s + planned.lasts_s for planned in lane]
            begins = [planned.at_s for planned in lane[1:]]
            assert all(end < begin for end, begin in zip(ends[:-1], begins, strict=True))
            assert ends[-1] <= 300.0


def test_memory_that_grows_with_the_calls_is_told_from_noise() -> None:
    noise = [1.0, -2.0, 0.5, 1.5, -1.0]
    flat = [(float(second), 100.0 + noise[second % 5]) for second in range(600)]
    assert abs(watch.slope(flat)) * 600 < 1.0
    leaking = [(at_s, bytes_ + 3.0 * at_s) for at_s, bytes_ in flat]
    assert abs(watch.slope(leaking) - 3.0) < 0.01


def test_what_was_open_at_the_start_in_either_worker_is_nothing_that_is_left() -> None:
    delivers = _state(1, tasks={"relay": 1, "delivery": 2}, objects={"Call": 5})
    waits = _state(2, tasks={"relay": 1}, objects={"Call": 5})
    start = rest.Start({1: delivers, 2: waits}, {"server 6379": 8})
    assert start.beyond(_state(2, tasks={"relay": 1, "delivery": 2})) == []
    assert start.beyond(_state(3, files={"server 6379": 8})) == []
    assert start.beyond(_state(1, tasks={"relay": 2})) == ["2 × relay (tasks), 1 at the start"]
    assert start.beyond(_state(1, files={"server 6379": 9})) == [
        "9 × server 6379 (files), 8 at the start"
    ]


def test_objects_that_were_not_there_at_the_start_are_counted_by_kind() -> None:
    start = rest.Start({1: _state(1, objects={"Call": 5, "dict": 70})}, {})
    assert start.grown(_state(1, objects={"Call": 905, "dict": 60})) == {"Call": 900}
    assert start.grown(_state(2, objects={"Call": 905})) == {}  # it was not there itself


def _state(pid: int, **kinds: dict[str, int]) -> dict[str, object]:
    return {"pid": pid, "tasks": {}, "threads": {}, "files": {}, "objects": {}, **kinds}
