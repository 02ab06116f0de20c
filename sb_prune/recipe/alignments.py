"""When each word and each phoneme is said: alignments in TextGrid files.

The Montreal Forced Aligner writes them, one for each utterance, with the tiers
`words` and `phones`. As labels of `layer_pruning` they show what each layer
knows of words and phonemes.
"""

from collections import Counter
from pathlib import Path

import speechbrain as sb
from speechbrain.dataio.dataset import add_dynamic_item

from sb_prune.support.values import Whole, checked

SILENCES = {"", "<eps>", "sil", "sp", "spn"}
ROUNDING = 0.05  # seconds by which a grid may be longer or shorter


@checked
def add_alignments(dataset, folder, words: Whole(1) = 35):
    """Gives a dataset the keys `word` and `phone`, lists of labelled segments.

    Phonemes are without stress. Of words the most frequent are labelled, as
    a class needs many points.

    Arguments
    ---------
    dataset : DynamicItemDataset
        With id, duration (seconds) and wrd (what is said).
    folder : str
        Holds `<id>.TextGrid` of each utterance, however deep.
    words : int
        How many.

    Raises
    ------
    FileNotFoundError
        If an utterance has no file.
    ValueError
        If an utterance has two.
    ImportError
        If the package `textgrid` is not installed.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> from textgrid import IntervalTier, TextGrid
    >>> words, grid = IntervalTier("words", 0, 2), TextGrid()
    >>> words.add(0.5, 2.0, "yes")
    >>> grid.append(words)
    >>> grid.write(folder / "a.TextGrid")
    >>> from speechbrain.dataio.dataset import DynamicItemDataset
    >>> row = {"duration": 2.0, "wrd": "YES"}
    >>> dataset = DynamicItemDataset({"a": row})
    >>> add_alignments(dataset, folder)
    >>> dataset.set_output_keys(["word"])
    >>> dataset[0]
    {'word': [('yes', 0.25, 1.0)]}
    """
    _grids()
    files = {}
    for path in sorted(Path(folder).rglob("*.TextGrid")):
        other = files.setdefault(path.stem, path)
        if other != path:
            raise ValueError(f"{other} and {path}: remove one of them")
    missing = [name for name in dataset.data_ids if name not in files]
    if missing:
        raise FileNotFoundError(
            f"{folder} has no {missing[0]}.TextGrid, and lacks "
            f"{len(missing)} of {len(dataset)} utterances; name a folder with "
            "alignments of all, or data that are aligned"
        )
    said = Counter()
    for row in dataset.data.values():
        said.update(row["wrd"].lower().split())
    frequent = {word for word, _ in said.most_common(words)}

    @sb.utils.data_pipeline.takes("id", "duration")
    @sb.utils.data_pipeline.provides("word")
    def word_pipeline(name, duration):
        found = read_tier(files[name], "words", float(duration))
        found = [(label.lower(), *times) for label, *times in found]
        return [segment for segment in found if segment[0] in frequent]

    @sb.utils.data_pipeline.takes("id", "duration")
    @sb.utils.data_pipeline.provides("phone")
    def phone_pipeline(name, duration):
        found = read_tier(files[name], "phones", float(duration))
        return [(label.rstrip("012"), *times) for label, *times in found]

    add_dynamic_item([dataset], word_pipeline)
    add_dynamic_item([dataset], phone_pipeline)


def read_tier(path, tier, seconds):
    """Segments of a tier, without silences.

    Arguments
    ---------
    path : Path
        A TextGrid file, long or short.
    tier : str
        Its name.
    seconds : float
        Length of the utterance.

    Returns
    -------
    list of tuple
        (label, begin, end), with times as fractions of the utterance.

    Raises
    ------
    ImportError
        If the package `textgrid` is not installed.
    ValueError
        If the file is none, has no such tier of intervals, or is of another
        length.
    """
    kinds = _grids()
    try:
        grid = kinds.TextGrid.fromFile(str(path))
    except Exception as error:  # of whatever kind the package raises
        raise ValueError(f"{path} is no TextGrid ({error!r})") from error
    found = grid.getFirst(tier)
    if not isinstance(found, kinds.IntervalTier):
        raise ValueError(f"{path} has no tier {tier!r} of intervals")
    length = float(grid.maxTime or found.maxTime or 0)
    if abs(length - seconds) > ROUNDING:
        raise ValueError(
            f"{path} is of {length:.2f} s, the utterance of {seconds:.2f} s; "
            "align it again, or leave it out of the data"
        )
    times = [
        (i.mark, float(i.minTime) / seconds, min(float(i.maxTime) / seconds, 1))
        for i in found
        if i.mark not in SILENCES
    ]
    return [(label, begin, end) for label, begin, end in times if begin < end]


def _grids():
    """The package that reads the files, which only users of this need."""
    try:
        import textgrid
    except ImportError as error:
        raise ImportError(
            "alignments are read by the package textgrid: pip install textgrid"
        ) from error
    return textgrid
