"""Runs a test in the inner pytest's processes, and sends its reports and warnings up as they come."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest


class Sender:
    """A plugin of pytest while a test runs. `send(kind, **more)` writes a message."""

    def __init__(self, config: pytest.Config, send: Callable[..., None]) -> None:
        self._config = config
        self._send = send

    def run(self, item: pytest.Item, following: pytest.Item | None) -> None:
        """Run a test; what it shares with the `following` one stays."""
        self._config.pluginmanager.register(self)
        try:
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
        except pytest.exit.Exception as request:
            self._send("exit", text=str(request), status=request.returncode)
        finally:
            self._config.pluginmanager.unregister(self)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._send("report", report=data)

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, when: str, nodeid: str, location: Any
    ) -> None:
        category = warning_message.category
        self._send(
            "warning",
            text=str(warning_message.message),
            category=[category.__module__, category.__qualname__],
            file=warning_message.filename,
            line=warning_message.lineno,
            when=when,
            nodeid=nodeid,
            location=location,
        )
