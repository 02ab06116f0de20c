"""Trains recipes in processes of their own, several at a time."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from sb_prune.report.pictures import read_log

STARTED = time.monotonic()


def say(text):
    """Prints a line of progress with the seconds since the start.

    Arguments
    ---------
    text : str
    """
    print(f"[{time.monotonic() - STARTED:5.0f} s] {text}", flush=True)


@dataclass(frozen=True)
class Run:
    """One run of a recipe.

    Arguments
    ---------
    folder : Path
        The output folder; its name is that of the run.
    script : Path
        The recipe's training script.
    yaml : str
        Name of a file in the recipe's `hparams/`.
    epochs : int
        Number of epochs that the run trains.
    watched : str
        The validation metric to show as progress, as train_log.txt calls it.
    options : dict
        Overrides for the YAML.
    threads : int
        Number of threads that the process may use.

    Example
    -------
    >>> run = Run(
    ...     Path("results/dense"), Path("train.py"), "train.yaml", 2, "WER"
    ... )
    >>> run.name, run.progress()
    ('dense', 'starting')
    """

    folder: Path
    script: Path
    yaml: str
    epochs: int
    watched: str
    options: dict = field(default_factory=dict)
    threads: int = 1

    @property
    def name(self):
        """Name of the output folder."""
        return self.folder.name

    @property
    def log(self):
        """File that receives the output of the process."""
        return self.folder.with_suffix(".log")

    @property
    def marker(self):
        """File that exists once the run is finished."""
        return self.folder / "finished"

    def start(self):
        """Starts the run, or continues it, in a process of its own."""
        options = {**self.options, "output_folder": self.folder}
        with open(self.log, "a", encoding="utf-8") as log:
            return subprocess.Popen(
                [
                    sys.executable,
                    self.script.name,
                    f"hparams/{self.yaml}",
                    "--device=cpu",
                    "--noprogressbar",
                    *(f"--{key}={value}" for key, value in options.items()),
                ],
                cwd=self.script.parent,
                env={**os.environ, "OMP_NUM_THREADS": str(self.threads)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def progress(self):
        """Says which epoch was finished last, and how well."""
        log = self.folder / "train_log.txt"
        curves = read_log(log) if log.is_file() else {}
        figures = curves.get(f"valid {self.watched}")
        if not figures:
            return "starting"
        epoch = max(figures)
        return (
            f"epoch {epoch} of {self.epochs}, "
            f"valid {self.watched} {figures[epoch]:.2f}"
        )


def train(chains, jobs=2):
    """Trains several chains of runs; skips the runs that are finished.

    Arguments
    ---------
    chains : list of list of Run
        The runs of one chain follow one another, each may start from the one
        before; different chains are independent.
    jobs : int
        Largest number of runs at a time.

    Raises
    ------
    SystemExit
        If a run fails; the end of its log is printed.
    """
    waiting = [
        [run for run in chain if not run.marker.is_file()] for chain in chains
    ]
    processes, shown = {}, {}
    try:
        while any(waiting):
            for chain in filter(None, waiting):
                run = chain[0]
                if run.name not in processes:
                    if len(processes) >= jobs:
                        continue
                    processes[run.name] = run.start()
                status = processes[run.name].poll()
                progress = run.progress()
                if shown.get(run.name) != progress:
                    shown[run.name] = progress
                    say(f"{run.name}: {progress}")
                if status == 0:
                    run.marker.touch()
                    say(f"{run.name}: finished")
                    del processes[run.name], chain[0]
                elif status is not None:
                    _fail(run, status)
            time.sleep(0.5)
    finally:
        for process in processes.values():
            process.terminate()


def _fail(run, status):
    """Prints the end of a run's log and ends the program."""
    last = run.log.read_text(encoding="utf-8").splitlines()[-20:]
    print(*last, sep="\n", file=sys.stderr)
    sys.exit(f"error: {run.name} failed with status {status}, see {run.log}")
