"""Ids that freeze with the contract: what they are made of is written here once more, with hashlib alone."""

from datetime import UTC, datetime
from hashlib import blake2b
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from services.kernel import ids


def uuid8(raw: bytes) -> UUID:
    number = bytearray(raw)
    number[6] = number[6] & 0x0F | 0x80
    number[8] = number[8] & 0x3F | 0x80
    return UUID(bytes=bytes(number))


@given(st.text(), st.text(), st.text(), st.integers(0, 2**32 - 1))
def test_a_charge_is_the_hash_of_its_identity_and_revision(publisher, source, event_id, revision):
    surrogate_free = [part.encode(errors="ignore").decode() for part in (publisher, source, event_id)]
    digest = blake2b("\0".join(surrogate_free).encode(), digest_size=16).digest()
    assert ids.identity_digest(*surrogate_free) == digest
    expected = uuid8(blake2b(digest + revision.to_bytes(4, "big"), digest_size=16).digest())
    assert ids.charge_id(digest, revision) == expected
    assert expected.version == 8


def test_the_evidence_hash_is_the_first_eight_bytes_of_the_whole_digest():
    charge = UUID("00000000-0000-8000-8000-000000000000")
    assert ids.evidence_hash(charge) == int.from_bytes(blake2b(charge.bytes).digest()[:8], "big", signed=True)


def test_ids_that_must_never_change():
    """Frozen values: a difference here breaks every stored id."""
    digest = ids.identity_digest("detroit", "/switches/detroit", "1543540817.1")
    assert digest.hex() == FROZEN["digest"]
    assert str(ids.charge_id(digest)) == FROZEN["charge"]
    assert str(ids.attempt_id("frontdesk", 1)) == FROZEN["attempt"]
    assert str(ids.cutoff_id(datetime(2026, 11, 1, tzinfo=UTC))) == FROZEN["cutoff"]
    assert str(ids.derived_id("invoice", "g1", "2026-10")) == FROZEN["invoice"]


FROZEN = {
    "digest": "7ed047b53be05de1ceb4daaa5e7d15a3",
    "charge": "c2fe0d57-8990-80a9-9a88-46330d57d88c",
    "attempt": "4886386b-be5c-5122-997f-128159a873d9",
    "cutoff": "371ad653-2663-87e9-b557-128f52f6280e",
    "invoice": "93b43c1b-d176-8ab9-935e-686fe141f0de",
}
