"""The command of a demo: it synthesises, trains, compares and reports.

It trains three models, each in a folder of its own: `dense`, `pruned` (which
starts from `dense`), and `dense_longer`, a dense model with as many epochs as
the two together. Then it measures all three in one process and lets the export
transcribe the test files one by one. The results are in report.json,
structure.png and curves.png.
"""

import argparse
import hashlib
import json
import shutil
import signal
import sys
from pathlib import Path

import torch

from sb_prune.demo.comparison import SECONDS, as_text, compare, transcribe
from sb_prune.demo.runs import say, train
from sb_prune.report.command import write_report
from sb_prune.support.disk import whole_file


def demonstrate(demo, description):
    """Runs a demo with the options of the command line.

    A demo that was stopped continues with the same command.

    Arguments
    ---------
    demo : Demo
    description : str
        What `--help` says first.
    """
    given = _read_command_line(description)
    folder = Path(given.folder).resolve()
    torch.set_num_threads(1)
    # Without this, a terminated demo would leave its trainings behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    _claim_folder(folder, given, demo.yamls())
    say("speech: synthesising")
    try:
        common = demo.prepare(folder, given.seed, given.debug_size)
    except (ImportError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    common["seed"] = given.seed
    runs = demo.plan_runs(folder, common, given.debug_size)
    train([[runs["dense"], runs["pruned"]], [runs["dense_longer"]]], given.jobs)
    say("comparison: measuring the three models")
    report = compare(demo, runs, given.debug_size)
    report["seed"] = given.seed
    say("comparison: the export reads the test files")
    report.update(transcribe(demo, runs["pruned"], common["data_folder"]))
    say("report: the pruned model")
    text = _show_export(runs["pruned"].folder / "export", folder)
    path = folder / "report.json"
    path.write_text(json.dumps(report, indent=4) + "\n", encoding="utf-8")
    print(f"\n{text}\n\n{as_text(demo, report)}\n")
    say(f"done: {path}, structure.png, curves.png")


def _read_command_line(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", help="where all results go")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument(
        "--jobs", type=int, default=2, help="trainings at a time (default: 2)"
    )
    parser.add_argument(
        "--debug_size",
        action="store_true",
        help="tiny models and corpora, for tests",
    )
    given = parser.parse_args()
    if given.jobs < 1:
        parser.error(f"--jobs: {given.jobs} must be at least 1")
    return given


def _claim_folder(folder, given, yamls):
    """Marks the folder as this demo's; refuses one that holds anything else."""
    digest = hashlib.sha256()
    for path in yamls:
        digest.update(path.read_bytes())
    wanted = {
        "seed": given.seed,
        "debug_size": given.debug_size,
        "yaml_sha256": digest.hexdigest(),
    }
    marker = folder / "demo.json"
    if marker.is_file():
        found = json.loads(marker.read_text())
        other = [key for key in wanted if found.get(key) != wanted[key]]
        if other:
            sys.exit(
                f"error: {folder} holds a demo with another {other[0]} "
                f"({found.get(other[0])}, not {wanted[other[0]]}); name "
                "another folder, or delete it"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        sys.exit(
            f"error: {folder} holds something else than a demo; name a folder "
            "that does not exist"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if not marker.is_file():
        with whole_file(marker) as aside:
            aside.write_text(json.dumps(wanted, indent=4) + "\n")


def _show_export(export, folder):
    """Reports on the export; copies pictures and table into the folder."""
    text = write_report(export, SECONDS)
    (folder / "report.log").write_text(text + "\n", encoding="utf-8")
    for picture in ("structure.png", "curves.png"):
        shutil.copy(export / picture, folder)
    return text
