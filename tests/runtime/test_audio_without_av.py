"""Without the extra a recording that needs it is refused with the extra's name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# What files of these formats begin with.
HEADS = {
    "m4a": b"\0\0\0\x20ftypM4A \0\0\2\0isomiso2" + bytes(100),
    "aac": bytes.fromhex("fff15080020000de") * 20,
    "webm": bytes.fromhex("1a45dfa39f4286810142f7810142f2810442f381084282847765626d") + bytes(100),
    "amr": b"#!AMR\n" + bytes(100),
    "wma": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c") + bytes(100),
}


@pytest.mark.parametrize("kind", HEADS)
def test_the_extra_is_named(tmp_path: Path, kind: str):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(HEADS[kind])
    code = (
        "import sys; sys.modules['av'] = None  # as where it is not installed\n"
        "from runtime.audio import open_audio; from runtime.errors import InputError\n"
        "try: open_audio(sys.argv[1])\n"
        "except InputError as error: print(error)"
    )
    process = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert process.stdout.startswith(f"{path}: expected a recording")
    assert "pip install 'atlasport[av]'" in process.stdout
    assert process.stdout.count("\n") == 1
    assert process.stderr == ""


def test_av_is_not_imported_for_what_libsndfile_reads():
    code = "import sys, atlasport; atlasport.open_audio('samples/jfk.flac'); sys.exit('av' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
