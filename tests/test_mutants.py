"""The table of mutants is about the sampler as it is: `make mutants` runs it, this only keeps it from rotting."""

import pytest

from tests.mutants import MUTANTS, ROOT, TOO_SLOW, Mutant, verdict


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.file}: {mutant.why}")
def test_every_mutant_breaks_one_line_and_is_still_python(mutant: Mutant):
    source = (ROOT / mutant.file).read_text()
    assert source.count(mutant.old) == 1
    broken = source.replace(mutant.old, mutant.new)
    assert broken != source
    compile(broken, mutant.file, "exec")


def test_every_numerical_file_of_the_sampler_has_mutants():
    """All but the baselines, which no campaign samples with."""
    files = {path.name for path in (ROOT / "smc").glob("*.py")} - {"__init__.py", "errors.py", "guidance.py"}
    assert files == {mutant.file.removeprefix("smc/") for mutant in MUTANTS}


def test_mutants_are_told_apart():
    assert len({(mutant.file, mutant.why) for mutant in MUTANTS}) == len(MUTANTS)
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)


def test_only_a_test_that_failed_counts_as_a_kill():
    assert verdict(1, "test_rows.py::test_a") == (True, "killed by test_rows.py::test_a")
    for returncode, failed in ((0, None), (1, None), (2, "test_rows.py"), (3, None), (TOO_SLOW, "test_a")):
        assert not verdict(returncode, failed)[0]
