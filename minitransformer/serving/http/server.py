"""Listens, serves, and drains: on Ctrl-C nothing new is taken and what runs is answered to its end."""

import ipaddress
import socket
import sys

import uvicorn
from starlette.applications import Starlette


def serve(app: Starlette, *, host: str = "127.0.0.1", port: int = 8000):
    """Serves until Ctrl-C (or SIGTERM); a second one ends at once.

    Port 0 takes any free one. Raises OSError where the address can't be had.
    """
    listening = listen(host, port)
    address = f"[{host}]" if ":" in host else host
    print(f"Serving at http://{address}:{listening.getsockname()[1]}/v1 (Ctrl-C drains)", flush=True)
    if not is_loopback(host):
        print("Whoever reaches this machine can use the server: it asks for no key.", file=sys.stderr)
    config = uvicorn.Config(app, lifespan="on", access_log=False, log_level="warning")
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn raises it again after it has drained
        pass
    finally:
        listening.close()


def listen(host: str, port: int) -> socket.socket:
    """A socket at the address, where clients may knock already while the server begins."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(2048)
    except OSError as error:
        bound.close()
        raise OSError(f"port {port} at {host} can't be had: {error.strerror or error}") from None
    return bound


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
