"""What `convert.sh` asks of ATC.

ATC itself is not here. A stand-in on PATH records its arguments, so the tests hold the script to CANN's documents.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from command_line import atlasport

from export.om import om_files
from export.om.convert import graph_shapes
from runtime.artifact import open_artifact
from runtime.errors import InputError
from runtime.golden import Golden
from runtime.manifest import Manifest

MODULES = ("attr", "cloudpickle", "decorator", "ml_dtypes", "numpy", "psutil", "scipy", "tornado")

STAND_IN = f"""#!{sys.executable}
import json, os, pathlib, sys
options = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
options["LD_LIBRARY_PATH"] = os.environ.get("LD_LIBRARY_PATH", "")
if "customize_dtypes" in options:
    options["customized"] = pathlib.Path(options.pop("customize_dtypes")).read_text()
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps(options) + "\\n")
if os.environ.get("REFUSE") == pathlib.Path(options["output"]).name:
    sys.exit("E10501: IR for Op GRU is not registered.")
suffix = "_linux_aarch64" if "-1" in options["input_shape"] else ""
pathlib.Path(options["output"] + suffix + ".om").write_bytes(b"om")
weight = pathlib.Path(options["output"]).parent / "weight"
weight.mkdir(exist_ok=True)
(weight / "weight_0123").write_bytes(b"w")
"""


class Converter:
    """`convert.sh` of an artifact, with a stand-in for ATC."""

    def __init__(self, artifact: Path, folder: Path) -> None:
        self.artifact, self.folder = artifact, folder
        self.calls_file = folder / "calls"
        for name, content in om_files(open_artifact(artifact)).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        (folder / "bin").mkdir()
        (folder / "bin" / "atc").write_text(STAND_IN)
        (folder / "bin" / "atc").chmod(0o755)
        for module in MODULES:
            (folder / "site" / module).mkdir(parents=True)
            (folder / "site" / module / "__init__.py").touch()

    def run(self, *arguments: str, atc: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        path = (f"{self.folder / 'bin'}:" if atc else "") + "/usr/bin:/bin"
        return subprocess.run(
            ["bash", str(self.folder / "om" / "convert.sh"), *arguments],
            env={"PATH": path, "HOME": str(self.folder), "CALLS": str(self.calls_file)}
            | {"ARTIFACT": str(self.artifact), "PYTHONPATH": str(self.folder / "site")}
            | variables,
            cwd=self.folder / "om",
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.calls_file.read_text().splitlines()]


@pytest.fixture
def sed_converter(sed_artifact: Path, tmp_path: Path) -> Converter:
    return Converter(sed_artifact, tmp_path)


def test_every_graph_is_converted_with_its_shapes(pocket_artifact: Path, tmp_path: Path) -> None:
    converter = Converter(pocket_artifact, tmp_path)
    process = converter.run("Ascend910B4-1")
    assert process.returncode == 0, process.stderr
    graphs = open_artifact(pocket_artifact).content.graphs
    calls = {Path(call["output"]).name: call for call in converter.calls()}
    assert set(calls) == set(graphs)
    for name, call in calls.items():
        given = {"framework": "5", "input_format": "ND", "soc_version": "Ascend910B4-1", "external_weight": "1"}
        assert given.items() <= call.items()
        # The graph's own inputs, read by onnx and not from the manifest that the script was made of.
        inputs = onnx.load(call["model"], load_external_data=False).graph.input
        shapes = [f"{v.name}:{','.join(str(d.dim_value) for d in v.type.tensor_type.shape.dim)}" for v in inputs]
        assert call["input_shape"] == ";".join(shapes)
        assert (tmp_path / "om" / "Ascend910B4-1" / f"{name}.om").exists()
    assert (tmp_path / "om" / "Ascend910B4-1" / "weight" / "weight_0123").exists()


def float32_products(call: dict[str, str]) -> list[str]:
    """The products of float32 in a call's graph, as ONNX's own inference has them."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(call["model"], load_external_data=False)).graph
    dtypes = {each.name: each.type.tensor_type.elem_type for each in [*graph.input, *graph.value_info, *graph.output]}
    of_float32 = (node for node in graph.node if dtypes[node.output[0]] == onnx.TensorProto.FLOAT)
    return [node.name for node in of_float32 if node.op_type in {"Conv", "MatMul", "Gemm"}]


def precisions(converter: Converter, soc: str) -> dict[str, tuple[str, str]]:
    """The precision of each graph on a SoC, and the nodes that are kept."""
    assert converter.run(soc, str(converter.folder / soc)).returncode == 0
    calls = converter.calls()
    converter.calls_file.unlink()
    for call in calls:
        kept = [line.split("::")[0] for line in call.get("customized", "").splitlines()]
        assert kept in ([], float32_products(call))
        assert ("precision_mode" in call) != ("precision_mode_v2" in call)
    modes = {Path(call["output"]).name: call.get("precision_mode_v2", call.get("precision_mode", "")) for call in calls}
    return {
        name: (mode, "kept" if "customized" in call else "")
        for (name, mode), call in zip(modes.items(), calls, strict=True)
    }


def test_the_precision_is_the_soc_s_and_the_graph_s(
    pocket_artifact: Path, pocket_fp16_artifact: Path, tmp_path: Path
) -> None:
    """CANN has LayerNormalization in float16 alone, and a 310P's cube no float32."""
    (tmp_path / "fp32").mkdir()
    fp32 = Converter(pocket_artifact, tmp_path / "fp32")
    found = precisions(fp32, "910B4-1")
    assert found == precisions(fp32, "310B4")
    assert found["frontend"] == ("origin", "")
    assert found["encoder"] == ("allow_fp32_to_fp16", "kept")
    assert set(precisions(fp32, "310P3").values()) == {("cube_fp16in_fp32out", "")}
    (tmp_path / "fp16").mkdir()
    fp16 = Converter(pocket_fp16_artifact, tmp_path / "fp16")
    found = precisions(fp16, "310P3")
    assert found.pop("frontend") == ("cube_fp16in_fp32out", "")
    assert set(found.values()) == {("origin", "")}


def test_a_host_without_driver_takes_the_toolkit_s_libraries(sed_converter: Converter) -> None:
    toolkit = sed_converter.folder / "toolkit"
    devlib = toolkit / f"{os.uname().machine}-linux" / "devlib"
    devlib.mkdir(parents=True)
    (devlib / "libascend_hal.so").touch()
    out = iter(map(str, range(9)))
    for variables, path in (
        ({"ASCEND_TOOLKIT_HOME": str(toolkit)}, str(devlib)),
        ({"ASCEND_HOME_PATH": str(toolkit), "LD_LIBRARY_PATH": "/there"}, f"{devlib}:/there"),
        ({"ASCEND_TOOLKIT_HOME": str(toolkit), "LD_LIBRARY_PATH": str(devlib)}, str(devlib)),
        ({}, ""),
    ):
        process = sed_converter.run("310P3", next(out), **variables)
        assert process.returncode == 0, process.stderr
        assert {call["LD_LIBRARY_PATH"] for call in sed_converter.calls()} == {path}
        sed_converter.calls_file.unlink()


def test_a_package_that_the_operator_compiler_lacks_is_named(sed_converter: Converter) -> None:
    for module in ("attr", "tornado"):
        shutil.rmtree(sed_converter.folder / "site" / module)
    process = sed_converter.run("310P3")
    assert (process.returncode, process.stderr.count("\n")) == (3, 1)
    assert "lacks attr tornado; pip install attrs cloudpickle" in process.stderr
    assert not sed_converter.calls_file.exists()


def test_free_dimensions_become_gears_or_a_range(sed_converter: Converter, sed_artifact: Path) -> None:
    assert sed_converter.run("Ascend910B4").returncode == 0
    body = next(call for call in sed_converter.calls() if call["output"].endswith("gates"))
    assert body["input_shape"] == "logmel:1,64,-1"
    gears = [int(gear) for gear in body["dynamic_dims"].split(";")]
    content = open_artifact(sed_artifact).content
    assert len(gears) == len(set(gears)) == len({c.inputs["logmel"].key for c in content.cases if c.graph == "gates"})
    assert gears == sorted(gears)
    sed_converter.calls_file.unlink()
    assert sed_converter.run("910B4", str(sed_converter.folder / "out"), DYNAMIC="range").returncode == 0
    assert all(
        "dynamic_dims" not in call and (("-1" in call["input_shape"]) != call["output"].endswith("recurrence"))
        for call in sed_converter.calls()
    )


def test_the_first_refusal_ends_it_and_leaves_nothing(sed_converter: Converter) -> None:
    process = sed_converter.run("310P3", REFUSE="frontend")
    assert process.returncode == 1
    assert "E10501" in process.stderr
    assert process.stderr.splitlines()[-1].startswith("convert.sh: frontend: atc failed")
    assert len(sed_converter.calls()) == 1
    assert sorted(path.name for path in (sed_converter.folder / "om").iterdir()) == ["README.md", "convert.sh"]


def test_without_atc_it_says_so(sed_converter: Converter) -> None:
    process = sed_converter.run("310P3", atc=False)
    assert (process.returncode, process.stderr.count("\n")) == (3, 1)
    assert "set_env.sh" in process.stderr


def test_gears_of_a_cache_are_the_sizes_that_it_is_filled_to(granite_artifact: Path) -> None:
    artifact = open_artifact(granite_artifact)
    cases = [case for case in artifact.content.cases if case.graph == "decode"]
    rows = {Golden(artifact).inputs(case)["k"].shape[2] for case in cases}
    gears = {shapes.name: shapes.gears for shapes in graph_shapes(artifact)}
    assert gears["decode"] == tuple((size, size) for size in sorted(rows))
    assert all(gears[graph] for graph in ("encode_project", "embed", "prefill"))


@pytest.mark.parametrize("place", ["Ascend/ascend-toolkit", "Ascend/cann"])
def test_set_env_is_sourced_where_atc_is_not_on_path(sed_converter: Converter, place: str) -> None:
    folder = sed_converter.folder / place
    folder.mkdir(parents=True)
    # As CANN's: it reads a variable that is not set.
    (folder / "set_env.sh").write_text(f"export PATH={sed_converter.folder / 'bin'}:$PATH OLD=$LD_LIBRARY_PATH\n")
    assert sed_converter.run("310P3", atc=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "variables", "part"),
    [
        ((), {}, "usage"),
        (("310P3", "a", "b"), {}, "usage"),
        (("310P3; id",), {}, "expected one of"),
        (("910B5",), {}, "910B4, 910B4-1, "),
        (("310P3",), {"DYNAMIC": "all"}, "expected gears or range"),
        (("310P3",), {"ARTIFACT": "/nowhere"}, "no such folder"),
        (("310P3", "/tmp"), {}, "is there already"),
    ],
)
def test_bad_usage(sed_converter: Converter, arguments: tuple[str, ...], variables: dict[str, str], part: str) -> None:
    process = sed_converter.run(*arguments, **variables)
    assert (process.returncode, process.stderr.count("\n")) == (2, 1)
    assert part in process.stderr


@pytest.mark.slow
def test_bfloat16_is_not_for_the_310(sed_bf16_artifact: Path, tmp_path: Path) -> None:
    converter = Converter(sed_bf16_artifact, tmp_path)
    assert "no bfloat16" in converter.run("310P3").stderr
    assert converter.run("910B4").returncode == 0


def test_the_files_are_a_function_of_the_artifact(sed_artifact: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(sed_artifact, tmp_path / "elsewhere")
    assert om_files(open_artifact(sed_artifact)) == om_files(open_artifact(Path(copy)))


def test_names_do_not_become_commands(sed_artifact: Path, tmp_path: Path) -> None:
    """The script quotes what a manifest says, and refuses a model's name that would leave its comment."""
    copy = Path(shutil.copytree(sed_artifact, tmp_path / "copy"))
    manifest = Manifest.from_bytes((copy / "manifest.json").read_bytes(), "test")
    body = manifest.content.graphs["gates"]
    evil = body.inputs[0].model_copy(update={"name": "x'; touch $HOME/evil; '"})
    content = manifest.content.model_copy(
        update={
            "graphs": {"$(touch $HOME/evil)": body.model_copy(update={"inputs": (evil, *body.inputs[1:])})},
            "cases": tuple(
                case.model_copy(
                    update={
                        "graph": "$(touch $HOME/evil)",
                        "inputs": {**case.inputs, evil.name: case.inputs["logmel"]},
                    }
                )
                for case in manifest.content.cases
                if case.graph == "gates"
            ),
        }
    )
    (copy / "manifest.json").write_bytes(Manifest.create(content, manifest.export).to_bytes())
    home = tmp_path / "home"
    home.mkdir()
    Converter(copy, home).run("310P3")
    assert not (home / "evil").exists()
    renamed = Manifest.create(content.model_copy(update={"model": "x\ntouch $HOME/evil"}), manifest.export)
    (copy / "manifest.json").write_bytes(renamed.to_bytes())
    with pytest.raises(InputError, match="printable"):
        om_files(open_artifact(copy))


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("artifact", ["pocket_artifact", pytest.param("sed_bf16_artifact", marks=pytest.mark.slow)])
def test_shellcheck_finds_nothing(artifact: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    converter = Converter(request.getfixturevalue(artifact), tmp_path)
    process = subprocess.run(
        ["shellcheck", str(converter.folder / "om" / "convert.sh")], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout


def test_om_runs_the_script(sed_artifact: Path, tmp_path: Path) -> None:
    converter = Converter(sed_artifact, tmp_path)
    out = tmp_path / "out"
    variables = {"CALLS": str(converter.calls_file), "HOME": str(tmp_path)}
    python = tmp_path / "bin" / "python3"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path / "site"} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    bare = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    process = atlasport("om", sed_artifact, "310P3", "--out", out, PATH=bare, **variables)
    assert (process.returncode, len(process.stderr.splitlines())) == (3, 1), process.stderr
    process = atlasport("om", sed_artifact, "310P3", "--out", out, PATH=f"{tmp_path / 'bin'}:{bare}", **variables)
    assert process.returncode == 0, process.stderr
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"{graph}_linux_aarch64.om" for graph in ("frontend", "gates", "head")),
        "recurrence.om",
        "weight",
    ]
    assert shlex.split(process.stdout.splitlines()[-1])[-1] == str(out)
