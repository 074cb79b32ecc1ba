"""Somebody outside who reads a topic from its start and was never restored: the one rule of `contracts/openings`, and no more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from contracts.openings import OPENING

Place = tuple[str, int, int]  # link, partition, seq


class Outside:
    """What holds of one topic, by its place on its link. ``told`` has every record once, as it came first."""

    def __init__(self) -> None:
        self.holds: dict[Place, dict[str, Any]] = {}
        self.undone: list[dict[str, Any]] = []
        self._received: dict[tuple[str, int], int] = {}
        self._current: dict[int, int] = {}
        self._chain: dict[int, dict[int, dict[str, int]]] = {}

    def take(self, partition: int, envelope: dict[str, Any]) -> None:
        """The next record of a partition."""
        if envelope["type"] == OPENING:
            self._open(partition, envelope)
            return
        link, seq, epoch = envelope["link"], envelope["seq"], envelope["epoch"]
        bound = self._chain.get(partition, {}).get(epoch, {}).get(link, 0)
        if epoch != self._current.get(partition, 0) and seq > bound:
            return
        received = self._received.get((link, partition), 0)
        if seq <= received:
            before = self.holds[link, partition, seq]
            assert before == envelope, f"seq {seq} of {link} on {partition} was told with two contents"
            return
        assert seq == received + 1, f"{link} on {partition} jumps from {received} to {seq}"
        self._received[link, partition] = seq
        self.holds[link, partition, seq] = envelope

    def _open(self, partition: int, envelope: dict[str, Any]) -> None:
        chain = envelope["data"]["chain"]
        self._current[partition] = envelope["epoch"]
        self._chain[partition] = {
            each["epoch"]: {one["link"]: one["last_seq"] for one in each["bounds"]} for each in chain
        }
        newest = self._chain[partition][chain[-1]["epoch"]]
        for link, number in self._received:
            if number == partition:
                self._received[link, number] = min(self._received[link, number], newest.get(link, 0))
        for place in [each for each in self.holds if each[1] == partition]:
            if place[2] > self._received[place[:2]]:
                self.undone.append(self.holds.pop(place))


def followed(records: Iterable[tuple[int, dict[str, Any]]]) -> Outside:
    """After all these records (partition, envelope), in the order of each partition."""
    outside = Outside()
    for partition, envelope in records:
        outside.take(partition, envelope)
    return outside
