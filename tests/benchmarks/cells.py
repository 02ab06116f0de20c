"""Tables whose cells are runs of a recipe: long, resumable, side by side.

Finished cells are read from, and added to, a JSON file beside the benchmark,
so that a stopped benchmark continues; a run that was killed continues too.
"""

import argparse
import fcntl
import json
import os
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from threading import Lock

ROOT = Path(__file__).resolve().parents[2]
CTC = ROOT / "recipes/LibriSpeech/ASR/CTC"


@contextmanager
def locked(path):
    """Context that one process at a time is in."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Runs:
    """Runs of recipes in one folder, each in a process of its own.

    Arguments
    ---------
    folder : Path
        Where runs and logs go.
    """

    threads = 1  # of each process

    def __init__(self, folder):
        self.folder = folder
        self._locks = defaultdict(Lock)  # one run that two cells start from

    def run(self, name, script, yaml, last, options):
        """Runs, or continues, one training unless it is finished.

        Arguments
        ---------
        name : str
            Of its folder.
        script, yaml : Path
            The recipe.
        last : str or callable
            The file that stands in the folder when the run is finished, or a
            function that says of the folder whether it is.
        options : dict
            Overrides of the YAML.

        Returns
        -------
        Path
            The output folder.
        """
        output = self.folder / name
        with self._locks[name], locked(self.folder / f"{name}.lock"):
            finished = last if callable(last) else _holds(last)
            if not finished(output):
                self._run(script, yaml, {**options, "output_folder": output})
        return output

    def small_encoder(self, speech, name="encoder", **options):
        """Trains the encoder of the CTC recipe (demo_encoder.yaml).

        Arguments
        ---------
        speech : Path
            The demo's LibriSpeech.
        name : str
            Of its folder.
        **options
            Overrides of the YAML.

        Returns
        -------
        Path
            An ordinary Hugging Face folder.
        """
        output = self.run(
            name,
            CTC / "train_with_wav2vec.py",
            CTC / "hparams/demo_encoder.yaml",
            "wer_test-clean.txt",
            {**options, "data_folder": speech},
        )
        return output / "encoder"

    def _run(self, script, yaml, options):
        flags = [f"--{key}={value}" for key, value in options.items()]
        log = options["output_folder"].with_name(
            options["output_folder"].name + ".log"
        )
        with open(log, "a", encoding="utf-8") as file:
            subprocess.run(
                [sys.executable, script, yaml]
                + ["--device=cpu", "--noprogressbar", *flags],
                cwd=script.parent,
                env={**os.environ, "OMP_NUM_THREADS": str(self.threads)},
                stdout=file,
                stderr=subprocess.STDOUT,
                check=True,
            )


def _holds(name):
    return lambda folder: (folder / name).is_file()


class Table:
    """Finished cells, kept in a JSON file.

    Arguments
    ---------
    path : Path
        Of the file; it need not exist.
    """

    def __init__(self, path):
        self.path = path
        self.cells = self._read()
        self._lock = Lock()

    def _read(self):
        return json.loads(self.path.read_text()) if self.path.is_file() else {}

    def add(self, key, value):
        """Keeps a cell, on disk too."""
        # another process may have added some
        with self._lock, locked(self.path.with_suffix(".lock")):
            self.cells = {**self._read(), key: value}
            text = json.dumps(dict(sorted(self.cells.items())), indent=1)
            aside = self.path.with_suffix(".tmp")
            aside.write_text(text + "\n")
            os.replace(aside, self.path)

    def fill(self, keys, run, jobs):
        """Runs what is missing, `jobs` at a time.

        Arguments
        ---------
        keys : list of str
            In the order in which they are worth running.
        run : callable
            key -> value of the cell.
        jobs : int

        Raises
        ------
        Exception
            The first of a cell that failed, once all others are there.
        """

        failed = []

        def add(key):
            try:
                self.add(key, run(key))
            except Exception as error:  # the others are worth running
                failed.append(error)
                print(f"{key} failed: {error}", file=sys.stderr, flush=True)
            else:
                print(f"{key}: {self.cells[key]}", file=sys.stderr, flush=True)

        missing = [key for key in keys if key not in self.cells]
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(add, missing))
        if failed:
            raise failed[0]


def spread(values):
    """'mean +- half the range (n)'."""
    if not values:
        return "-"
    half = (max(values) - min(values)) / 2
    return f"{mean(values):.2f} ± {half:.2f} ({len(values)})"


def run_benchmark(path, doc, plan_cells, make_cells, summarise, as_markdown):
    """Reads the command line, runs what is missing, prints the table.

    The figures go to stdout as one line of JSON, all else to stderr.

    Arguments
    ---------
    path : Path
        Of the table's file; its stem names a folder in `results`.
    doc : str
        Of the script; its first line says what it measures.
    plan_cells : callable
        Whether --full is given -> keys of all cells, the most worth first.
    make_cells : callable
        Folder -> object whose `run(key)` gives the value of a cell.
    summarise : callable
        Cells -> dict to print.
    as_markdown : callable
        That dict -> table for a README.

    Returns
    -------
    dict
        The summary.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--folder", default=ROOT / "results" / path.stem)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    given = parser.parse_args()
    table, keys = Table(path), plan_cells(given.full)
    if not table.cells.keys() >= set(keys):
        folder = Path(given.folder).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        table.fill(keys, make_cells(folder).run, given.jobs)
    summary = summarise(table.cells)
    print(as_markdown(summary), file=sys.stderr)
    print(json.dumps(summary), flush=True)
    return summary
