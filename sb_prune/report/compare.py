"""Compares models on the same utterances, in turns.

python -m sb_prune.report --compare A B --audio DIR --output page.html
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy
import soundfile

from sb_prune.deploy.manifests import audio_files, labelled_files, some
from sb_prune.deploy.runtime.settings import DeployError
from sb_prune.report.models import processes
from sb_prune.support.words import (
    error_rate,
    normaliser,
    rate_difference,
    word_errors,
)

LONGEST = 30.0  # seconds of an utterance


@dataclass
class Row:
    """What was found out about one model.

    Arguments
    ---------
    name : str
    facts : dict
        See `sb_prune.report.models.Process`, with what `costs` adds.
    texts : list of str
        What it heard in each utterance.
    seconds : list of float
        That each took.
    memory : int or None
        Peak in MiB.
    counts : numpy.ndarray
        (utterances, 2): word errors, and words.
    """

    name: str
    facts: dict = field(default_factory=dict)
    texts: list = field(default_factory=list)
    seconds: list = field(default_factory=list)
    memory: int | None = None
    counts: numpy.ndarray | None = None

    @property
    def rate(self):
        """(word error rate, lower, upper bound), in %."""
        return error_rate(self.counts)

    def more_than(self, other):
        """The same of the errors that another model does not make."""
        return rate_difference(self.counts, other.counts)


@dataclass(frozen=True)
class Comparison:
    """Models on the same utterances.

    Arguments
    ---------
    rows : list of Row
    names : list of str
        Of the utterances.
    durations : list of float
        Seconds of these.
    said : list of list of str
        Words that count as right, of each utterance.
    heard : list of list of list of str
        Words that each model heard, of each utterance.
    has_labels : bool
        Whether `said` are transcripts; else they are what the first model
        heard.
    threads : int
    normaliser : str
        Says how words were compared.
    too_long : int
        Utterances that not all models hear at once, and that are left out.
    unreadable : int
        Files of a folder that are left out as nothing can be read from them.
    """

    rows: list
    names: list
    durations: list
    said: list
    heard: list
    has_labels: bool
    threads: int
    normaliser: str
    too_long: int
    unreadable: int


def utterances(audio, labels, data_folder):
    """Finds utterances.

    Arguments
    ---------
    audio : str or None
        Folder with audio files.
    labels : str or None
        In its place, a CSV manifest with columns `wav` and `wrd`.
    data_folder : str or None
        What stands for `$data_root` in the manifest.

    Returns
    -------
    list of (str, str or None)
        Paths, and transcripts.

    Raises
    ------
    DeployError
        If there is no audio.
    """
    if (audio is None) == (labels is None):
        raise DeployError("--compare: write --audio FOLDER or --labels CSV")
    if labels is not None:
        return labelled_files(labels, data_folder)
    return [(str(path), None) for path in audio_files(audio)]


def _seconds(path, text):
    """Of a file; None if nothing can be read from one without transcript."""
    try:
        found = soundfile.info(str(path)).duration
        if not found:
            raise OSError("it has no samples")
    except (OSError, soundfile.SoundFileError) as error:
        if text is None:  # of a folder, where all kinds of files may lie
            return None
        raise DeployError(f"{path} cannot be read: {error}") from error
    return found


def _chosen(found, longest, count):
    """Utterances that all models hear, and how many do not serve.

    Returns
    -------
    list of (str, str or None, float)
        Path, transcript and seconds.
    int, int
        Utterances that are too long, and files that cannot be read.
    """
    timed = [(*pair, _seconds(*pair)) for pair in found]
    read = [each for each in timed if each[2] is not None]
    heard = [each for each in read if each[2] <= longest]
    if not heard:
        raise DeployError(
            f"--compare: no utterance that can be read is at most {longest:g} "
            "s long, as all models hear; cut them at pauses"
        )
    left_out = len(read) - len(heard), len(timed) - len(read)
    return some(heard, count), *left_out


def compare(folders, found, count, threads=1):
    """Lets models transcribe the same utterances, in turns.

    Arguments
    ---------
    folders : dict
        Name -> an export, another folder that SpeechBrain loads, or what was
        deployed. Loading runs whatever a `hyperparams.yaml` names.
    found : list of (str, str or None)
        Paths of utterances, and transcripts.
    count : int
        How many of these at most, evenly spaced in their order.
    threads : int
        Of each model.

    Returns
    -------
    Comparison

    Raises
    ------
    DeployError
        If a model cannot be loaded, a file cannot be read, no utterance is
        short enough, or there are no words.
    """
    rows = {name: Row(name) for name in folders}
    with processes(folders, threads) as running:
        limits = [process.facts["longest"] for process in running.values()]
        longest = min(filter(None, limits), default=LONGEST)
        longest = min(longest, LONGEST)
        chosen, too_long, unreadable = _chosen(found, longest, count)
        for process in running.values():
            process.transcribe(chosen[0][0])  # the first call takes longer
        for n, (path, _, _) in enumerate(chosen):
            turns = list(running.items())
            for name, process in turns[:: -1 if n % 2 else 1]:
                text, seconds = process.transcribe(path)
                rows[name].texts.append(text)
                rows[name].seconds.append(seconds)
        for name, process in running.items():
            rows[name].memory = process.memory()
        for name, process in running.items():
            rows[name].facts = {**process.facts, **process.costs()}
    rows = list(rows.values())
    spoken = {row.facts["language"] for row in rows} - {None}
    is_english = bool(spoken) and spoken <= {"en", "english"}
    words, style = normaliser("en" if is_english else None)
    transcripts = [text for _, text, _ in chosen]
    has_labels = None not in transcripts
    right = transcripts if has_labels else rows[0].texts
    said = [words(text) for text in right]
    if not any(said):
        raise DeployError(
            "--compare: there is not one word that counts as right; write "
            "--labels CSV with transcripts, or name a model first that hears "
            "words"
        )
    heard = [[words(text) for text in row.texts] for row in rows]
    for row, texts in zip(rows, heard):
        pairs = zip(said, texts)
        row.counts = numpy.array([word_errors(*pair) for pair in pairs])
    return Comparison(
        rows,
        [Path(path).stem for path, _, _ in chosen],
        [seconds for _, _, seconds in chosen],
        said,
        heard,
        has_labels,
        threads,
        style,
        too_long,
        unreadable,
    )


def table(comparison):
    """The comparison as rows of text.

    Arguments
    ---------
    comparison : Comparison

    Returns
    -------
    list of list of str
        The header, then a row for each model.
    """
    against = "WER" if comparison.has_labels else "words unlike the first"
    header = [
        "model",
        "runtime",
        "parameters, M",
        "encoder GMACs/s",
        "files, MB",
        "loading, s",
        "latency, s: median",
        "p90",
        "real-time factor",
        "peak memory, MiB",
        f"{against}, % (95% interval)",
        "more than the first",
    ]
    audio, rows = sum(comparison.durations), [header]
    for row in comparison.rows:
        facts = row.facts
        rows.append(
            [
                row.name,
                facts["runtime"],
                f"{facts['parameters'] / 1e6:.1f}",
                f"{facts['macs'] / 1e9:.2f}",
                f"{facts['bytes'] / 1e6:.1f}",
                f"{facts['load_s']:.1f}",
                f"{numpy.median(row.seconds):.3f}",
                f"{numpy.percentile(row.seconds, 90):.3f}",
                f"{sum(row.seconds) / audio:.4f}",
                "-" if row.memory is None else str(row.memory),
                _interval(row.rate),
                "-"
                if row is comparison.rows[0]
                else _interval(row.more_than(comparison.rows[0])),
            ]
        )
    return rows


def _interval(rate):
    middle, low, high = rate
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"
