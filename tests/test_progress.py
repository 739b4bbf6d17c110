"""Time-outs by progress."""

from __future__ import annotations

import os
import sys

import pytest

from tests.progress import run_to_its_end


def test_a_command_that_works_is_waited_for_longer_than_its_idle_time() -> None:
    code = "import time\nend = time.monotonic() + 2\nwhile time.monotonic() < end: pass\nprint('done')"
    done = run_to_its_end([sys.executable, "-c", code], os.environ, idle=1.5)
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_one_that_has_stopped_is_given_up_with_its_output() -> None:
    code = "import sys, time; print('so far', flush=True); time.sleep(60)"
    with pytest.raises(AssertionError, match="so far"):
        run_to_its_end([sys.executable, "-c", code], os.environ, idle=1.0)
