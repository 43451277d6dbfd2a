"""`ParameterSource` on SSM Parameter Store.

Parameters are `/<stack>/<name>` and, for one model, `/<stack>/models/<model>/<name>`. All are read at once per
refresh interval. A bad value is refused and the last good one kept; so is everything when SSM cannot be read. A change is
reported whoever made it, by our command or in AWS's console.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from markserve.core.tunables import Tunables, apply_overrides, parse_tunable
from markserve.messages import DecisionRecord

if TYPE_CHECKING:
    from mypy_boto3_ssm import SSMClient

MODELS = "models"


class SsmParameterSource:
    """Operator parameters with the last good value kept; safe to share between threads.

    Parameters
    ----------
    log
        Told of each changed value, of each refused one once, and of each outage of SSM once.

    Notes
    -----
    GetParametersByPath is limited per account (40/s, more with the higher-throughput setting). Two pages per
    process every 15 s stay below it up to 300 processes; beyond, throttled processes keep their values longer.
    """

    def __init__(
        self,
        client: SSMClient,
        stack_name: str,
        *,
        refresh_s: float,
        now: Callable[[], float],
        log: Callable[[DecisionRecord], None],
    ) -> None:
        self._client = client
        self._root = f"/{stack_name}/"
        self._refresh_s = refresh_s
        self._now = now
        self._log = log
        self._lock = threading.Lock()
        self._read_at_s: float | None = None
        self._good: dict[str, str] = {}
        """Last good text by path below the root."""
        self._has_read = False
        self._refused: set[tuple[str, str]] = set()
        self._is_out = False

    def get(self, model: str | None = None) -> Tunables:
        with self._lock:
            now_s = self._now()
            if self._read_at_s is None or now_s - self._read_at_s >= self._refresh_s:
                # Also after a failure: an outage must not add a time-out to every request.
                self._read_at_s = now_s
                self._refresh(now_s)
            stack_wide, _ = apply_overrides(Tunables(), self._below(""))
            return stack_wide if model is None else apply_overrides(stack_wide, self._below(f"{MODELS}/{model}/"))[0]

    def _below(self, prefix: str) -> dict[str, str]:
        paths = (path for path in self._good if path.startswith(prefix) and "/" not in path[len(prefix) :])
        return {path[len(prefix) :]: self._good[path] for path in paths}

    def _refresh(self, now_s: float) -> None:
        try:
            texts = self._read()
        except (ClientError, BotoCoreError) as error:
            if not self._is_out:
                self._is_out = True
                self._log(_decision(now_s, self._root, "parameters_unreadable", f"{error}; keeping the last good values"))
            return
        self._is_out = False
        # A parameter that is gone falls back to its default: only bad values keep the last good one.
        before = self._good
        self._good = {path: good for path, text in texts.items() if (good := self._accepted(path, text, now_s)) is not None}
        if self._has_read:
            self._report_changes(before, now_s)
        self._has_read = True

    def _report_changes(self, before: Mapping[str, str], now_s: float) -> None:
        for path in sorted(before.keys() | self._good.keys()):
            old, new = before.get(path), self._good.get(path)
            if old != new:
                reason = f"{old if old is not None else 'unset'} became {new if new is not None else 'unset'}"
                self._log(_decision(now_s, self._root + path, "parameter_changed", reason))

    def _accepted(self, path: str, text: str, now_s: float) -> str | None:
        try:
            parse_tunable(path.rpartition("/")[2], text)
        except ValueError as error:
            last_good = self._good.get(path)
            if (path, text) not in self._refused:
                self._refused.add((path, text))
                kept = "its default" if last_good is None else f"the last good value {last_good}"
                self._log(_decision(now_s, self._root + path, "parameter_refused", f"{error}; keeping {kept}"))
            return last_good
        self._refused = {(refused_path, value) for refused_path, value in self._refused if refused_path != path}
        return text

    def _read(self) -> dict[str, str]:
        pages = self._client.get_paginator("get_parameters_by_path").paginate(Path=self._root.rstrip("/"), Recursive=True)
        return {parameter["Name"].removeprefix(self._root): parameter["Value"] for page in pages for parameter in page["Parameters"]}


def _decision(at_s: float, subject: str, event: str, reason: str) -> DecisionRecord:
    parts = subject.split(f"/{MODELS}/", 1)
    model = parts[1].split("/", 1)[0] if len(parts) == 2 else ""
    return DecisionRecord(at_s=at_s, model=model, subject=subject, event=event, reason=reason)
