"""Untrusted code, run where it can reach nothing that counts: one Sandbox is one slot of cores with a starter process.

A run sees the interpreter and the system's libraries, the files it was given, and two folders in memory to write to;
no network, no other process, no home, no project, no data but its own. zygote.py builds that view. Where the system
does not allow namespaces the same program runs without, aloud, and `isolation` says so.
"""

import contextlib
import fcntl
import glob
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from console import require

HERE = Path(__file__).resolve().parent
SYSTEM = "/usr /lib /lib64 /bin /sbin /etc/ld.so.cache /etc/alternatives /sys/devices/system /nix/store".split()
DEVICES = "/dev/null /dev/zero /dev/full /dev/random /dev/urandom".split()
DISK_BYTES, TAIL_BYTES = 4 << 30, 8_000
WRITABLE = {"/dev/shm": 64 << 20, "/tmp": DISK_BYTES, "/box/out": DISK_BYTES}  # folders in memory: bytes at most


def system_view(hidden: list[Path]) -> list[tuple]:
    """What a Python with its libraries needs to see; of the folders in `hidden` nothing but an interpreter in them."""
    hidden = [path.resolve() for path in hidden]
    gpu = glob.glob("/dev/nvidia*")
    paths = {path for path in [*SYSTEM, *sys.path, *["/sys"] * bool(gpu)] if os.path.exists(path)} - {""}
    around = {path for path in sys.path if any(secret.is_relative_to(Path(path).resolve()) for secret in hidden)}
    paths = paths - around | {sys.prefix, sys.base_prefix}
    real = {path: Path(path).resolve() for path in paths}
    shown = {str(real[path]) for path in paths}
    covered = {str(secret) for secret in hidden if any(secret.is_relative_to(path) for path in shown)}
    view = [("read", path, path) for path in shown] + [("hide", 0, path) for path in covered - shown]
    view += [("link", str(real[path]), path) for path in paths if path != str(real[path])]  # one way to each file
    return sorted(view, key=lambda row: row[2].count("/")) + [("device", path, path) for path in (*DEVICES, *gpu)]


class Run:
    """A run under way. `answers` reads its standard output where that was asked for; `requests` is its input.

    How it ended, after `finish`: status, 0 for a good end; seconds; late; text, the end of what it printed, untrusted.
    """

    def __init__(self, box: "Sandbox", spec: dict, collect: Mapping[str, Path], seconds: float, talk: bool):
        self.box, self.started, self.late, self.tail = box, time.perf_counter(), False, b""
        self.requests, self.answers, self.scratch = None, None, spec["root"]
        printed, prints = os.pipe()
        streams = [os.open(os.devnull, os.O_RDONLY), prints, prints]
        if talk:
            (streams[0], self.requests), (self.answers, streams[1]) = os.pipe(), os.pipe()
            fcntl.fcntl(self.answers, fcntl.F_SETPIPE_SZ, 1 << 20)  # logits are many: sixteen times the usual pipe
        streams += [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644) for path in collect.values()]
        socket.send_fds(box.control, [json.dumps(spec).encode()], streams)
        self.pid = int(box.control.recv(64))
        for stream in {*streams}:
            os.close(stream)
        self.reader = threading.Thread(target=self.drain, args=(printed,))
        self.timer = threading.Timer(seconds, self.end)
        for thread in (self.reader, self.timer):
            thread.daemon = True
            thread.start()

    def drain(self, stream: int) -> None:
        while part := os.read(stream, 65536):
            self.tail = (self.tail + part)[-TAIL_BYTES:]
        os.close(stream)

    def end(self, late: bool = True) -> None:
        self.late = late
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def finish(self) -> "Run":
        for pipe in (self.requests, self.answers):
            if pipe is not None:
                os.close(pipe)
        self.status = int(self.box.control.recv(64))
        self.seconds = time.perf_counter() - self.started
        self.timer.cancel()
        self.reader.join(5)
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.text = self.tail.decode("utf-8", errors="replace")
        return self


class Sandbox:
    """folder: the judge's, for its caches. cores: numbers of the CPU cores. gpu: CUDA_VISIBLE_DEVICES.

    hidden: folders that no run may see. covers: (path, your file) pairs, shown in place of the system's file there.
    """

    def __init__(self, folder: Path, cores: list[int], hidden: list[Path] = (), covers: list[tuple] = (),
                 gpu: str | None = None):  # fmt: skip
        require(sys.platform == "linux", "the referee runs on Linux alone: its sandbox is made of what that offers")
        self.folder, self.covers = Path(tempfile.mkdtemp(dir=folder)), covers
        cache = folder / "cache"
        cache.mkdir(parents=True, exist_ok=True)
        own = {"OMP_NUM_THREADS": str(len(cores)), "OPENBLAS_NUM_THREADS": "1", "LANG": "C.UTF-8", "USER": "nobody"}
        own |= {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "OMP_WAIT_POLICY") if name in os.environ}
        own |= {"CUDA_VISIBLE_DEVICES": gpu} if gpu is not None else {}
        self.environment = own | {"HOME": "/tmp", "MPLCONFIGDIR": "/tmp"}
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-B", "-s", "-P", str(HERE / "zygote.py"), str(theirs.fileno())]
        start = own | {"MPLCONFIGDIR": str(cache), "PYTHONHASHSEED": "0"}
        self.starter = subprocess.Popen(command, env=start, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        os.sched_setaffinity(self.starter.pid, cores)  # for good: a run is refused the call that would change it
        theirs.close()
        require(self.control.recv(64) == b"ready", "the sandbox's starter did not begin: see above")
        self.view = system_view([HERE.parent, folder, Path.home(), Path(tempfile.gettempdir()), *hidden])
        self.isolation, share = "namespaces", len(cores) / (os.cpu_count() or 1)
        self.memory = int(0.9 * share * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        result = self.start(["/box/worker.py", "--check"], {}, seconds=30).finish()
        if result.status:
            self.isolation = f"none ({result.text.strip().splitlines()[-1:]})"
            print(f"warning: no namespaces here, untrusted code runs without isolation: {self.isolation}", flush=True)

    def start(self, argv: list[str], shown: Mapping[str, Path], seconds: float, collect: Mapping[str, Path] = {},
               talk: bool = False) -> Run:  # fmt: skip
        """Begin a run of the Python file argv[0].

        shown: its path to yours, of what it may read. collect: its path to yours, of files copied out at the end.
        seconds: after which it is killed. talk: open `requests` and `answers`.
        """
        scratch, isolated = tempfile.mkdtemp(dir=self.folder), self.isolation == "namespaces"
        shown = {"/box/worker.py": HERE / "worker.py", **shown}
        # Before the rest, for an interpreter may lie below /tmp and has to show through.
        view = [("write", size, path) for path, size in WRITABLE.items()] + self.view
        view += [("read", str(path), target) for target, path in [*shown.items(), *self.covers]]
        places = {} if isolated else {"/box/out": scratch, **shown}

        def place(text: str) -> str:
            for target, path in places.items():
                text = text.replace(target, str(path))
            return text

        spec = {
            "root": scratch, "view": view if isolated else [], "isolated": isolated, "argv": [*map(place, argv)],
            "folder": place("/box/tree" if "/box/tree" in shown else "/box/out"), "environment": self.environment,
            "limits": {"RLIMIT_DATA": self.memory, "RLIMIT_FSIZE": DISK_BYTES, "RLIMIT_CORE": 0, "RLIMIT_NPROC": 2048},
            "collect": [(place(path), DISK_BYTES if path.endswith(".pt") else 4 << 20) for path in collect],
        }  # fmt: skip
        return Run(self, spec, collect, seconds, talk)

    def close(self) -> None:
        self.starter.kill()  # and with it, by the kernel, what runs in it
        self.starter.wait()
        self.control.close()
        shutil.rmtree(self.folder, ignore_errors=True)
