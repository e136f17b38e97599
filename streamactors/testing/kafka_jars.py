"""Apache Kafka's jars, fetched once by Maven into a cache folder that all sessions share."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streamactors.errors import StreamactorsError

KAFKA_VERSION = "3.9.1"
JAVA_NEEDED = 17
INSTALL = "`apt install openjdk-17-jre-headless maven` (or your system's packages of Java 17 and Maven)"
# Maven itself waits without end for a server that accepts and never answers.
DOWNLOAD_SECONDS = 900.0

# slf4j-reload4j is the logger that Kafka's own scripts bring along; without one a broker that fails says nothing.
POM = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>streamactors</groupId>
  <artifactId>kafka-for-tests</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId>
      <artifactId>slf4j-reload4j</artifactId>
      <version>1.7.36</version>
    </dependency>
  </dependencies>
</project>
"""
COPY_GOAL = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"


def java() -> str:
    """Path of `java`; StreamactorsError when it is missing or older than 17."""
    path = shutil.which("java")
    if path is None:
        raise StreamactorsError(f"java is not installed, and the Kafka broker needs it: {INSTALL}")
    banner = subprocess.run([path, "-version"], capture_output=True, text=True, check=False).stderr
    if (version := java_major(banner)) is None or version < JAVA_NEEDED:
        raise StreamactorsError(f"{path} is not Java {JAVA_NEEDED} or newer: {INSTALL}. It says: {banner.strip()}")
    return path


def java_major(banner: str) -> int | None:
    """17 from `openjdk version "17.0.15" 2025-04-15`, 8 from `java version "1.8.0_402"`."""
    found = re.search(r'version "(?:1\.)?(\d+)', banner)
    return int(found.group(1)) if found else None


def jars() -> Path:
    """The folder of Kafka's jars, filled by Maven if this is the first time here.

    Blocks for up to minutes then. Safe against other sessions doing the same, and against downloads that broke off.
    """
    folder = cache_folder() / f"kafka-{KAFKA_VERSION}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f"{folder.name}.lock")):
            if not folder.is_dir():
                download(folder)
    return folder


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "streamactors"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock of a killed process is free again."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def download(folder: Path) -> None:
    """Into a folder beside it, renamed when complete: `folder` either holds every jar or is not there."""
    mvn = shutil.which("mvn")
    if mvn is None:
        raise StreamactorsError(f"mvn is not installed, and fetching the Kafka broker needs it: {INSTALL}")
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent) as scratch:
        pom, libs = Path(scratch, "pom.xml"), Path(scratch, "libs")
        pom.write_text(POM)
        run_maven([mvn, "-q", "-B", "-C", "-f", str(pom), COPY_GOAL, f"-DoutputDirectory={libs}"])
        libs.rename(folder)


def run_maven(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DOWNLOAD_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise StreamactorsError(f"Maven did not fetch the Kafka broker within {DOWNLOAD_SECONDS:.0f} s") from error
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise StreamactorsError(
            f"Maven could not fetch the Kafka broker (exit code {done.returncode}); is Maven Central, or the mirror "
            f"named in ~/.m2/settings.xml, within reach? It says:\n{said}"
        )


def main() -> None:
    """Before a test run: fetch what it needs, or exit saying what to install."""
    if os.environ.get("KAFKA_BOOTSTRAP"):
        return
    try:
        java()
        jars()
    except StreamactorsError as error:
        sys.exit(f"{error}\n(or name a running broker: KAFKA_BOOTSTRAP=host:port)")
