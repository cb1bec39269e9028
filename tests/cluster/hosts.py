"""Emulated hosts on one machine: each a set of namespaces of its own (network, host name,
processes, mounts, shared memory), joined by a bridge that lives on the host `login`.

Process 1 of a host reads a pipe that only this program holds, and ends when that closes; the kernel
then ends all that runs on the host. So nothing outlives the tests, however they end, and two
clusters on one machine know nothing of each other. The file system is shared, as on a cluster, but
for /dev/shm, a host's own. What is mounted on `login` later appears on every host."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LOGIN = "login"
NETWORK = "10.77.0"

Result = subprocess.CompletedProcess[str]

# Children that nobody waits for are reaped by the kernel, because their parent ignores SIGCHLD.
INIT = "echo up; exec env --ignore-signal=CHLD cat"


def wait_for(condition: Callable[[], object], what: str, seconds: float) -> None:
    """Returns once the condition holds; TimeoutError if it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.05)


@dataclass
class Host:
    """A running host: the process that holds it, its process 1, and its process namespace."""

    holder: subprocess.Popen[str]
    init: int
    namespace: str


@dataclass(frozen=True)
class Process:
    pid: int  # as this program sees it
    name: str


class Hosts:
    """`login` and others, given by name. Needs root."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self.names = list(names)
        self.running: dict[str, Host] = {}
        self.environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": os.environ.get("HOME", "/root"),
            "LANG": "C.UTF-8",
            "TMPDIR": "/dev/shm",
        }

    def up(self) -> None:
        addresses = [f"{self.address(name)} {name}" for name in [LOGIN, *self.names]]
        table = self.folder / "hosts"
        table.write_text("\n".join(["127.0.0.1 localhost", *addresses, ""]))
        # Shared from here on: hosts are copies of login's mounts, and see what it mounts later.
        bridge = (
            f"mount --bind {table} /etc/hosts; mount --make-rshared /; "
            "ip link add name bridge type bridge; ip link set bridge up; "
            f"ip address add {self.address(LOGIN)}/24 dev bridge; "
        )
        self._start(LOGIN, bridge, inside=[], propagation="private")
        for name in self.names:
            self.boot(name)

    def down(self) -> None:
        """Ends every host, and checks that nothing is left of them."""
        ended = list(self.running.values())
        for name in list(self.running):
            self._end(name)
        left = [process for host in ended for process in self._inside(host)]
        if left:
            raise RuntimeError(f"still running after the hosts ended: {left}")

    def boot(self, name: str) -> None:
        """Starts a host that is not running, and connects it to the bridge."""
        login = self.running[LOGIN]
        self._start(name, "", inside=["nsenter", f"-t{login.init}", "-m"], propagation="slave")
        host, port = self.running[name], f"port-{name}"
        peer = ["peer", "name", "eth0", "netns", str(host.init)]
        self._switch("ip", "link", "add", "name", port, "type", "veth", *peer)
        self._switch("ip", "link", "set", port, "master", "bridge", "up")
        self.on(name, "ip", "address", "add", f"{self.address(name)}/24", "dev", "eth0")
        self.on(name, "ip", "link", "set", "eth0", "up")

    def crash(self, name: str) -> None:
        """As a power cut: the network falls silent first, so nobody hears the processes end."""
        self._switch("ip", "link", "delete", f"port-{name}")
        self._end(name)

    def link(self, name: str, *, up: bool) -> None:
        """Unplugs a host's cable at the switch, or plugs it in."""
        self._switch("ip", "link", "set", f"port-{name}", "up" if up else "down")

    def limit(self, name: str, rate: str) -> None:
        """What a host receives comes at this rate, "100mbit", from now on."""
        shaper = ["root", "tbf", "rate", rate, "burst", "64k", "limit", "16m"]
        self._switch("tc", "qdisc", "replace", "dev", f"port-{name}", *shaper)

    def mount_disk(self, path: Path, size: str) -> None:
        """A file system of its own, of a limited size, at this path on all hosts; not outside."""
        path.mkdir(parents=True, exist_ok=True)
        self.on(LOGIN, "mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path))

    def address(self, name: str) -> str:
        number = 254 if name == LOGIN else self.names.index(name) + 1
        return f"{NETWORK}.{number}"

    def on(
        self,
        name: str,
        *command: str,
        ok: bool = True,
        environment: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> Result:
        """Runs a command on a host, to its end. Fails when it does, unless `ok` is False."""
        where = [f"-t{self.running[name].init}", "-n", "-u", "-m", "-p", "-i"]
        result = subprocess.run(
            ["nsenter", f"--wdns={self.folder}", *where, "--", *command],
            env=self.environment | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if ok and result.returncode != 0:
            said = f"{result.stdout}{result.stderr}".strip()
            raise RuntimeError(f"{name}: {' '.join(command)}: exit {result.returncode}: {said}")
        return result

    def processes(self, name: str) -> list[Process]:
        """All that run on a host, without its process 1."""
        host = self.running[name]
        return [process for process in self._inside(host) if process.pid != host.init]

    def _start(self, name: str, more: str, inside: list[str], propagation: str) -> None:
        setup = (
            f"set -e; hostname {name}; mount -t tmpfs -o mode=1777 tmpfs /dev/shm; "
            f"ip link set lo up; {more}{INIT}"
        )
        namespaces = ["--net", "--uts", "--pid", "--mount", "--ipc"]
        holder = subprocess.Popen(
            [*inside, "unshare", *namespaces, f"--propagation={propagation}", "--fork",
             "--kill-child", "--mount-proc", "sh", "-c", setup],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self.folder / "hosts.log").open("a"),
            text=True,
            start_new_session=True,  # an interrupt at the terminal is for us, not for the hosts
        )  # fmt: skip
        if holder.stdout.readline() != "up\n":
            raise RuntimeError(f"host {name} does not start: see {self.folder}/hosts.log")
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
        init = int(children[0])
        self.running[name] = Host(holder, init, os.readlink(f"/proc/{init}/ns/pid"))

    def _end(self, name: str) -> None:
        host = self.running.pop(name)
        os.kill(host.init, signal.SIGKILL)
        host.holder.wait(timeout=30)
        host.holder.stdin.close()
        host.holder.stdout.close()

    def _switch(self, *command: str) -> None:
        """Runs a command beside the bridge, with process ids as this program sees them."""
        login = self.running[LOGIN]
        subprocess.run(["nsenter", f"-t{login.init}", "-n", *command], check=True)

    @staticmethod
    def _inside(host: Host) -> list[Process]:
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if os.readlink(entry / "ns" / "pid") == host.namespace:
                    found.append(Process(int(entry.name), (entry / "comm").read_text().strip()))
            except OSError:
                continue  # it ended while we looked
        return found
