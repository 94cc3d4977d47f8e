"""The starter of untrusted runs: a process that has loaded torch and forks each run into namespaces of its own.

Run by sandbox.py as `python zygote.py FD`. It imports nothing of the project and holds no secret: what a run can find
in its own memory is a Python with torch in it. A run costs a fork instead of two seconds of imports, and the clock of
its budget starts after them.

Of a run's processes the first (number 1 of the new process namespace) is this file's: it builds the view, starts the
candidate, waits for it, kills whatever else it has started, and copies out the files that were asked for. The candidate
is its child, without any privilege, and cannot end or inspect it; when it ends, the kernel ends all others.

Sources: namespaces(7), mount_namespaces(7), mount_setattr(2), capabilities(7), seccomp(2).
"""

import contextlib
import ctypes
import importlib
import json
import os
import platform
import runpy
import signal
import socket
import stat
import struct
import sys
import tempfile
import time
from multiprocessing import connection, get_context
from pathlib import Path

NEW_SPACES, NEW_USER = (
    0x20000 | 0x4000000 | 0x8000000 | 0x20000000 | 0x40000000,
    0x10000000,
)  # mounts … processes, net
BIND, RECURSIVE, PRIVATE = 4096, 16384, 1 << 18  # flags of mount(2)
READ_ONLY, NO_SUID, NO_DEV = 1, 2, 4  # the same numbers in mount(2) and mount_setattr(2)
TAIL_BYTES = 8_000  # of what it prints that are kept
# System calls that are refused (EPERM), by the kernel's name of the machine: (audit architecture, clone, numbers).
# Without sched_setaffinity a process keeps the cores it was given; the others open doors that no training needs:
# unshare setns ptrace process_vm_readv process_vm_writev add_key request_key keyctl bpf perf_event_open userfaultfd
# io_uring_setup.
REFUSED = {
    "x86_64": (0xC000003E, 56, (203, 272, 308, 101, 310, 311, 248, 249, 250, 321, 298, 323, 425)),
    "aarch64": (0xC00000B7, 220, (122, 97, 268, 117, 270, 271, 217, 218, 219, 280, 241, 282, 425)),
}
libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments) -> None:
    """A function of the C library; raises OSError where it reports failure."""
    arguments = [
        os.fsencode(a) if isinstance(a, str) else ctypes.c_ulong(a) if isinstance(a, int) else a
        for a in arguments
    ]
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def fork(function, *arguments):
    """A new process that calls the function."""
    process = get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


# ---------------------------------------------------------------------------------------------------------------------
# The view: what there is on the candidate's disk


def enter_namespaces() -> None:
    """New namespaces for everything; as an ordinary user inside a user namespace, where that is allowed."""
    uid, gid = os.getuid(), os.getgid()
    try:
        call("unshare", NEW_SPACES)
    except OSError:
        call("unshare", NEW_SPACES | NEW_USER)
        for file, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            Path("/proc/self", file).write_text(text)


def restrict(path: str, flags: int, recursive: bool = True) -> None:
    """mount_setattr(2): add mount flags to a mount, and to all that is mounted below it."""
    attributes = struct.pack("4Q", flags, 0, 0, 0)
    call("syscall", 442, -100, path, 0x8000 if recursive else 0, attributes, len(attributes))


def build_view(root: str, view: list) -> None:
    """Make a root that holds the view and nothing else, and enter it.

    view: list of (kind, source, target), outer targets first. Kinds: "show" shows a file or folder, read-only, or a
    device; "link" is a symbolic link to `source`; "tmpfs" is an empty folder in memory, `source` its options.
    """
    call(
        "mount", None, "/", None, RECURSIVE | PRIVATE, None
    )  # what is mounted from here on stays in here
    call("mount", "tmpfs", root, "tmpfs", NO_SUID | NO_DEV, "size=1m,mode=755")
    for kind, source, target in [*view, ("proc", "", "/proc")]:
        path, is_file = (
            root + target,
            kind == "link" or kind == "show" and not os.path.isdir(source),
        )
        if not os.path.lexists(path):
            os.makedirs(os.path.dirname(path) if is_file else path, mode=0o755, exist_ok=True)
            os.symlink(source, path) if kind == "link" else is_file and Path(path).touch()
        if kind == "show":
            call("mount", source, path, None, BIND | RECURSIVE, None)
            restrict(
                path,
                NO_SUID if stat.S_ISCHR(os.stat(source).st_mode) else NO_SUID | NO_DEV | READ_ONLY,
            )
        elif kind != "link":
            call("mount", kind, path, kind, NO_SUID | NO_DEV, source)
    for path in (f"{root}/proc/{name}" for name in ("sys", "sysrq-trigger", "irq", "bus", "fs")):
        if os.path.exists(path):  # switches of the whole machine, for whoever is its root
            call("mount", path, path, None, BIND, None)
            restrict(path, READ_ONLY)
    os.chdir(root)
    call("pivot_root", ".", ".")  # the old root now lies over the new one …
    call("umount2", ".", 2)  # … and is taken away
    os.chdir("/")
    restrict("/", READ_ONLY, recursive=False)


# ---------------------------------------------------------------------------------------------------------------------
# The candidate's process


def give_up_privileges() -> None:
    """Nobody's rights, no capability, none to be regained, and no way to the system calls in REFUSED."""
    with contextlib.suppress(
        OSError
    ):  # inside a user namespace there is one user only, the ordinary one outside
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
    call("capset", struct.pack("Ii", 0x20080522, 0), bytes(24))
    call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS: no program gives back what was given up
    architecture, clone, numbers = REFUSED[
        platform.machine()
    ]  # another machine has no namespaces for us either
    load, equal, above, masked, end = (
        0x20,
        0x15,
        0x35,
        0x45,
        0x06,
    )  # instructions of the packet filter
    allow, refuse, absent = 0x7FFF0000, 0x50001, 0x50026  # … its answers: yes, EPERM, ENOSYS
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (end, 0, 0, refuse), (load, 0, 0, 0)]
    program += [(above, 0, 1, 0x40000000), (end, 0, 0, refuse)]  # x86-64's second set of numbers
    program += [line for number in numbers for line in ((equal, 0, 1, number), (end, 0, 0, refuse))]
    program += [
        (equal, 0, 1, 435),
        (end, 0, 0, absent),
    ]  # clone3 hides its flags; the C library falls back to clone
    program += [
        (equal, 0, 3, clone),
        (load, 0, 0, 16),
        (masked, 0, 1, NEW_USER),
        (end, 0, 0, refuse),
    ]
    program += [(end, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    call(
        "prctl", 22, 2, struct.pack("H6xP", len(program), ctypes.addressof(code)), 0, 0
    )  # PR_SET_SECCOMP, filter


def become_candidate(spec: dict, *streams: int) -> None:
    """Run spec["argv"] (a Python file and its arguments) in this process."""
    call("prctl", 1, signal.SIGKILL)  # for where there are no namespaces
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(3, 4096)
    os.setsid()
    sys.stdout, sys.stderr = (open(number, "w", 1, closefd=False) for number in (1, 2))
    if spec["isolated"]:
        give_up_privileges()
    os.chdir(spec["folder"])
    sys.argv, sys.path[:0] = spec["argv"], [os.path.dirname(spec["argv"][0])]
    runpy.run_path(spec["argv"][0], run_name="__main__")


def copy_out(path: str, target: int) -> None:
    """Copy a regular file (RLIMIT_FSIZE bounds its size); anything else, a link among it, is not there."""
    with contextlib.suppress(OSError):
        source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        while stat.S_ISREG(os.fstat(source).st_mode) and os.sendfile(target, source, None, 1 << 30):
            pass


def first_process(spec: dict, channel: int, files: list[int]) -> None:
    """Build the view, run the candidate, end all it leaves behind, copy its files out; exits with its status."""
    call(
        "prctl", 1, signal.SIGKILL
    )  # PR_SET_PDEATHSIG: whoever ends the starter ends this, and with it all
    if spec["isolated"]:
        build_view(spec["root"], spec["view"])
    with tempfile.TemporaryFile(
        dir="/tmp"
    ) as printed:  # in memory: however much it prints, the judge's disk is safe
        candidate = fork(become_candidate, spec, channel, printed.fileno(), printed.fileno())
        candidate.join()
        with contextlib.suppress(OSError):
            os.kill(-1, signal.SIGKILL) if spec["isolated"] else os.killpg(
                candidate.pid, signal.SIGKILL
            )
        printed.seek(max(0, printed.seek(0, os.SEEK_END) - TAIL_BYTES))
        os.write(2, printed.read(TAIL_BYTES))
    for path, target in zip(spec["collect"], files):
        copy_out(path, target)
    sys.exit(candidate.exitcode & 127)


def run(spec: dict, channel: int) -> None:
    """In a fork of the starter: the run, in namespaces if spec["isolated"]; what it prints goes to spec["printed"]."""
    call("prctl", 1, signal.SIGKILL)
    printed, *files = (
        os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        for path in (spec["printed"], *spec["collect"].values())
    )
    os.dup2(printed, 2)
    if spec["isolated"]:
        enter_namespaces()
    first = fork(
        first_process, spec, channel, files
    )  # who asks for a process namespace is not in it, its child is
    first.join()
    sys.exit(first.exitcode & 127)


def main(control: socket.socket) -> None:
    """Serve runs: each a message with a specification and a socket, answered by (status, seconds, whether too late)."""
    for module in (
        "torch",
        "torch._dynamo",
        "tyro",
        "matplotlib.figure",
        "matplotlib.backends.backend_agg",
    ):
        importlib.import_module(
            module
        )  # what every run loads; no thread is started by it, so a fork is whole
    with contextlib.suppress(BrokenPipeError):  # the judge was ended meanwhile
        control.send(b"ready")
    while True:
        message, channel, _, _ = socket.recv_fds(control, 1 << 18, 1)
        if not message:
            os._exit(0)
        spec, started = json.loads(message), time.perf_counter()
        process = fork(run, spec, *channel)
        os.close(*channel)
        ready = connection.wait([control, process.sentinel], spec["seconds"])
        if control in ready:  # the judge has gone: with this process the kernel ends the run
            os._exit(0)
        process.kill()
        process.join()
        seconds = time.perf_counter() - started
        control.send(json.dumps([process.exitcode & 127, seconds, not ready]).encode())


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
