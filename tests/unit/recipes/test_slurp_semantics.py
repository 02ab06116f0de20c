"""Semantics as text: read back what was written, refuse all else."""

import doctest

import pytest
import slurp_metrics
import slurp_prepare
from hypothesis import given
from hypothesis import strategies as st
from slurp_prepare import format_semantics, parse_semantics

NAMES = st.text("abz_:'.", min_size=1)
FILLERS = st.lists(NAMES, min_size=1).map(" ".join)
ENTITIES = st.lists(st.fixed_dictionaries({"type": NAMES, "filler": FILLERS}))


@given(NAMES, NAMES, ENTITIES)
def test_reads_what_it_wrote(scenario, action, entities):
    semantics = {"scenario": scenario, "action": action, "entities": entities}
    assert parse_semantics(format_semantics(semantics)) == semantics


@pytest.mark.parametrize(
    "text",
    [
        "",
        "alarm",
        "alarm ",
        "alarm set ",
        "alarm set time",
        "alarm  set",
        "alarm set [time : seven",
        "alarm set [time : ]",
        "alarm set [time]",
        "alarm set [time seven]",
        "alarm set[time : seven]",
        "alarm set [time : seven] am",
        "alarm set [time : [date : seven]]",
        "alarm [time : seven]",
        "[time : seven] alarm set",
    ],
)
def test_what_is_no_semantics_is_refused(text):
    with pytest.raises(ValueError, match="is not 'scenario action"):
        parse_semantics(text)


@pytest.mark.parametrize(
    "scenario, filler",
    [("alarm", "a]b"), ("alarm", ""), ("alarm", "am "), ("al arm", "am")],
)
def test_what_could_not_be_read_back_is_refused(scenario, filler):
    entities = [{"type": "time", "filler": filler}]
    with pytest.raises(ValueError, match="cannot be written"):
        format_semantics(
            {"scenario": scenario, "action": "set", "entities": entities}
        )


@pytest.mark.parametrize("module", [slurp_metrics, slurp_prepare])
def test_examples_of_the_docstrings(module):
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.attempted and not result.failed
