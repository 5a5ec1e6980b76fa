"""A pytest plugin for the inner side of `inner_pytest`: writes each report as a JSON line for the outer pytest."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest

from tests.support.inner_pytest import HEART_VARIABLE, HEARTBEAT, REPORTS_VARIABLE


class ReportWriter:
    """One line an event; a line is one write, so that the reader never sees half of two."""

    def __init__(self, path: str, config: pytest.Config) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._config = config

    def _write(self, kind: str, nodeid: str, **more: Any) -> None:
        line = json.dumps({"kind": kind, "nodeid": nodeid, **more}, default=str)
        data = line.encode() + b"\n"
        while data:
            data = data[os.write(self._file, data) :]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write("started", nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._write("report", report.nodeid, report=data)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._write("finished", nodeid)


def pytest_configure(config: pytest.Config) -> None:
    # A process of its own: it beats on while a test holds the GIL, and stops only if the host does.
    beat = f'while date >"${HEART_VARIABLE}"; do sleep {HEARTBEAT}; done'
    heart = subprocess.Popen(["sh", "-c", beat], start_new_session=True)
    config.add_cleanup(heart.kill)
    config.pluginmanager.register(ReportWriter(os.environ[REPORTS_VARIABLE], config), "boot-report-writer")
