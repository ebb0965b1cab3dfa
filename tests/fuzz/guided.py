"""One target under libFuzzer: python -m tests.fuzz.guided TARGET SELF [OPTION ...]"""

import sys

import atheris

with atheris.instrument_imports(include=["inf_middleware.wire"]):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    atheris.Setup(sys.argv[2:], TARGETS[sys.argv[1]])
    atheris.Fuzz()
