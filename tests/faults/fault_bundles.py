"""Bundles that are damaged, cut, hostile or wrongly signed, given to the real install."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path

from fault_world import Row, World, digest, refusal
from real_command import run
from test_bundle_archive import NAMES, hostile
from test_bundle_signing import Authority
from toy_bundle import accept, toy_bundle, toy_manifest

from runtime.bundle.archive import open_bundle, write_bundle
from runtime.bundle.manifest import ARTIFACT_FOLDER
from runtime.bundle.signing import generate_key, sign
from runtime.bundle.ustar import header
from runtime.errors import DamagedArtifactError
from runtime.manifest import MANIFEST_NAME, FileEntry, Manifest

DAMAGED = (4,)


def refused(row: Row, root: Path, what: str, *arguments: str | Path, codes: tuple[int, ...]) -> None:
    """Count a command that must be refused and must change nothing."""
    before = digest(root)
    outcome = run(*arguments)
    try:
        said = refusal(outcome, codes)
        assert digest(root) == before, "the box has changed"
    except AssertionError as error:
        row.violated(f"{what}: {error}")
    else:
        row.note(said)


def flips(world: World, count: int, chance: random.Random) -> Row:
    """Single bits of a signed bundle."""
    row = Row("one flipped bit in a signed bundle, `install`")
    root, path = world.box("flipped"), world.folder / "flipped.atlas"
    data = world.new.read_bytes()
    path.write_bytes(data)
    for at in sorted(chance.sample(range(8 * len(data)), count)):
        with path.open("r+b") as file:
            os.pwrite(file.fileno(), bytes([data[at // 8] ^ (1 << at % 8)]), at // 8)
            refused(row, root, f"bit {at}", *world.install(path, root), codes=DAMAGED)
            os.pwrite(file.fileno(), data[at // 8 : at // 8 + 1], at // 8)
    assert run(*world.install(path, root)).code == 0, "the control: unflipped, it installs"
    return row


def truncations(world: World, count: int, chance: random.Random) -> Row:
    """A bundle that ends too early."""
    row = Row("truncated bundle, `install`")
    root, path = world.box("truncated"), world.folder / "truncated.atlas"
    path.write_bytes(world.new.read_bytes())
    size = path.stat().st_size
    lengths = {0, 1, 511, 512, 513, size - 1, size - 512, size - 10240}
    lengths |= set(chance.sample(range(size), count - len(lengths)))
    for length in sorted(lengths, reverse=True):
        os.truncate(path, length)
        refused(row, root, f"{length} bytes", *world.install(path, root), codes=DAMAGED)
    return row


def hostile_archives(world: World) -> Row:
    """Archives that tar libraries have fallen for: `..`, links, devices, case, duplicates, lies, bombs, deep JSON."""
    row = Row("hostile archive, `install` and `inspect`")
    root, path = world.box("hostile"), world.folder / "hostile.atlas"
    toy_bundle(path)
    assert run("install", path, "--root", world.box("control"), "--allow-unsigned").code == 0, "the control installs"
    for name in NAMES:
        path.write_bytes(hostile(name))
        for command in (("install", path, "--root", root, "--allow-unsigned"), ("inspect", path)):
            refused(row, root, f"{name}, {command[0]}", *command, codes=DAMAGED)
    manifest = toy_manifest().to_bytes()
    first = header("atlas.json", len(manifest)) + manifest.ljust(-(-len(manifest) // 512) * 512, b"\0")
    for name, before in (("atlas.json", b""), ("atlas.json.sig", first)):
        for size in (2**25, 8**11 - 1):
            with path.open("wb") as file:
                file.write(before + header(name, size))
                file.truncate(2**36)  # sparse: nothing of it is on the disk
            command = ("install", path, "--root", root, "--allow-unsigned")
            refused(row, root, f"bomb {name}", *command, codes=DAMAGED)
    path.unlink()
    return row


def _with_files(world: World, out: Path, key: Path, changes: Mapping[str, bytes]) -> Path:
    """Write version 2.0.0 with other files in its artifact, every digest and signature right."""
    with open_bundle(world.new) as reader:
        blobs = {sha256: b"".join(chunks) for sha256, chunks in reader.blobs()}
        bundle = reader.manifest
    manifest_name = f"{ARTIFACT_FOLDER}/{MANIFEST_NAME}"
    manifest = Manifest.from_bytes(blobs[bundle.files[manifest_name].sha256], "campaign")
    files = {name: FileEntry(size=len(data), sha256=hashlib.sha256(data).hexdigest()) for name, data in changes.items()}
    content_sha256 = bundle.content_sha256
    if MANIFEST_NAME not in changes:
        content = manifest.content.model_copy(update={"files": {**manifest.content.files, **files}})
        manifest = Manifest.create(content, manifest.export)
        changes, content_sha256 = {**changes, MANIFEST_NAME: manifest.to_bytes()}, manifest.content_sha256
    blobs |= {hashlib.sha256(data).hexdigest(): data for data in changes.values()}
    entries = {
        f"{ARTIFACT_FOLDER}/{name}": FileEntry(size=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in changes.items()
    }
    changed = {"version": "2.0.0", "content_sha256": content_sha256, "files": {**bundle.files, **entries}}
    bundle = bundle.model_copy(update=changed)
    write_bundle(out, bundle, sign(bundle.to_bytes(), key), {sha256: blobs[sha256] for sha256 in bundle.members})
    return out


def _redirected_onnx(world: World, location: str) -> bytes:
    """The head's graph with its external data elsewhere."""
    import onnx

    model = onnx.load(world.artifact / "head.onnx", load_external_data=False)
    moved = 0
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value, moved = location, moved + 1
    assert moved, "the graph has external data"
    model.producer_name = "campaign"  # other bytes wherever the data lie
    return model.SerializeToString()


def hostile_contents(world: World) -> Row:
    """Content that a rightful key has signed: the version before stays active."""
    row = Row("hostile content under a valid signature, `install --activate`")
    weights = (world.artifact / "weights.safetensors").read_bytes()
    manifest = (world.artifact / MANIFEST_NAME).read_bytes()
    cases: dict[str, dict[str, bytes]] = {
        f"external data in {place}": {"head.onnx": _redirected_onnx(world, place)}
        for place in (
            "../../../../decoy.bin",
            "../../../../../decoy.bin",
            str(world.folder / "decoy.bin"),
            "/etc/passwd",
        )
    }
    cases |= {
        "10,000-level JSON as the artifact's manifest": {MANIFEST_NAME: b"[" * 10_000 + b"]" * 10_000},
        "10,000-level JSON as classes": {"classes.txt": b'{"a":' * 10_000},
        "a path out of the folder": {MANIFEST_NAME: manifest.replace(b'"weights.safetensors"', b'"../weights"')},
        "no graph": {"head.onnx": b"\0" * 1000},
        "golden arrays of a header that lies": {"golden.safetensors": (2**62).to_bytes(8, "little") + b"{}"},
    }
    control = _with_files(
        world, world.folder / "content.atlas", world.key, {"head.onnx": _redirected_onnx(world, "weights.safetensors")}
    )
    outcome = run(*world.install(control, world.box("content"), "--activate"))
    assert outcome.code == 0, f"the control: a graph whose data lie where they should is activated: {outcome.err}"
    for name, changes in cases.items():
        root = world.box("content")
        # Weights that fit lie where the graph points: whoever followed it would pass the self-test.
        for decoy in (world.folder / "decoy.bin", root / "decoy.bin"):
            decoy.write_bytes(weights)
        bundle = _with_files(world, world.folder / "content.atlas", world.key, changes)
        outcome = run(*world.install(bundle, root, "--activate"))
        try:
            said = refusal(outcome, (1, 3, 4))
            listed = run("list", "--root", root, "--json")
            assert listed.code == 0
            assert '"version": "1.0.0", "use": "active"' in listed.out, listed.out
            assert run("status", "--root", root).code == 0, "the active version is not healthy"
        except AssertionError as error:
            row.violated(f"{name}: {error}")
        else:
            row.note(f"{said}, the version before stays active")
    return row


def fuzzed(world: World, count: int, seed: int) -> Row:
    """Bundles and manifests as hypothesis changes them, in this process: every error is one of the documented."""
    import hypothesis
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    row = Row("bundle changed by hypothesis, whole reader")
    path = world.folder / "fuzzed.atlas"
    signed, unsigned = toy_bundle(path, world.key).read_bytes(), toy_bundle(path).read_bytes()

    def check(data: bytes, good: bytes) -> None:
        path.write_bytes(data)
        try:
            accept(path, world.public_key if good == signed else None)
        except DamagedArtifactError as error:
            row.note("refused, exit 4" if len(str(error).splitlines()) == 1 else "refused in several lines")
        else:
            assert data == good
            row.note("unchanged, accepted")

    @hypothesis.seed(seed)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def changes(data: st.DataObject) -> None:
        base = data.draw(st.sampled_from([signed, unsigned]))
        start = data.draw(st.integers(0, len(base)))
        end = data.draw(st.integers(start, min(len(base), start + 2000)))
        check(base[:start] + data.draw(st.binary(max_size=2000)) + base[end:], base)

    try:
        changes()
    except Exception as error:  # noqa: BLE001 - what hypothesis found
        row.violated(f"{type(error).__name__}: {error}")
    return row


def _signed(world: World, name: str, make: Callable[[bytes], tuple[bytes, bytes | None]]) -> Path:
    """Write a bundle whose manifest and signature are what `make` returns for the manifest of the new one."""
    with open_bundle(world.new) as reader:
        blobs = {sha256: b"".join(chunks) for sha256, chunks in reader.blobs()}
        data, signature = make(reader.manifest_bytes)
        manifest = type(reader.manifest).from_bytes(data, name)
    path = world.folder / f"{name}.atlas"
    write_bundle(path, manifest, signature, blobs)
    return path


def keys(world: World) -> Row:
    """Signatures that are not the box's."""
    row = Row("wrong key, certificate or signature, `install`")
    root = world.box("keys-box")
    other_key, other_public = generate_key(world.folder / "other")
    with open_bundle(world.old) as reader:
        of_old = reader.signature
    authority = Authority(world.folder / "authority")
    swapped = {"version": "9.9.9"}

    def swap(data: bytes) -> bytes:
        from runtime.bundle.manifest import BundleManifest

        return BundleManifest.from_bytes(data, "new").model_copy(update=swapped).to_bytes()

    theirs = _signed(world, "theirs", lambda data: (data, sign(data, other_key)))
    cases: list[tuple[str, Path, Path | None, tuple[int, ...]]] = [
        ("signed with another key", theirs, world.public_key, DAMAGED),
        ("checked with another key", world.new, other_public, DAMAGED),
        ("another key than the pinned one", theirs, other_public, DAMAGED),
        ("signature of another bundle", _signed(world, "of-old", lambda d: (d, of_old)), world.public_key, DAMAGED),
        (
            "manifest swapped after signing",
            _signed(world, "swapped", lambda d: (swap(d), sign(d, world.key))),
            world.public_key,
            DAMAGED,
        ),
        ("no signature", _signed(world, "unsigned", lambda d: (d, None)), world.public_key, DAMAGED),
        ("no key named", world.new, None, (2,)),
        ("a key file that is none", world.new, world.old, (2,)),
        ("a key file that is not there", world.new, world.folder / "none.pub", (2,)),
        (
            "10,000-level JSON as signature",
            _signed(world, "deep", lambda d: (d, b"[" * 10_000 + b"]" * 10_000)),
            world.public_key,
            DAMAGED,
        ),
    ]
    for which in ("signer", "middle", "root"):
        for days, state in (((-9.0, -1.0), "expired"), ((1.0, 9.0), "not valid yet")):
            path, certificate = _by_certificate(world, authority, f"{which}-{state}".replace(" ", "-"), {which: days})
            cases.append((f"{which}'s certificate {state}", path, certificate, DAMAGED))
    for name, bundle, key, codes in cases:
        options = () if key is None else ("--public-key", key)
        refused(row, root, name, "install", bundle, "--root", root, *options, codes=codes)
    path, certificate = _by_certificate(world, authority, "valid", {})
    control = ("install", path, "--root", world.folder / "certified", "--public-key", certificate)
    assert run(*control).code == 0, "the control: a valid certificate is accepted"
    return row


def _by_certificate(
    world: World, authority: Authority, name: str, days: Mapping[str, tuple[float, float]]
) -> tuple[Path, Path]:
    """Sign the new bundle by certificate; returns the bundle and the root certificate."""
    _, root = authority.signed(**days)
    chain, key = authority.folder / "chain.pem", authority.folder / "key.pem"
    path = _signed(world, name, lambda data: (data, sign(data, key, certificates=chain)))
    return path, root.rename(root.with_name(f"{name}.root.pem"))
