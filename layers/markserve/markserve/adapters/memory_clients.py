"""`ClientStore` in memory."""

from __future__ import annotations

from collections import Counter

from markserve.messages import ClientRecord


class MemoryClientStore:
    """Clients of the API, by name."""

    def __init__(self) -> None:
        self._clients: dict[str, ClientRecord] = {}
        self._used: Counter[tuple[str, float]] = Counter()

    def find(self, key_sha256: str) -> ClientRecord | None:
        return next((record for record in self._clients.values() if record.key_sha256 == key_sha256), None)

    def count(self, client: str, *, window_at_s: float) -> int:
        self._used[client, window_at_s] += 1
        return self._used[client, window_at_s]

    def put(self, record: ClientRecord) -> bool:
        if record.client in self._clients:
            return False
        self._clients[record.client] = record
        return True

    def list(self) -> list[ClientRecord]:
        return [self._clients[name] for name in sorted(self._clients)]

    def remove(self, client: str) -> bool:
        return self._clients.pop(client, None) is not None
