"""Figures of SLURP, against values computed by hand."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slurp_metrics import (
    Counts,
    SLUStats,
    char_distance,
    compare_entities,
    edit_distance,
    word_distance,
)


def entities(*pairs):
    return [{"type": kind, "filler": filler} for kind, filler in pairs]


@pytest.mark.parametrize(
    "first, second, distance",
    [
        ("", "", 0),
        ("abc", "", 3),
        ("", "abc", 3),
        ("abc", "abc", 0),
        ("abc", "axc", 1),
        ("abc", "bc", 1),
        ("abcd", "bcde", 2),
        (["seven", "am"], ["seven", "pm", "today"], 2),
    ],
)
def test_edit_distance(first, second, distance):
    assert edit_distance(first, second) == distance


@given(st.text("ab", max_size=6), st.text("ab", max_size=6))
def test_edit_distance_is_a_metric(first, second):
    distance = edit_distance(first, second)
    assert distance == edit_distance(second, first)
    assert (distance == 0) == (first == second)
    assert abs(len(first) - len(second)) <= distance
    assert distance <= max(len(first), len(second))


def test_word_distance_is_by_the_gold_words():
    assert word_distance("a b", "a c") == 1 / 2
    assert word_distance("a", "b c d") == 3
    assert word_distance("a b c d", "a") == 3 / 4


def test_char_distance_is_by_the_longer_one():
    assert char_distance("ab", "abcd") == 2 / 4
    assert char_distance("abcd", "ab") == 2 / 4
    assert char_distance("ab", "cd") == 1


@pytest.mark.parametrize(
    "gold, predicted, counts",
    [
        ([], [], Counts(0, 0, 0)),
        ([("time", "ten")], [("time", "ten")], Counts(1, 0, 0)),
        ([("time", "ten")], [], Counts(0, 0, 1)),
        ([], [("time", "ten")], Counts(0, 1, 0)),
        ([("time", "ten")], [("date", "ten")], Counts(0, 1, 1)),
        ([("time", "ten am")], [("time", "ten pm")], Counts(1, 0.5, 0.5)),
        # the nearest is taken, not the first
        (
            [("time", "one am"), ("time", "ten am")],
            [("time", "ten am")],
            Counts(1, 0, 1),
        ),
        # predictions choose in their order: the second gets what is left
        (
            [("time", "ten am"), ("time", "ten pm")],
            [("time", "ten"), ("time", "ten am")],
            Counts(2, 0.5 + 0.5, 0.5 + 0.5),
        ),
        # each gold entity is found once
        (
            [("time", "ten")],
            [("time", "ten"), ("time", "ten")],
            Counts(1, 1, 0),
        ),
    ],
)
def test_entities_are_paired(gold, predicted, counts):
    found = compare_entities(
        entities(*gold), entities(*predicted), word_distance
    )
    assert found == counts


def test_f1():
    """Precision 3/4 and recall 3/5: 2 * 0.45 / 1.35."""
    assert Counts(3, 1, 2).f1 == pytest.approx(2 / 3)
    assert Counts(0, 1, 2).f1 == 0
    assert Counts().f1 == 0


PREDICTED = [
    "alarm set [time : ten pm]",
    "alarm remove",
    "play music [artist : ella]",
    "play music [artist : ella",
]
GOLD = [
    "alarm set [time : ten am]",
    "alarm set [date : today]",
    "play music [artist : ella]",
    "play radio",
]
FILES = ["a.flac", "b.flac", "c.flac", "d.flac"]


@pytest.fixture
def stats():
    """Two batches; the last output has no closing bracket."""
    found = SLUStats()
    found.append(FILES[:3], PREDICTED[:3], GOLD[:3])
    found.append(FILES[3:], PREDICTED[3:], GOLD[3:])
    return found


def test_summary(stats):
    """By words tp, fp, fn are 2, 1/2, 3/2; by characters 2, 1/6, 7/6."""
    word = 2 * 2 / (2 * 2 + 1 / 2 + 3 / 2)
    char = 2 * 2 / (2 * 2 + 1 / 6 + 7 / 6)
    both = 2 * 4 / (2 * 4 + 4 / 6 + 16 / 6)
    assert stats.summarize() == pytest.approx(
        {
            "scenario_accuracy": 75,
            "action_accuracy": 50,
            "intent_accuracy": 50,
            "word_F1": 100 * word,
            "char_F1": 100 * char,
            "SLU_F1": 100 * both,
            "malformed": 25,
        }
    )


def test_predictions_are_as_the_tool_reads_them(stats, tmp_path):
    path = tmp_path / "predictions.jsonl"
    stats.write_predictions(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["file"] for line in lines] == FILES
    assert lines[0] == {
        "file": "a.flac",
        "scenario": "alarm",
        "action": "set",
        "entities": [{"type": "time", "filler": "ten pm"}],
    }
    assert lines[3] == {
        "file": "d.flac",
        "scenario": "none",
        "action": "none",
        "entities": [],
    }
