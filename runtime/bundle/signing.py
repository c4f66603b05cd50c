"""Signatures of bundles by OpenSSF's model-signing: keys and certificates, offline.

What is signed is a folder that holds `atlas.json` alone, which names everything else by SHA-256. The signature file is
a Sigstore bundle in one canonical form: it is rebuilt from the few values in it and compared, so that no byte of it is
free. Three things that model-signing leaves out are added here: signatures are deterministic (RFC 6979, and a statement
with sorted keys), because two freezes of the same artifact give the same file; certificates must be valid now; and they
must be for code signing, so that a web server's certificate under the same root signs no bundles.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.bundle.certificates import Signer, chain_problem, purpose_problem, signer_of
from runtime.bundle.manifest import BUNDLE_MANIFEST_NAME, SIGNATURE_NAME
from runtime.errors import DamagedArtifactError, EnvironmentNotFitError, InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.hashes import HashAlgorithm
    from cryptography.x509 import Certificate

PRIVATE_KEY_NAME = "key.pem"
PUBLIC_KEY_NAME = "key.pub"
# Beyond any key or chain; what is larger is not read.
_MAX_PEM_BYTES = 2**16
_MAX_CERTIFICATES = 8
_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"


def generate_key(folder: Path, passphrase: str | None = None) -> tuple[Path, Path]:
    """Write a new EC key (P-256) and return the paths of `key.pem` (mode 0600) and `key.pub`.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    passphrase : str, optional
        Encrypts key.pem.

    Raises
    ------
    InputError
        One of the files is there already: a key that was overwritten is lost.
    EnvironmentNotFitError
        The folder cannot be written.

    """
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec

    private, public = folder / PRIVATE_KEY_NAME, folder / PUBLIC_KEY_NAME
    key = ec.generate_private_key(ec.SECP256R1())
    cipher = s.BestAvailableEncryption(passphrase.encode()) if passphrase else s.NoEncryption()
    secret = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, cipher)
    shown = key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if there := [path for path in (private, public) if os.path.lexists(path)]:
            raise InputError(f"{there[0]}: is there already and is not overwritten; name another folder")
        _write_new(private, secret, 0o600)
        _write_new(public, shown, 0o644)
    except OSError as error:
        reason = error.strerror or str(error)
        raise EnvironmentNotFitError(f"{error.filename or folder}: cannot be written ({reason})") from error
    return private, public


def is_encrypted(private_key: Path) -> bool:
    """Return whether the private key needs a passphrase."""
    return b"ENCRYPTED" in _read_pem(private_key, "a private key")


def sign(
    manifest_bytes: bytes, private_key: Path, passphrase: str | None = None, certificates: Path | None = None
) -> bytes:
    """Return the signature file of a bundle's manifest; the same bytes each time.

    Parameters
    ----------
    manifest_bytes : bytes
        `atlas.json`.
    private_key : Path
        An EC key in PEM.
    passphrase : str, optional
        Where the key is encrypted.
    certificates : Path, optional
        PEM file: the certificate of this key, then those between it and the root, each issued by the next. The box
        then trusts the root's certificate in place of a public key.

    Raises
    ------
    InputError
        No such key, not an EC key, a wrong passphrase, or certificates that do not fit it.

    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from model_signing import hashing, signing

    key = _private_key(private_key, passphrase)
    chain = _chain(certificates, key) if certificates else []
    with _folder_of(manifest_bytes) as (folder, signature_path):
        password: Any = passphrase.encode() if passphrase else None  # model-signing says str and hands it on
        # The names that model-signing ignores by default are a set, written in another order each time.
        names = hashing.Config().set_ignored_paths(paths=(), ignore_git_paths=False)
        config = signing.Config().set_hashing_config(names)
        config.use_elliptic_key_signer(private_key=private_key, password=password).sign(folder, signature_path)
        statement = base64.b64decode(json.loads(signature_path.read_bytes())["dsseEnvelope"]["payload"])
    # Protocol buffers write a map's keys in another order each time.
    payload = json.dumps(json.loads(statement), sort_keys=True, separators=(",", ":")).encode()
    signature = key.sign(
        _pre_authentication_encoding(payload), ec.ECDSA(_hash_for(key.public_key()), deterministic_signing=True)
    )
    if chain:
        ders = [certificate.public_bytes(serialization.Encoding.DER) for certificate in chain]
        material: dict[str, Any] = {
            "x509CertificateChain": {"certificates": [{"rawBytes": _base64(der)} for der in ders]}
        }
    else:
        material = {"publicKey": {"hint": _hint(key.public_key())}}
    return _document(material, _base64(payload), _base64(signature))


def verify(manifest_bytes: bytes, signature: bytes, public_key: Path) -> None:
    """Check that the signature is one of this manifest, by the owner of the public key or under the root certificate.

    Parameters
    ----------
    manifest_bytes, signature : bytes
        `atlas.json` and `atlas.json.sig` of a bundle.
    public_key : Path
        PEM: an EC public key, or one root certificate.

    Raises
    ------
    DamagedArtifactError
        Another key, another bundle's signature, a changed manifest or signature, or a certificate that is not valid
        now, is not issued under the root or is not for signing.
    InputError
        The file is not a public key or certificate.

    """
    from model_signing import verifying

    trusted = _trusted(public_key)
    chain = _check_form(signature)
    by_certificate = isinstance(trusted, list)
    if by_certificate != bool(chain):
        found, expected = ("a certificate", "a key") if chain else ("a key", "a certificate")
        raise _refused(f"signed with {found}, and {public_key} is {expected}; name the one that fits (--public-key)")
    config = verifying.Config()
    if isinstance(trusted, list):
        if problem := chain_problem([*chain, *trusted]):
            raise _refused(problem)
        config.use_certificate_verifier(certificate_chain=[public_key])
    else:
        config.use_elliptic_key_verifier(public_key=public_key)
    with _folder_of(manifest_bytes) as (folder, signature_path):
        signature_path.write_bytes(signature)
        try:
            config.verify(folder, signature_path)
        except Exception as error:  # its exceptions share no base class
            raise _refused(_reason(error, public_key)) from error


def signer(signature: bytes) -> Signer:
    """Return who a signature says that it is by.

    Raises
    ------
    DamagedArtifactError
        It is not in the form of a signature.

    """
    if chain := _check_form(signature):
        return signer_of(chain)
    return Signer(hint=json.loads(signature)["verificationMaterial"]["publicKey"]["hint"])


def key_id(public_key: Path) -> str:
    """Return the SHA-256 of the DER SubjectPublicKeyInfo of a public key, or of the key in a root certificate.

    Raises
    ------
    InputError
        The file is not a public key or certificate.

    """
    from cryptography.hazmat.primitives import serialization as s

    trusted = _trusted(public_key)
    key = trusted[0].public_key() if isinstance(trusted, list) else trusted
    return hashlib.sha256(key.public_bytes(s.Encoding.DER, s.PublicFormat.SubjectPublicKeyInfo)).hexdigest()


@contextmanager
def _folder_of(manifest_bytes: bytes) -> Iterator[tuple[Path, Path]]:
    """Yield a folder that holds `atlas.json` alone, and a path beside it for the signature."""
    with tempfile.TemporaryDirectory(prefix="atlasport-") as name:
        # Its name is part of what is signed.
        folder = Path(name) / "bundle"
        folder.mkdir()
        (folder / BUNDLE_MANIFEST_NAME).write_bytes(manifest_bytes)
        yield folder, Path(name) / SIGNATURE_NAME


def _document(material: dict[str, Any], payload: str, signature: str) -> bytes:
    """Return the signature file; `payload` and `signature` are base64."""
    document = {
        "mediaType": _MEDIA_TYPE,
        "verificationMaterial": {"tlogEntries": [], **material},
        "dsseEnvelope": {
            "payload": payload,
            "payloadType": _PAYLOAD_TYPE,
            "signatures": [{"keyid": "", "sig": signature}],
        },
    }
    return (json.dumps(document, sort_keys=True, indent=2) + "\n").encode()


def _check_form(signature: bytes) -> list[Certificate]:
    """Refuse a signature file that `sign` would not have written; return the certificates in it."""
    from cryptography import x509

    try:
        document = json.loads(signature)
        envelope, found = document["dsseEnvelope"], document["verificationMaterial"]
        payload, bare = envelope["payload"], envelope["signatures"][0]["sig"]
        ders: list[bytes] = []
        if "publicKey" in found:
            # Without a hint model-signing would not compare the keys, and say so on stdout.
            hint = found["publicKey"]["hint"]
            if not re.fullmatch("[0-9a-f]{64}", hint):
                raise _refused("names no key")
            material: dict[str, Any] = {"publicKey": {"hint": hint}}
        else:
            raw = [entry["rawBytes"] for entry in found["x509CertificateChain"]["certificates"]][:_MAX_CERTIFICATES]
            ders = [base64.b64decode(text, validate=True) for text in raw]
            material = {"x509CertificateChain": {"certificates": [{"rawBytes": _base64(der)} for der in ders]}}
        parts = [_base64(base64.b64decode(text, validate=True)) for text in (payload, bare)]
        chain = [x509.load_der_x509_certificate(der) for der in ders]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, binascii.Error) as error:
        raise _refused("is not in the form of a signature") from error
    if _document(material, *parts) != signature:
        raise _refused("is not in the form that freeze writes")
    return chain


def _chain(path: Path, key: EllipticCurvePrivateKey) -> list[Certificate]:
    """Return the certificates that go into a signature."""
    from cryptography import x509

    try:
        chain = x509.load_pem_x509_certificates(_read_pem(path, "certificates"))
    except ValueError as error:
        raise InputError(f"{path}: expected certificates in PEM, found something else") from error
    if len(chain) > _MAX_CERTIFICATES:
        raise InputError(f"{path}: expected at most {_MAX_CERTIFICATES} certificates, found {len(chain)}")
    if chain[0].public_key() != key.public_key():
        raise InputError(f"{path}: expected the certificate of the private key first, found that of another key")
    if problem := purpose_problem(chain):
        raise InputError(f"{path}: {problem}; no box would accept the bundle")
    return chain


def _private_key(path: Path, passphrase: str | None) -> EllipticCurvePrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read_pem(path, "a private key")
    encrypted = b"ENCRYPTED" in data
    if encrypted and not passphrase:
        raise InputError(f"{path}: expected its passphrase, found none; set ATLASPORT_KEY_PASSPHRASE")
    try:
        key = load_pem_private_key(data, passphrase.encode() if encrypted and passphrase else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        what = "the passphrase is wrong, or it is damaged" if encrypted else "found something else"
        raise InputError(f"{path}: expected a private key in PEM, {what}; `atlasport keygen` makes one") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(f"{path}: expected an EC key, found another kind; `atlasport keygen` makes one")
    _hash_for(key.public_key(), str(path))
    return key


def _trusted(path: Path) -> EllipticCurvePublicKey | list[Certificate]:
    """Return the public key in a file, or a list of the one root certificate in it."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = _read_pem(path, "a public key")
    if b"PRIVATE KEY" in data:
        raise InputError(f"{path}: expected a public key, found a private one; keep it off the box, name key.pub")
    try:
        if b"BEGIN CERTIFICATE" in data:
            certificates = x509.load_pem_x509_certificates(data)
            if len(certificates) != 1:
                raise InputError(f"{path}: expected one root certificate, found {len(certificates)}; keep the root's")
            return certificates
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(
            f"{path}: expected a public key or a root certificate in PEM, found something else; "
            "`atlasport keygen` makes key.pub"
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise InputError(f"{path}: expected an EC public key, found another kind; `atlasport keygen` makes one")
    _hash_for(key, str(path))
    return key


def _hash_for(key: EllipticCurvePublicKey, where: str = "key") -> HashAlgorithm:
    """Return the hash that Sigstore pairs with the key's curve."""
    from cryptography.hazmat.primitives import hashes

    of_curve: dict[str, type[hashes.SHA256 | hashes.SHA384 | hashes.SHA512]] = {
        "secp256r1": hashes.SHA256,
        "secp384r1": hashes.SHA384,
        "secp521r1": hashes.SHA512,
    }
    if key.curve.name not in of_curve:
        raise InputError(f"{where}: expected a key on P-256, P-384 or P-521, found {key.curve.name}")
    return of_curve[key.curve.name]()


def _read_pem(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_PEM_BYTES)
    except OSError as error:
        raise InputError(f"{path}: expected {what}, cannot be read ({error.strerror})") from error


def _write_new(path: Path, data: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)


def _hint(key: EllipticCurvePublicKey) -> str:
    """Return what Sigstore names a key by."""
    from cryptography.hazmat.primitives import serialization as s

    return hashlib.sha256(key.public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _pre_authentication_encoding(payload: bytes) -> bytes:
    """Return what is signed in place of a payload: DSSE's PAE, protocol.md of secure-systems-lab/dsse."""
    return b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _reason(error: Exception, public_key: Path) -> str:
    text = " ".join(str(error).split())
    if "Key mismatch" in text:
        return f"is by another key than {public_key}"
    if "Signature mismatch" in text:
        return f"is of another manifest than {BUNDLE_MANIFEST_NAME}"
    return text[:200] or f"does not fit {BUNDLE_MANIFEST_NAME} and {public_key}"


def _refused(reason: str) -> DamagedArtifactError:
    return DamagedArtifactError(f"{SIGNATURE_NAME}: {reason}; get the bundle again from whoever signed it")
