"""Runs one command shut in: started by the grader, ends when the command does, takes all of it along.

Stands alone (no import of this project), because it starts before anything else and must start fast:

    python jail.py '{"command": [...], "env": {...}, "work": ..., "hide": [...], ...}'

Where the system lets an ordinary user make namespaces, the command gets its own network (none but
loopback), process numbers, and view of the file system: everything read-only but an empty `work`, /tmp and
home, and nothing at all in the folders to hide. Where it does not, limits alone remain.
"""

import ctypes
import fcntl
import json
import os
import resource
import signal
import socket
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)

# From linux/sched.h, linux/mount.h and linux/prctl.h.
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER = 0x00020000, 0x08000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 4096, 16384, 1 << 18
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38
SIOCSIFFLAGS, IFF_UP, IFF_RUNNING = 0x8914, 0x1, 0x40
SCRATCH = ("/tmp", "/var/tmp", "/run", "/dev/shm")
NOBODY = 1000  # the user the command believes to be


def main(spec: dict) -> int:
    if not spec["namespaces"]:
        return run_without_namespaces(spec)
    enter_namespaces(spec["drop_to"] is None)
    init = os.fork()
    if init:
        return exit_code(os.waitpid(init, 0)[1])
    # From here on this is process 1 of the new namespace; when it ends, the kernel kills all the others.
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    raise_loopback()
    seal_files(spec)
    return run_limited(spec)


def run_without_namespaces(spec: dict) -> int:
    """Orphans come to this process, so that at the end (or at SIGTERM) it can kill all that is left."""
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        os.chdir(spec["work"])
        return run_limited(spec)
    finally:
        kill_children()


def kill_children():
    for _ in range(10_000):  # children of the killed come here one generation at a time
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            children = [int(pid) for pid in file.read().split()]
        if not children:
            return
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def enter_namespaces(own_users: bool):
    """Root can make namespaces as it is; others need one of users too, in which they may make the rest."""
    uid, gid = os.getuid(), os.getgid()
    flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC
    must(libc.unshare(flags | (CLONE_NEWUSER if own_users else 0)), "unshare")
    if not own_users:
        return
    maps = {"setgroups": "deny", "uid_map": f"{NOBODY} {uid} 1", "gid_map": f"{NOBODY} {gid} 1"}
    for name, text in maps.items():
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def raise_loopback():
    """Notebook kernels talk over 127.0.0.1, which a new network namespace has, but switched off."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP | IFF_RUNNING))


def seal_files(spec: dict):
    """Leaves the command nothing to write to but `work` and scratch, and nothing to read that it may not."""
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    owner = "" if spec["drop_to"] is None else f",uid={spec['drop_to']},gid={spec['drop_to']}"
    mount("none", spec["work"], "tmpfs", MS_NOSUID | MS_NODEV, f"size=512m,mode=0700{owner}")
    scratch = [path for path in SCRATCH if os.path.isdir(path) and not os.path.islink(path)]
    covered = [path for path in [*scratch, *spec["homes"]] if cover(path, spec["keep"])]
    for path in spec["hide"]:
        if os.path.isdir(path):
            mount("none", path, "tmpfs", MS_NOSUID | MS_NODEV, "size=4k")
    if spec["drop_to"] is None:
        forbid_namespaces()
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    set_read_only("/", True, AT_RECURSIVE)
    for path in [spec["work"], *covered]:
        set_read_only(path, False, 0)
    os.chdir(spec["work"])


def cover(path: str, keep: list[str]) -> bool:
    """Mounts an empty folder over `path`, in which only what `keep` names can be seen again.

    False where `path` itself is to be kept.
    """
    kept = [k for k in keep if k == path or k.startswith(path.rstrip("/") + "/")]
    if path in kept:
        return False
    opened = {k: os.open(k, os.O_PATH) for k in outermost(kept)}
    mount("none", path, "tmpfs", MS_NOSUID | MS_NODEV, "size=256m,mode=01777")
    for name, fd in opened.items():
        os.makedirs(name, exist_ok=True)
        mount(f"/proc/self/fd/{fd}", name, None, MS_BIND | MS_REC)
        os.close(fd)
    return True


def outermost(paths: list[str]) -> list[str]:
    """Without those that lie within another."""
    out: list[str] = []
    for path in sorted(set(paths)):
        if not any(path.startswith(parent + "/") for parent in out):
            out.append(path)
    return out


def forbid_namespaces():
    """Within namespaces of its own the command could try to take the covers off again."""
    try:
        with open("/proc/sys/user/max_user_namespaces", "w") as file:
            file.write("0")
    except OSError:
        pass  # the covers are locked against such namespaces anyhow


def mount(source, target: str, kind, flags: int, options: str = ""):
    args = [None if a is None else a.encode() for a in (source, target, kind)]
    must(libc.mount(*args, ctypes.c_ulong(flags), options.encode() or None), f"mount {target}")


def set_read_only(path: str, value: bool, recursive: int):
    set_, clear = (MOUNT_ATTR_RDONLY, 0) if value else (0, MOUNT_ATTR_RDONLY)
    attributes = struct.pack("QQQQ", set_, clear, 0, 0)
    result = libc.syscall(MOUNT_SETATTR, AT_FDCWD, path.encode(), recursive, attributes, len(attributes))
    must(result, f"mount_setattr {path}")


def must(result: int, what: str):
    if result:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def run_limited(spec: dict) -> int:
    """Runs the command under its limits, buries orphans, and ends with the command's exit code."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            for name, value in spec["limits"].items():
                set_limit(getattr(resource, name), value)
            if spec["drop_to"] is not None:
                drop_to(spec["drop_to"])
            libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            os.execve(spec["command"][0], spec["command"], spec["env"])
        finally:
            os._exit(127)
    while True:
        pid, status = os.wait()
        if pid == child:
            return exit_code(status)


def drop_to(user: int):
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)


def set_limit(kind: int, value: int):
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    try:
        sys.exit(main(json.loads(sys.argv[1])))
    except OSError as error:
        print(f"jail: {error}", file=sys.stderr)
        sys.exit(125)
