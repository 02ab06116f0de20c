"""A fork of the server shows a script what a new process would."""

import fcntl
import os
import subprocess
import sys
import time

import pytest
from fork_server import run_forked

SEEN = """
import logging, os, sys
import torch

class Here: pass

print(sys.argv, os.getcwd(), sys.path, __name__, __file__, Here.__module__)
print(os.environ.get("SEEN"), sys.stdin.read(), logging.root.handlers)
print(torch.get_num_threads())
print(sys.modules["__main__"].__dict__ is globals())
print("done", file=sys.stderr)
"""


@pytest.fixture
def script(tmp_path):
    """Function: text -> path of a script with that text."""

    def write(text):
        path = tmp_path / "scripts" / "script.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def run_anew(*arguments, **options):
    """What `run_forked` does, in a new process."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        **options,
    )


def same(forked, new):
    return (forked.returncode, forked.stdout, forked.stderr) == (
        new.returncode,
        new.stdout,
        new.stderr,
    )


def test_all_that_a_script_sees(script, tmp_path):
    path = script(SEEN)
    options = {
        "cwd": tmp_path,
        "env": {**os.environ, "SEEN": "1", "OMP_NUM_THREADS": "1"},
    }
    new = run_anew(path, "--key=value", **options)
    assert "done" in new.stderr
    for _ in range(2):  # the first one leaves the second nothing
        assert same(run_forked(path, "--key=value", **options), new)


def test_modules_are_run_too(script):
    folder = script("").parent
    (folder / "package").mkdir()
    (folder / "package/__main__.py").write_text("import sys; print(sys.argv)")
    command = ("-m", "package", "more")
    new = run_anew(*command, cwd=folder)
    assert "__main__.py" in new.stdout
    assert same(run_forked(*command, cwd=folder), new)


@pytest.mark.parametrize(
    "end",
    [
        "sys.exit()",
        "sys.exit(3)",
        "sys.exit('error: said so')",
        "os._exit(4)",
        "os.kill(os.getpid(), 9)",
        "atexit.register(print, 'at the end')",
        "threading.Timer(0.1, print, ['later']).start()",
        "sys.excepthook = print; 1 / 0",
    ],
)
def test_ends(end, script):
    path = script(f"import atexit, os, sys, threading\n{end}")
    new, forked = run_anew(path), run_forked(path)
    if "excepthook" in end:  # prints the address of the traceback
        new.stdout, forked.stdout = (
            done.stdout.split(" at 0x")[0] for done in (new, forked)
        )
    assert same(forked, new)


def test_an_error_is_printed(script):
    done = run_forked(script("raise ValueError('target: 7')"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ValueError: target: 7"


@pytest.mark.parametrize(
    "draw",
    [
        "import random; print(random.random())",
        "import numpy; print(numpy.random.rand())",
        "import torch; print(torch.rand(()).item())",
    ],
)
def test_each_run_draws_anew(draw, script):
    path = script(draw)
    assert run_forked(path).stdout != run_forked(path).stdout


def test_what_it_starts_is_forked(script, tmp_path):
    inner = tmp_path / "inner.py"
    inner.write_text("import sys; print('torch' in sys.modules, *sys.argv[1:])")
    path = script(
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, {str(inner)!r}, 'x'], check=True)\n"
        "subprocess.run([sys.executable, '-c', 'print(2)'], check=True)\n"
    )
    assert run_forked(path).stdout == "True x\n2\n"


def test_pip_knows_of_nothing(script):
    """Else each run would list what is installed for a second."""
    path = script(
        "import subprocess; print(subprocess.getoutput('pip freeze'))"
    )
    assert run_forked(path).stdout == "\n"


def test_time_runs_out_for_all_children(script, tmp_path):
    lock = tmp_path / "held"
    lock.touch()
    path = script(
        "import fcntl, os, time\n"
        "os.fork()\n"
        f"file = open({str(lock)!r})\n"
        "fcntl.flock(file, fcntl.LOCK_SH)\n"
        "print(os.getpid(), flush=True)\n"
        "time.sleep(60)\n"
    )
    with pytest.raises(subprocess.TimeoutExpired) as stop:
        run_forked(path, timeout=2)
    assert len(stop.value.output.split()) == 2
    time.sleep(0.5)
    with open(lock) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # or an error
