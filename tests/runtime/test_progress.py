from __future__ import annotations

import os
import pty
import subprocess
import sys
import textwrap

import pytest

from runtime import progress as module
from runtime.progress import progress, steps

SCRIPT = textwrap.dedent("""
    from runtime.progress import progress
    with progress(10.0, "a [b].wav") as bar:
        bar.update(5.0, 10.0)
    print("{}")
""")


def test_a_terminal_gets_a_bar_on_stderr():
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=child, env=environment, check=True, timeout=60
    )
    os.close(child)
    shown = os.read(parent, 2**16).decode()
    os.close(parent)
    assert done.stdout == b"{}\n"
    assert "a [b].wav" in shown
    assert "50%" in shown


def test_a_short_run_is_silent_in_a_log():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == (b"{}\n", b"")


def test_a_long_run_logs_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(module, "LINE_EVERY_S", 0.0)
    with progress(0.0, "a.wav") as bar:
        bar.update(1.0)
        bar.update(1.0, 4.0)
        bar.update(4.0)
    assert capsys.readouterr() == ("", "a.wav: 25%\na.wav: 100%\n")


STEPS = textwrap.dedent("""
    from runtime.progress import steps
    with steps() as say:
        say("golden [a] " + 200 * "x")
    print("{}")
""")


def test_steps_stay_on_one_line_of_a_terminal():
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "40"}
    subprocess.run([sys.executable, "-c", STEPS], stdout=subprocess.PIPE, stderr=child, env=environment, check=True)
    os.close(child)
    shown = os.read(parent, 2**16).decode()
    os.close(parent)
    assert "golden [a] xx" in shown
    assert 40 * "x" not in shown


def test_steps_log_lines_when_it_takes_long(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    with steps() as say:
        say("weights")
    monkeypatch.setattr(module, "LINE_EVERY_S", 0.0)
    with steps() as say:
        say("onnx")
    assert capsys.readouterr() == ("", "onnx\n")
