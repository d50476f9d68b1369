"""Lets the processes of a run notice immediately that one of them has ended.

JAX notices it only after missing heartbeats, and then aborts the process with C++ stacks. Here,
each process keeps a connection to the first process, which the operating system closes when either
ends for any reason. A process that ends by itself first sends its exit code, and its peers end with
the same code. This shows a scheduler whether a restart would help: it does not help if the disk is
full or memory is too small.
"""

import contextlib
import json
import logging
import secrets
import socket
import threading
import time

import jax

from experiments.errors import PeerError
from experiments.machine.interrupts import leave
from fdrl_jax.training import parallel

_CONNECT_SECONDS = 60.0
_GREETING_SECONDS = 5.0  # Time for whoever connects to show that it is a process of the run.
_WELCOME = b"\1"  # The answer of the first process, without which a peer does not trust its link.
_LEAVE_SECONDS = 5.0  # Time for the others to end before the first process, which JAX needs.
_OWN_SECONDS = 2.0  # Time for a process to end with its own message when a peer has an error.
_links: list[socket.socket] = []
_leaving = threading.Lock()  # Acquired by the thread that ends this process, never released.


def watch(address: str | None) -> None:
    """Connects this process with its peers; all processes must call this.

    The first process, at HOST:PORT, listens on that host at another port. Without an address, its
    peers find it by its host name. If some cannot connect, a warning says so.
    """
    if jax.process_count() == 1:
        return
    try:
        host = (address or "").rpartition(":")[0]
        if parallel.is_first_process():
            num = jax.process_count() - 1
            _links.extend(_listen(host, num))
            if len(_links) < num:
                raise OSError(f"{num - len(_links)} of {num} did not reach the first one")
        else:
            _links.append(_connect())
    except OSError as error:  # A firewall between hosts, or a name that does not resolve.
        logging.getLogger("fdrl").warning(
            "the processes of the run cannot connect to each other (%s): they notice a failed "
            "process only after --heartbeat_seconds",
            error,
        )
    for link in _links:
        threading.Thread(target=_leave_with_peer, args=(link,), daemon=True).start()


def announce_exit(code: int) -> None:
    """Sends the exit code of this process to its peers; 0 if its work is done.

    For an error code, this returns only in one thread. The first process then waits briefly for the
    others, because JAX aborts them if it ends before them.
    """
    if code:
        _leaving.acquire()
    for link in _links:
        with contextlib.suppress(OSError):  # It has ended already.
            link.sendall(bytes([code]))
    if code and parallel.is_first_process():
        end = time.monotonic() + _LEAVE_SECONDS
        for link in _links:
            link.settimeout(max(end - time.monotonic(), 0.0))
            while _received(link):
                pass


def let_peers_end_this() -> None:
    """Waits, after an error of a collective, for the exit code of the process that has failed.

    Its links end this process if it sent one or was killed. Without links, this returns at once.
    """
    if _links:
        time.sleep(2 * _OWN_SECONDS + 1.0)  # The first process waits, and then passes the code on.


def _leave_with_peer(link: socket.socket) -> None:
    code = _received(link)
    if code == b"\0":
        return
    if not code:
        announce_exit(PeerError.exit_code)
        leave(
            PeerError.exit_code,
            "another process of the run has ended. The same command on all hosts resumes from the "
            "newest checkpoint",
        )
    time.sleep(_OWN_SECONDS)
    announce_exit(code[0])
    leave(code[0], "another process of the run has ended with an error; its message says why")


def _received(link: socket.socket) -> bytes:
    try:
        return link.recv(1)
    except OSError:
        return b""


def _listen(host: str, num: int) -> list[socket.socket]:
    """Returns the first process's connections, to up to `num` others, or raises an OSError."""
    name, token = (host or socket.gethostname()).strip("[]"), secrets.token_hex(16)
    family = socket.AF_INET6 if ":" in name else socket.AF_INET
    try:
        listener = socket.create_server((name if host else "", 0), family=family)
    except OSError as error:
        parallel.from_first_process(json.dumps([error.strerror, 0, ""]))
        raise
    with listener:
        parallel.from_first_process(json.dumps([name, listener.getsockname()[1], token]))
        return _accepted(listener, token, num)


def _connect() -> socket.socket:
    """Returns the connection of another process to the first one, or raises an OSError."""
    name, port, token = json.loads(parallel.from_first_process(""))
    if not token:
        raise OSError(name)
    link = socket.create_connection((name, port), timeout=_CONNECT_SECONDS)
    try:
        link.sendall(token.encode())
        link.settimeout(2 * _CONNECT_SECONDS)  # Longer than the first process waits for others.
        if link.recv(1) != _WELCOME:
            raise ConnectionError("the first process does not answer")
        _keep_alive(link)
    except OSError:
        link.close()
        raise
    return link


def _keep_alive(link: socket.socket) -> None:
    """Keeps a connection open without traffic while both hosts are up."""
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # Firewalls forget a quiet connection after minutes.
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)


def _accepted(listener: socket.socket, token: str, num: int) -> list[socket.socket]:
    """Returns the connections of up to `num` processes that know the token before the time ends."""
    links: list[socket.socket] = []
    end = time.monotonic() + _CONNECT_SECONDS
    while len(links) < num and (left := end - time.monotonic()) > 0:
        listener.settimeout(left)
        with contextlib.suppress(OSError):  # The time has ended, or who came has gone again.
            link, _ = listener.accept()
            if _is_peer(link, token):
                links.append(link)
    return links


def _is_peer(link: socket.socket, token: str) -> bool:
    """Answers a process of this run, and closes the connection of any other program."""
    link.settimeout(_GREETING_SECONDS)
    # The file may read ahead: a peer sends no more than this until it is welcome.
    with contextlib.suppress(OSError), link.makefile("rb") as greeting:
        if greeting.read(len(token)) == token.encode():
            link.sendall(_WELCOME)
            _keep_alive(link)
            return True
    link.close()
    return False
