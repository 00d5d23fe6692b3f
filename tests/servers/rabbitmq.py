"""A real RabbitMQ server for the tests, with a port mapper of its own, so that none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from pipelines.ports import free_port
from tests.servers.server import answers, require_debian, running, state_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROGRAMS = "/usr/lib/rabbitmq/bin"
"""Not those in /usr/sbin, which change folder and user."""
USER = "rabbitmq"
MAX_MESSAGE_BYTES = 4_000_000


class RabbitMQ:
    """A server that can be started again, on the same port and with what it has on disk."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._environment = {
            "HOME": str(folder),
            "ERL_CRASH_DUMP": "/dev/null",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(free_port()),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "none.config"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_FEATURE_FLAGS_FILE": str(folder / "feature_flags"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_NODENAME": "test@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 2:2 +sbwt none",
        }
        (folder / "enabled_plugins").write_text("[].")
        (folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            "vm_memory_high_watermark.absolute = 512MB\n"
            "disk_free_limit.absolute = 50MB\n"
            "log.file = false\n"
            f"max_message_size = {MAX_MESSAGE_BYTES}\n"
        )

    @property
    def url(self) -> str:
        """With the credentials that it makes by itself."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """Its process."""
        server = require_debian(f"{PROGRAMS}/rabbitmq-server", "rabbitmq-server")
        mapper = int(self._environment["ERL_EPMD_PORT"])
        epmd = [require_debian("epmd", "erlang-base"), "-address", "127.0.0.1", "-port", str(mapper)]
        with (
            running(epmd, folder=self._folder, ready=lambda: answers(mapper), user=USER),
            running(
                [server],
                folder=self._folder,
                ready=lambda: answers(self.port),
                user=USER,
                environment=self._environment,
            ) as process,
        ):
            yield process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Without a chance to write anything more: the virtual machine, then what started it."""
        beam = int((self._folder / "pid").read_text())
        os.kill(beam, signal.SIGKILL)
        process.wait(10)

    def ctl(self, *arguments: str) -> str:
        """What rabbitmqctl answers."""
        ran = subprocess.run(
            [f"{PROGRAMS}/rabbitmqctl", *arguments],
            env=os.environ | self._environment,
            user=USER if os.geteuid() == 0 else None,
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout


@contextmanager
def stopped_rabbitmq() -> Iterator[RabbitMQ]:
    """One that does not run yet, and what it keeps."""
    yield RabbitMQ(state_folder("rabbitmq"))


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[RabbitMQ]:
    """One that runs."""
    with stopped_rabbitmq() as server, server.running():
        yield server
