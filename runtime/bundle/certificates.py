"""The certificates of a signature: who signed, valid now, issued one by the next, and for code signing.

model-signing asks none of the last three as it should: whether the chain was valid when the signer's certificate began
to be, which an expired one passes for ever, and whether the signer may make digital signatures, which web servers may.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from cryptography.x509 import Certificate, ExtensionType, Name

    _Extension = TypeVar("_Extension", bound=ExtensionType)


@dataclass(frozen=True)
class Signer:
    """Who a signature says that it is by; true once `verify` has accepted it.

    `hint` is the SHA-256 of the public key in PEM, None where there are certificates: then `subject` and `issuer` are
    names in the signer's own, `serial` its number, `not_before` and `not_after` its validity (UTC), `sha256` its
    fingerprint, and `chain` the subjects between it and the root.
    """

    hint: str | None = None
    subject: str | None = None
    issuer: str | None = None
    serial: str | None = None
    not_before: str | None = None
    not_after: str | None = None
    sha256: str | None = None
    chain: tuple[str, ...] = ()


def signer_of(chain: Sequence[Certificate]) -> Signer:
    """Return who a chain, signer first, says that the signature is by."""
    own, *others = chain
    return Signer(
        subject=_name(own.subject),
        issuer=_name(own.issuer),
        serial=f"{own.serial_number:x}",
        not_before=own.not_valid_before_utc.isoformat(),
        not_after=own.not_valid_after_utc.isoformat(),
        sha256=_fingerprint(own),
        chain=tuple(_name(certificate.subject) for certificate in others),
    )


def chain_problem(certificates: Sequence[Certificate]) -> str:
    """Return what is wrong with a chain, signer first and root last; "" where nothing is."""
    now = datetime.now(timezone.utc)
    for certificate in certificates:
        name = _name(certificate.subject)
        first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not first <= now <= last:
            return (
                f"certificate {name!r}: expected one that is valid at {now:%Y-%m-%d %H:%M} UTC, the time by this "
                f"machine's clock, found {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M}"
            )
    for issued, issuer in pairwise(certificates):
        if not _is_issued_by(issued, issuer):
            return f"certificate {_name(issued.subject)!r} is not issued by {_name(issuer.subject)!r}"
    return purpose_problem(certificates)


def purpose_problem(certificates: Sequence[Certificate]) -> str:
    """Return what keeps a chain, signer first, from signing code; "" where nothing does.

    The signer must say that it is for code signing; its issuers must not say that they are for something else.
    """
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID as Purpose

    signer_, *issuers = certificates
    try:
        of_signer = _extension(signer_, x509.ExtendedKeyUsage)
        usage = _extension(signer_, x509.KeyUsage)
        purposes = [_extension(issuer, x509.ExtendedKeyUsage) for issuer in issuers]
    except (ValueError, x509.DuplicateExtension):
        return "has a certificate whose extensions cannot be read"
    name = _name(signer_.subject)
    if of_signer is None or Purpose.CODE_SIGNING not in of_signer or (usage and not usage.digital_signature):
        return f"certificate {name!r}: expected one for code signing (extended key usage), found one for other purposes"
    wanted = {Purpose.CODE_SIGNING, Purpose.ANY_EXTENDED_KEY_USAGE}
    for issuer, purpose in zip(issuers, purposes, strict=True):
        if purpose is not None and not wanted & set(purpose):
            return f"certificate {_name(issuer.subject)!r}: expected one for code signing, found one for other purposes"
    return ""


def _extension(certificate: Certificate, kind: type[_Extension]) -> _Extension | None:
    from cryptography import x509

    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _name(name: Name) -> str:
    """Return a subject or issuer as one printable line."""
    text = name.rfc4514_string() or "without a name"
    return text if text.isprintable() else repr(text)[1:-1]


def _fingerprint(certificate: Certificate) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding

    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def _is_issued_by(issued: Certificate, issuer: Certificate) -> bool:
    try:
        issued.verify_directly_issued_by(issuer)
    except Exception:  # noqa: BLE001 - InvalidSignature is no ValueError
        return False
    return True
