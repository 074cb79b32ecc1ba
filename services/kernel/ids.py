"""Ids that freeze with the contract: all are hashes of what they name, so a repeat makes the same id.

Source: designs/identity, point 8; designs/closing, line 4; designs/recharge, section 1.
"""

from __future__ import annotations

from datetime import datetime
from hashlib import blake2b
from uuid import UUID, uuid5

_ATTEMPTS = UUID("6f0a3c52-7f0e-5d0b-9a55-2b6c3a1f4e77")  # the namespace of payment attempts; never changes


def _hash16(*parts: bytes) -> bytes:
    return blake2b(b"".join(parts), digest_size=16).digest()


def _uuid8(raw: bytes) -> bytes:
    """The bytes of a version 8 UUID of 16 hash bytes (RFC 9562: version and variant bits are overwritten)."""
    made = bytearray(raw)
    made[6] = made[6] & 0x0F | 0x80
    made[8] = made[8] & 0x3F | 0x80
    return bytes(made)


def identity_digest(publisher: str, source: str, event_id: str) -> bytes:
    """Which usage fact this is: 16 bytes of (publisher, source, id), whatever the event time.

    >>> identity_digest("p", "a", "bc") == identity_digest("p", "ab", "c")
    False
    """
    return blake2b(f"{publisher}\0{source}\0{event_id}".encode(), digest_size=16).digest()


def content_digest(canonical: bytes) -> bytes:
    """What a usage fact says: 16 bytes of its validated fields in canonical form."""
    return blake2b(canonical, digest_size=16).digest()


def charge_id(digest: bytes, revision: int = 0) -> UUID:
    """The charge of one revision of a usage fact.

    >>> charge_id(bytes(16)).version
    8
    """
    return UUID(bytes=charge_id_bytes(digest, revision))


def charge_id_bytes(digest: bytes, revision: int = 0) -> bytes:
    """The 16 bytes of `charge_id`, for who makes thousands of them a second.

    >>> charge_id_bytes(bytes(16)) == charge_id(bytes(16)).bytes
    True
    """
    return _uuid8(blake2b(digest + revision.to_bytes(4, "big"), digest_size=16).digest())


def reversal_id(charge: UUID, cause: int | UUID) -> UUID:
    """The reversal of a charge: caused by a higher revision of its usage fact, by a timeline version, or by a re-rate's plan.

    >>> reversal_id(charge_id(bytes(16)), 1) == reversal_id(charge_id(bytes(16)), 2)
    False
    """
    return UUID(bytes=_uuid8(_hash16(b"rev", charge.bytes, _cause(cause))))


def replacement_id(charge: UUID, cause: int | UUID) -> UUID:
    """The charge that stands in the place of one that was reversed for a timeline version or a re-rate's plan.

    >>> replacement_id(charge_id(bytes(16)), UUID(int=1)) == replacement_id(charge_id(bytes(16)), UUID(int=2))
    False
    """
    return UUID(bytes=_uuid8(_hash16(charge.bytes, _cause(cause))))


def _cause(cause: int | UUID) -> bytes:
    return cause.bytes if isinstance(cause, UUID) else cause.to_bytes(4, "big")


def evidence_hash(charge: UUID) -> int:
    """The signed 64-bit hash of a charge id whose XOR stands on the invoice: the first 8 bytes of its BLAKE2b-512."""
    return _signed64(charge.bytes)


def evidence_hash_of(charge: str) -> int:
    """`evidence_hash` of a charge id as it stands on a wire, for who reads thousands of them a second.

    >>> evidence_hash_of("6f0a3c52-7f0e-8d0b-9a55-2b6c3a1f4e77") == evidence_hash(UUID("6f0a3c52-7f0e-8d0b-9a55-2b6c3a1f4e77"))
    True
    """
    return _signed64(bytes.fromhex(charge.replace("-", "")))


def _signed64(charge: bytes) -> int:
    return int.from_bytes(blake2b(charge).digest()[:8], "big", signed=True)


def attempt_id(account_id: str, trigger_version: int) -> UUID:
    """The idempotency key of an automatic payment attempt; a retry never makes a new one."""
    return uuid5(_ATTEMPTS, f"{account_id}:{trigger_version}")


def cutoff_id(boundary: datetime) -> UUID:
    """The cut of one boundary instant (an aware UTC datetime)."""
    return UUID(bytes=_uuid8(_hash16(b"cutoff", boundary.isoformat().encode())))


def derived_id(*parts: str) -> UUID:
    """An id that follows from what it names (messages, results, invoices): the same parts make the same id.

    >>> derived_id("invoice", "g1", "2026-10") == derived_id("invoice", "g1", "2026-10")
    True
    """
    return UUID(bytes=_uuid8(_hash16("\0".join(parts).encode())))
