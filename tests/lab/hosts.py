"""Hosts on one machine: each has its network, processes, mounts, name and sshd; a switch joins them, and nothing leaves it."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.lab import image

NETWORK = "10.99.7"
_NUMBERS = itertools.count()  # of the labs of this process
_SSHD = """\
ListenAddress {address}
HostKey /root/.lab/host_key
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
UseDNS no
StrictModes no
MaxSessions 100
MaxStartups 100
"""


class Lab:
    """Hosts with these names, each with the last part of its address. A context: they are up in it, but those that are `off` until
    somebody boots them, and gone after it.

    `folder` has a folder per host with its /root and /tmp, and `shared`, which all see as /mnt. They can read what is in `show`.
    """

    def __init__(
        self, folder: Path, hosts: Mapping[str, int], show: Sequence[Path] = (), off: Sequence[str] = ()
    ) -> None:
        self.folder = folder
        self._off = set(off)
        self.shared = folder / "shared"
        self._prefix = f"lab{os.getpid()}-{next(_NUMBERS)}"
        self.switch = f"{self._prefix}-switch"
        show = [*image.shown(), *show]
        self.hosts = {
            name: Host(self, name, number, f"{NETWORK}.{last}", show)
            for number, (name, last) in enumerate(hosts.items())
        }

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def namespace(self, host: str) -> str:
        """The name of the host's network namespace."""
        return f"{self._prefix}-{host}"

    def __enter__(self) -> Lab:
        self.shared.mkdir(parents=True)
        (self.folder / "nothing").touch()
        lines = ["127.0.0.1 localhost", *(f"{host.address} {host.name}" for host in self.hosts.values())]
        (self.folder / "hosts").write_text("".join(f"{line}\n" for line in lines))
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / "key")
        image.make_environment(self.folder / "environment")
        try:
            _run("ip", "netns", "add", self.switch)
            _run("ip", "-n", self.switch, "link", "add", "br0", "type", "bridge")
            _run("ip", "-n", self.switch, "link", "set", "br0", "up")
            for host in self.hosts.values():
                host.connect()
                if host.name not in self._off:
                    host.boot()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for host in self.hosts.values():
            host.kill()
        for name in (*map(self.namespace, self.hosts), self.switch):
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL, check=False)


class Host:
    """One of them. `root` is its /root as this machine sees it."""

    def __init__(self, lab: Lab, name: str, number: int, address: str, show: Sequence[Path]) -> None:
        self.name, self.address = name, address
        self.folder = lab.folder / name
        self.root = self.folder / "root"
        self._lab, self._show = lab, show
        self._cable = f"v{os.getpid()}x{number}"  # an interface's name has at most 15 characters
        self._process: subprocess.Popen[bytes] | None = None
        self._background: list[subprocess.Popen[bytes]] = []

    def connect(self) -> None:
        """Its disk, and a cable to the switch."""
        own = self.root / ".lab"
        own.mkdir(parents=True)
        (self.folder / "tmp").mkdir()
        (self.root / ".ssh").mkdir(mode=0o700)
        shutil.copy(self._lab.folder / "key.pub", self.root / ".ssh/authorized_keys")
        (self.root / ".profile").write_text("[ ! -f ~/.bashrc ] || . ~/.bashrc\n")
        (self.root / ".bashrc").touch()
        (own / "sshd_config").write_text(_SSHD.format(address=self.address))
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", own / "host_key")
        image.copy_environment(self._lab.folder / "environment", self.folder)
        space, switch = self._lab.namespace(self.name), self._lab.switch
        _run("ip", "netns", "add", space)
        cable = ["type", "veth", "peer", "name", "eth0", "netns", space]
        _run("ip", "link", "add", self._cable, "netns", switch, *cable)
        _run("ip", "-n", space, "address", "add", f"{self.address}/24", "dev", "eth0")
        for interface in ("lo", "eth0"):
            _run("ip", "-n", space, "link", "set", interface, "up")
        # Ray finds its address by the way to the rest of the world; nobody is there, so that nothing leaves.
        _run("ip", "-n", space, "route", "add", "default", "via", f"{NETWORK}.1")
        _run("ip", "-n", switch, "link", "set", self._cable, "master", "br0", "up")

    @property
    def is_on(self) -> bool:
        """Whether it has been booted and not killed since."""
        return self._process is not None

    def boot(self) -> None:
        """Switch it on; /tmp is empty, and its disk as it was. Returns when sshd listens."""
        for left in (self.folder / "tmp").iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        (self.folder / "tmp").chmod(0o1777)
        script = Path(__file__).with_name("host.sh")
        spaces = ["unshare", "--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child"]
        words = [
            "ip",
            "netns",
            "exec",
            self._lab.namespace(self.name),
            *spaces,
            "bash",
            script,
            self.name,
            self._lab.folder,
        ]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*words, *self._show], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 30
        while 22 not in self.listening():
            ended = self._process.poll() is not None
            assert not ended, f"{self.name} did not boot: {(self.folder / 'log').read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"{self.name} has no sshd: {(self.folder / 'log').read_text()[-2000:]}"
            time.sleep(0.05)

    def kill(self) -> None:
        """As when the power fails: all its processes are gone at once."""
        first = self._first()
        if first is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(first, signal.SIGKILL)
        for process in (self._process, *self._background):
            if process is not None:
                process.kill()
                process.wait(30)
        self._process, self._background = None, []

    def cut(self) -> None:
        """Pull its cable: nobody is told."""
        _run("ip", "-n", self._lab.switch, "link", "set", self._cable, "down")

    def mend(self) -> None:
        """Plug it in again."""
        _run("ip", "-n", self._lab.switch, "link", "set", self._cable, "up")

    def run(self, command: str, check: bool = True, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command of its shell, as somebody who has logged in; an AssertionError tells what it said when it fails."""
        process = subprocess.Popen(
            self._words(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            raise AssertionError(
                f"{self.name}: {command!r} took more than {timeout:g} s\n{_tail(out)}\n{_tail(err)}"
            ) from None
        assert not check or process.returncode == 0, (
            f"{self.name}: {command!r} ended with {process.returncode}\n{_tail(out)}\n{_tail(err)}"
        )
        return subprocess.CompletedProcess(command, process.returncode, out.replace("\r", ""), err.replace("\r", ""))

    def start(self, command: str, log: str) -> None:
        """Start a command that goes on until the host is killed; what it says goes to that file of /root/.lab."""
        with (self.root / ".lab" / log).open("ab") as output:
            self._background.append(
                subprocess.Popen(
                    self._words(command), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
                )
            )

    def processes(self) -> list[str]:
        """The command lines of its processes, without those that ask."""
        lines = self.run("ps -eo args --no-headers").stdout.splitlines()
        return [line for line in lines if not line.startswith(("ps -eo", "bash -lc", "env -i"))]

    def listening(self) -> dict[int, set[str]]:
        """The ports that take connections, each with its addresses as the kernel writes them: zeros for any."""
        first, found = self._first(), dict[int, set[str]]()
        for table in ("tcp", "tcp6"):
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{first}/net/{table}").read_text().splitlines()[1:]:
                    local, _, state = line.split()[1:4]
                    address, _, port = local.rpartition(":")
                    if state == "0A":
                        found.setdefault(int(port, 16), set()).add(address)
        return found

    def _first(self) -> int | None:
        """Its first process, as this machine counts: the child of `unshare`; None when it is off."""
        if self._process is None:
            return None
        try:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        except OSError:
            return None
        return int(children[0]) if children else None

    def _words(self, command: str) -> list[Any]:
        first = self._first()
        assert first is not None, f"{self.name} is off"
        environment = ["HOME=/root", "USER=root", "LOGNAME=root", "TERM=xterm", "LANG=C.UTF-8"]
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        shell = ["env", "-i", *environment, path, "bash", "-lc", f"cd ~; {command}"]
        return ["nsenter", "--target", str(first), "--all", "--", *shell]


def quoted(*words: str) -> str:
    """Words as a shell reads them."""
    return shlex.join(words)


def _tail(text: str) -> str:
    return text[-3000:]


def _run(*words: Any) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"
