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
import resource
import runpy
import select
import signal
import socket
import stat
import struct
import sys
import traceback

NEW_MOUNTS, NEW_UTS, NEW_IPC, NEW_USER, NEW_PIDS, NEW_NET = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)  # fmt: skip
BIND, RECURSIVE, PRIVATE = 4096, 16384, 1 << 18  # flags of mount(2)
READ_ONLY, NO_SUID, NO_DEV = 1, 2, 4  # the same numbers in mount(2) and mount_setattr(2)
NOBODY = 65534
# System calls that are refused (EPERM), by the kernel's name of the machine: (audit architecture, clone, numbers).
# Without sched_setaffinity a process keeps the cores it was given; the others open doors that no training needs:
# unshare setns ptrace process_vm_readv process_vm_writev add_key request_key keyctl bpf perf_event_open userfaultfd
# io_uring_setup.
REFUSED = {
    "x86_64": (0xC000003E, 56, (203, 272, 308, 101, 310, 311, 248, 249, 250, 321, 298, 323, 425)),
    "aarch64": (0xC00000B7, 220, (122, 97, 268, 117, 270, 271, 217, 218, 219, 280, 241, 282, 425)),
}
libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments) -> int:
    """A function of the C library; raises OSError where it reports failure."""
    arguments = [os.fsencode(a) if isinstance(a, str) else ctypes.c_ulong(a) if isinstance(a, int) else a
                 for a in arguments]  # fmt: skip
    result = getattr(libc, name)(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


# ---------------------------------------------------------------------------------------------------------------------
# The view: what there is on the candidate's disk


def enter_namespaces() -> None:
    """New namespaces for everything; as an ordinary user inside a user namespace, where that is allowed."""
    uid, gid = os.getuid(), os.getgid()
    new = NEW_MOUNTS | NEW_UTS | NEW_IPC | NEW_PIDS | NEW_NET
    try:
        call("unshare", new)
    except OSError:
        call("unshare", new | NEW_USER)
        for file, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{file}", "w") as map_file:
                map_file.write(text)


def restrict(path: str, flags: int, recursive: bool = True) -> None:
    """mount_setattr(2): add mount flags to a mount, and to all that is mounted below it."""
    attributes = struct.pack("4Q", flags, 0, 0, 0)
    call("syscall", 442, -100, path, 0x8000 if recursive else 0, attributes, len(attributes))


def build_view(spec: dict) -> None:
    """Make a root that holds spec["view"] and nothing else, and enter it.

    view: list of (kind, source, target), outer targets first. Kinds: "read" shows a file or folder, read-only; "hide"
    covers a folder that an earlier entry showed with an empty one; "write" is an empty folder in memory of `source`
    bytes at most; "device" shows a device; "link" is a symbolic link to another entry.
    """
    root = spec["root"]
    call("mount", None, "/", None, RECURSIVE | PRIVATE, None)  # what is mounted from here on stays in here
    call("mount", "tmpfs", root, "tmpfs", NO_SUID | NO_DEV, "size=1m,mode=755")
    for kind, source, target in [*spec["view"], ("proc", "proc", "/proc")]:
        path = root + target
        if not os.path.lexists(path):
            is_file = kind in ("read", "device") and not os.path.isdir(source)
            os.makedirs(os.path.dirname(path) if is_file or kind == "link" else path, mode=0o755, exist_ok=True)
            if is_file:
                open(path, "w").close()
        if kind == "link":
            os.symlink(source, path)
        elif kind in ("read", "device"):
            call("mount", source, path, None, BIND | RECURSIVE, None)
            restrict(path, READ_ONLY | NO_SUID | NO_DEV if kind == "read" else NO_SUID)
        elif kind == "proc":
            call("mount", "proc", path, "proc", NO_SUID | NO_DEV, None)
        else:
            options = f"size={source},nr_inodes=4096,mode=1777" if kind == "write" else "size=4k,mode=755"
            call("mount", "tmpfs", path, "tmpfs", NO_SUID | NO_DEV, options)
    for name in ("sys", "sysrq-trigger", "irq", "bus", "fs"):  # switches of the whole machine, for whoever is its root
        if os.path.exists(f"{root}/proc/{name}"):
            call("mount", f"{root}/proc/{name}", f"{root}/proc/{name}", None, BIND, None)
            restrict(f"{root}/proc/{name}", READ_ONLY)
    os.chdir(root)
    call("pivot_root", ".", ".")  # the old root now lies over the new one …
    call("umount2", ".", 2)  # … and is taken away
    os.chdir("/")
    restrict("/", READ_ONLY, recursive=False)


# ---------------------------------------------------------------------------------------------------------------------
# The candidate's process


def give_up_privileges() -> None:
    """Nobody's rights, no capability, none to be regained, and no way to the system calls in REFUSED."""
    for capability in range(64):
        with contextlib.suppress(OSError):  # there are about forty
            call("prctl", 24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
    with contextlib.suppress(OSError):  # inside a user namespace there is one user only, the ordinary one outside
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    call("capset", struct.pack("Ii", 0x20080522, 0), bytes(24))
    call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    architecture, clone, numbers = REFUSED[platform.machine()]  # another machine has no namespaces for us either
    load, equal, above, masked, end = 0x20, 0x15, 0x35, 0x45, 0x06  # instructions of the packet filter
    allow, refuse, absent = 0x7FFF0000, 0x50001, 0x50026  # … its answers: yes, EPERM, ENOSYS
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (end, 0, 0, refuse), (load, 0, 0, 0)]
    program += [(above, 0, 1, 0x40000000), (end, 0, 0, refuse)]  # x86-64's second set of numbers
    for number in numbers:
        program += [(equal, 0, 1, number), (end, 0, 0, refuse)]
    program += [(equal, 0, 1, 435), (end, 0, 0, absent)]  # clone3 hides its flags; the C library falls back to clone
    program += [(equal, 0, 3, clone), (load, 0, 0, 16), (masked, 0, 1, NEW_USER), (end, 0, 0, refuse)]
    program += [(end, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    call("prctl", 22, 2, struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)), 0, 0)  # PR_SET_SECCOMP, filter


def become_candidate(spec: dict) -> int:
    """Run spec["argv"] (a Python file and its arguments) in this process."""
    os.closerange(3, 4096)
    os.setsid()
    sys.stdin, sys.stdout, sys.stderr = open(0, closefd=False), open(1, "w", 1, closefd=False), open(2, "w", 1)
    for name, limit in spec["limits"].items():
        hard = resource.getrlimit(getattr(resource, name))[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(getattr(resource, name), (limit, limit))
    if spec["isolated"]:
        give_up_privileges()
    os.environ.clear()
    os.environ.update(spec["environment"])
    os.chdir(spec["folder"])
    sys.argv, sys.path[:0] = spec["argv"], [os.path.dirname(spec["argv"][0])]
    runpy.run_path(spec["argv"][0], run_name="__main__")
    return 0


def copy_out(path: str, limit: int, target: int) -> None:
    """Copy a regular file of at most `limit` bytes; anything else, a link among it, is not there."""
    with contextlib.suppress(OSError):
        source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        if stat.S_ISREG(os.fstat(source).st_mode) and os.fstat(source).st_size <= limit:
            while os.sendfile(target, source, None, 1 << 30):
                pass


def first_process(spec: dict, files: list[int]) -> int:
    """Build the view, run the candidate, end all it leaves behind, copy its files out; returns its status."""
    call("prctl", 1, signal.SIGKILL)  # PR_SET_PDEATHSIG: whoever ends the starter ends this, and with it all
    if spec["isolated"]:
        build_view(spec)
    candidate = fork(become_candidate, spec)
    status = wait(candidate)
    with contextlib.suppress(OSError):
        os.kill(-1, signal.SIGKILL) if spec["isolated"] else os.killpg(candidate, signal.SIGKILL)
    for (path, limit), target in zip(spec["collect"], files):
        copy_out(path, limit, target)
    return status


def run(control: socket.socket, spec: dict, fds: list[int]) -> int:
    """In a fork of the starter: the run, in namespaces if spec["isolated"]. fds: its three streams and its files."""
    control.close()
    call("prctl", 1, signal.SIGKILL)
    for number, stream in enumerate(fds[:3]):
        os.dup2(stream, number)
        os.close(stream)
    if spec["isolated"]:
        enter_namespaces()
    # The process that asks for a process namespace does not enter it, its children do.
    return wait(fork(first_process, spec, fds[3:]))


def fork(function, *arguments) -> int:
    """The number of a new process, which calls the function and ends with the status that it returns."""
    child, code = os.fork(), 1
    if child == 0:
        try:
            code = function(*arguments)
        except SystemExit as exit:
            code = exit.code & 127 if isinstance(exit.code, int) else int(exit.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    return child


def wait(child: int) -> int:
    """How a process ended, 0 to 127; 0 is well."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 127


def main(number: int) -> None:
    """Serve runs: each a message with a specification and its files, answered by a process id and later a status."""
    control = socket.socket(fileno=number)
    for module in ("torch", "torch._dynamo", "tyro", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        importlib.import_module(module)  # what every run loads; no thread is started by it, so a fork is whole
    control.send(b"ready")
    while True:
        message, fds, _, _ = socket.recv_fds(control, 1 << 18, 16)
        if not message:
            return
        child = fork(run, control, json.loads(message), fds)
        for fd in fds:
            os.close(fd)
        control.send(str(child).encode())
        ended = os.pidfd_open(child)
        if control in select.select([control, ended], [], [])[0]:
            return  # the judge has gone: with this process the kernel ends the run
        os.close(ended)
        control.send(str(wait(child)).encode())


if __name__ == "__main__":
    main(int(sys.argv[1]))
