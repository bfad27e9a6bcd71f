"""Kernels that start at once: a server imports the slow libraries once and forks a kernel for each notebook.

Importing torch takes seconds, and every task is graded in a kernel of its own.

    python warm.py serve SOCKET               imports, then forks a kernel for whoever connects
    python warm.py kernel SOCKET CONNECTION   what Jupyter starts: asks for a kernel and stands in for it

Jupyter signals and waits for the stand-in, which passes signals on and ends when the kernel does. Where
no server answers, the stand-in becomes an ordinary kernel.
"""

import os
import selectors
import signal
import socket
import sys


def serve(path: str):
    """Forks kernels until it is killed. Who connects during the imports waits."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    import ipykernel.kernelapp  # noqa: F401
    import torch  # noqa: F401

    import minitransformer.course.grading.rpc  # noqa: F401

    waiting = selectors.DefaultSelector()
    waiting.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in waiting.select():
            if key.fileobj is listener:
                start_kernel(listener, waiting)
            else:
                finish(key, waiting)


def start_kernel(listener: socket.socket, waiting: selectors.BaseSelector):
    """Reads a request ("folder\\0connection file"), forks, and answers with the kernel's process number."""
    connection, _ = listener.accept()
    folder, _, file = connection.recv(4096).decode().partition("\0")
    pid = os.fork()
    if pid == 0:
        try:
            connection.close()
            listener.close()
            become_kernel(folder, file)
        finally:
            os._exit(1)
    connection.sendall(f"{pid}\n".encode())
    ended = os.pidfd_open(pid)
    waiting.register(ended, selectors.EVENT_READ, (pid, ended, connection))
    waiting.register(connection, selectors.EVENT_READ, (pid, ended, connection))


def finish(key: selectors.SelectorKey, waiting: selectors.BaseSelector):
    """The kernel has ended, or its stand-in has gone: neither outlives the other."""
    pid, ended, connection = key.data
    if key.fileobj is connection:
        signal.pidfd_send_signal(ended, signal.SIGKILL)
    os.waitpid(pid, 0)
    waiting.unregister(ended)
    waiting.unregister(connection)
    os.close(ended)
    connection.close()


def become_kernel(folder: str, file: str):
    from ipykernel.kernelapp import IPKernelApp

    os.setsid()
    os.chdir(folder)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    sys.argv = ["ipykernel_launcher", "-f", file]
    IPKernelApp.launch_instance(sys.argv[1:])


def stand_in(path: str, file: str):
    """Starts a kernel through the server and lives as long as it does."""
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(path)
        server.sendall(f"{os.getcwd()}\0{file}".encode())
        pid = int(server.makefile().readline())
    except (OSError, ValueError):  # no server, or one that died
        os.execv(sys.executable, [sys.executable, "-m", "ipykernel_launcher", "-f", file])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os.kill(pid, number))
    while server.recv(1):  # empty when the server closes, after the kernel has ended
        pass


if __name__ == "__main__":
    serve(sys.argv[2]) if sys.argv[1] == "serve" else stand_in(*sys.argv[2:4])
