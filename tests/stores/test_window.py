"""The rolling window against a reference that keeps every addition."""

from hypothesis import example, given
from hypothesis import strategies as st

from inf_middleware.stores.window import SLOTS, RollingWindow

WINDOW = 60_000_000
SLOT = WINDOW // SLOTS

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "back"]),
        st.integers(0, 3 * WINDOW // 2) | st.integers(0, 2 * SLOT) | st.just(2**32),
        st.integers(0, 1000) | st.integers(2**31, 2**33),
    ),
    max_size=40,
)


class Reference:
    """Keeps every addition: one counts until the window's length after its slot's latest."""

    def __init__(self) -> None:
        self.added: list[list[int]] = []  # [moment, amount]

    def latest(self, slot: int) -> int:
        return max(moment for moment, _ in self.added if moment // SLOT == slot)

    def total(self, now: int) -> int:
        return sum(a for m, a in self.added if self.latest(m // SLOT) + WINDOW > now)


@given(STEPS)
def test_sum_and_wait_are_those_of_a_reference_that_keeps_every_addition(
    steps: list[tuple[str, int, int]],
) -> None:
    window, reference, now = RollingWindow(WINDOW, 0), Reference(), 0
    taken: list[tuple[int, int]] = []  # moment, place in the reference
    for kind, later, amount in steps:
        now += later
        window.leave(now)
        if kind == "add":
            window.add(now, amount)
            taken.append((now, len(reference.added)))
            reference.added.append([now, amount])
        elif taken:
            moment, place = taken.pop(amount % len(taken))
            back = reference.added[place][1] // 2
            gone = reference.latest(moment // SLOT) + WINDOW <= now
            window.give_back(moment, back)
            if not gone:
                reference.added[place][1] -= back
        assert window.total == reference.total(now)
        limit = amount + 500
        wait = window.wait_us(now, amount, limit)
        assert 0 <= wait <= WINDOW
        if wait:
            assert reference.total(now + wait) + amount <= limit
            assert reference.total(now + wait - 1) + amount > limit
        else:
            assert reference.total(now) + amount <= limit
        assert reference.total(now + window.reset_us(now)) == 0


@given(STEPS)
@example([("add", 0, 1), ("add", WINDOW, 1)])
@example([("add", 0, 1), ("add", SLOT, 1), ("add", WINDOW - SLOT, 1)])
def test_before_it_is_due_nothing_leaves(steps: list[tuple[str, int, int]]) -> None:
    always, when_due, now = RollingWindow(WINDOW, 0), RollingWindow(WINDOW, 0), 0
    for kind, later, amount in steps:
        now += later
        always.leave(now)
        if now >= when_due.due_us:
            when_due.leave(now)
        for window in (always, when_due):
            if kind == "add":
                window.add(now, amount)
            else:
                window.give_back(now - later, amount)
        assert (when_due.total, len(when_due)) == (always.total, len(always))
        assert when_due.reset_us(now) == always.reset_us(now)


@given(st.lists(st.integers(0, SLOT // 3), min_size=1, max_size=2000))
def test_memory_does_not_grow_with_the_rate(gaps: list[int]) -> None:
    window, now = RollingWindow(WINDOW, 0), 0
    for gap in gaps:
        now += gap
        window.leave(now)
        window.add(now, 1)
    assert len(window) <= SLOTS + 1


def test_a_refund_after_its_slot_has_left_mints_nothing() -> None:
    window = RollingWindow(WINDOW, 0)
    window.add(0, 100)
    window.leave(WINDOW)
    window.add(WINDOW, 7)
    window.give_back(0, 100)
    assert window.total == 7
    window.add(WINDOW + SLOT, 7)
    window.give_back(0, 100)
    assert window.total == 14


def test_a_refund_larger_than_its_slot_takes_no_more_than_the_slot() -> None:
    window = RollingWindow(WINDOW, 0)
    window.add(0, 10)
    window.add(SLOT, 10)
    window.give_back(0, 100)
    assert window.total == 10


def test_a_refund_of_what_was_taken_before_counting_began_mints_nothing() -> None:
    window = RollingWindow(WINDOW, 5)
    window.add(5, 10)
    window.give_back(4, 10)
    assert window.total == 10
