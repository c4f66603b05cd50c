"""Artifacts that many tests read: exported once a session."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

from runtime.manifest import Format, Variant

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "samples"

# The same examples in every run, however slow the machine; --hypothesis-profile=explore looks for others.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test run, the same for all workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def without_transcript(folder: Path, name: str = "short_en.wav") -> Path:
    """Return a copy of a sample that says nothing of what is in it: for networks that do not hear."""
    copy = folder / "without_transcript" / name
    with FileLock(folder / f"{name}.lock"):
        if not copy.exists():
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(SAMPLES / name, copy)
    return copy


@pytest.fixture(scope="session")
def unjudged(shared_folder: Path) -> Path:
    """short_en.wav without its transcript."""
    return without_transcript(shared_folder)


def _checkpoint(folder: Path, name: str, vocabulary: int, window_s: int) -> Path:
    from whisper_checkpoints import write_random_checkpoint

    with FileLock(folder / f"{name}.lock"):
        target = folder / "checkpoints" / name
        return target if target.exists() else write_random_checkpoint(target, vocabulary, window_s=window_s)


def _artifact(
    folder: Path,
    model: str,
    weights: Path | None,
    recordings: Sequence[Path] | None,
    variant: Variant = "fp32",
    *,
    formats: tuple[Format, ...] = (),
) -> Path:
    from export.pipeline import export_model

    # TorchScript costs as much again, and one artifact is enough to compare the engines.
    formats = formats or (("onnx", "torchscript") if weights is None else ("onnx",))
    out = folder / "artifacts"
    with FileLock(folder / f"{model}.lock"):
        target = out / model / variant
        if target.exists():
            return target
        source = weights and str(weights)
        return export_model(model, weights=source, variant=variant, formats=formats, out=out, recordings=recordings)


@pytest.fixture(scope="session")
def pocket_checkpoint() -> Path:
    """The checkpoint of the trained pocket model: windows of 6 s, three languages."""
    return ROOT / "pocket" / "whisper-pocket"


@pytest.fixture(scope="session")
def pocket_artifact(shared_folder: Path) -> Path:
    """whisper-pocket, fp32, ONNX and TorchScript. Read only: copy it to change it."""
    return _artifact(shared_folder, "whisper-pocket", None, None)


@pytest.fixture(scope="session")
def pocket_fp16_artifact(shared_folder: Path) -> Path:
    """whisper-pocket, fp16, ONNX and TorchScript. Read only; takes a minute."""
    return _artifact(shared_folder, "whisper-pocket", None, None, "fp16")


@pytest.fixture(scope="session")
def random_checkpoint(shared_folder: Path) -> Path:
    """A random multilingual checkpoint of two layers with OpenAI's vocabulary layout and windows of 30 s."""
    return _checkpoint(shared_folder, "whisper-random", 51865, window_s=30)


@pytest.fixture(scope="session")
def random_artifact(shared_folder: Path, random_checkpoint: Path) -> Path:
    """The artifact of `random_checkpoint`, ONNX only. Read only."""
    return _artifact(shared_folder, "whisper-random", random_checkpoint, [without_transcript(shared_folder)])


@pytest.fixture(scope="session")
def english_checkpoint(shared_folder: Path) -> Path:
    """A random English-only checkpoint of two layers with windows of 6 s."""
    return _checkpoint(shared_folder, "whisper-english", 51864, window_s=6)


@pytest.fixture(scope="session")
def english_artifact(shared_folder: Path, english_checkpoint: Path) -> Path:
    """The artifact of `english_checkpoint`, ONNX only. Read only."""
    return _artifact(shared_folder, "whisper-english", english_checkpoint, [without_transcript(shared_folder)])


@pytest.fixture(scope="session")
def sed_artifact(shared_folder: Path) -> Path:
    """sed-pocket, fp32, ONNX and TorchScript. Read only: copy it to change it."""
    return _artifact(shared_folder, "sed-pocket", None, None)


@pytest.fixture(scope="session")
def sed_fp16_artifact(shared_folder: Path) -> Path:
    """sed-pocket, fp16, ONNX and TorchScript. Read only."""
    return _artifact(shared_folder, "sed-pocket", None, None, "fp16")


@pytest.fixture(scope="session")
def sed_bf16_artifact(shared_folder: Path) -> Path:
    """sed-pocket, bf16, ONNX and TorchScript. Read only."""
    return _artifact(shared_folder, "sed-pocket", None, None, "bf16")


@pytest.fixture(scope="session")
def parakeet_artifact(shared_folder: Path) -> Path:
    """parakeet-pocket, fp32, ONNX and TorchScript. Read only: copy it to change it."""
    return _artifact(shared_folder, "parakeet-pocket", None, None)


@pytest.fixture(scope="session")
def parakeet_checkpoint() -> Path:
    """The checkpoint of parakeet-pocket, a .nemo file."""
    return ROOT / "pocket" / "parakeet-pocket.nemo"


@pytest.fixture(scope="session")
def parakeet_fp16_artifact(shared_folder: Path) -> Path:
    """parakeet-pocket, fp16, ONNX only. Read only; takes a minute."""
    return _artifact(shared_folder, "parakeet-pocket", None, None, "fp16", formats=("onnx",))


@pytest.fixture(scope="session")
def parakeet_bf16_artifact(shared_folder: Path) -> Path:
    """parakeet-pocket, bf16, TorchScript only. Read only; takes half a minute."""
    return _artifact(shared_folder, "parakeet-pocket", None, None, "bf16", formats=("torchscript",))


@pytest.fixture(scope="session")
def ctc_artifact(shared_folder: Path) -> Path:
    """parakeet-pocket's encoder with a random CTC head, of a hybrid, by the command; fp32, ONNX. Read only."""
    return _ctc(shared_folder, "fp32", "onnx")


@pytest.fixture(scope="session")
def ctc_fp16_artifact(shared_folder: Path) -> Path:
    """As `ctc_artifact`, fp16. Read only."""
    return _ctc(shared_folder, "fp16", "onnx")


@pytest.fixture(scope="session")
def ctc_bf16_artifact(shared_folder: Path) -> Path:
    """As `ctc_artifact`, bf16, TorchScript. Read only."""
    return _ctc(shared_folder, "bf16", "torchscript")


def _ctc(folder: Path, variant: Variant, form: Format) -> Path:
    from ctc_checkpoints import hybrid_nemo

    with FileLock(folder / "ctc.lock"):
        target = folder / "artifacts" / "ctc-random" / variant
        if not target.exists():
            asked = ("--head", "ctc", "--formats", form, "--recordings", without_transcript(folder))
            command = ("export", "ctc-random", "--weights", hybrid_nemo(folder / "hybrid.nemo"), *asked)
            where = ("--precision", variant, "--out", folder / "artifacts")
            subprocess.run([sys.executable, "-m", "atlasport", *command, *where], cwd=ROOT, check=True)
    return target


@pytest.fixture(scope="session")
def granite_checkpoint(shared_folder: Path) -> Path:
    """A random checkpoint of Granite Speech's layout, two layers everywhere, blocks of 40 frames."""
    from granite_checkpoints import write_granite_checkpoint

    with FileLock(shared_folder / "granite.lock"):
        target = shared_folder / "checkpoints" / "granite"
        return target if target.exists() else write_granite_checkpoint(target)


@pytest.fixture(scope="session")
def granite_artifact(shared_folder: Path, granite_checkpoint: Path) -> Path:
    """The artifact of `granite_checkpoint`, fp32, ONNX only. Read only: copy it to change it."""
    return _artifact(shared_folder, "granite-random", granite_checkpoint, [without_transcript(shared_folder)])


@pytest.fixture(scope="session")
def granite_fp16_artifact(shared_folder: Path) -> Path:
    """granite-pocket with random weights, fp16, ONNX only: its texts end before they depend on rounding. Read only."""
    recordings, formats = [SAMPLES / "short_en.wav"], ("onnx",)
    return _artifact(shared_folder, "granite-pocket", Path("random"), recordings, "fp16", formats=formats)


@pytest.fixture(scope="session")
def granite_bf16_artifact(shared_folder: Path) -> Path:
    """As `granite_fp16_artifact`, bf16, TorchScript only. Read only."""
    recordings, formats = [SAMPLES / "short_en.wav"], ("torchscript",)
    return _artifact(shared_folder, "granite-pocket", Path("random"), recordings, "bf16", formats=formats)
