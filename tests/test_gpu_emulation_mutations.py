"""Each deliberate bug is found, by the check that should find it; the sample without it is not."""

import functools

import pytest
from gpu_emulation import samples
from gpu_emulation.mutations import (
    CHECKS,
    CONFLICTS,
    MUTATIONS,
    NOT_SEEN,
    UNSTABLE,
    WRONG_RESULT,
    findings,
    mutant,
    read,
    table,
)

pytestmark = pytest.mark.gpu_emulation


@functools.cache
def findings_without_bug(sample):
    return findings(samples.source(sample), sample)


def parameter(mutation):
    marks = [] if mutation.quick else [pytest.mark.slow]
    return pytest.param(mutation, id=mutation.id, marks=marks)


@pytest.mark.parametrize("mutation", map(parameter, MUTATIONS))
def test_mutation_is_found(nvcc, mutation):
    assert not findings_without_bug(mutation.sample)
    found = findings(mutant(mutation), mutation.sample)
    if mutation.found_by == NOT_SEEN:
        assert not found
    else:
        assert found & set(mutation.found_by.split(" or "))


def test_every_check_finds_a_bug():
    found_by = {check for m in MUTATIONS for check in m.found_by.split(" or ")}
    assert found_by == {*CHECKS, WRONG_RESULT, CONFLICTS, UNSTABLE, NOT_SEEN}


def test_every_sample_has_a_bug():
    assert {m.sample for m in MUTATIONS} == set(samples.SAMPLES)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.id)
def test_every_edit_fits_its_sample(mutation):
    assert mutant(mutation) != samples.source(mutation.sample)


def test_an_edit_must_fit_its_sample():
    (absent,) = read("x | saxpy | not seen | nothing\n-no such text\n")
    with pytest.raises(ValueError, match="x: 'no such text' stands 0 times in the sample"):
        mutant(absent)


def test_a_line_that_says_nothing_is_refused():
    with pytest.raises(ValueError, match="x: 'quickly'"):
        read("x | saxpy | not seen | nothing\nquickly\n-i < n")


def test_the_table_names_every_mutation():
    lines = table().splitlines()
    assert lines[0] == "| id | what was broken | found by |"
    assert len(lines) == 2 + len(MUTATIONS) == 2 + len({m.id for m in MUTATIONS})
