"""Run untrusted code where it can reach nothing that counts.

One Sandbox is a set of CPU cores with a starter process. A run sees the interpreter and the
system's libraries, the files it is given, and folders in memory to write to. It sees no network,
no other process, no home, no project and no data but its share. starter.py builds that view. Where
the system does not allow namespaces, the same program runs without them, with a warning, and
`isolation` says so.
"""

import glob
import json
import math
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nanoloop.options import note, require
from research.referee.patch import ROOT, Invalid

STARTER = Path(__file__).with_name("starter.py")
SYSTEM = (
    "/usr /lib /lib64 /bin /sbin /etc/ld.so.cache /etc/alternatives /sys/devices/system /nix/store"
).split()
DEVICES = "/dev/null /dev/zero /dev/full /dev/random /dev/urandom".split()
DISK_BYTES = 4 << 30  # that a run may write
MAX_STALL = 0.05  # of a run's time in which memory may be short without being blamed
PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "OMP_WAIT_POLICY")  # environment variables of the judge


class Crashed(Invalid):
    """The candidate ended before its work was done."""

    verdict = "crash"


class Disturbed(Invalid):
    """Another program changed what a run could do. That says nothing of the change."""

    verdict = "disturbed"

    def __init__(self, message: str, text: str = ""):
        advice = "try it again when the machine is quiet, or with a budget of steps"
        super().__init__(f"{message}: {advice}", text)


@dataclass(frozen=True)
class Limit:
    """What a run may use; it is ended when it exceeds one of them."""

    seconds: float  # by the clock
    processor_seconds: float = math.inf  # of all its processes together

    def exceeded(self, ended: "Ended") -> str:
        """Name the limit that a late run exceeded; its clock stood still while it waited."""
        if ended.seconds - ended.waited_seconds >= self.seconds:
            return f"{self.seconds:.1f} seconds"
        return f"{self.processor_seconds:.1f} seconds of processor time"


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    status: int  # 0: well
    seconds: float  # by the clock
    processor_seconds: float  # of all its processes together
    waited_seconds: float  # in which it could have worked, but others had its cores
    stalled_seconds: float  # in which any program of the machine waited for memory
    late: bool  # ended by its limit
    text: str  # the end of what it printed, untrusted

    def problem(self, kind: type[Invalid], message: str) -> Invalid:
        """Return what to raise for a run that failed or used too much.

        Where memory was short it is Disturbed: the kernel charges its search for memory to whatever
        asks for memory, and it may end any program. The limits stay as they are, so a run that
        makes memory short gains nothing: it is never accepted.
        """
        if self.stalled_seconds <= MAX_STALL * self.seconds:
            return kind(message, self.text)
        short = f"memory was short for {self.stalled_seconds:.1f} of {self.seconds:.1f} seconds"
        return Disturbed(f"{message}, but {short}", self.text)


def system_view(hidden: Sequence[Path]) -> list[tuple]:
    """List what Python and its libraries need to see; see starter.build_view.

    Nothing in the `hidden` folders is in it, except an interpreter that is installed there.
    """
    secrets = {path.resolve() for path in hidden}
    wanted = {*SYSTEM, *DEVICES}
    gpus = glob.glob("/dev/nvidia*")
    if gpus:
        wanted |= {"/sys", *gpus}
    for path in sys.path:
        folder = Path(path).resolve()
        if not any(secret.is_relative_to(folder) for secret in secrets):
            wanted.add(path)
    wanted |= {sys.prefix, sys.base_prefix}
    paths = {Path(path) for path in wanted if os.path.exists(path)}
    shown = {path.resolve() for path in paths}

    view = [("show", path, path) for path in shown]
    for secret in secrets - shown:
        if shown.intersection(secret.parents):
            view.append(("tmpfs", "size=4k,mode=755", secret))
    # There is one way to each file: other names are links.
    view += [("link", path.resolve(), path) for path in paths - shown]
    return sorted(view, key=lambda row: len(row[2].parts))


class Starter:
    """A process that forks runs, see starter.py. It ends with this one."""

    def __init__(self, cores: list[int], variables: dict[str, str]):
        self.cores = cores
        self.variables = variables
        self.is_idle = True
        self.control, starter_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with starter_end:
            self.process = subprocess.Popen(
                [sys.executable, "-B", "-s", "-P", str(STARTER), str(starter_end.fileno())],
                env=variables,
                pass_fds=[starter_end.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C does not reach it
            )
        limit_process(self.process.pid, cores)
        is_ready = self.control.recv(64) == b"ready"
        require(is_ready, "the sandbox's starter did not begin: see the message above")

    def kill(self) -> None:
        self.process.kill()  # the kernel ends what runs in it too
        self.process.wait()
        self.control.close()


IDLE: list[Starter] = []  # of closed sandboxes; to start one takes seconds


def take_starter(cores: list[int], variables: dict[str, str]) -> Starter:
    """Return an idle starter of this kind, or start one. Those before it in the list end."""
    while IDLE:
        starter = IDLE.pop(0)
        is_alike = (starter.cores, starter.variables) == (cores, variables)
        if is_alike and starter.process.poll() is None:
            return starter
        starter.kill()
    return Starter(cores, variables)


class Sandbox:
    """Runs one untrusted program at a time. Raises UserError where the system is not Linux.

    judge_folder: holds the sandbox's folder. cores: numbers of CPU cores. hidden: folders that no
    run may see. variables: of the environment, before the judge's.
    covers: (source, path) pairs; a run sees `source` in place of the system's file `path`.
    """

    def __init__(
        self,
        judge_folder: Path,
        cores: list[int],
        hidden: Sequence[Path] = (),
        variables: dict[str, str] | None = None,
    ):
        require(sys.platform == "linux", "the referee needs Linux: its sandbox uses namespaces")
        self.covers: list[tuple[Path, Path]] = []
        prefix = f"slot-{platform.node()}-"
        remove_leftovers(judge_folder, prefix)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=judge_folder))
        variables = (variables or {}) | environment(judge_folder, len(cores))
        self.starter = take_starter(cores, variables)

        # The writable folders come first, since an interpreter below /tmp must show through.
        self.writable = f"size={DISK_BYTES},nr_inodes=4096,mode=1777"
        shared_memory = f"size={64 << 20},nr_inodes=4096,mode=1777"
        self.view = [("tmpfs", shared_memory, "/dev/shm"), ("tmpfs", self.writable, "/tmp")]
        secrets = [ROOT, judge_folder, Path.home(), Path(tempfile.gettempdir()), *hidden]
        self.view += system_view(secrets)
        self.isolation = "namespaces"
        check = self.run([os.devnull], [], Limit(600))
        if check.status:
            reason = check.text.strip().splitlines()[-1:]
            self.isolation = f"none ({reason})"
            note(f"warning: untrusted code runs without isolation: {reason}")

    def start(
        self,
        argv: list,
        shown: list[Path],
        limit: Limit,
        collect: dict[str, Path] | None = None,
    ) -> socket.socket:
        """Start the Python file argv[0] in shown[0]; return a socket, the other end of its stdin.

        shown: what it may read. collect: files that are copied out at the end, from their name in
        the run's folder `out` to your path.
        """
        out = self.folder / "out"
        root = self.folder / "root"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        root.mkdir(exist_ok=True)
        view = [*self.view, ("tmpfs", self.writable, out)]
        view += [("show", path, path) for path in shown]
        view += [("show", source, path) for source, path in self.covers]
        run = {
            "root": root,
            "view": view,
            "isolated": self.isolation == "namespaces",
            "argv": argv,
            "folder": shown[0] if shown else out,
            "printed": self.folder / "printed",
            "meter": self.folder / "meter",
            "collect": {str(out / name): path for name, path in (collect or {}).items()},
            **asdict(limit),
        }
        self.starter.is_idle = False
        judge_end, run_end = socket.socketpair()
        with run_end:
            message = json.dumps(run, default=str).encode()  # paths as text
            socket.send_fds(self.starter.control, [message], [run_end.fileno()])
        return judge_end

    def processor_seconds(self) -> float:
        """Return what the run has used so far, to 0.1 seconds."""
        return float((self.folder / "meter").read_text().split()[0])

    def finish(self) -> Ended:
        """Wait for the end of the run. Close the socket of `start` before."""
        result = json.loads(self.starter.control.recv(1024))
        self.starter.is_idle = True
        return Ended(**result, text=(self.folder / "printed").read_text(errors="replace"))

    def run(self, *arguments) -> Ended:
        """Start a run, see `start`, and wait for its end."""
        self.start(*arguments).close()
        return self.finish()

    def close(self) -> None:
        """Remove the folder. An idle starter waits for the next sandbox."""
        if self.starter.is_idle:
            IDLE.append(self.starter)
        else:
            self.starter.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def remove_leftovers(judge_folder: Path, prefix: str) -> None:
    """Remove the folders of judges on this machine that were killed."""
    for folder in judge_folder.glob(f"{prefix}*"):
        pid = folder.name.split("-")[-2]
        if not Path("/proc", pid).exists():
            shutil.rmtree(folder, ignore_errors=True)


def environment(judge_folder: Path, threads: int) -> dict[str, str]:
    """Make the environment of the starter and its runs: nothing of the judge's but PASSED_ON."""
    passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return passed_on | {
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",
        "LANG": "C.UTF-8",
        "USER": "nobody",
        "HOME": "/tmp",
        "MPLCONFIGDIR": str(judge_folder / "cache"),
        "PYTHONHASHSEED": "0",
    }


def limit_process(pid: int, cores: list[int]) -> None:
    """Bind a process to cores and to their share of the memory, for good.

    A run is refused the call that would change its cores, and no process may raise a limit.
    """
    os.sched_setaffinity(pid, cores)
    share = len(cores) / (os.cpu_count() or 1)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = {
        resource.RLIMIT_DATA: int(0.9 * share * memory),
        resource.RLIMIT_FSIZE: DISK_BYTES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 2048,
    }
    for kind, limit in limits.items():
        hard = resource.prlimit(pid, kind)[1]
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.prlimit(pid, kind, (limit, limit))
