"""Kills a command at each of its changes to a box, one child process for each, and looks at what is left.

`python kill_points.py BOX COMMAND [BUNDLE]`, COMMAND being install, activate, rollback, remove or gc, prints how many
points there were; a box that is neither old nor new ends it with an AssertionError. BOX is only copied.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.box import keep, switch
from runtime.box.install import Trust, install
from runtime.box.root import Box
from runtime.box.versions import open_version

MODEL = "sed-pocket"
CHANGES = {"os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod"}


def command(name: str, root: Path, bundle: Path | None) -> Callable[[], Any]:
    """The command as a function without arguments."""
    return {
        "install": lambda: install(bundle or Path(), root, Trust(allow_unsigned=True)),
        "activate": lambda: switch.activate(root, MODEL, "1.1.0"),
        "rollback": lambda: switch.rollback(root, MODEL),
        "remove": lambda: keep.remove(root, MODEL, "1.0.0"),
        "gc": lambda: keep.gc(root),
    }[name]


def killed_at(point: int, root: Path, act: Callable[[], Any]) -> bool:
    """Run `act` in a child that is killed before its `point`-th change below `root`; False if it came to its end."""
    child = os.fork()
    if child == 0:
        left = point

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            paths = (os.fsdecode(a) for a in arguments if isinstance(a, str | bytes | os.PathLike))
            # Removing a tree works by descriptors and bare names.
            if writes or (event in CHANGES and any(p.startswith(str(root)) or "/" not in p for p in paths)):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        act()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


def check(root: Path, states: list[bytes]) -> None:
    """Check that the state is one of `states`, that all it lists opens, and that the next command tidies up."""
    box = Box(root)
    state = box.state()
    assert state.to_bytes() in states, state
    listed = {(name, version) for name, model in state.models.items() for version in model.installed}
    for name, version in listed:
        open_version(box, state, name, version)
    with box.locked():
        assert list(box.staging.iterdir()) == []
    assert {(path.parent.name, path.name) for path in box.models.glob("*/*")} == listed
    assert not box.staging.exists()
    for file in box.self_tests.glob("*/*"):
        assert file.suffix == ".json"


def restore(original: Path, root: Path) -> None:
    """Copy a box; hardlinks stay hardlinks, where shutil would make files of them."""
    shutil.rmtree(root, ignore_errors=True)
    subprocess.run(["cp", "-a", original, root], check=True)


def main() -> None:
    original, name = Path(sys.argv[1]).resolve(), sys.argv[2]
    bundle = Path(sys.argv[3]) if len(sys.argv) > 3 else None
    root = original.parent / "killed"
    act = command(name, root, bundle)
    restore(original, root)
    old = Box(root).state().to_bytes()
    act()  # imports everything, too
    new = Box(root).state().to_bytes()
    for point in itertools.count(1):
        restore(original, root)
        killed = killed_at(point, root, act)
        check(root, [old, new])
        if not killed:
            assert Box(root).state().to_bytes() == new
            break
        # The same command again then does it; asked now and then, since it costs a whole install.
        if point % 5 == 0 and Box(root).state().to_bytes() == old:
            act()
            check(root, [new])
    sys.stdout.write(str(point - 1))


main()
