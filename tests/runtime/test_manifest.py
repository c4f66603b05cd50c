from __future__ import annotations

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_artifact import content

from runtime.errors import DamagedArtifactError
from runtime.manifest import FORMAT_VERSION, Content, ExportRecord, FileEntry, Graph, Manifest, StageCost, TensorSpec

GRAPH = Graph(
    precision="fp32",
    inputs=(TensorSpec(name="x", dtype="float32", shape=(1, "T", 80)),),
    outputs=(),
    files={"onnx": "encoder.onnx"},
)
RECORD = ExportRecord(
    created="2026-01-01", host="h", stages=(StageCost(stage="onnx", cpu_s=0.1, wall_s=1e-7, peak_rss=2**40),)
)
FILES = {"encoder.onnx": FileEntry(size=5, sha256="0" * 64)}
MANIFEST = Manifest.create(content(FILES, {"encoder": GRAPH}), RECORD)
DATA = MANIFEST.to_bytes()
VERSION, NEXT_VERSION = (f'"format_version": {FORMAT_VERSION + more}'.encode() for more in (0, 1))

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def refused(data: bytes) -> str:
    with pytest.raises(DamagedArtifactError) as caught:
        Manifest.from_bytes(data, "there/manifest.json")
    message = str(caught.value)
    assert message.startswith("there/manifest.json: ")
    assert message.isprintable()
    assert len(message) < 600
    return message


def test_round_trip():
    assert Manifest.from_bytes(DATA, "m") == MANIFEST


@given(st.dictionaries(st.text(), json_values, max_size=5), st.floats(min_value=0, max_value=1e30))
def test_round_trip_of_any_settings(settings: dict, value: float):
    changed = MANIFEST.content.model_copy(
        update={
            "settings": settings,
            "tolerances": MANIFEST.content.tolerances.model_copy(update={"floors": {"logits": {"kl": value}}}),
        }
    )
    manifest = Manifest.create(changed, RECORD)
    assert Manifest.from_bytes(manifest.to_bytes(), "m") == manifest


def test_every_flipped_bit_is_refused():
    for at in range(len(DATA)):
        changed = bytearray(DATA)
        changed[at] ^= 1 << (at % 8)
        refused(bytes(changed))


@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_changed_byte_is_refused(at: int, mask: int):
    refused(DATA[:at] + bytes([DATA[at] ^ mask]) + DATA[at + 1 :])


@given(st.integers(0, len(DATA)), st.binary(min_size=1, max_size=3))
def test_inserted_bytes_are_refused(at: int, inserted: bytes):
    refused(DATA[:at] + inserted + DATA[at:])


@given(st.integers(0, len(DATA) - 1), st.integers(1, 20))
def test_deleted_bytes_are_refused(at: int, count: int):
    refused(DATA[:at] + DATA[at + count :])


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_refused(data: bytes):
    refused(data)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"format_version": ' + b"9" * 10_000 + b"}",
        b'{"format_version": "' + b"long\\n" * 10_000 + b'"}',
        DATA.replace(b'"model": "toy"', b'"model": "toy", "model": "toy"'),
        DATA.replace(b'"deep": [', b'"deep": [' + b"[" * 5000 + b"]" * 5000 + b","),
        DATA.replace(b'"deep": [', b'"deep": [NaN,'),
        DATA.replace(b'"deep": [', b'"deep": [1e999,'),
        DATA.replace(b'"deep": [', b'"deep": [' + b"9" * 4000 + b","),
        DATA.replace(b'"deep": [', b'"deep": ["\\ud800",'),
        DATA.replace(b'"constant": 0.0001', b'"constant": NaN'),
        DATA.replace(b'"constant": 0.0001', b'"constant": 1e-4'),
        DATA.replace(VERSION, b'"format_version": true'),
        DATA.replace(VERSION, NEXT_VERSION),
        DATA.replace(b'"model": "toy"', b'"model": "toy", "new\\nkey\\u001b[31m": 1'),
        DATA.replace(b"toy", b"boy"),
        DATA.replace(b'"host": "h"', b'"host": "g"'),
        b"\xef\xbb\xbf" + DATA,
        DATA.decode().encode("utf-16"),
        json.dumps(json.loads(DATA)).encode(),
        json.dumps(json.loads(DATA), indent=2, sort_keys=True).encode() + b"\n",
        DATA + b"\n",
        b"",
    ],
    ids=range(23),
)
def test_hostile_manifests_are_refused(data: bytes):
    assert data != DATA
    refused(data)


def test_another_version_says_so():
    message = refused(DATA.replace(VERSION, NEXT_VERSION))
    assert f"expected manifest format {FORMAT_VERSION}, found {FORMAT_VERSION + 1}" in message


def test_unknown_key_is_named():
    message = refused(DATA.replace(b'"model": "toy"', b'"model": "toy", "modell": 1'))
    assert "content.modell" in message


def test_digest_covers_every_field():
    """Each field changed, digests as they were: refused."""
    for name in Content.model_fields:
        raw = json.loads(DATA)
        del raw["content"][name]
        refused(json.dumps(raw, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n")


def test_not_a_number_cannot_be_written():
    with pytest.raises(ValueError, match="finite"):
        StageCost(stage="x", cpu_s=float("nan"), wall_s=sys.float_info.max, peak_rss=0)
