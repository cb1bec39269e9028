"""A real Slurm over emulated hosts: slurmctld and munged on `login`, slurmd on each other host."""

import os
import re
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hosts import LOGIN, NETWORK, Hosts, Process, wait_for

# Ranks of Open MPI between hosts that share two cores: TCP, no binding, and a wait that leaves the
# core to others.
MPI_ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_btl": "self,vader,tcp",
    "OMPI_MCA_btl_tcp_if_include": f"{NETWORK}.0/24",
    "OMPI_MCA_oob_tcp_if_include": f"{NETWORK}.0/24",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
}

# What limits a cluster's patience is short here, so that tests are. Preemption leaves 10 s to stop.
CONFIGURATION = """\
ClusterName=emulated
SlurmctldHost={login}({login_address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir=/dev/shm/slurmd
SlurmdPidFile=/dev/shm/slurmd.pid
TmpFS=/dev/shm
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=pmix
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MinJobAge=3600
KillWait=5
SlurmdTimeout=15
TCPTimeout=2
MessageTimeout=10
GresTypes=gpu
NodeName={hosts} CPUs={cpus} RealMemory=4096 Gres=gpu:2
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=10
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
"""

DAEMONS = {"munged", "slurmctld", "slurmscriptd", "slurmd"}
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"}


@dataclass(frozen=True)
class Job:
    """What Slurm knows of a job."""

    state: str
    reason: str
    exit_code: int  # of the batch script
    restarts: int
    nodes: str  # allocated
    batch_host: str
    excluded: str


class Slurm:
    """`hosts` compute hosts n1, n2, ... with `cpus` processors and two make-believe GPUs each."""

    def __init__(self, folder: Path, hosts: int, cpus: int = 2) -> None:
        self.folder = folder
        self.hosts = Hosts(folder, [f"n{number}" for number in range(1, hosts + 1)])
        self.configuration = folder / "slurm.conf"
        self.cpus = cpus
        self.hurried: set[tuple[int, int]] = set()  # job, restarts

    def up(self) -> None:
        self.hosts.up()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        (self.folder / "state").mkdir(mode=0o700)
        self.configuration.write_text(
            CONFIGURATION.format(
                folder=self.folder,
                login=LOGIN,
                login_address=self.hosts.address(LOGIN),
                hosts=",".join(self.hosts.names),
                cpus=self.cpus,
            )
        )
        # Slurm hands out device files and does not look into them.
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-1]\n")
        for number in range(2):
            os.mknod(self.folder / f"gpu{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        self.hosts.environment |= {
            "SLURM_CONF": str(self.configuration),
            "SLURM_WAIT": "2",
            **MPI_ENVIRONMENT,
        }
        files = {
            "key-file": key,
            "socket": self.folder / "munge.socket",
            "pid-file": self.folder / "munged.pid",
            "log-file": self.folder / "munged.log",
            "seed-file": self.folder / "munged.seed",
        }
        # By force, because a folder for tests is closed to other users, which munged dislikes.
        options = [f"--{option}={path}" for option, path in files.items()]
        self.on(LOGIN, "munged", "--force", *options)
        self.on(LOGIN, "slurmctld", "-c")
        for name in self.hosts.names:
            self._start_slurmd(name)
        self.wait_until_idle()

    def down(self) -> None:
        self.hosts.down()

    def on(self, name: str, *command: str, **how: object) -> str:
        """Standard output of a command on a host."""
        return self.hosts.on(name, *command, **how).stdout.strip()

    def boot(self, name: str) -> None:
        self.hosts.boot(name)
        self._start_slurmd(name)

    def wait_until_idle(self, seconds: float = 60) -> None:
        """Until every host is ready for a job."""

        def idle() -> bool:
            states = self.on(LOGIN, "sinfo", "-h", "-N", "-p", "main", "-o", "%t", ok=False).split()
            return len(states) == len(self.hosts.names) and set(states) == {"idle"}

        wait_for(idle, "all hosts to be idle", seconds)

    def job(self, job: int) -> Job:
        show = ["scontrol", "--oneliner", "show", "job", str(job)]
        text = ""
        for _ in range(10):  # Slurm's clients lose a connection now and then
            if text := self.on(LOGIN, *show, ok=False):
                break
        fields = dict(re.findall(r"(\S+?)=(\S*)", text))
        null = {"(null)": ""}
        nodes, batch_host, excluded = (
            null.get(fields.get(name, ""), fields.get(name, ""))
            for name in ("NodeList", "BatchHost", "ExcNodeList")
        )
        return Job(
            state=fields["JobState"],
            reason=fields["Reason"],
            exit_code=int(fields["ExitCode"].split(":")[0]),
            restarts=int(fields["Restarts"]),
            nodes=nodes,
            batch_host=batch_host,
            excluded=excluded,
        )

    def wait(
        self,
        job: int,
        seconds: float,
        until: Callable[[Job], bool] = lambda job: job.state in ENDED,
    ) -> Job:
        """Until a job has ended, or what else is asked of it. Helps it over Slurm's wait before a
        job that was requeued: `cred_expire`, 121 s where nothing is configured."""
        seen = self.job(job)

        def arrived() -> bool:
            nonlocal seen
            seen = self.job(job)
            waits = seen.state == "PENDING" and seen.reason == "BeginTime"
            if waits and (job, seen.restarts) not in self.hurried:
                # A credential of the second in which the last one was revoked counts as revoked.
                now = ["scontrol", "update", f"JobId={job}", "StartTime=now+1"]
                if self.hosts.on(LOGIN, *now, ok=False).returncode == 0:
                    self.hurried.add((job, seen.restarts))
            if until(seen):
                return True
            if seen.state in ENDED:
                raise AssertionError(f"job {job} has ended: {seen}")
            return False

        try:
            wait_for(arrived, f"job {job}", seconds)
        except TimeoutError as error:
            raise TimeoutError(f"{error}: {seen}") from None
        return seen

    def nodes(self, job: int) -> list[str]:
        """The hosts that a job runs on, in order."""
        listed = self.job(job).nodes
        return self.on(LOGIN, "scontrol", "show", "hostnames", listed).split() if listed else []

    def processes(self, name: str) -> list[Process]:
        """All that run on a host and are not the cluster's own."""
        return [p for p in self.hosts.processes(name) if p.name not in DAEMONS]

    def wait_until_nothing_runs(self, seconds: float = 30) -> None:
        def nothing() -> bool:
            return not any(self.processes(name) for name in self.hosts.running)

        try:
            wait_for(nothing, "the hosts to run nothing", seconds)
        except TimeoutError:
            left = {name: self.processes(name) for name in self.hosts.running}
            raise AssertionError(f"still running: {left}") from None

    def _start_slurmd(self, name: str) -> None:
        self.on(name, "slurmd", "-N", name)
