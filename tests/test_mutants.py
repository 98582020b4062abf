"""The list of tools/mutants.py is in step with the package and its tests: whether each fault is
caught takes that tool some minutes."""
import re
from pathlib import Path

import pytest
from guards import HOME

mutants = pytest.importorskip("mutants", reason="needs tools/ and hypothesis")
TESTS = {path.stem.removeprefix("test_"): {*re.findall(r"^def test_(\w+)", path.read_text(), re.M)}
         for path in Path(__file__).parent.glob("test_*.py")}


def test_every_fault_has_its_text_once_and_tests_that_are_there():
    assert len(mutants.MUTANTS) > 300
    for file, text, fault, tests in mutants.MUTANTS:
        assert (HOME / "ddpm_nb" / file).read_text().count(text) == 1 and text != fault, text
        assert tests.split()
        for name in tests.split():
            at, _, test = name.partition("::")
            assert at in TESTS and (not test or test in TESTS[at]), name
