"""Real search servers, one node each: Elasticsearch 8.7.1 and OpenSearch 2.19.6, small, out of Maven Central.

The archives hold the node without its plug-ins (no scripts, no data streams in Elasticsearch), and no Java. They need
Java 17 to 23 and Maven. Their limits are set low enough for a test to run into them: see `_SETTINGS`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import uuid
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest

from pipelines.ports import free_port
from pipelines.stack import StackError, find_java
from tests.servers.server import DOWNLOADS, INSTALL_SECONDS, absent, running, say, state_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGEST_REQUEST_BYTES = 12_000_000
"""A longer request is refused with 413."""
INDEXING_BYTES = 8_000_000
"""A bulk of more is refused with 429: too much is being indexed."""

_SETTINGS = f"""\
discovery.type: single-node
network.host: 127.0.0.1
cluster.routing.allocation.disk.threshold_enabled: false
http.max_content_length: {LARGEST_REQUEST_BYTES}b
indexing_pressure.memory.limit: {INDEXING_BYTES}b
"""
_JVM = """\
-Xms256m
-Xmx256m
-XX:+UseSerialGC
-XX:TieredStopAtLevel=1
-Djava.io.tmpdir=${{{name}_TMPDIR}}
"""
_READY_SECONDS = 180.0


class Product(NamedTuple):
    """What is started: the artifact, and the names by which it is configured."""

    artifact: str
    settings: str
    variable: str
    files: tuple[tuple[str, str], ...] = ()
    """More files of its configuration, by name."""

    @property
    def name(self) -> str:
        """Of the command, too."""
        return self.artifact.split(":")[1]


ELASTICSEARCH = Product(
    "org.elasticsearch.distribution.integ-test-zip:elasticsearch:8.7.1", "xpack.security.enabled: false\n", "ES"
)
WRITER = ("w", "writerpw1")
"""The one user of `SECURED`, and its password: may make indices called sagas, and documents in them, and no more."""
SECURED = ELASTICSEARCH._replace(
    settings="""\
xpack.security.enabled: true
xpack.security.http.ssl.enabled: false
xpack.security.transport.ssl.enabled: false
""",
    files=(
        ("roles.yml", "writer: {indices: [{names: ['sagas*'], privileges: [create_doc, auto_configure]}]}\n"),
        ("users_roles", "writer:w\n"),
        (
            "users",
            "w:$2a$10$yypFwt/FiD/r.ItWC8MEVO5Y6Sd.r59BIMgUGZ6nOgdlre8g9Wp2.\n",
        ),  # what `elasticsearch-users` wrote
    ),
)
OPENSEARCH = Product("org.opensearch.distribution.integ-test-zip:opensearch:2.19.6", "", "OPENSEARCH")


@pytest.fixture(scope="session")
def elasticsearch_port() -> Iterator[int]:
    """Elasticsearch's HTTP port."""
    with node(ELASTICSEARCH, state_folder("elasticsearch"), port := free_port()):
        yield port


@pytest.fixture(scope="session")
def opensearch_port() -> Iterator[int]:
    """OpenSearch's HTTP port."""
    with node(OPENSEARCH, state_folder("opensearch"), port := free_port()):
        yield port


@contextmanager
def node(product: Product, folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A node on this port, with what an earlier one in the same folder has kept."""
    java, home = _java_home(), _unpacked(product)
    configuration = folder / "config"
    if not configuration.exists():
        shutil.copytree(home / "config", configuration)
    own = f"http.port: {port}\ntransport.port: {free_port()}\npath.data: {folder}/data\npath.logs: {folder}/logs\n"
    (configuration / f"{product.name}.yml").write_text(_SETTINGS + product.settings + own)
    (configuration / "jvm.options").write_text(_JVM.format(name=product.variable))
    for name, text in product.files:
        (configuration / name).write_text(text)
    environment = {
        f"{product.variable}_JAVA_HOME": java,
        f"{product.variable}_PATH_CONF": str(configuration),
        "HOME": str(folder),
    }
    with running(
        [str(home / "bin" / product.name)],
        folder=folder,
        ready=lambda: ask(port, "GET", "/_cluster/health?wait_for_status=yellow&timeout=1s")[0] in (200, 401),
        user="nobody",  # both refuse root
        environment=environment,
        seconds=_READY_SECONDS,
    ) as process:
        yield process


def kill(process: subprocess.Popen[bytes]) -> None:
    """End the node on the spot. Elasticsearch's command is only its launcher, the node is its child."""
    launcher = psutil.Process(process.pid)
    for each in [*launcher.children(recursive=True), launcher]:
        each.kill()
    process.wait()


def ask(port: int, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """A request past all drivers: the status, and what JSON the answer holds."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"}, method=method)
    try:
        with urlopen(request, timeout=30) as answer:  # noqa: S310 - the scheme stands above
            return answer.status, json.loads(answer.read() or b"null")
    except HTTPError as error:
        with error:
            return error.code, json.loads(error.read() or b"null")


def _java_home() -> str:
    cure = "install a JDK 17 (Debian: sudo apt-get install openjdk-17-jdk-headless), or let JAVA_HOME name one"
    try:
        java = find_java()
    except StackError:
        absent("Java", cure)
        raise
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False, timeout=60).stderr
    found = re.search(r'version "(\d+)', said)
    if not found or not 17 <= int(found[1]) < 24:
        absent("Java 17 to 23", cure)
    return str(Path(java).resolve().parent.parent)


def _unpacked(product: Product) -> Path:
    """The node's folder; downloaded and unpacked once, also by two test runs that begin together."""
    _, name, version = product.artifact.split(":")
    home = DOWNLOADS / f"{name}-{version}"
    if home.exists():
        return home
    own = DOWNLOADS / f"{name}.{uuid.uuid4().hex}"
    own.mkdir(parents=True)
    try:
        with zipfile.ZipFile(_downloaded(product, own)) as archive:
            archive.extractall(own)
        unpacked = own / home.name
        for command in (unpacked / "bin").iterdir():
            command.chmod(0o755)  # which the zip's reader forgets
        try:
            unpacked.rename(home)
        except OSError:
            if not home.exists():  # else another run was first
                raise
    finally:
        shutil.rmtree(own)
    return home


def _downloaded(product: Product, folder: Path) -> Path:
    maven = shutil.which("mvn")
    command = [
        *(maven or "mvn", "--quiet", "--batch-mode", "dependency:copy"),
        *(f"-Dartifact={product.artifact}:zip", f"-DoutputDirectory={folder}"),
    ]
    if not maven:
        absent(product.artifact, "install Maven (Debian: sudo apt-get install maven), which downloads it")
    say(f"Downloading {product.artifact} for the tests")
    done = subprocess.run(
        command, cwd=folder, env=os.environ, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS
    )
    archives = list(folder.glob("*.zip"))
    if done.returncode or not archives:
        say(f"{' '.join(command)} failed: {done.stdout.strip()[-500:]}")
        absent(product.artifact, "see the lines above; the network?")
    return archives[0]
