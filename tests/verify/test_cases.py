"""A user's recordings: rates against those of jiwer and sed_eval, what is said of the rest, and what stays as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jiwer
import pytest
from command_line import SAMPLES, assert_one_line, atlasport
from test_report import Page

from atlasport.commands.cases import own_recordings
from export.freeze.evidence import read_evidence
from runtime.artifact import open_artifact
from runtime.errors import ExitCode, InputError
from runtime.results import AudioInfo, Event, Result, SoundEvents, Transcript
from verify.bootstrap import estimate
from verify.case_results import CasesFile
from verify.cases import CasesResult, counts_of, hear_cases
from verify.run import verify_artifact

SED_EVAL = json.loads(Path(__file__).with_name("sed_eval_reference.json").read_text())
# What people say was spoken, not all of it rightly: the rates are above 0 and differ between words and characters.
SPOKEN = {"short_en": "Set a timer for twenty-six minutes now!", "short_de": "drei nullen sechs <b>vier</b>"}
COMMON = {"model": "m", "variant": "fp32", "device": "cpu", "engine": "e", "audio": AudioInfo("a.wav", 6.0, 16000)}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recordings with transcripts, one without, and one that is none."""
    folder = tmp_path_factory.mktemp("recordings")
    for name in (*SPOKEN, "short_es"):
        shutil.copy(SAMPLES / f"{name}.wav", folder)
    for name, text in SPOKEN.items():
        (folder / f"{name}.txt").write_text(text)
    (folder / "notes.md").write_text("recorded on Monday")
    return folder


@pytest.fixture(scope="module")
def folder(pocket_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with a verdict on one case."""
    copy = tmp_path_factory.mktemp("cases") / "whisper-pocket" / "fp32"
    shutil.copytree(pocket_artifact, copy, ignore=shutil.ignore_patterns("results", "logs", "report.html"))
    return copy


@pytest.fixture(scope="module")
def heard(folder: Path, recordings: Path) -> CasesResult:
    return hear_cases(folder, recordings, threads=1)


def test_rates_are_those_of_jiwer_on_engine_and_reference(heard: CasesResult) -> None:
    cases = CasesFile.model_validate_json((heard.report.parent / "results" / "cases.json").read_text())
    assert cases.model_dump_json() == heard.cases.model_dump_json()
    clean = jiwer.Compose([jiwer.ToLowerCase(), jiwer.RemovePunctuation(), jiwer.Strip()])
    reference, candidate = cases.engines
    assert (reference.title, candidate.title) == ("onnxruntime, fp32 (reference)", "torchscript, fp32")
    for engine in cases.engines:
        texts = {Path(one.name).stem: one.result["text"] for one in engine.recordings}
        said, found = ([clean(texts_of[name]) for name in SPOKEN] for texts_of in (SPOKEN, texts))
        assert engine.rates["WER"].value == pytest.approx(jiwer.wer(said, found))
        assert engine.rates["CER"].value == pytest.approx(jiwer.cer(said, found))
        assert 0 < engine.rates["CER"].value < engine.rates["WER"].value
        low, high = engine.rates["WER"].low, engine.rates["WER"].high
        assert low is not None
        assert high is not None
        assert low < engine.rates["WER"].value < high
    assert not reference.changes
    assert candidate.changes["WER"].value == 0
    assert {"onnxruntime", "jiwer", "numpy"} <= set(cases.versions)
    assert (cases.device, cases.flags["threads"]) == ("cpu", "1")


def test_what_is_not_counted_is_said(heard: CasesResult) -> None:
    assert heard.exit_code == ExitCode.BAD_INPUT
    assert [one.name for one in heard.cases.unreadable] == ["notes.md"]
    assert heard.cases.unannotated == ["short_es.wav"]
    assert {one.name for one in heard.cases.engines[1].recordings} == {"short_de.wav", "short_en.wav", "short_es.wav"}
    page = heard.report.read_text()
    assert Page(page).links == []
    assert "Not verified yet." in page
    assert "notes.md</b> could not be read" in page
    assert "seed 0" in page
    assert "&lt;b&gt;vier" in page
    assert "<b>vier" not in page


def test_the_verdict_stays_and_is_none_of_the_whole(heard: CasesResult, folder: Path, recordings: Path) -> None:
    artifact = open_artifact(folder)
    problem = read_evidence(artifact, "cpu", ["onnxruntime", "torchscript"]).problem
    assert problem is not None
    assert problem.startswith("not verified (no results/accuracy.json")
    shutil.copy(folder / "results" / "cases.json", folder / "results" / "accuracy.json")
    problem = read_evidence(artifact, "cpu", ["onnxruntime", "torchscript"]).problem
    assert problem is not None
    assert "is not what verify writes" in problem
    verify_artifact(folder, engines=["onnxruntime"], cases=["step_4"], runs=0)
    verdict = (folder / "results" / "accuracy.json").read_bytes()
    page = heard.report.read_text()
    assert Page(page).links == []
    assert "Own recordings" in page, "of the run before"
    assert "Verified on onnxruntime" in page
    hear_cases(folder, recordings, engines=["onnxruntime"], threads=1)
    assert (folder / "results" / "accuracy.json").read_bytes() == verdict
    assert "Verified on onnxruntime" in heard.report.read_text()
    problem = read_evidence(artifact, "cpu", ["onnxruntime", "torchscript"]).problem
    assert problem is not None
    assert problem.startswith("verified in some cases only")


def test_the_command_names_what_is_unreadable_and_leaves_with_2(folder: Path, recordings: Path) -> None:
    root, options = folder.parents[1], ("--engine", "onnxruntime", "--threads", 1)
    process = atlasport("verify", "whisper-pocket", "--root", root, "--cases", recordings, *options)
    assert_one_line(process, ExitCode.BAD_INPUT, "notes.md")
    assert "onnxruntime, fp32 (reference): WER" in process.stdout
    assert "nothing says what is in them: short_es.wav" in process.stdout


def test_a_folder_is_told_from_names_of_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert own_recordings("mine") == Path("mine")
    assert own_recordings(str(tmp_path)) == tmp_path
    assert own_recordings("step_*,short_en") is own_recordings(None) is None
    with pytest.raises(InputError, match="expected a folder of recordings or names of cases, found neither"):
        own_recordings("./min")


def test_a_folder_without_what_the_model_tells_is_refused(folder: Path, sed_artifact: Path, tmp_path: Path) -> None:
    shutil.copy(SAMPLES / "short_en.wav", tmp_path)
    with pytest.raises(InputError, match=r"expected a transcript \(a\.txt beside a\.wav\).* hears speech"):
        hear_cases(folder, tmp_path)
    with pytest.raises(InputError, match=r"expected events \(a\.tsv beside a\.wav\).* hears sounds"):
        hear_cases(sed_artifact, tmp_path)
    assert not (sed_artifact / "results" / "cases.json").exists()


def transcript(text: str) -> Transcript:
    return Transcript(**COMMON, text=text, segments=())


@pytest.mark.parametrize(
    ("said", "result", "counts"),
    [
        ({"text": "one two"}, transcript("One, three four."), {"WER": (2, 2), "CER": (8, 7)}),
        ({"text": ""}, transcript("thank you"), {"WER": (2, 0), "CER": (9, 0)}),
        ({"text": "人間に違いない", "language": "ja"}, transcript("人間にちがいない"), {"CER": (2, 7)}),
        ({"events": []}, transcript("thank you"), {}),
        ({}, transcript("thank you"), {}),
    ],
)
def test_counts_by_hand(said: dict[str, object], result: Result, counts: dict[str, tuple[int, int]]) -> None:
    assert counts_of(said, result, ()) == counts


def test_f1_over_recordings_is_that_of_sed_eval() -> None:
    """And a class that nobody annotated is not counted."""
    counts = []
    for case in SED_EVAL["lists"]:
        found = [*case["found"], {"onset": 0.0, "offset": 1.0, "label": "Not annotated"}]
        events = tuple(Event(e["onset"], e["offset"], e["label"], 0.9) for e in found)
        heard = SoundEvents(**COMMON, tags=(), events=events, resolution_s=0.04)
        counts.append(counts_of({"events": case["reference"]}, heard, ("Dog", "Siren", "Speech")))
    for name, key in (("event-F1", "event_f1"), ("segment-F1", "segment_f1")):
        found_rate = estimate([one[name] for one in counts])
        assert found_rate is not None
        assert found_rate.value == pytest.approx(SED_EVAL["together"][key], abs=1e-9)


def test_sound_events_of_a_folder(sed_artifact: Path, tmp_path: Path) -> None:
    known = json.loads((SAMPLES / "samples.json").read_text())
    folder = Path(shutil.copytree(sed_artifact, tmp_path / "fp32"))
    (tmp_path / "own").mkdir()
    for name in ("sed_1", "sed_2"):
        shutil.copy(SAMPLES / f"{name}.flac", tmp_path / "own")
        rows = [f"{e['onset']}\t{e['offset']}\t{e['label']}" for e in known[f"{name}.flac"]["events"]]
        (tmp_path / "own" / f"{name}.tsv").write_text("\n".join(["onset\toffset\tevent_label", *rows]))
    result = hear_cases(folder, tmp_path / "own", engines=["torchscript"], threads=1)
    assert result.exit_code == ExitCode.OK
    golden = {r.name: r.result["events"] for r in open_artifact(folder).content.recordings}
    for engine in result.cases.engines:
        heard = {Path(one.name).stem: one.result["events"] for one in engine.recordings}
        assert {name: len(events) for name, events in heard.items()} == {name: len(golden[name]) for name in heard}
        assert engine.rates["event-F1"].value > 0.5
        assert engine.rates["segment-F1"].value > 0.5
    assert "Siren" in result.cases.labels
    assert "event-F1" in result.report.read_text()
