"""Untrusted code, run where it can reach nothing that counts: one Sandbox is one slot of cores with a starter process.

A run sees the interpreter and the system's libraries, the files it was given, and folders in memory to write to; no
network, no other process, no home, no project, no data but its own. zygote.py builds that view. Where the system does
not allow namespaces the same program runs without, aloud, and `isolation` says so.
"""

import glob
import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

from nanoloop.options import require

HERE = Path(__file__).resolve().parent
SYSTEM = "/usr /lib /lib64 /bin /sbin /etc/ld.so.cache /etc/alternatives /sys/devices/system /nix/store".split()
DEVICES = "/dev/null /dev/zero /dev/full /dev/random /dev/urandom".split()
DISK_BYTES = 4 << 30


# How a run ended. status: 0 for a good end. late: it was stopped. text: the end of what it printed, untrusted.
Ended = namedtuple("Ended", "status seconds late text")


def system_view(hidden: list[Path]) -> list[tuple]:
    """What a Python with its libraries needs to see; of the folders in `hidden` nothing but an interpreter in them."""
    gpu, hidden = glob.glob("/dev/nvidia*"), {path.resolve() for path in hidden}
    around = {
        path
        for path in sys.path
        if any(secret.is_relative_to(Path(path).resolve()) for secret in hidden)
    }
    paths = {*SYSTEM, *DEVICES, *gpu, *["/sys"] * bool(gpu), *sys.path} - around | {
        sys.prefix,
        sys.base_prefix,
    }
    paths = {Path(path) for path in paths if os.path.exists(path)}
    shown = {path.resolve() for path in paths}
    view = [("show", path, path) for path in shown]
    view += [
        ("tmpfs", "size=4k,mode=755", secret)
        for secret in hidden - shown
        if shown.intersection(secret.parents)
    ]
    view += [("link", path.resolve(), path) for path in paths - shown]  # one way to each file
    return [tuple(map(str, row)) for row in sorted(view, key=lambda row: len(row[2].parts))]


class Sandbox:
    """folder: the judge's, for a folder of this slot. cores: numbers of the CPU cores. gpu: CUDA_VISIBLE_DEVICES.

    hidden: folders that no run may see. covers: (your file, path) pairs, shown in place of the system's file there.
    """

    covers: list[tuple[str, str]] = []

    def __init__(
        self, folder: Path, cores: list[int], hidden: list[Path] = (), gpu: str | None = None
    ):
        require(
            sys.platform == "linux",
            "the referee runs on Linux alone: its sandbox is made of what that offers",
        )
        here = f"slot-{platform.node()}-"
        for left in folder.glob(f"{here}*"):  # by judges that were killed
            if not Path("/proc", left.name.split("-")[-2]).exists():
                shutil.rmtree(left, ignore_errors=True)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{here}{os.getpid()}-", dir=folder))
        share, own = (
            len(cores) / (os.cpu_count() or 1),
            {"CUDA_VISIBLE_DEVICES": gpu} if gpu is not None else {},
        )
        own |= {
            name: os.environ[name]
            for name in ("PATH", "LD_LIBRARY_PATH", "OMP_WAIT_POLICY")
            if name in os.environ
        }
        own |= {
            "OMP_NUM_THREADS": str(len(cores)),
            "OPENBLAS_NUM_THREADS": "1",
            "LANG": "C.UTF-8",
            "USER": "nobody",
            "HOME": "/tmp",
            "MPLCONFIGDIR": str(folder / "cache"),
            "PYTHONHASHSEED": "0",
        }
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-B", "-s", "-P", str(HERE / "zygote.py"), str(theirs.fileno())]
        self.starter = subprocess.Popen(
            command,
            env=own,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # which Ctrl-C does not reach
        # For good: a run is refused the call that would change its cores, and nobody may raise a limit.
        os.sched_setaffinity(self.starter.pid, cores)
        memory = int(0.9 * share * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        limits = {
            "RLIMIT_DATA": memory,
            "RLIMIT_FSIZE": DISK_BYTES,
            "RLIMIT_CORE": 0,
            "RLIMIT_NPROC": 2048,
        }
        for kind, limit in ((getattr(resource, name), limit) for name, limit in limits.items()):
            hard = resource.prlimit(self.starter.pid, kind)[1]
            limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.prlimit(self.starter.pid, kind, (limit, limit))
        theirs.close()
        require(self.control.recv(64) == b"ready", "the sandbox's starter did not begin: see above")
        # What may be written to comes first, for an interpreter may lie below /tmp and has to show through.
        sizes = {"/dev/shm": 64 << 20, "/tmp": DISK_BYTES}
        self.view = [
            ("tmpfs", f"size={size},nr_inodes=4096,mode=1777", path) for path, size in sizes.items()
        ]
        self.view += system_view(
            [HERE.parent, folder, Path.home(), Path(tempfile.gettempdir()), *hidden]
        )
        self.isolation = "namespaces"
        check = self.run([os.devnull], [], 30)
        if check.status:
            self.isolation = f"none ({check.text.strip().splitlines()[-1:]})"
            print(
                f"warning: no namespaces here, untrusted code runs without isolation: {self.isolation}",
                flush=True,
            )

    def start(
        self, argv: list, shown: list[Path], seconds: float, collect: dict[str, Path] = {}
    ) -> socket.socket:
        """Begin a run of the Python file argv[0]; returns what is connected with its standard input.

        It works in shown[0]. shown: what it may read, at its own place. collect: name in the folder `out`, the only one
        it shares with nobody, to your path, of files copied out at the end. seconds: after which it is stopped.
        """
        isolated, out, root = (
            self.isolation == "namespaces",
            self.folder / "out",
            self.folder / "root",
        )
        shutil.rmtree(out, ignore_errors=True)
        for folder in (out, root):
            folder.mkdir(exist_ok=True)
        view = [
            *self.view,
            ("tmpfs", self.view[1][1], str(out)),
            *(("show", str(path), str(path)) for path in shown),
        ]
        spec = {
            "root": str(root),
            "view": [*view, *(("show", *cover) for cover in self.covers)],
            "isolated": isolated,
            "argv": [*map(str, argv)],
            "folder": str((shown or [out])[0]),
            "printed": str(self.folder / "printed"),
            "seconds": seconds,
            "collect": {str(out / name): str(path) for name, path in collect.items()},
        }
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self.control, [json.dumps(spec).encode()], [theirs.fileno()])
        return ours

    def finish(self) -> Ended:
        """Wait for the end of the run; what is connected with it should be closed before."""
        return Ended(
            *json.loads(self.control.recv(256)),
            (self.folder / "printed").read_text(errors="replace"),
        )

    def run(self, *arguments) -> Ended:
        self.start(*arguments).close()
        return self.finish()

    def close(self) -> None:
        self.starter.kill()  # and with it, by the kernel, what runs in it
        self.starter.wait()
        self.control.close()
        shutil.rmtree(self.folder, ignore_errors=True)
