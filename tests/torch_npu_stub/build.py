"""Builds a CANN of stubs for the torch_npu wheel of a virtual environment; prints what a shell needs to use it.

    eval "$(PYTHONPATH=tests python -m torch_npu_stub.build .cache/torch-npu-2.13.0 9.1.0)"

The libraries are compiled against the headers in the wheel. Functions that the wheel links and `runtime/` does not
define are generated, and fail by name. The folder's name is a hash of all that went into it.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from torch_npu_stub.operators import source_from_tables
from torch_npu_stub.symbols import defined_symbols, needed_libraries, needed_symbols

HERE = Path(__file__).parent
LIMITS = HERE.parent / "ascend_limits.json"
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Wno-unused-parameter")


def build_cann(environment: Path, version: str) -> Path:
    """Return the folder of the stub for the wheel in `environment`, built unless it is there."""
    site = next(environment.glob("lib/python3*/site-packages"))
    sources = sorted(path for path in HERE.rglob("*") if path.suffix in {".cpp", ".h", ".py", ".txt"})
    wheels = sorted(path.name for path in site.glob("torch*.dist-info"))
    content = b"\0".join([path.read_bytes() for path in (*sources, LIMITS)] + [" ".join([*wheels, version]).encode()])
    target = environment / f"cann-{hashlib.sha256(content).hexdigest()[:16]}"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=environment) as temporary:
            folder = Path(temporary) / "cann"
            _build(folder, site, version)
            try:
                folder.rename(target)
            except OSError:  # another process was faster
                shutil.rmtree(folder)
    return target


def _build(folder: Path, site: Path, version: str) -> None:
    libraries = folder / "lib64"
    libraries.mkdir(parents=True)
    headers = site / "torch_npu/include/third_party/acl/inc"
    (libraries / "limits.inc").write_text(_limits(), encoding="utf-8")
    options = (
        *FLAGS,
        f"-I{libraries}",
        f'-DCANN_STUB_VERSION="{version}"',
        "-Wno-deprecated-declarations",
        f"-isystem{headers}",
    )
    _runtime(libraries, site, options)
    for name in needed_libraries(site / "torch", site / "torch_npu"):
        if not (libraries / name).exists():  # libascendcl has their functions, and torch_npu looks for them in each
            linked = (f"-L{libraries}", "-Wl,--no-as-needed", "-lascendcl")
            _compile(libraries / name, *FLAGS, *linked, "-xc++", "/dev/null")
    _operators(libraries, site / "torch", options)
    _files(folder, version)


def _limits() -> str:
    """Return the rows of `stub::Limits`."""
    socs = json.loads(LIMITS.read_text(encoding="utf-8"))["socs"]
    rows = (
        (
            json.dumps(family),
            json.dumps("float32" in row["products"]),
            json.dumps(row["bfloat16"]),
            {None: "0", "never": "99"}.get(row["capture_from"]) or row["capture_from"].partition(".")[0],
            json.dumps(f" {' '.join(row['missing'])} "),
        )
        for family, row in socs.items()
    )
    return "".join(f"{{{', '.join(row)}}},\n" for row in rows)


def _runtime(libraries: Path, site: Path, options: tuple[str, ...]) -> None:
    """Make libascendcl: what is written by hand, and for everything else that is linked a function that fails."""
    library = libraries / "libascendcl.so"
    written = sorted((HERE / "runtime").glob("*.cpp"))
    _compile(library, *options, *written)
    missing = sorted(set(needed_symbols(site / "torch", site / "torch_npu")) - defined_symbols(library))
    # The headers are left out: they declare other arguments.
    generated = libraries / "missing.cpp"
    declarations = (
        "#include <string>",
        "using aclError = int;",
        "namespace stub { aclError not_emulated(const std::string&); }",
    )
    functions = (f'extern "C" aclError {name}() {{ return stub::not_emulated("{name}"); }}' for name in missing)
    generated.write_text("\n".join([*declarations, *functions, ""]), encoding="utf-8")
    _compile(library, *options, *written, generated)


def _operators(libraries: Path, torch: Path, options: tuple[str, ...]) -> None:
    """Make libopapi in one piece: ATen's headers take most of the time."""
    source = libraries / "opapi.cpp"
    parts = [path.read_text(encoding="utf-8") for path in sorted((HERE / "opapi").glob("*.cpp"))]
    source.write_text("\n".join([*parts, source_from_tables()]), encoding="utf-8")
    headers = (f"-isystem{torch}/include", f"-isystem{torch}/include/torch/csrc/api/include")
    places = (f"-I{HERE}/opapi", f"-I{HERE}/runtime", *headers, f"-L{torch}/lib", f"-L{libraries}")
    library = libraries / "libopapi.so"
    _compile(library, *options, source, *places, "-ltorch_cpu", "-lc10", "-lascendcl", "-Wl,-z,defs")


def _compile(library: Path, *arguments: str | Path) -> None:
    command = ["g++", "-o", library, f"-Wl,-soname,{library.name}", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{library.name} of the stub CANN: g++ failed\n{done.stderr}")


def _files(folder: Path, version: str) -> None:
    """Write the files of a toolkit by which torch_npu and `atlasport doctor` tell that it is there."""
    for name in ("runtime", "compiler", "opp"):
        (folder / name).mkdir()
    information = folder / f"{platform.machine()}-linux" / "ascend_toolkit_install.info"
    information.parent.mkdir()
    information.write_text(f"package_name=Ascend-cann-toolkit\nversion={version}-simulated\n", encoding="utf-8")


def environment_of(folder: Path) -> dict[str, str]:
    """Return what a toolkit's set_env.sh sets."""
    return {
        "ASCEND_TOOLKIT_HOME": str(folder),
        "ASCEND_HOME_PATH": str(folder),
        "ASCEND_OPP_PATH": str(folder / "opp"),
        "LD_LIBRARY_PATH": str(folder / "lib64"),
    }


if __name__ == "__main__":
    for name, value in environment_of(build_cann(Path(sys.argv[1]).resolve(), sys.argv[2])).items():
        sys.stdout.write(f"export {name}='{value}'\n")
