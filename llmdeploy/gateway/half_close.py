"""Clients that send no more, and still wait for their answer, as `printf ... | nc -N` does.

The bytes on the wire are the same for a client that has left, whose request must end. On this machine Linux knows the
difference: the socket of a client that has left belongs to no process, and has no inode.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from contextlib import closing

_BY_FAMILY = 20
"""SOCK_DIAG_BY_FAMILY, the type of the question and of its answer."""
_SOCK_DIAG = 4
"""NETLINK_SOCK_DIAG, the protocol."""
_HEADER = struct.Struct("=IHHII")
_QUESTION = struct.Struct("=BBBBI")
_PORTS = struct.Struct("!HH16s16s")
_ANY_INTERFACE = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
_INODE_AT = 16 + 4 + 48 + 16
"""Offset of the inode in the answer: after the header, the state, the addresses and four numbers."""
_PATIENCE = 0.05
"""Seconds to wait for the kernel's answer."""


def still_reads(transport: asyncio.BaseTransport) -> bool:
    """Return whether the client of a half-closed connection is known to wait for its answer."""
    peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
    if sys.platform != "linux" or not peer or not own:
        return False
    try:
        return _inode(peer[0], peer[1], own[0], own[1]) != 0
    except OSError:
        return False


def _inode(host: str, port: int, other_host: str, other_port: int) -> int:
    """Return the inode of the socket with these addresses; 0 if no process holds it. Raises OSError."""
    if sys.platform != "linux":
        raise OSError("only Linux is asked")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    packed = [socket.inet_pton(family, it).ljust(16, b"\0") for it in (host, other_host)]
    question = _QUESTION.pack(family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF)
    body = question + _PORTS.pack(port, other_port, *packed) + _ANY_INTERFACE
    with closing(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG)) as kernel:
        kernel.settimeout(_PATIENCE)
        kernel.send(_HEADER.pack(_HEADER.size + len(body), _BY_FAMILY, 1, 1, 0) + body)
        answer = kernel.recv(4096)
    if len(answer) < _INODE_AT + 4 or _HEADER.unpack_from(answer)[1] != _BY_FAMILY:
        return 0
    (inode,) = struct.unpack_from("=I", answer, _INODE_AT)
    return int(inode)
