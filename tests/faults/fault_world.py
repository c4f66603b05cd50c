"""What the faults are done to (sed-pocket, two signed bundles of it, boxes) and what their outcomes count as."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from real_command import Outcome, done, preload

from runtime.box.root import Box
from runtime.box.versions import open_version

MODEL = "sed-pocket"
SAMPLES = Path(__file__).resolve().parents[2] / "samples"
MIB = 2**20
PARTS = ("atlasport-box", "state.json", "state.json.copy", "blobs", "models", "self-tests")


@dataclass
class Row:
    """One row of the table: a fault, how often it was tried, and what came of it."""

    fault: str
    tried: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def note(self, outcome: str) -> None:
        self.tried += 1
        self.outcomes[outcome] += 1

    def violated(self, what: str) -> None:
        self.tried += 1
        self.violations.append(what[:500])


@dataclass(frozen=True)
class World:
    """`old` is version 1.0.0, `new` 1.1.0; `installed` has the old one active, `switched` the new one after it."""

    folder: Path
    artifact: Path
    key: Path
    public_key: Path
    old: Path
    new: Path
    installed: Path
    switched: Path

    def freeze(self, version: str, out: Path) -> tuple[str | Path, ...]:
        """The command that freezes the artifact."""
        options = ("--profile", "cpu", "--version", version, "--out", out, "--key", self.key)
        return ("freeze", self.artifact, *options, "--allow-unverified")

    def install(self, bundle: Path, root: Path, *options: str | Path) -> tuple[str | Path, ...]:
        """The command that installs a bundle signed with the world's key."""
        return ("install", bundle, "--root", root, "--public-key", self.public_key, *options)

    def box(self, name: str, original: Path | None = None) -> Path:
        """A fresh copy of a box; hardlinks stay hardlinks, where shutil would make files of them."""
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        subprocess.run(["cp", "-a", original or self.installed, target], check=True)
        return target


def make_world(folder: Path, artifact: Path) -> World:
    """Make keys, bundles and boxes by the real commands, and import here whatever they import."""
    keys = folder / "keys"
    names = ("old.atlas", "new.atlas", "installed", "switched")
    world = World(folder, artifact, keys / "key.pem", keys / "key.pub", *(folder / name for name in names))
    assert preload("keygen", keys).code == 0
    assert preload(*world.freeze("1.0.0", world.old)).code == 0
    done(*world.freeze("1.1.0", world.new))
    assert preload(*world.install(world.old, world.installed, "--activate")).code == 0
    world.box(world.switched.name)
    done(*world.install(world.new, world.switched, "--activate"))
    return world


def digest(folder: Path) -> str:
    """SHA-256 over all that lies in a folder: paths, kinds, modes, link counts and contents; the lock has none."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        if path.name == "lock":
            continue
        links = status.st_nlink if path.is_file() else 0
        total.update(f"{path.relative_to(folder)}\0{status.st_mode}\0{links}\0".encode("utf-8", "surrogateescape"))
        if path.is_symlink():
            total.update(bytes(path.readlink()))
        elif path.is_file():
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def refusal(outcome: Outcome, codes: Sequence[int]) -> str:
    """Return "refused, exit N" for a refusal as it must be: the exit code, and one line on stderr."""
    assert outcome.code in codes, f"expected exit {' or '.join(map(str, codes))}, found {outcome.code}: {outcome.err}"
    lines = outcome.err.strip().splitlines()
    assert len(lines) == 1, f"expected one line, found {outcome.err!r}"
    assert lines[0].startswith("atlasport: "), lines[0]
    return f"refused, exit {outcome.code}"


def check_box(root: Path, states: Sequence[bytes]) -> int:
    """Check that the state is one of `states` and that all it lists opens with all hashes; return which it is."""
    box = Box(root)
    data = (root / "state.json").read_bytes()
    assert data in states, f"state.json is neither the old nor the new one: {data[:300]!r}"
    state = box.state()
    for name, model in state.models.items():
        for version in model.installed:
            open_version(box, state, name, version)
        assert model.active is None or model.active in model.installed
    return list(states).index(data)


def check_tidy(root: Path) -> None:
    """Check that the folder holds what the state lists, and nothing that somebody did not finish."""
    box = Box(root)
    listed = {(name, version) for name, model in box.state().models.items() for version in model.installed}
    assert {(path.parent.name, path.name) for path in box.models.glob("*/*")} == listed
    assert not box.staging.exists(), "staging/ is left"
    assert {path.name for path in root.iterdir()} <= {*PARTS, "lock"}
    assert all(path.suffix == ".json" for path in box.self_tests.glob("*/*"))
