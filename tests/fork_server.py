"""Runs Python scripts in forks of a process that has imported everything.

A new process imports torch, SpeechBrain and transformers for longer than most
runs of the tests take. `run_forked` runs a script as `python` would, in a fork
of a server that has imported them once:

    done = run_forked("train.py", "hparams/train.yaml", cwd=folder)
    done.returncode, done.stdout, done.stderr

The script finds its own arguments, folder, environment, `sys.path` and
`__main__`; nothing that one script does reaches another. If it starts
`sys.executable` itself, that is a fork too. Three things are not as in a new
process: modules are imported already, so what matters while they are imported
(`HF_ENDPOINT`) has no effect; all forks hash strings alike; and `pip`, which
SpeechBrain asks at every start for what is installed, knows of nothing. OpenMP
does not survive a fork, so the server, and what it imports, computes nothing.
"""

import atexit
import functools
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
POLL = 0.02  # seconds between two looks at a running script
ADDRESS = "FORK_SERVER"  # the environment variable with the server's socket

# What scripts would import for long; the rest they import themselves.
PRELOADED = (
    "torch",
    "torch._dynamo",  # by the first step of an optimizer
    "soundfile",
    "speechbrain.decoders",
    "speechbrain.inference",
    "speechbrain.integrations.huggingface",
    "speechbrain.lobes.features",
    "speechbrain.nnet.losses",
    "speechbrain.tokenizers.SentencePiece",
    "speechbrain.utils.metric_stats",
    "transformers.models.auto.modeling_auto",
    "transformers.models.hubert.modeling_hubert",
    "transformers.models.wav2vec2.modeling_wav2vec2",
    "transformers.models.wavlm.modeling_wavlm",
    "matplotlib.pyplot",
    "sb_prune.brain",
    "sb_prune.lobes",
    "sb_prune.report.command",
    "sb_prune.students",
)


def run_forked(*arguments, cwd=None, timeout=None, env=None):
    """Runs `python *arguments` in a fork.

    Arguments
    ---------
    *arguments : object
        A script, or "-m" and a module, and what follows on the command line.
    cwd : path, optional
        The folder to run in; by default that of the caller.
    timeout : float, optional
        Seconds after which the script and all its children are killed.
    env : dict, optional
        The whole environment; by default that of the caller.

    Returns
    -------
    subprocess.CompletedProcess
        With `stdout` and `stderr` as text.

    Raises
    ------
    subprocess.TimeoutExpired
    """
    with (
        open(os.devnull) as nothing,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
    ):
        files = [nothing.fileno(), out.fileno(), err.fileno()]
        request = {
            "arguments": list(map(str, arguments)),
            "cwd": str(cwd or os.getcwd()),
            "env": dict(os.environ if env is None else env),
        }
        try:
            code = _ask(_server(), request, files, timeout)
        except TimeoutError:
            code = None
        texts = [file.seek(0) or file.read() for file in (out, err)]
    if code is None:
        raise subprocess.TimeoutExpired(arguments, timeout, *texts)
    return subprocess.CompletedProcess(arguments, code, *texts)


# -------------------------------------------------------------------- asking


@functools.cache
def _server():
    """Starts the server of this process; returns the path of its socket."""
    folder = tempfile.TemporaryDirectory(prefix="forks-")
    address = str(Path(folder.name, "socket"))
    stand_ins = {"python": f'exec {sys.executable} {__file__} "$@"', "pip": ""}
    for name, line in stand_ins.items():
        path = Path(folder.name, name)
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        process = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(listener.fileno())],
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,  # which ends when this process does
            env={
                **{k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
                "OMP_NUM_THREADS": "1",
                ADDRESS: address,
            },
        )

    def stop():
        process.stdin.close()
        process.wait()
        folder.cleanup()

    atexit.register(stop)
    return address


def _ask(address, request, files, timeout=None):
    """Has a request run with the given files as 0, 1 and 2; its exit code."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        connection.connect(address)
        socket.send_fds(connection, [b"\n"], files)
        with connection.makefile("rw") as stream:
            stream.write(json.dumps(request) + "\n")
            stream.flush()
            answer = stream.readline()
    if not answer:
        raise ConnectionError("the fork server has died; see its last words")
    return int(answer)


# ------------------------------------------------------------------- serving


def _serve(listener):
    """Forks for each request, until stdin ends."""
    paths = sys.path[1:]  # the first is the folder of this file
    sys.path[0] = str(ROOT)
    for name in PRELOADED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for forks
    while True:
        ready, *_ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _supervise(connection, paths)
        connection.close()


def _supervise(connection, paths):
    """Runs one request in a fork of its own, and says how that ended."""
    _, files, *_ = socket.recv_fds(connection, 1, 3)
    with connection.makefile("r") as stream:
        request = json.loads(stream.readline())
    pid = os.fork()
    if pid == 0:
        connection.close()
        os.setsid()
        os._exit(_run(request, files, paths))
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            connection.sendall(b"%d\n" % code)
            os._exit(0)
        left, *_ = select.select([connection], [], [], POLL)
        if left:  # who asked is gone
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            os._exit(1)


def _run(request, files, paths):
    """Makes this process that of the script; returns its exit code."""
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    os.chdir(request["cwd"])
    address = os.environ[ADDRESS]
    os.environ.clear()
    os.environ.update({**request["env"], ADDRESS: address})
    stand_ins = Path(address).parent
    sys.executable = str(stand_ins / "python")
    os.environ["PATH"] = f"{stand_ins}{os.pathsep}{os.environ['PATH']}"
    _draw_anew()
    script, *arguments = request["arguments"]
    more = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [*filter(None, more), *paths]
    run = runpy.run_path
    if script == "-m":
        script, *arguments = arguments
        sys.path.insert(0, os.getcwd())
        run = functools.partial(runpy.run_module, alter_sys=True)
    else:
        sys.path.insert(0, str(Path(script).resolve().parent))
    sys.argv = [script, *arguments]
    code = _exit_code(functools.partial(run, script, run_name="__main__"))
    threading._shutdown()  # waits for threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _draw_anew():
    """Seeds what a new process seeds at random; `random` does so itself."""
    sys.modules["numpy"].random.seed()
    sys.modules["torch"].default_generator.seed()


def _exit_code(run):
    """What the interpreter would make of how a script ends."""
    try:
        run()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _stand_in(arguments):
    """What a fork has as `sys.executable`."""
    if arguments[0] == "-u":  # torchrun's
        del arguments[0]
    if arguments[0].startswith("-") and arguments[0] != "-m":
        os.execv(sys.executable, [sys.executable, *arguments])
    request = {
        "arguments": arguments,
        "cwd": os.getcwd(),
        "env": dict(os.environ),
    }
    sys.exit(_ask(os.environ[ADDRESS], request, [0, 1, 2]))


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        _serve(socket.socket(fileno=int(sys.argv[2])))
    _stand_in(sys.argv[1:])
