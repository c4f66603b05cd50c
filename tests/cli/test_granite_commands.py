"""Granite Speech on the command line: its options, the text as it comes on a terminal, one-line errors."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
import tty
from pathlib import Path

import pytest
from command_line import REPOSITORY, SAMPLES, SHORT, assert_one_line, atlasport

from atlasport.commands.run import _Aloud
from runtime.manifest import ExportRecord, Manifest

MODEL = "granite-random"
CHARACTERS = "_ " + "".join(map(chr, range(ord("a"), ord("z") + 1)))


@pytest.fixture
def root(granite_artifact: Path) -> Path:
    return granite_artifact.parents[1]


@pytest.fixture(scope="module")
def spelling_root(granite_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact with characters for the first 28 of the encoder's 48 outputs."""
    folder = tmp_path_factory.mktemp("spelling") / MODEL / "fp32"
    shutil.copytree(granite_artifact, folder)
    path = folder / "manifest.json"
    content = Manifest.from_bytes(path.read_bytes(), "manifest").content
    content = content.model_copy(update={"settings": {**content.settings, "ctc_characters": CHARACTERS}})
    path.write_bytes(Manifest.create(content, ExportRecord(created="", host="", stages=())).to_bytes())
    return folder.parents[1]


# --- options ---


@pytest.mark.parametrize(
    ("options", "prompt"),
    [
        (["--keywords", "Ada Lovelace, NPU"], "transcribe the speech to text. Keywords: Ada Lovelace, NPU"),
        (
            ["--task", "translate", "--to", "ja", "--punctuation"],
            "translate the speech to Japanese with proper punctuation and capitalization.",
        ),
        (["--prompt", "who is speaking?"], "who is speaking?"),
    ],
)
def test_options_make_the_instruction(root: Path, options: list[str], prompt: str) -> None:
    process = atlasport("run", MODEL, SHORT, "--root", root, "--json", "--max-new-tokens", "2", *options)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    assert result["prompt"] == prompt
    assert [len(segment["tokens"]) <= 2 for segment in result["segments"]] == [True]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--task", "translate"], ["--to: ", "expected a language"]),
        (["--task", "translate", "--to", "klingon"], ["klingon", "German"]),
        (["--language", "en"], ["--language: ", "no such option"]),
        (["--chunk", "0.5"], ["--chunk: "]),
        (["--draft"], ["--draft: ", "leave it out"]),
        (["--prompt", "say <|end_of_text|>"], ["special token"]),
    ],
)
def test_bad_options_are_one_line(root: Path, options: list[str], parts: list[str]) -> None:
    assert_one_line(atlasport("run", MODEL, SHORT, "--root", root, *options), 2, *parts)


def test_its_options_are_not_for_others(pocket_artifact: Path) -> None:
    process = atlasport("run", "whisper-pocket", SHORT, "--keywords", "a", "--root", pocket_artifact.parents[1])
    assert_one_line(process, 2, "--keywords: ", "no such option")


def test_a_prompt_of_whisper_keeps_its_meaning(pocket_artifact: Path) -> None:
    """--prompt is Whisper's initial_prompt: it is refused where that option is wrong, not as an unknown one."""
    root = pocket_artifact.parents[1]
    options = ("--prompt", "Yes.", "--json", "--max-new-tokens", "3", "--root", root)
    process = atlasport("run", "whisper-pocket", SHORT, *options)
    assert process.returncode == 0, process.stderr


def test_drafts(spelling_root: Path) -> None:
    run = ("run", MODEL, SAMPLES / "long_en.wav", "--draft", "--chunk", "12", "--max-new-tokens", "2")
    process = atlasport(*run, "--root", spelling_root, "--json")
    assert process.returncode == 0, process.stderr
    segments = json.loads(process.stdout)["segments"]
    assert len(segments) >= 3
    for segment in segments:
        assert set(segment["draft"]) == {"text", "confidence"}
        assert segment["draft"]["text"]
        assert set(segment["draft"]["text"]) <= {*CHARACTERS[1:], "\ufffd"}
        assert 0 < segment["draft"]["confidence"] <= 1
    process = atlasport(*run, "--root", spelling_root)
    joined = " ".join(segment["draft"]["text"].strip() for segment in segments)
    assert process.stdout.endswith(f"\ndraft: {joined}\n")
    assert "draft confidence 0." in process.stderr


# --- on a terminal ---


def on_terminal(*arguments: str | Path, shared_stderr: bool = False) -> tuple[list[bytes], bytes, int]:
    """Run with stdout on a terminal; return what each read of it gave, stderr and the exit code."""
    master, slave = pty.openpty()
    tty.setraw(slave)  # a newline stays one
    with subprocess.Popen(
        [sys.executable, "-m", "atlasport", *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "1", "TERM": "xterm", "PYTHONUTF8": "1"},
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave if shared_stderr else subprocess.PIPE,
    ) as process:
        os.close(slave)
        reads: list[bytes] = []
        try:
            while read := os.read(master, 2**16):
                reads.append(read)
        except OSError:  # the other side is closed
            pass
        stderr = b"" if process.stderr is None else process.stderr.read()
    os.close(master)
    return reads, stderr, process.returncode


LONG = ("run", MODEL, SAMPLES / "long_en.wav", "--chunk", "8", "--max-new-tokens", "150", "--no-repetition-guard")


def test_the_text_comes_piece_by_piece_on_a_terminal(root: Path) -> None:
    """And is in the end what a pipe gets at once."""
    reads, stderr, code = on_terminal(*LONG, "--root", root)
    assert code == 0, stderr
    # Read as bytes: the random model's text has carriage returns, which text mode changes.
    pipe = subprocess.run(
        [sys.executable, "-m", "atlasport", *map(str, (*LONG, "--root", root))],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"},
        capture_output=True,
        check=True,
    )
    assert b"".join(reads) == pipe.stdout
    assert len(pipe.stdout) > 500
    assert len(reads) > 10
    assert len(reads[0]) < len(pipe.stdout) / 2
    for read in reads:
        read.decode()  # no character is cut
    assert stderr.count(b"s of audio in") == 1


@pytest.mark.parametrize(
    ("summary", "shown"),
    [
        ("no no no", "no no no"),
        ("no no no\ndraft: no", "no no no\ndraft: no"),
        ("no", "no no no\nno"),  # the repetition guard took the rest back
    ],
)
def test_the_end_of_a_text_that_was_told(capsys: pytest.CaptureFixture[str], summary: str, shown: str) -> None:
    writer = _Aloud()
    for piece in ("no", " no", " no"):
        writer.say(piece)
    writer.finish(summary)
    assert capsys.readouterr().out == shown


def test_no_bar_beside_the_text(root: Path) -> None:
    """Where both streams are the terminal; there is one for what has no text to show."""
    short = ("run", MODEL, SHORT, "--max-new-tokens", "20", "--root", root)
    aloud = b"".join(on_terminal(*short, shared_stderr=True)[0])
    assert b"\x1b[?25l" not in aloud  # hides the cursor
    quiet = b"".join(on_terminal(*short, "--json", shared_stderr=True)[0])
    assert b"\x1b[?25l" in quiet
    (line,) = [line for line in quiet.splitlines() if b'{"schema_version"' in line]
    assert json.loads(line[line.index(b"{") :])["text"]


def test_several_recordings_on_a_terminal(root: Path, tmp_path: Path) -> None:
    """Each behind its name; one that cannot be read is told on a line of its own."""
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no audio")
    files = (SHORT, bad, SAMPLES / "short_de.wav")
    options = ("--max-new-tokens", "3", "--root", root)
    reads, stderr, code = on_terminal("run", MODEL, *files, *options)
    assert code == 2
    text = b"".join(reads).decode()
    assert text.startswith(f"{SHORT}: ")
    assert f"\n{SAMPLES / 'short_de.wav'}: " in text
    assert text.endswith("\n")
    assert stderr.decode().count("bad.wav: expected a recording") == 1


def test_files_are_written_beside_the_text(root: Path, tmp_path: Path) -> None:
    options = ("--max-new-tokens", "5", "--format", "txt,srt,json", "--out", tmp_path, "--root", root)
    reads, _, code = on_terminal("run", MODEL, SHORT, *options)
    assert code == 0
    result = json.loads((tmp_path / "short_en.json").read_text())
    assert b"".join(reads).decode() == result["text"] + "\n"
    assert "00:00:00,000 --> " in (tmp_path / "short_en.srt").read_text()
