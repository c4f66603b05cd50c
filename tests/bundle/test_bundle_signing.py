from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from toy_bundle import toy_manifest

from runtime.bundle.signing import generate_key, key_id, sign, signer, verify
from runtime.errors import DamagedArtifactError, EnvironmentNotFitError, InputError

MANIFEST = toy_manifest().to_bytes()
OTHER = toy_manifest(version="1.0.1").to_bytes()
DAY = dt.timedelta(days=1)
_DIGITAL_SIGNATURE = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


def refused(signature: bytes, key: Path, *words: str, manifest: bytes = MANIFEST) -> None:
    with pytest.raises(DamagedArtifactError) as caught:
        verify(manifest, signature, key)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the program openssl")

# --- keys -------------------------------------------------------------------------------------------------------------


def test_a_key_pair_signs_and_verifies(keys: tuple[Path, Path]):
    private, public = keys
    assert private.stat().st_mode & 0o777 == 0o600
    verify(MANIFEST, sign(MANIFEST, private), public)


@needs_openssl
def test_openssl_accepts_the_signature(keys: tuple[Path, Path], tmp_path: Path):
    """An implementation that knows neither this code nor model-signing: DSSE's PAE, ECDSA over it."""
    document = json.loads(sign(MANIFEST, keys[0]))
    envelope = document["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"])
    kind = envelope["payloadType"].encode()
    signed = b" ".join([b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode(), payload])
    (tmp_path / "signed").write_bytes(signed)
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    command = ["openssl", "dgst", "-sha256", "-verify", keys[1], "-signature", tmp_path / "sig", tmp_path / "signed"]
    assert "OK" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (resource,) = json.loads(payload)["predicate"]["resources"]
    assert resource == {"name": "atlas.json", "algorithm": "sha256", "digest": hashlib.sha256(MANIFEST).hexdigest()}


def test_the_command_line_of_model_signing_accepts_the_signature(keys: tuple[Path, Path], tmp_path: Path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "atlas.json").write_bytes(MANIFEST)
    (tmp_path / "atlas.json.sig").write_bytes(sign(MANIFEST, keys[0]))
    command = [sys.executable, "-m", "model_signing", "verify", "key", tmp_path / "bundle"]
    options = ["--signature", tmp_path / "atlas.json.sig", "--public_key", keys[1]]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_processes_sign_alike(keys: tuple[Path, Path]):
    code = (
        "import sys; from pathlib import Path; from toy_bundle import toy_manifest; "
        "from runtime.bundle.signing import sign; "
        "sys.stdout.buffer.write(sign(toy_manifest().to_bytes(), Path(sys.argv[1])))"
    )
    signatures = {
        subprocess.run(
            [sys.executable, "-c", code, keys[0]],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert signatures == {sign(MANIFEST, keys[0])}


@needs_openssl
def test_the_key_id_is_that_of_openssl(keys: tuple[Path, Path]):
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", keys[1], "-outform", "DER"], capture_output=True, check=True
    ).stdout
    assert key_id(keys[1]) == hashlib.sha256(der).hexdigest()


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_larger_curves(curve: ec.EllipticCurve, tmp_path: Path):
    private, public = write_key(tmp_path, ec.generate_private_key(curve))
    verify(MANIFEST, sign(MANIFEST, private), public)


def test_wrong_key_other_bundle_and_swapped_manifest(keys: tuple[Path, Path], tmp_path: Path):
    other = generate_key(tmp_path)
    refused(sign(MANIFEST, keys[0]), other[1], "another key")
    refused(sign(OTHER, keys[0]), keys[1], "another manifest")
    refused(sign(MANIFEST, keys[0]), keys[1], "another manifest", manifest=OTHER)
    # The hint names the right key, the signature is by another.
    forged = json.loads(sign(MANIFEST, other[0]))
    forged["verificationMaterial"] = json.loads(sign(MANIFEST, keys[0]))["verificationMaterial"]
    refused(canonical(forged), keys[1])


def canonical(document: object) -> bytes:
    return (json.dumps(document, sort_keys=True, indent=2) + "\n").encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(mediaType="application/json"),
        lambda d: d.update(extra=1),
        lambda d: d["verificationMaterial"].update(publicKey={"hint": ""}),
        lambda d: d["verificationMaterial"].update(publicKey={"hint": None}),
        lambda d: d["verificationMaterial"].update(tlogEntries=[{}]),
        lambda d: d["verificationMaterial"].pop("publicKey"),
        lambda d: d["dsseEnvelope"].update(payloadType="text/plain"),
        lambda d: d["dsseEnvelope"].update(payload=d["dsseEnvelope"]["payload"] + "\n"),
        lambda d: d["dsseEnvelope"]["signatures"].append(d["dsseEnvelope"]["signatures"][0]),
        lambda d: d["dsseEnvelope"]["signatures"].clear(),
        lambda d: d["dsseEnvelope"]["signatures"][0].update(keyid="x"),
    ],
)
def test_a_signature_in_another_form_is_refused(keys: tuple[Path, Path], change: Callable[[dict], None]):
    document = json.loads(sign(MANIFEST, keys[0]))
    verify(MANIFEST, canonical(document), keys[1])
    change(document)
    refused(canonical(document), keys[1])


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 10_000, b"{}" * 3, b'{"a":' * 10_000])
def test_no_signature_at_all(keys: tuple[Path, Path], data: bytes):
    refused(data, keys[1], "form")


def write_key(folder: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey):
    folder.mkdir(exist_ok=True)
    private, public = folder / "key.pem", folder / "key.pub"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.mark.parametrize(
    "key",
    [
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP256K1()),
    ],
)
def test_other_kinds_of_keys_are_named(key: ed25519.Ed25519PrivateKey, keys: tuple[Path, Path], tmp_path: Path):
    private, public = write_key(tmp_path, key)
    for call in (lambda: sign(MANIFEST, private), lambda: verify(MANIFEST, sign(MANIFEST, keys[0]), public)):
        with pytest.raises(InputError, match="expected a"):
            call()


def test_files_that_are_no_keys(keys: tuple[Path, Path], tmp_path: Path):
    (tmp_path / "text").write_text("hello")
    signature = sign(MANIFEST, keys[0])
    for path in (tmp_path / "none", tmp_path, tmp_path / "text", keys[0]):
        with pytest.raises(InputError, match=str(path)):
            verify(MANIFEST, signature, path)
        with pytest.raises(InputError, match=str(path)):
            key_id(path)
    for path in (tmp_path / "none", tmp_path, tmp_path / "text", keys[1]):
        with pytest.raises(InputError, match=str(path)):
            sign(MANIFEST, path)


def test_a_passphrase(tmp_path: Path):
    private, public = generate_key(tmp_path, "open sesame")
    assert b"ENCRYPTED" in private.read_bytes()
    verify(MANIFEST, sign(MANIFEST, private, "open sesame"), public)
    with pytest.raises(InputError, match="passphrase is wrong"):
        sign(MANIFEST, private, "open")
    with pytest.raises(InputError, match="ATLASPORT_KEY_PASSPHRASE"):
        sign(MANIFEST, private)


@pytest.mark.parametrize("there", ["key.pem", "key.pub"])
def test_a_key_is_never_overwritten(tmp_path: Path, there: str):
    (tmp_path / there).write_text("mine")
    with pytest.raises(InputError, match="not overwritten"):
        generate_key(tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(there, "mine")]


def test_a_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentNotFitError, match="cannot be written"):
        generate_key(tmp_path / "file" / "keys")


# --- certificates -----------------------------------------------------------------------------------------------------


class Authority:
    """A root, an intermediate and a signer's certificate, as an operator's own PKI issues them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.root_key, self.middle_key, self.key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
        self.now = dt.datetime.now(dt.timezone.utc)

    def certificate(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        issuer: tuple[str, ec.EllipticCurvePrivateKey],
        *,
        authority: bool,
        days: tuple[float, float] = (-10, 10),
        usage: Sequence[x509.ObjectIdentifier] | None = (ExtendedKeyUsageOID.CODE_SIGNING,),
    ) -> x509.Certificate:
        issuer_name, issuer_key = issuer
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer_name)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now + days[0] * DAY)
            .not_valid_after(self.now + days[1] * DAY)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        if not authority:  # what every web server's certificate has, too
            builder = builder.add_extension(_DIGITAL_SIGNATURE, critical=True)
        return builder.sign(issuer_key, hashes.SHA256())

    def write(self, name: str, *certificates: x509.Certificate) -> Path:
        path = self.folder / name
        path.write_bytes(b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certificates))
        return path

    def signed(
        self,
        *,
        signer: tuple[float, float] = (-5, 5),
        middle: tuple[float, float] = (-8, 8),
        root: tuple[float, float] = (-10, 10),
    ) -> tuple[bytes, Path]:
        """A signature by certificate, and the root's certificate."""
        top = self.certificate("root", self.root_key, ("root", self.root_key), authority=True, days=root, usage=None)
        between = self.certificate(
            "middle", self.middle_key, ("root", self.root_key), authority=True, days=middle, usage=None
        )
        own = self.certificate("signer", self.key, ("middle", self.middle_key), authority=False, days=signer)
        private, _ = write_key(self.folder, self.key)
        return sign(MANIFEST, private, certificates=self.write("chain.pem", own, between)), self.write("root.pem", top)


def test_a_certificate_chain_is_verified_with_the_root_only(tmp_path: Path):
    signature, root = Authority(tmp_path).signed()
    verify(MANIFEST, signature, root)
    refused(signature, root, "another manifest", manifest=OTHER)
    assert len(key_id(root)) == 64


@pytest.mark.parametrize("which", ["signer", "middle", "root"])
@pytest.mark.parametrize(("days", "word"), [((-9, -1), "valid at"), ((1, 9), "valid at")])
def test_certificates_that_are_not_valid_now(tmp_path: Path, which: str, days: tuple[float, float], word: str):
    """model-signing alone accepts an expired signer: it asks whether the chain held when the signer's began."""
    signature, root = Authority(tmp_path).signed(**{which: days})
    refused(signature, root, word, which, "clock")


def test_another_root_of_the_same_name(tmp_path: Path):
    signature, _ = Authority(tmp_path / "one").signed()
    _, root = Authority(tmp_path / "two").signed()
    refused(signature, root, "not issued by")


def swapped(signature: bytes, at: int, certificate: x509.Certificate) -> bytes:
    """A signature with another certificate in its chain: the chain is no part of what is signed."""
    document = json.loads(signature)
    entry = document["verificationMaterial"]["x509CertificateChain"]["certificates"][at]
    entry["rawBytes"] = base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()
    return canonical(document)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        [ExtendedKeyUsageOID.SERVER_AUTH],
        [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
        [ExtendedKeyUsageOID.EMAIL_PROTECTION, ExtendedKeyUsageOID.TIME_STAMPING],
        [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE],
    ],
)
def test_a_certificate_that_is_not_for_code_signing(
    tmp_path: Path, usage: Sequence[x509.ObjectIdentifier] | None
) -> None:
    """Of the same key, rightly issued: model-signing takes a web server's, for it may make digital signatures."""
    authority = Authority(tmp_path)
    signature, root = authority.signed()
    issuer = ("middle", authority.middle_key)
    for purposes in (usage, [ExtendedKeyUsageOID.CODE_SIGNING, *(usage or [])]):
        days = (-5, 5)
        own = authority.certificate("server", authority.key, issuer, authority=False, days=days, usage=purposes)
        if purposes is usage:
            refused(swapped(signature, 0, own), root, "server", "code signing")
            middle = authority.certificate(
                "middle", authority.middle_key, ("root", authority.root_key), authority=True, usage=None
            )
            chain = authority.write("server.pem", own, middle)
            with pytest.raises(InputError, match="code signing"):
                sign(MANIFEST, tmp_path / "key.pem", certificates=chain)
        else:
            verify(MANIFEST, swapped(signature, 0, own), root)


def test_an_issuer_for_web_servers_only_issues_no_signers(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    signature, root = authority.signed()
    for usage, good in (
        ([ExtendedKeyUsageOID.SERVER_AUTH], False),
        ([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CODE_SIGNING], True),
        ([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE], True),
    ):
        issuer = authority.certificate(
            "middle", authority.middle_key, ("root", authority.root_key), authority=True, usage=usage
        )
        if good:
            verify(MANIFEST, swapped(signature, 1, issuer), root)
        else:
            refused(swapped(signature, 1, issuer), root, "middle", "code signing")


def test_the_signer_is_named(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    """By openssl's names and fingerprints."""
    authority = Authority(tmp_path)
    signature, _ = authority.signed()
    said = signer(signature)
    own, middle = x509.load_pem_x509_certificates((tmp_path / "chain.pem").read_bytes())
    assert (said.subject, said.issuer, said.chain) == ("CN=signer", "CN=middle", ("CN=middle",))
    assert said.sha256 == own.fingerprint(hashes.SHA256()).hex()
    assert said.serial == f"{own.serial_number:x}"
    assert said.not_after == own.not_valid_after_utc.isoformat()
    assert said.hint is None
    assert middle.subject.rfc4514_string() == said.issuer
    by_key = signer(sign(MANIFEST, keys[0]))
    assert by_key.hint == hashlib.sha256(keys[1].read_bytes()).hexdigest()
    assert by_key.subject is None


def test_a_signer_that_is_no_authority_issues_nothing(tmp_path: Path):
    """The signer's own certificate must not serve as an intermediate one."""
    authority = Authority(tmp_path)
    signature, root = authority.signed()
    mallory = ec.generate_private_key(ec.SECP256R1())
    chain = json.loads(signature)["verificationMaterial"]["x509CertificateChain"]["certificates"]
    issued = [x509.load_der_x509_certificate(base64.b64decode(entry["rawBytes"])) for entry in chain]
    fake = authority.certificate("mallory", mallory, ("signer", authority.key), authority=False)
    private, _ = write_key(tmp_path / "mallory", mallory)
    refused(sign(MANIFEST, private, certificates=authority.write("fake.pem", fake, *issued)), root)


def test_key_and_certificate_are_not_mixed_up(tmp_path: Path, keys: tuple[Path, Path]):
    by_certificate, root = Authority(tmp_path).signed()
    refused(by_certificate, keys[1], "signed with a certificate")
    refused(sign(MANIFEST, keys[0]), root, "signed with a key")


def test_no_byte_of_the_chain_is_free(tmp_path: Path):
    signature, root = Authority(tmp_path).signed()
    document = json.loads(signature)
    for entry in document["verificationMaterial"]["x509CertificateChain"]["certificates"]:
        whole = entry["rawBytes"]
        data = bytearray(base64.b64decode(whole))
        for at in range(0, len(data), 7):
            data[at] ^= 1
            entry["rawBytes"] = base64.b64encode(bytes(data)).decode()
            refused(canonical(document), root)
            data[at] ^= 1
        entry["rawBytes"] = whole
    verify(MANIFEST, canonical(document), root)


def test_certificates_that_do_not_fit_the_key(tmp_path: Path, keys: tuple[Path, Path]):
    authority = Authority(tmp_path)
    authority.signed()
    with pytest.raises(InputError, match="another key"):
        sign(MANIFEST, keys[0], certificates=tmp_path / "chain.pem")
    with pytest.raises(InputError, match="expected certificates"):
        sign(MANIFEST, keys[0], certificates=keys[1])
    with pytest.raises(InputError, match="one root certificate"):
        verify(MANIFEST, b"", tmp_path / "chain.pem")
