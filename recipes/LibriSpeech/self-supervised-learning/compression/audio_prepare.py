"""Any folders of audio files to csv files; no transcripts are needed."""

from sb_prune.recipe.audio_folders import read_folder
from sb_prune.recipe.manifests import write_once

COLUMNS = ("ID", "duration", "wav")


def prepare_audio(
    data_folder,
    save_folder,
    train_splits,
    valid_splits,
    shortest=1.0,
    skip_prep=False,
):
    """Writes `train.csv` and `valid.csv`, which name audio from `$data_root`.

    Files that cannot be read, are shorter than `shortest`, have several
    channels, or are not sampled at 16 kHz are left out; the log says how many.
    When the csv files were already written for the same folders, nothing is
    done.

    Arguments
    ---------
    data_folder : str
        Holds the splits.
    save_folder : str
        Where the csv files go.
    train_splits, valid_splits : list of str
        Folders below it, searched to any depth; "." for all of it.
    shortest : float
        In seconds.
    skip_prep : bool
        Whether to trust the csv files that are there.

    Raises
    ------
    FileNotFoundError
        If a split holds no audio file.
    ValueError
        If none of a split's files is of use.

    Example
    -------
    >>> prepare_audio("/data/LibriSpeech", "results", [], [], skip_prep=True)
    """
    if skip_prep:
        return
    splits = {"train": list(train_splits), "valid": list(valid_splits)}
    settings = {"data_folder": str(data_folder), "shortest": shortest, **splits}

    def read():
        return {
            name: [
                row
                for folder in folders
                for row in read_folder(data_folder, folder, shortest)
            ]
            for name, folders in splits.items()
        }

    write_once(save_folder, "audio_prepare", settings, COLUMNS, read)
