"""Memory as planned by the compiler, compared with what a process uses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.xla import flags


def test_planned_memory_is_what_a_step_takes() -> None:
    script = Path(__file__).with_name("step_memory.py")
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "XLA_FLAGS": flags(8)},
        capture_output=True,
        text=True,
        check=True,
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["planned"] > 2**29
    assert figures["planned"] == pytest.approx(figures["measured"], rel=0.15)
