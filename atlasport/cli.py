"""`atlasport`: the command line. Exit codes: runtime.errors.ExitCode."""

from __future__ import annotations

import errno
import os
import sys
from typing import NoReturn

import typer

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
from atlasport.commands.run import run
from atlasport.commands.serve_dir import serve_dir
from atlasport.commands.status import status
from atlasport.commands.transport import pull, push
from atlasport.commands.verify import verify
from atlasport.commands.wheelhouse import wheelhouse
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
app.command()(run)
app.command()(verify)
app.command()(models)
app.command()(doctor)
app.command()(acceptance)
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
app.command()(serve_dir)
app.command()(check_om)
app.command()(om)
app.command()(push)
app.command()(pull)
app.command()(wheelhouse)


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    # torch must not load torch_npu by itself: where CANN is missing, that ends `import torch`.
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        app(args=arguments)
    except AtlasportError as error:
        if debug:
            raise
        _leave(str(error), error.exit_code)
    except OSError as error:
        if debug:
            raise
        _leave(*_operating_system(error))
    except MemoryError:
        if debug:
            raise
        _leave("out of memory; close other programs or choose a smaller model", ExitCode.ENVIRONMENT)
    except Exception as error:
        if debug:
            raise
        _leave(f"internal error: {type(error).__name__}: {error}; run again with --debug and report it", INTERNAL_ERROR)
    sys.exit(ExitCode.OK)


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
    print(f"atlasport: {line}", file=sys.stderr)  # noqa: T201 - the one place that prints an error
    sys.exit(code)
