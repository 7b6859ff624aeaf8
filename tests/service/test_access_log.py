"""The access log goes on where it could not be written."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from twotower.errors import ConfigError
from twotower.service.access_log import AccessLog


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_costs_lines_not_the_log(tmp_path: Path) -> None:
    place = tmp_path / "log"
    place.symlink_to("/dev/full")
    log = AccessLog(place)
    for _ in range(3):
        log.put("/recommend", 200, 0.001)
    time.sleep(0.6)  # it was tried, and tried again
    full, log._file = log._file, (tmp_path / "whole").open("ab", buffering=0)  # there is room again
    full.close()
    log.put("/ready", 200, 0.002)
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "whole").read_text().splitlines()]
    assert sorted(line.get("path", "lost") for line in lines) == ["/ready", "lost"]
    assert [line["lost"] for line in lines if "lost" in line] == [3]


def test_a_log_that_can_t_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--access-log .*: can't be written"):
        AccessLog(tmp_path / "nowhere" / "log")
