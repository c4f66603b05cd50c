"""keygen, freeze and inspect as a user meets them: real processes, their streams and exit codes."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import typer
from command_line import REPOSITORY, assert_one_line, atlasport
from toy_bundle import toy_bundle

from atlasport.cli import app
from export.freeze.pipeline import freeze_artifact
from runtime.bundle.signing import generate_key, key_id


def test_keygen(tmp_path: Path):
    done = atlasport("keygen", tmp_path / "keys", ATLASPORT_KEY_PASSPHRASE="secret")
    assert done.returncode == 0, done.stderr
    private, public = tmp_path / "keys" / "key.pem", tmp_path / "keys" / "key.pub"
    assert "ENCRYPTED" in private.read_text()
    assert private.stat().st_mode & 0o777 == 0o600
    assert key_id(public) in done.stdout
    assert "encrypted" in done.stdout
    assert_one_line(atlasport("keygen", tmp_path / "keys"), 2, "key.pem", "not overwritten")


def test_freeze_and_inspect(sed_artifact: Path, tmp_path: Path):
    keys = generate_key(tmp_path / "keys", "secret")
    options = ("--profile", "cpu", "--version", "1.0.0", "--out", tmp_path)
    refused = atlasport("freeze", sed_artifact, *options, "--key", keys[0], ATLASPORT_KEY_PASSPHRASE="secret")
    assert_one_line(refused, 1, "not verified", "--allow-unverified")
    allowed = (*options, "--allow-unverified")
    assert_one_line(atlasport("freeze", sed_artifact, *allowed, "--key", keys[0]), 2, "ATLASPORT_KEY_PASSPHRASE")
    done = atlasport("freeze", sed_artifact, *allowed, "--key", keys[0], ATLASPORT_KEY_PASSPHRASE="secret")
    assert done.returncode == 0, done.stderr
    bundle = tmp_path / "sed-pocket-fp32-cpu-1.0.0.atlas"
    assert f"froze {bundle}" in done.stdout
    assert "in spite of unverified" in done.stdout
    shown = atlasport("inspect", bundle, "--public-key", keys[1])
    assert shown.returncode == 0, shown.stderr
    for words in ("sed-pocket", "1.0.0", "apache-2.0", "unverified", "artifact/head.onnx", "every hash fits"):
        assert words in shown.stdout
    raw = json.loads(atlasport("inspect", bundle, "--json").stdout)
    hint = hashlib.sha256(keys[1].read_bytes()).hexdigest()
    assert raw["signature"].pop("signer")["hint"] == hint
    assert hint in shown.stdout
    assert raw["signature"] == {"signed": True, "verified": False, "key_id": None}
    assert raw["manifest"]["waivers"] == ["unverified"]
    assert raw["size"] == bundle.stat().st_size


def test_a_delta_is_shown(sed_artifact: Path, tmp_path: Path):
    old, new = tmp_path / "old.atlas", tmp_path / "new.atlas"
    freeze_artifact(sed_artifact, "cpu", "1.0.0", out=old, allowed=["unverified"])
    options = ("--profile", "cpu", "--version", "1.1.0", "--base", old, "--out", new, "--allow-unverified")
    done = atlasport("freeze", sed_artifact, *options)
    assert done.returncode == 0, done.stderr
    saved = (old.stat().st_size - new.stat().st_size) / 1e6
    assert f"delta of 1.0.0: {saved:.1f} MB saved" in done.stdout
    shown = atlasport("inspect", new)
    assert shown.returncode == 0, shown.stderr
    assert "needs" in shown.stdout
    assert "in the base" in shown.stdout


def test_make_freeze_names_what_is_missing():
    command = ["make", "--dry-run", "freeze", "MODEL=x"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "VERSION= is missing" in done.stderr


def test_inspect_of_bad_bundles(tmp_path: Path, keys: tuple[Path, Path]):
    unsigned = toy_bundle(tmp_path / "unsigned.atlas")
    signed = toy_bundle(tmp_path / "signed.atlas", keys[0])
    other = generate_key(tmp_path / "other")
    assert_one_line(atlasport("inspect", unsigned, "--public-key", keys[1]), 4, "found none")
    assert_one_line(atlasport("inspect", signed, "--public-key", other[1]), 4, "another key")
    assert_one_line(atlasport("inspect", tmp_path / "none.atlas"), 2, "nothing there")
    data = bytearray(signed.read_bytes())
    data[-11_000] ^= 1
    signed.write_bytes(data)
    assert_one_line(atlasport("inspect", signed), 4, "damaged")


def test_certificates_without_a_key(sed_artifact: Path, keys: tuple[Path, Path]):
    done = atlasport("freeze", sed_artifact, "--version", "1.0.0", "--certificates", keys[1])
    assert_one_line(done, 2, "--certificates", "--key")


def test_a_full_disk(tmp_path: Path, sed_artifact: Path):
    """A limit on the size of files stands for a disk that is full: the same error, and what is there stays."""
    out = toy_bundle(tmp_path / "x.atlas")
    before = out.read_bytes()
    command = f"ulimit -f 1000; exec {sys.executable} -m atlasport freeze {sed_artifact} --profile cpu --out {out}"
    done = subprocess.run(
        ["bash", "-c", f"trap '' XFSZ; {command} --version 1.0.0 --allow-unverified"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert_one_line(done, 3, "cannot be written")
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.atlas"]


def test_the_options_in_the_docs_are_there():
    text = (REPOSITORY / "docs" / "bundles.md").read_text()
    commands = typer.main.get_command(app).commands
    known = {option for name in ("keygen", "freeze", "inspect") for p in commands[name].params for option in p.opts}
    assert set(re.findall(r"--[a-z][a-z-]+", text)) <= known
    assert {option for p in commands["freeze"].params for option in p.opts if option.startswith("--allow")} <= set(
        re.findall(r"--[a-z][a-z-]+", text)
    )
