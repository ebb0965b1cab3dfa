"""The list of deliberate faults goes with the code that it breaks."""

from tests.mutants.__main__ import FAULTS, misfits
from tests.mutants.fault import Fault


def test_every_fault_fits_the_code_and_names_a_test() -> None:
    assert misfits(FAULTS) == []


def test_what_does_not_fit_is_said() -> None:
    moved = Fault("one", "call/worker.py", "no such line", "", "tests/test_mutants.py::test_none")
    gone = moved._replace(file="gone.py")
    told = "\n".join(misfits([moved, gone]))
    assert "one: call/worker.py has 0 times, and should have once: 'no such line'" in told
    assert "one: no test is tests/test_mutants.py::test_none" in told
    assert "gone.py" in told


def test_no_two_faults_share_a_name() -> None:
    names = [fault.name for fault in FAULTS]
    assert sorted(set(names)) == sorted(names)
