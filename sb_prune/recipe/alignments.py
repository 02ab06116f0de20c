"""When each word and each phoneme is said: alignments in TextGrid files.

The Montreal Forced Aligner writes them, one for each utterance, with the tiers
`words` and `phones`. As labels of `layer_pruning` they show what each layer
knows of words and phonemes.
"""

from collections import Counter
from pathlib import Path

import speechbrain as sb
from speechbrain.dataio.dataset import add_dynamic_item

SILENCES = {"", "<eps>", "sil", "sp", "spn"}


def add_alignments(dataset, folder, words=35):
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
    files = {path.stem: path for path in Path(folder).rglob("*.TextGrid")}
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
        If the file is none, or has no such tier.
    """
    try:
        from textgrid import TextGrid
    except ImportError as error:
        raise ImportError(
            "alignments are read by the package textgrid: pip install textgrid"
        ) from error
    try:
        found = TextGrid.fromFile(str(path)).getFirst(tier)
    except Exception as error:  # of whatever kind the package raises
        raise ValueError(f"{path} is no TextGrid ({error!r})") from error
    if found is None:
        raise ValueError(f"{path} has no tier {tier!r}")
    return [
        (
            interval.mark,
            float(interval.minTime) / seconds,
            float(interval.maxTime) / seconds,
        )
        for interval in found
        if interval.mark not in SILENCES
    ]
