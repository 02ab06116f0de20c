"""Pseudo-labels: what a model itself writes for the training data, as targets.

A student learns the casing, the punctuation and the wording of its teacher, and
from utterances that it heard right: those whose pseudo-label differs too much
from the transcript are left out. Gandhi et al., "Distil-Whisper: Robust
Knowledge Distillation via Large-Scale Pseudo Labelling" (2023, 2311.00430),
section 3. Audio without transcripts is enough; all of it is used then.
"""

import csv
import json
from itertools import compress
from pathlib import Path

from speechbrain.dataio.batch import PaddedBatch
from speechbrain.utils.distributed import ddp_barrier, get_rank, run_on_main
from speechbrain.utils.edit_distance import wer_details_for_batch
from speechbrain.utils.logger import get_logger
from torch.utils.data import DataLoader
from tqdm import tqdm

from sb_prune.support.disk import naming_what_fails, whole_file
from sb_prune.support.parallel import process_count
from sb_prune.support.random_state import generators_untouched

logger = get_logger(__name__)

COLUMNS = ("ID", "text", "WER")


def write_pseudo_labels(
    path,
    dataset,
    transcribe,
    normalize,
    settings,
    max_batch_length,
    max_batch_ex,
    **loader_opts,
):
    """Transcribes a data set into a csv file, once.

    The file has the columns ID, text, and WER (percent of the words of the
    transcript; empty where there is none). If it is there, nothing is done.
    Until it is complete, batches are appended to files beside it, so that a run
    that was killed goes on where it was. Several processes share the work.

    Arguments
    ---------
    path : str
        The csv file.
    dataset : DynamicItemDataset
        With id, sig, wrd (may be empty) and duration (seconds).
    transcribe : callable
        Batch with id, sig and wrd -> list of str.
    normalize : callable
        Text -> text whose words are compared.
    settings : dict
        What the texts depend on, as JSON can hold it, e.g. the model's name.
        It is kept beside the csv file, in one that ends in `.json`.
    max_batch_length : float
        Seconds of a batch, padding included.
    max_batch_ex : int
        Utterances of a batch.
    **loader_opts
        Further arguments of the DataLoader.

    Raises
    ------
    ValueError
        If the file was begun with other settings.

    Example
    -------
    >>> import torch
    >>> from speechbrain.dataio.dataset import DynamicItemDataset
    >>> row = {"sig": torch.ones(8), "duration": 1.0, "wrd": "HELLO YOU"}
    >>> dataset = DynamicItemDataset({"a": row, "b": {**row, "wrd": ""}})
    >>> path = getfixture("tmp_path") / "pseudo_labels.csv"
    >>> write_pseudo_labels(
    ...     path,
    ...     dataset,
    ...     transcribe=lambda batch: ["Hello, Hugh."] * len(batch.id),
    ...     normalize=lambda text: text.lower().replace(",", ""),
    ...     settings={"whisper_hub": "openai/whisper-base"},
    ...     max_batch_length=10,
    ...     max_batch_ex=4,
    ... )
    >>> path.read_text().split("\\n")
    ['ID,text,WER', 'a,"Hello, Hugh.",50.00', 'b,"Hello, Hugh.",', '']
    >>> read_pseudo_labels(path, dataset, max_wer=10.0)
    {'b': 'Hello, Hugh.'}
    """
    path = Path(path)
    if run_on_main(_is_complete, [path, settings]):
        return
    batches = _batches(dataset, max_batch_length, max_batch_ex)
    missing = run_on_main(_missing, [path, batches])
    rank = get_rank() or 0
    with generators_untouched(), dataset.output_keys_as(["id", "sig", "wrd"]):
        loader = _loader(dataset, missing[rank :: process_count()], loader_opts)
        rows = (_rows(b, transcribe(b), normalize) for b in loader)
        _append(_part(path, rank), rows)
    ddp_barrier()
    run_on_main(_complete, [path, dataset.data_ids])


def read_pseudo_labels(path, dataset, max_wer):
    """Reads the pseudo-labels that differ little from their transcripts.

    Arguments
    ---------
    path : str
        The csv file.
    dataset : DynamicItemDataset
        The utterances that are wanted.
    max_wer : float
        Percent. Where there is no transcript, the label counts as right.

    Returns
    -------
    dict
        ID -> text.

    Raises
    ------
    ValueError
        If there is no label of an utterance, or none is right.
    """
    with open(path, newline="", encoding="utf-8") as fin:
        reader = csv.DictReader(fin)
        missing = {"ID", "text"} - {*(reader.fieldnames or ())}
        if missing:
            raise ValueError(
                f"{path} has no column {min(missing)}; write ID, text and, "
                "where transcripts are known, WER"
            )
        rows = {row["ID"]: row for row in reader}
    for utterance in dataset.data_ids:
        if utterance not in rows:
            raise ValueError(
                f"{path} has no label of {utterance}: it was made of other "
                "data; write another output_folder"
            )
    found = [rows[utterance] for utterance in dataset.data_ids]
    right = {
        row["ID"]: row["text"]
        for row in found
        if not row.get("WER") or float(row["WER"]) <= max_wer
    }
    logger.info(
        f"{path}: {len(right)} of {len(found)} pseudo-labels differ by no more "
        f"than max_wer, {max_wer}%, from their transcripts"
    )
    if not right:
        raise ValueError(
            f"max_wer: {max_wer}: each pseudo-label in {path} differs more "
            "from its transcript; write more, or another whisper_hub"
        )
    return right


def _is_complete(path, settings):
    """Whether the file is there; notes or compares what it is made from."""
    marker = path.with_suffix(".json")
    if marker.is_file():
        before = json.loads(marker.read_text(encoding="utf-8"))
        for key in [*before, *settings]:
            if before.get(key) != settings.get(key):
                raise ValueError(
                    f"{path} was begun with {key}: {before.get(key)}, not "
                    f"{settings.get(key)}; write another output_folder, or the "
                    "old value"
                )
    elif not path.is_file():
        _write(marker, lambda fout: json.dump(settings, fout))
    return path.is_file()


def _batches(dataset, max_batch_length, max_batch_ex):
    """Lists of IDs, the longest utterances first; always the same ones."""
    with dataset.output_keys_as(["id", "duration"]):
        items = [(item["duration"], item["id"]) for item in dataset]
    batches, longest = [], 0.0
    for seconds, utterance in sorted(items, reverse=True):
        full = not batches or len(batches[-1]) == max_batch_ex
        if full or longest * (len(batches[-1]) + 1) > max_batch_length:
            batches.append([])
            longest = seconds
        batches[-1].append(utterance)
    return batches


def _loader(dataset, batches, loader_opts):
    place = {utterance: i for i, utterance in enumerate(dataset.data_ids)}
    loader = DataLoader(
        dataset,
        batch_sampler=[[place[name] for name in batch] for batch in batches],
        collate_fn=PaddedBatch,
        **loader_opts,
    )
    return tqdm(loader, "Pseudo-labels", disable=None, dynamic_ncols=True)


def _rows(batch, texts, normalize):
    """A row for each utterance of a batch."""
    rows = []
    for name, wrd, text in zip(batch.id, batch.wrd, texts):
        said, heard = (normalize(t).split() for t in (wrd, text))
        wer = ""
        if said:
            (details,) = wer_details_for_batch([name], [said], [heard])
            wer = f"{details['WER']:.2f}"
        rows.append((name, " ".join(text.split()), wer))
    return rows


# --------------------------------------------------------------------- files


def _part(path, rank):
    """Where a process appends its rows."""
    return path.with_name(f"{path.name}.part{rank}")


def _parts(path):
    return sorted(path.parent.glob(f"{path.name}.part*"))


def _append(part, batches):
    with naming_what_fails(part):
        fout = open(part, "a", newline="", encoding="utf-8")
    with fout:
        for rows in batches:
            with naming_what_fails(part):
                _csv(fout).writerows(rows)
                fout.flush()


def _missing(path, batches):
    """Lists the batches that are not done, and drops what is torn."""
    rows = _read_parts(path)
    is_done = [rows.keys() >= set(batch) for batch in batches]
    kept = [
        rows[name] for batch in compress(batches, is_done) for name in batch
    ]
    first, *others = _part(path, 0), *_parts(path)
    _write(first, lambda fout: _csv(fout).writerows(kept))
    for part in others:
        if part != first:
            part.unlink()
    return [batch for batch, done in zip(batches, is_done) if not done]


def _complete(path, names):
    rows = _read_parts(path)
    table = [COLUMNS, *(rows[name] for name in names)]
    _write(path, lambda fout: _csv(fout).writerows(table))
    for part in _parts(path):
        part.unlink()


def _read_parts(path):
    """ID -> row, of all lines that were written to their end."""
    rows = {}
    for part in _parts(path):
        lines = part.read_bytes().split(b"\n")[:-1]
        for row in csv.reader(line.decode("utf-8") for line in lines):
            rows[row[0]] = row
    return rows


def _csv(fout):
    return csv.writer(fout, lineterminator="\n")


def _write(path, write):
    """Writes a file that is there when it is whole."""
    with whole_file(path) as aside:
        with open(aside, "w", newline="", encoding="utf-8") as fout:
            write(fout)
