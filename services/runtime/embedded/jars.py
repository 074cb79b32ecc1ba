"""Kafka's program files: the jars that `deploy/kafka.lock` names, each checked by its SHA-256 before every start.

They are downloaded once by `jgo` from the Maven repository (its own configuration file can name a mirror) and kept in
the cache folder of `jgo` (`JGO_CACHE_DIR`, default `~/.cache/jgo`).
"""

from __future__ import annotations

import hashlib
import os
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from services.kernel.errors import InvalidInput, Unavailable

if TYPE_CHECKING:
    from jgo.maven import Artifact, MavenContext

LOCK = Path(__file__).resolve().parents[3] / "deploy" / "kafka.lock"
WANTED = ("org.apache.kafka:kafka_2.13:4.3.1", "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4")
DOWNLOADS_AT_ONCE = 8  # small files: the round trip is the cost
ATTEMPTS = 3  # a repository that fails three times in a row is not having a hiccup


@dataclass(frozen=True)
class Jar:
    """One locked file: its Maven coordinates and the SHA-256 it must have."""

    group: str
    artifact: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.group}:{self.artifact}:{self.version}"


def classpath(tell: Callable[[str], None], lock: Path = LOCK) -> str:
    """The class path of Kafka: every locked jar, downloaded if missing, each with the SHA-256 of the lock."""
    jars = read_lock(lock)
    context = _context()
    missing = sum(1 for jar in jars if not _place(context, jar).exists())
    if missing:
        tell(f"downloading Apache Kafka: {missing} of {len(jars)} files, about 45 MB in all, once")
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        return ":".join(str(path) for path in pool.map(lambda jar: _fetched(context, jar), jars))


def read_lock(lock: Path = LOCK) -> list[Jar]:
    """The jars of a lock file: one `group:artifact:version sha256` a line, `#` starts a comment."""
    if not lock.exists():
        raise InvalidInput(f"{lock} is missing: run from a whole checkout of the project", field="deploy/kafka.lock")
    jars = []
    for line in lock.read_text().splitlines():
        if line and not line.startswith("#"):
            coordinates, sha256 = line.split()
            group, artifact, version = coordinates.split(":")
            jars.append(Jar(group, artifact, version, sha256))
    return jars


def write_lock(lock: Path = LOCK) -> int:
    """Resolves what Kafka needs anew and writes the lock; returns the number of jars. Run by `make lock`."""
    from jgo.parse import Coordinate

    context = _context()
    found: dict[str, Artifact] = {}
    # One by one, Kafka last and so the winner: resolved together, the versions that the logging project prefers for its
    # own build would replace Kafka's.
    for wanted in reversed(WANTED):
        asked = context.create_dependency(replace(Coordinate.parse(wanted), scope="compile"))
        itself, needed = context.resolver.resolve([asked])
        for dependency in itself + [one for one in needed if one.scope in ("compile", "runtime")]:
            found[f"{dependency.groupId}:{dependency.artifactId}"] = dependency.artifact
    names = sorted(found)
    lines = ["# Written by `make lock`: the program files of Apache Kafka, `group:artifact:version sha256`."]
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        sums = list(pool.map(lambda name: _sha256(found[name].resolve()), names))
    lines += [f"{name}:{found[name].version} {sha256}" for name, sha256 in zip(names, sums, strict=True)]
    lock.write_text("\n".join(lines) + "\n")
    return len(names)


def _context() -> MavenContext:
    from jgo.config import GlobalSettings
    from jgo.constants import MAVEN_CENTRAL_URL
    from jgo.maven import MavenContext

    # The HTTP client brings its own list of authorities; like pip and curl we ask the machine's, which also knows the
    # authority of a company's own mirror. What the user has set stays.
    trusted = ssl.get_default_verify_paths().cafile
    if trusted:
        os.environ.setdefault("REQUESTS_CA_BUNDLE", trusted)
    settings = GlobalSettings.load()
    return MavenContext(
        # A folder of its own, so that a broken download is deleted from nobody else's repository.
        repo_cache=Path(settings.cache_dir).expanduser() / "repository",
        remote_repos={**settings.repositories, "central": MAVEN_CENTRAL_URL},
        timeout=30,
    )


def _place(context: MavenContext, jar: Jar) -> Path:
    component = context.project(jar.group, jar.artifact).at_version(jar.version)
    return context.repo_cache / component.path_prefix / component.artifact().cached_filename


def _fetched(context: MavenContext, jar: Jar) -> Path:
    path = _place(context, jar)
    if path.exists():
        if _sha256(path) == jar.sha256:
            return path
        path.unlink()  # an interrupted download leaves a short file behind
    reason: Exception | None = None
    for attempt in range(ATTEMPTS):
        time.sleep(attempt)
        try:
            context.project(jar.group, jar.artifact).at_version(jar.version).artifact().resolve()
        except PermissionError as error:
            raise InvalidInput(
                f"cannot write {path}: {error.strerror}; name a folder that can be written", field="JGO_CACHE_DIR"
            ) from error
        except Exception as error:  # the package raises whatever its HTTP client and XML reader raise
            path.unlink(missing_ok=True)
            reason = error
            continue
        if _sha256(path) == jar.sha256:
            return path
        path.unlink()
        raise InvalidInput(
            f"the download of {jar} has not the SHA-256 of deploy/kafka.lock; it was thrown away: "
            "see what answers in the place of the Maven repository",
            field=str(jar),
            code="checksum",
        )
    raise Unavailable(
        f"cannot download {jar} ({reason}); the first start needs the Maven repository: check the network or the "
        "mirror in the configuration file of jgo, then start again",
        code="download_failed",
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
