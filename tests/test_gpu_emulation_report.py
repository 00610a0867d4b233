"""The README's tables: how they are written, and that the one that needs no measuring is true."""

import pytest
from gpu_emulation import mutations
from gpu_emulation.report import README, SECTIONS, fill, markdown, stopwatch

pytestmark = pytest.mark.gpu_emulation


def test_a_section_is_written_between_its_comments():
    text = "before\n<!-- speed -->\nold\n<!-- /speed -->\nafter\n"
    assert fill(text, "speed", r"\1 new") == text.replace("old", r"\1 new")
    with pytest.raises(LookupError, match="0 places for 'oracles'"):
        fill(text, "oracles", "new")


def test_the_readme_has_a_place_for_each_section():
    text = README.read_text()
    for section in SECTIONS:
        fill(text, section, "")


def test_the_readmes_mutations_are_those_that_run():
    text = README.read_text()
    assert fill(text, "mutations", mutations.table()) == text


def test_a_table_is_markdown():
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"


def test_a_stopwatch_stands_in_place_of_launch():
    class Launcher:
        def launch(self, *args, **options):
            return args, options

    launcher = Launcher()
    with stopwatch(launcher) as taken:
        assert launcher.launch(1, seed=2) == ((1,), {"seed": 2})
    launcher.launch()
    ((seconds, counters),) = taken
    assert seconds >= 0 and counters == ((1,), {"seed": 2})
