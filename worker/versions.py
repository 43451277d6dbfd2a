"""The model's versions in this worker: each loaded once, those that get traffic ahead of it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from markserve.errors import InferenceFailed, MarkserveError, Transient
from markserve.messages import ModelRecord
from markserve.ports import ModelRunner, ModelStore
from markserve.profiling import sample_request
from markserve.telemetry import logger

Load = Callable[[ModelRecord], ModelRunner]


class Versions:
    """Loaded versions; safe to share between threads, and what is loaded is handed out while another one loads.

    A version that traffic names is loaded and run once before it is reported: fronts send it requests from then on. One that
    cannot be loaded is reported to nobody, so that a broken canary gets no traffic at all.
    """

    def __init__(self, model: str, *, models: ModelStore, load: Load) -> None:
        self._model = model
        self._models = models
        self._load = load
        self._guard = threading.Lock()
        self._loading = threading.Lock()
        self._loaded: dict[str, ModelRunner] = {}
        self._refused: dict[str, str] = {}

    def get(self, version: str) -> ModelRunner:
        """Return a version's runner. Raises `UnknownModel`, or `ConfigurationError` for an artefact that cannot be loaded."""
        runner = self._known(version)
        if runner is not None:
            return runner
        with self._loading:
            runner = self._known(version)
            if runner is None:
                runner = self._load(self._models.get(self._model, version))
                with self._guard:
                    self._loaded[version] = runner
                logger.info("loaded %s version %s", self._model, version)
        return runner

    def loaded(self) -> tuple[str, ...]:
        """Versions that can be run at once."""
        with self._guard:
            return tuple(sorted(self._loaded))

    def follow_traffic(self) -> None:
        """Load what traffic names and is not loaded, and let go of what it no longer names; keeps all while it cannot be read."""
        try:
            wanted = self._models.traffic(self._model).versions
        except MarkserveError as error:
            logger.warning("traffic of %s is unknown, keeping what is loaded: %s", self._model, error)
            return
        for version in wanted:
            if self._known(version) is None:
                self._load_ahead(version)
        with self._guard:
            self._loaded = {version: runner for version, runner in self._loaded.items() if version in wanted}
            self._refused = {version: why for version, why in self._refused.items() if version in wanted}

    def _load_ahead(self, version: str) -> None:
        try:
            record = self._models.get(self._model, version)
            runner = self._load(record)
            # The first run is slow, and a version that fails on zeros must not be the one that traffic finds.
            (result,) = runner.run([sample_request(record)])
            if isinstance(result, Exception):
                raise InferenceFailed(f"it fails on zeros: {result}") from result
        except Transient as error:
            logger.warning("version %s not loaded yet: %s", version, error)
        except MarkserveError as error:
            if self._refused.get(version) != str(error):
                self._refused[version] = str(error)
                logger.error("version %s cannot be loaded: %s", version, error)
        else:
            with self._guard:
                self._loaded.setdefault(version, runner)
            logger.info("loaded %s version %s ahead of its traffic", self._model, version)

    def _known(self, version: str) -> ModelRunner | None:
        with self._guard:
            return self._loaded.get(version)
