"""Words and phonemes of TextGrid files, as labelled segments."""

import pytest
from speechbrain.dataio.dataset import DynamicItemDataset
from textgrid import IntervalTier, PointTier, TextGrid

from sb_prune.recipe.alignments import add_alignments, read_tier

WORDS = [(0.0, 0.4, ""), (0.4, 1.0, "The"), (1.0, 2.01, "cat")]
PHONES = [(0.4, 0.5, "DH"), (0.5, 1.0, "AH0"), (1.0, 1.5, "sp")]


@pytest.fixture
def write(tmp_path):
    """Function: writes a TextGrid with these intervals."""

    def write(name="a", folder=".", **tiers):
        grid = TextGrid()
        for tier, intervals in tiers.items():
            found = IntervalTier(tier)
            for interval in intervals:
                found.add(*interval)
            grid.append(found)
        path = tmp_path / folder / f"{name}.TextGrid"
        path.parent.mkdir(exist_ok=True)
        grid.write(path)
        return path

    return write


def dataset_of(**rows):
    rows = {n: {"duration": 2.0, "wrd": words} for n, words in rows.items()}
    return DynamicItemDataset(rows)


def test_labels_are_of_words_and_phonemes(write, tmp_path):
    write(words=WORDS, phones=PHONES)
    dataset = dataset_of(a="THE CAT")
    add_alignments(dataset, tmp_path)
    dataset.set_output_keys(["word", "phone"])
    found = dataset[0]
    assert found["word"] == [("the", 0.2, 0.5), ("cat", 0.5, 1)]
    assert found["phone"] == [("DH", 0.2, 0.25), ("AH", 0.25, 0.5)]


def test_only_frequent_words_are_labels(write, tmp_path):
    write(words=WORDS, phones=PHONES)
    write("b", folder="deep", words=WORDS, phones=PHONES)
    dataset = dataset_of(a="THE CAT", b="THE END")
    add_alignments(dataset, tmp_path, words=1)
    dataset.set_output_keys(["word"])
    assert [label for label, *_ in dataset[0]["word"]] == ["the"]


@pytest.mark.parametrize(
    "given, message",
    [
        ({"words": WORDS}, "no tier 'phones' of intervals"),
        ({"phones": [(0.0, 2.2, "AH")]}, r"is of 2.20 s, .* of 2.00 s"),
        ({"phones": [(0.0, 1.0, "AH")]}, r"is of 1.00 s, .* of 2.00 s"),
    ],
)
def test_wrong_grids_are_named(write, given, message):
    with pytest.raises(ValueError, match=message):
        read_tier(write(**given), "phones", 2.0)


def test_points_are_no_intervals(tmp_path):
    grid, points = TextGrid(), PointTier("phones", 0, 2)
    points.add(1.0, "AH")
    grid.append(points)
    grid.write(tmp_path / "a.TextGrid")
    with pytest.raises(ValueError, match="no tier 'phones' of intervals"):
        read_tier(tmp_path / "a.TextGrid", "phones", 2.0)


def test_what_is_no_grid_is_named(tmp_path):
    path = tmp_path / "a.TextGrid"
    path.write_text("no")
    with pytest.raises(ValueError, match="a.TextGrid is no TextGrid"):
        read_tier(path, "phones", 2.0)


def test_two_of_one_name(write, tmp_path):
    write(words=WORDS)
    write(folder="other", words=WORDS)
    with pytest.raises(ValueError, match="remove one of them"):
        add_alignments(dataset_of(a="THE CAT"), tmp_path)


def test_wrong_number_of_words(write, tmp_path):
    write(words=WORDS)
    with pytest.raises(ValueError, match="words: 0"):
        add_alignments(dataset_of(a="THE CAT"), tmp_path, words=0)
