"""How several processes end."""

import subprocess
import sys

# A thread that a collective left behind, and wants the interpreter's lock when
# the main thread ends; the latter is given no reason to hand the lock over.
PROGRAM = """
import os, sys, threading, time, torch
from sb_prune.support.parallel import end_with_idle_threads

torch.distributed.init_process_group(
    "gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1
)
end_with_idle_threads()

def finish():
    time.sleep(0.01)
    os.write(1, b"finished")

threading.Thread(target=finish, daemon=True).start()
sys.setswitchinterval(100)
end = time.monotonic() + 0.1
while time.monotonic() < end:
    pass
"""


def test_threads_finish_before_the_interpreter(tmp_path):
    """Without the wait, nothing is written (seen on Python 3.11)."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "group"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "finished"
