"""Processes that make data give their results in order, and none outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import mixerzoo
from mixerzoo.tasks.cores import in_order

KILLED = """
import os, signal
from mixerzoo.tasks.cores import in_order

def deaf(number):
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN

if __name__ == "__main__":
    print(next(in_order(deaf, 0, 2, 2)), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_results_come_in_order() -> None:
    assert list(in_order(abs, -3, 2, 1)) == list(in_order(abs, -3, 2, 2)) == [3, 2, 1, 0, 1]


def test_workers_leave_ctrl_c_to_their_parent_and_end_with_it(tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    command = [sys.executable, str(tmp_path / "killed.py")]
    environment = {**os.environ, "PYTHONPATH": str(Path(mixerzoo.__file__).parents[1])}
    # the workers write to the same pipe, so this waits for their end too
    ran = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=60)
    assert (ran.stdout, ran.returncode) == ("True\n", -signal.SIGKILL)
