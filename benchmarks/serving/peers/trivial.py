"""A server that only replies: what is left when the generator is all that is measured."""

from __future__ import annotations

import os
import select
import socket

REPLY = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 17\r\n\r\n{"scores": [1.0]}'


def main() -> None:
    """Answer every request with the same body, until killed."""
    listener = socket.create_server(("127.0.0.1", int(os.environ["BENCH_PORT"])), backlog=1024)
    epoll = select.epoll()
    epoll.register(listener.fileno(), select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    while True:
        for fd, _ in epoll.poll():
            if fd == listener.fileno():
                connection, _ = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connections[connection.fileno()] = connection
                epoll.register(connection.fileno(), select.EPOLLIN)
                continue
            try:
                asked = connections[fd].recv(65536)
            except ConnectionError:
                asked = b""
            if asked:
                connections[fd].send(REPLY)
            else:
                connections.pop(fd).close()


if __name__ == "__main__":
    main()
