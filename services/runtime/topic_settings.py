"""What the settings of a topic must be for money to be safe, and how one that exists differs from it. Pure.

A topic that was there before us keeps what its maker gave it. A usage topic with the publisher's clock would let the
publisher judge its own lateness; a state topic that deletes, or a log that deletes before it is read, loses money.
Source: architecture, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from contracts.topics import Topic

REPLICAS = 3  # where the cluster has that many brokers; then two must have a record before it is acknowledged
SAFE = {"min.insync.replicas": "2", "unclean.leader.election.enable": "false"}
AT_LEAST = frozenset(
    {"retention.ms", "retention.bytes", "min.compaction.lag.ms", "max.message.bytes", "min.insync.replicas"}
)
UNLIMITED = -1


@dataclass(frozen=True)
class Existing:
    """A topic as the broker has it; ``configs`` is None where we may not read them."""

    name: str
    partitions: int
    replicas: int
    configs: Mapping[str, str] | None


@dataclass(frozen=True)
class Difference:
    """One setting of a topic that is not as it must be."""

    topic: str
    setting: str
    found: str
    wanted: str

    def sentence(self, bootstrap: str) -> str:
        """What is wrong, and the command that mends it."""
        tool = f"{'kafka-topics.sh' if self.setting == 'partitions' else 'kafka-configs.sh'} --bootstrap-server {bootstrap}"
        if self.setting == "partitions":
            command = f"{tool} --alter --topic {self.topic} --partitions {self.wanted}"
        else:
            change = f"{self.setting}={self.wanted}"
            command = f"{tool} --alter --entity-type topics --entity-name {self.topic} --add-config {change}"
        least = "at least " if self.setting in AT_LEAST | {"partitions"} and self.wanted != str(UNLIMITED) else ""
        return f"topic {self.topic}: {self.setting} is {self.found} and must be {least}{self.wanted}; {command}"


def wanted(topic: Topic, replicas: int) -> dict[str, str]:
    """The settings of a topic that has, or gets, so many replicas."""
    return topic.configs | (SAFE if replicas >= REPLICAS else {})


def differences(topic: Topic, existing: Existing) -> list[Difference]:
    """Every setting that is not as declared. More than what is declared is as good; a topic of a family may have any
    number of partitions.

    >>> from contracts.topics import CLOSING_CUTOFFS, GROUPS_ACCOUNTS
    >>> deleting = GROUPS_ACCOUNTS.configs | {"cleanup.policy": "delete"}
    >>> differences(GROUPS_ACCOUNTS, Existing("groups.accounts", 12, 1, deleting))
    [Difference(topic='groups.accounts', setting='cleanup.policy', found='delete', wanted='compact')]
    >>> differences(CLOSING_CUTOFFS, Existing("closing.cutoffs", 1, 3, CLOSING_CUTOFFS.configs | {"min.insync.replicas": "1"}))
    ... # doctest: +NORMALIZE_WHITESPACE
    [Difference(topic='closing.cutoffs', setting='min.insync.replicas', found='1', wanted='2'),
     Difference(topic='closing.cutoffs', setting='unclean.leader.election.enable', found='nothing', wanted='false')]
    """
    found: list[Difference] = []
    if not topic.is_family and existing.partitions < topic.partitions:
        found.append(Difference(existing.name, "partitions", str(existing.partitions), str(topic.partitions)))
    if existing.configs is not None:
        for setting, want in wanted(topic, existing.replicas).items():
            have = existing.configs.get(setting, "nothing")
            if not _is_enough(setting, have, want):
                found.append(Difference(existing.name, setting, have, want))
    return found


def _is_enough(setting: str, have: str, want: str) -> bool:
    if setting not in AT_LEAST or have == "nothing":
        return have == want
    if int(have) == UNLIMITED or int(want) == UNLIMITED:
        return int(have) == UNLIMITED
    return int(have) >= int(want)
