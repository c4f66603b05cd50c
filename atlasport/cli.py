"""`atlasport`: the command line. Exit codes: runtime.errors.ExitCode."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn, get_type_hints

import typer
from typer.models import ParameterInfo

from atlasport.commands.acceptance import acceptance
from atlasport.commands.box import activate, gc, install, list_versions, remove, rollback
from atlasport.commands.check_om import check_om
from atlasport.commands.doctor import doctor
from atlasport.commands.export import export
from atlasport.commands.freeze import freeze
from atlasport.commands.inspect import inspect
from atlasport.commands.keygen import keygen
from atlasport.commands.models import models
from atlasport.commands.om import om
from atlasport.commands.publish import publish
from atlasport.commands.recognition import RecognitionCommand
from atlasport.commands.run import run
from atlasport.commands.schema import schema
from atlasport.commands.serve_dir import serve_dir
from atlasport.commands.status import status
from atlasport.commands.transport import pull, push
from atlasport.commands.verify import verify
from atlasport.commands.wheelhouse import wheelhouse
from atlasport.streams import ReaderGoneError, leave_quietly, let_go, prepare_streams
from runtime.errors import AtlasportError, ExitCode

# sysexits' EX_SOFTWARE: a bug in atlasport, told apart from every documented code.
INTERNAL_ERROR = 70

app = typer.Typer(
    help="Convert speech models to frozen graphs, prove them against a CPU reference, run them on Ascend NPUs.",
    epilog="Exit codes: 0 pass, 1 a gate failed, 2 bad usage or input, 3 environment not fit, 4 artifact damaged. "
    "With --debug an error shows its traceback.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(export)
app.command(cls=RecognitionCommand)(run)
app.command()(verify)
app.command()(models)
app.command()(doctor)
app.command()(acceptance)
app.command()(publish)
app.command()(install)
app.command()(activate)
app.command()(rollback)
app.command()(status)
app.command("list")(list_versions)
app.command()(remove)
app.command()(gc)
app.command()(keygen)
app.command()(freeze)
app.command()(inspect)
app.command(cls=RecognitionCommand)(serve_dir)
app.command()(schema)
app.command()(check_om)
app.command()(om)
app.command()(push)
app.command()(pull)
app.command()(wheelhouse)


def _leave_permissions_to(command: Callable[..., object] | None) -> None:
    """Keep typer from asking whether paths may be read.

    It would say so in a box of five lines, with exit code 2; the commands say it in one, with 3.
    """
    if command is None:
        return
    # Evaluated here once: typer would make other objects of the annotations' text.
    command.__annotations__ = get_type_hints(command, include_extras=True)
    for hint in command.__annotations__.values():
        for info in getattr(hint, "__metadata__", ()):
            if isinstance(info, ParameterInfo):
                info.readable = False


for _registered in app.registered_commands:
    _leave_permissions_to(_registered.callback)


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    # torch must not load torch_npu by itself: where CANN is missing, that ends `import torch`.
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        prepare_streams()
        code = _run(arguments)
        # The rest of the output: an error of it is to be told, too.
        sys.stdout.flush()
    except ReaderGoneError:
        leave_quietly()
    except Exception as error:
        if debug:
            raise
        _leave(*_told(error))
    sys.exit(code)


def _run(arguments: list[str]) -> str | int | None:
    """Run the command; return what it leaves with."""
    try:
        app(args=arguments)
    except SystemExit as end:
        return end.code
    return ExitCode.OK


def _told(error: Exception) -> tuple[str, int]:
    """Return message and exit code for an error that ended a command."""
    if isinstance(error, AtlasportError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        return _operating_system(error)
    if isinstance(error, MemoryError):
        return "out of memory; close other programs or choose a smaller model", ExitCode.ENVIRONMENT
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object[:200]!a}: expected a name in {error.encoding}; rename it", ExitCode.BAD_INPUT
    return f"internal error: {type(error).__name__}: {error}; run again with --debug and report it", INTERNAL_ERROR


def _operating_system(error: OSError) -> tuple[str, ExitCode]:
    """Return message and exit code for an error of the file system that no stage expected."""
    where = f"{error.filename}: " if error.filename else ""
    what = (error.strerror or str(error)).lower()
    advice = {
        errno.ENOSPC: "free some space and run the command again",
        errno.EDQUOT: "free some space and run the command again",
        errno.EACCES: "check the permissions",
        errno.EROFS: "choose a folder that can be written",
    }.get(error.errno or 0, "run again with --debug for the place")
    return f"{where}{what}; {advice}", ExitCode.ENVIRONMENT


def _leave(message: str, code: int) -> NoReturn:
    line = " ".join(message.split())
    let_go()
    try:
        print(f"atlasport: {line}", file=sys.stderr)  # noqa: T201 - the one place that prints an error
    except ReaderGoneError:
        leave_quietly()
    sys.exit(code)
