"""The starter of untrusted runs: a process with torch that forks each run into namespaces.

Started by sandbox.py as `python starter.py FD`. It imports nothing of the project and holds no
secret: a run finds nothing in its memory but a Python with torch. A run costs a fork instead of two
seconds of imports, and the clock of its budget starts after them.

The first process of a run (number 1 of the new process namespace) belongs to this file. It builds
the view, starts the candidate, watches its processor time, kills what the candidate leaves behind,
and copies out the files that the judge asked for. The candidate is its child, has no privilege, and
cannot end or inspect it. When the first process ends, the kernel ends all others.

Sources: namespaces(7), mount_namespaces(7), mount_setattr(2), capabilities(7), seccomp(2), proc(5).
"""

import ctypes
import importlib
import json
import os
import platform
import resource
import runpy
import signal
import socket
import stat
import struct
import sys
import tempfile
import time
from contextlib import suppress
from multiprocessing import connection, get_context
from pathlib import Path

# What every run loads. None of it starts a thread, so a fork is complete.
IMPORTED = (
    "torch",
    "torch._dynamo",
    "tyro",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
)
TAIL_BYTES = 8_000  # of what a run prints that are kept
LATE = 128  # exit code of a run that exceeded a limit; a candidate's are below it
POLL_SECONDS = 0.05  # between two looks at the processor time

# Flags of unshare(2): mounts, host name, IPC, processes, network; and users.
NEW_SPACES = 0x20000 | 0x4000000 | 0x8000000 | 0x20000000 | 0x40000000
NEW_USER = 0x10000000
# Flags of mount(2).
BIND = 4096
RECURSIVE = 16384
PRIVATE = 1 << 18
# Flags of mount(2) and mount_setattr(2).
READ_ONLY = 1
NO_SUID = 2
NO_DEV = 4
# Numbers of prctl(2).
SET_DEATH_SIGNAL = 1  # the signal that the process gets when its parent ends
SET_SECCOMP = 22
SET_NO_NEW_PRIVILEGES = 38

# Instructions of the packet filter, and its answers.
LOAD = 0x20
IF_EQUAL = 0x15
IF_AT_LEAST = 0x35
IF_BITS = 0x45
RETURN = 0x06
ALLOW = 0x7FFF0000
REFUSE = 0x50001  # EPERM
ABSENT = 0x50026  # ENOSYS
CLONE3 = 435
# By the kernel's name of the machine: audit architecture, clone, and the system calls that are
# refused. Without sched_setaffinity a process keeps its cores. The others open doors that no
# training needs: unshare setns ptrace process_vm_readv process_vm_writev add_key request_key keyctl
# bpf perf_event_open userfaultfd io_uring_setup.
CALLS = {
    "x86_64": (0xC000003E, 56, (203, 272, 308, 101, 310, 311, 248, 249, 250, 321, 298, 323, 425)),
    "aarch64": (0xC00000B7, 220, (122, 97, 268, 117, 270, 271, 217, 218, 219, 280, 241, 282, 425)),
}
libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments) -> None:
    """Call a function of the C library. Raises OSError where it reports a failure."""
    converted = []
    for argument in arguments:
        if isinstance(argument, str):
            argument = os.fsencode(argument)
        elif isinstance(argument, int):
            argument = ctypes.c_ulong(argument)
        converted.append(argument)
    if getattr(libc, name)(*converted) == -1:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def fork(function, *arguments):
    """Start a process that calls the function."""
    process = get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def end_with_parent() -> None:
    call("prctl", SET_DEATH_SIGNAL, signal.SIGKILL)


# --------------------------------------------------------------------------------------------------
# The view: what the candidate's disk holds


def enter_namespaces() -> None:
    """Enter new namespaces of all kinds; an ordinary user does so inside a user namespace."""
    uid = os.getuid()
    gid = os.getgid()
    try:
        call("unshare", NEW_SPACES)
    except OSError:
        call("unshare", NEW_SPACES | NEW_USER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def restrict(path: str, flags: int, recursive: bool = True) -> None:
    """Add mount flags to a mount, and to all that is mounted below it: mount_setattr(2)."""
    attributes = struct.pack("4Q", flags, 0, 0, 0)
    call("syscall", 442, -100, path, 0x8000 if recursive else 0, attributes, len(attributes))


def build_view(root: str, view: list) -> None:
    """Mount the view, and nothing else, below `root`, and make that the root.

    view: list of (kind, source, target), outer targets first. Kinds: "show" shows a file or folder,
    read-only, or a device; "link" is a symbolic link to `source`; "tmpfs" is an empty folder in
    memory, `source` its options.
    """
    # Mounts stay in this namespace from here on.
    call("mount", None, "/", None, RECURSIVE | PRIVATE, None)
    call("mount", "tmpfs", root, "tmpfs", NO_SUID | NO_DEV, "size=1m,mode=755")
    for kind, source, target in [*view, ("proc", "", "/proc")]:
        path = root + target
        if not os.path.lexists(path):
            make_mount_point(kind, source, path)
        if kind == "show":
            call("mount", source, path, None, BIND | RECURSIVE, None)
            is_device = stat.S_ISCHR(os.stat(source).st_mode)
            restrict(path, NO_SUID if is_device else NO_SUID | NO_DEV | READ_ONLY)
        elif kind != "link":
            call("mount", kind, path, kind, NO_SUID | NO_DEV, source)
    for name in ("sys", "sysrq-trigger", "irq", "bus", "fs"):  # switches of the machine, for root
        path = f"{root}/proc/{name}"
        if os.path.exists(path):
            call("mount", path, path, None, BIND, None)
            restrict(path, READ_ONLY)
    os.chdir(root)
    call("pivot_root", ".", ".")  # the old root lies over the new one
    call("umount2", ".", 2)  # remove the old root
    os.chdir("/")
    restrict("/", READ_ONLY, recursive=False)


def make_mount_point(kind: str, source: str, path: str) -> None:
    """Create what is mounted over: a link, an empty file or a folder."""
    is_folder = kind != "link" and (kind != "show" or os.path.isdir(source))
    os.makedirs(path if is_folder else os.path.dirname(path), mode=0o755, exist_ok=True)
    if kind == "link":
        os.symlink(source, path)
    elif not is_folder:
        Path(path).touch()


# --------------------------------------------------------------------------------------------------
# The candidate's process


def give_up_privileges() -> None:
    """Drop all rights and capabilities for good, and the use of the calls in CALLS."""
    # A user namespace has one user only, the ordinary one outside.
    with suppress(OSError):
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
    call("capset", struct.pack("Ii", 0x20080522, 0), bytes(24))
    call("prctl", SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0)  # no program gives them back
    program = filter_program()
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    pointer = struct.pack("H6xP", len(program), ctypes.addressof(code))
    call("prctl", SET_SECCOMP, 2, pointer, 0, 0)


def filter_program() -> list[tuple[int, int, int, int]]:
    """Write the packet filter that decides on each system call.

    A line is (instruction, lines to skip if true, lines to skip if not, value).
    """
    architecture, clone, refused = CALLS[platform.machine()]
    refuse = (RETURN, 0, 0, REFUSE)
    program = [
        (LOAD, 0, 0, 4),  # the architecture of the call
        (IF_EQUAL, 1, 0, architecture),
        refuse,
        (LOAD, 0, 0, 0),  # the number of the call
        (IF_AT_LEAST, 0, 1, 0x40000000),  # x86-64's second set of numbers
        refuse,
    ]
    for number in refused:
        program += [(IF_EQUAL, 0, 1, number), refuse]
    program += [
        # clone3 hides its flags. Without it the C library calls clone.
        (IF_EQUAL, 0, 1, CLONE3),
        (RETURN, 0, 0, ABSENT),
        (IF_EQUAL, 0, 3, clone),
        (LOAD, 0, 0, 16),  # the flags of clone
        (IF_BITS, 0, 1, NEW_USER),
        refuse,
        (RETURN, 0, 0, ALLOW),
    ]
    return program


def become_candidate(run: dict, *streams: int) -> None:
    """Run the Python file and arguments in run["argv"] in this process."""
    end_with_parent()  # where there are no namespaces
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(3, 4096)
    os.setsid()
    sys.stdout = open(1, "w", buffering=1, closefd=False)
    sys.stderr = open(2, "w", buffering=1, closefd=False)
    if run["isolated"]:
        give_up_privileges()
    os.chdir(run["folder"])
    sys.argv = run["argv"]
    sys.path.insert(0, os.path.dirname(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")


# --------------------------------------------------------------------------------------------------
# The first process of a run


def first_process(run: dict, channel: int, meter: int, files: list[int]) -> None:
    """Build the view, run the candidate and copy its files out; exit with its status or LATE.

    meter: a file that gets the seconds so far: of processor time, and spent waiting for it.
    """
    end_with_parent()  # when the starter ends, this ends, and with it the run
    if run["isolated"]:
        build_view(run["root"], run["view"])
    # The printed text is in memory, so it cannot fill the judge's disk.
    with tempfile.TemporaryFile(dir="/tmp") as printed:
        candidate = fork(become_candidate, run, channel, printed.fileno(), printed.fileno())
        is_late = not ends_within(candidate, run, meter)
        with suppress(OSError):
            if run["isolated"]:
                os.kill(-1, signal.SIGKILL)
            else:
                os.killpg(candidate.pid, signal.SIGKILL)
        candidate.join()
        with suppress(ChildProcessError):  # none is left
            while True:
                os.wait()  # or the processor time of those that end last would not count
        printed.seek(max(0, printed.seek(0, os.SEEK_END) - TAIL_BYTES))
        os.write(2, printed.read(TAIL_BYTES))
    for path, target in zip(run["collect"], files):
        copy_out(path, target)
    sys.exit(LATE if is_late else candidate.exitcode & 127)


def ends_within(candidate, run: dict, meter: int) -> bool:
    """Wait for the candidate; return False as soon as it exceeds a limit.

    Time in which it waits for a core does not count: its neighbours cause that.
    """
    started = time.perf_counter()
    before = 0.0
    lost = 0.0  # of processes that ended and that no process waited for
    waited = 0.0
    # Not join: it waits on a pipe that the candidate has closed.
    while candidate.is_alive():
        time.sleep(POLL_SECONDS)
        used, waiting = times(candidate.pid, run["isolated"])
        lost += max(0.0, before - used)
        before = used
        waited = max(waited, waiting)
        os.pwrite(meter, b"%.2f %.2f" % (lost + used, waited), 0)
        seconds = time.perf_counter() - started - waited
        if lost + used > run["processor_seconds"] or seconds > run["seconds"]:
            return False
    return True


def times(candidate: int, isolated: bool) -> tuple[float, float]:
    """Sum up seconds of a run's processes, and of those they have waited for.

    Returns the processor time, and the time in which threads could have run but had no core (0
    where the kernel does not say).
    """
    pids = [str(candidate)]
    if isolated:  # then /proc holds this process and those of the run alone
        pids = [name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
    ticks = 0
    nanoseconds = 0
    for pid in pids:
        with suppress(OSError):  # it has ended in the meantime
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
            for thread in Path(f"/proc/{pid}/task").iterdir():
                nanoseconds += int((thread / "schedstat").read_text().split()[1])
    return ticks / os.sysconf("SC_CLK_TCK") + waited_for(), nanoseconds / 1e9


def waited_for() -> float:
    """Return the processor seconds of the processes that this one has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def stalled(pressure: str = "/proc/pressure/memory") -> float:
    """Return the seconds so far in which any program of the machine waited for memory.

    Where the kernel does not say, return by how much it has worked more than the processes that
    this one has waited for. Source: Documentation/accounting/psi.rst of Linux.
    """
    try:
        some = Path(pressure).read_text().splitlines()[0]
        return int(some.rpartition("=")[2]) / 1e6
    except (OSError, IndexError, ValueError):
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_stime - usage.ru_utime


def copy_out(path: str, target: int) -> None:
    """Copy a regular file; RLIMIT_FSIZE bounds its size. Skip anything else, links too."""
    with suppress(OSError):
        source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        while stat.S_ISREG(os.fstat(source).st_mode) and os.sendfile(target, source, None, 1 << 30):
            pass


# --------------------------------------------------------------------------------------------------
# The starter


def start(run: dict, channel: int) -> None:
    """In a fork of the starter: do the run; what it prints goes to the file run["printed"]."""
    end_with_parent()
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
    printed = os.open(run["printed"], flags, 0o644)
    meter = os.open(run["meter"], flags, 0o644)
    os.pwrite(meter, b"0 0", 0)
    files = [os.open(path, flags, 0o644) for path in run["collect"].values()]
    os.dup2(printed, 2)
    if run["isolated"]:
        enter_namespaces()
    # Not this process is in the new process namespace but its child.
    first = fork(first_process, run, channel, meter, files)
    first.join()
    sys.exit(first.exitcode & 255)


def main(control: socket.socket) -> None:
    """Serve runs: each a message with a description and a socket, answered by how it ended."""
    for module in IMPORTED:
        importlib.import_module(module)
    with suppress(BrokenPipeError):  # the judge has ended in the meantime
        control.send(b"ready")
    while True:
        message, channel, _, _ = socket.recv_fds(control, 1 << 18, 1)
        if not message:
            os._exit(0)
        run = json.loads(message)
        started = time.perf_counter()
        before = waited_for()
        stalled_before = stalled()
        process = fork(start, run, *channel)
        os.close(*channel)
        ready = connection.wait([control, process.sentinel])
        if control in ready:  # the judge has ended: when this process ends, the kernel ends the run
            os._exit(0)
        process.kill()
        process.join()
        result = {
            "status": process.exitcode & 255,
            "seconds": time.perf_counter() - started,
            "processor_seconds": waited_for() - before,
            "waited_seconds": float(Path(run["meter"]).read_text().split()[1]),
            "stalled_seconds": max(0.0, stalled() - stalled_before),
            "late": process.exitcode == LATE,
        }
        control.send(json.dumps(result).encode())


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
