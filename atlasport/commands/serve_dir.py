"""`atlasport serve-dir`."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atlasport.commands.options import (
    ARTIFACTS,
    AcceptDamagedOption,
    CaptureOption,
    DeviceOption,
    EngineName,
    Precision,
    PrecisionOption,
    ThreadsOption,
)

if TYPE_CHECKING:
    from runtime.artifact import Artifact
    from runtime.box.serve import Version
    from runtime.manifest import Variant


def serve_dir(
    context: typer.Context,
    inbox: Annotated[Path, typer.Argument(metavar="IN", help="Folder in which recordings arrive.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the results.")],
    model: Annotated[str, typer.Argument(help="An installed model's name, an artifact's folder or name.")],
    root: Annotated[Path, typer.Option(help="Where models are installed, or a folder of artifacts.")] = ARTIFACTS,
    precision: PrecisionOption = Precision.FP32,
    device: DeviceOption = "cpu",
    engine: Annotated[EngineName | None, typer.Option(help="Default: the first that the device can run.")] = None,
    threads: ThreadsOption = None,
    capture: CaptureOption = False,
    formats: Annotated[
        str | None, typer.Option("--format", help="Files for each recording, comma-separated, as of `run`.")
    ] = None,
    accept_damaged: AcceptDamagedOption = False,
    interval: Annotated[float, typer.Option(min=0.01, max=3600, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Leave when what lies there is handled.")] = False,
) -> None:
    """Recognise every recording that arrives in a folder, each once. SIGTERM ends it after the current recording.

    Handled recordings move to IN/done, those that are no audio to IN/failed with a line that says why.
    """
    from runtime.box.inbox import Inbox
    from runtime.box.serve import ServedModel, serve
    from runtime.engines.base import EngineSettings
    from runtime.families import open_recognizer

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    served = ServedModel(
        lambda: _active_version(model, root, precision.value),
        lambda version: _open_version(version, model, root),
        lambda artifact: open_recognizer(
            artifact, engine.value if engine else None, device, threads, EngineSettings(capture)
        ),
        [name.strip() for name in formats.split(",")] if formats else [],
        context.obj,
        accept_damaged=accept_damaged,
    )
    folders = Inbox(inbox, out, served.suffixes)
    with folders.open():
        serve(
            folders,
            served,
            interval_s=interval,
            once=once,
            stop=stop,
            report=lambda line: typer.echo(line, err=True),
        )


def _active_version(model: str, root: Path, precision: Variant) -> Version:
    from runtime.artifact import find_artifact
    from runtime.box.root import Box
    from runtime.box.serve import Version

    box = Box(root)
    if not box.exists():
        return Version(find_artifact(model, root, precision))
    # The version that opens may not be the one that is active a moment later; its name says which it is.
    active = box.state().model(model).active
    return Version(box.version_folder(model, active or ""), active)


def _open_version(version: Version, model: str, root: Path) -> Artifact:
    from runtime.artifact import open_artifact
    from runtime.box.root import Box
    from runtime.box.versions import open_active, open_version

    box = Box(root)
    if not box.exists():
        return open_artifact(version.folder)
    if version.version is None:
        return open_active(root, model)[0]  # says what is there instead
    return open_version(box, box.state(), model, version.version)[0]
