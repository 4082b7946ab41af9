"""The files a centre is deployed with hold together; no engine or init system is needed to see that."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from central.dashboard import http_server
from central.gateway import listener
from central.ingest import connection_limits
from central.service import STUCK_S
from central.storage.database import DamagedStoreError

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "central" / "deploy"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
@pytest.mark.parametrize("name", ["epic-central.service", "epic-central-refine.service"])
def test_the_unit_is_one_that_systemd_understands(tmp_path, name):
    unit = (DEPLOY / name).read_text()
    # What it runs is not installed here; everything else is checked as it is.
    (tmp_path / name).write_text(unit.replace("/opt/epic/.venv/bin/epic", "/bin/true"))
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)],
        capture_output=True,
        text=True,
        env={"SYSTEMD_LOG_LEVEL": "warning", "PATH": "/usr/bin:/bin"},
    )
    said = [line for line in found.stderr.splitlines() if name in line]
    assert said == []


def test_a_wrong_unit_would_be_found(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    (tmp_path / "wrong.service").write_text("[Service]\nExecStart=/bin/true\nProtectEverything=yes\n")
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "wrong.service")],
        capture_output=True,
        text=True,
    )
    assert "ProtectEverything" in found.stderr


def test_compose_builds_from_a_dockerfile_that_copies_what_is_there():
    (service,) = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())["services"].values()
    context = (DEPLOY / service["build"]["context"]).resolve()
    assert context == ROOT
    dockerfile = (context / service["build"]["dockerfile"]).read_text()
    copied = [
        word for line in dockerfile.splitlines() if line.startswith("COPY ") for word in line.split()[1:-1]
    ]
    assert all((ROOT / name).exists() for name in copied)
    packages = [path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"]
    assert set(packages) <= set(copied), "a room that is not copied is not installed"


def test_what_is_asked_before_each_start_and_every_minute_does_not_read_the_whole_store():
    (service,) = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())["services"].values()
    (before,) = re.findall("^ExecStartPre=(.*)$", (DEPLOY / "epic-central.service").read_text(), re.MULTILINE)
    for command in (service["healthcheck"]["test"], before.split()):
        assert "doctor" in command and "--full" not in command


@pytest.mark.parametrize("name", [path.name for path in DEPLOY.glob("*.service")])
def test_a_damaged_store_is_no_crash_loop(name):
    """If ExecStartPre failed, systemd would restart the unit without looking at the program's exit code."""
    unit = (DEPLOY / name).read_text()
    (code,) = re.findall("^RestartPreventExitStatus=(.*)$", unit, re.MULTILINE)
    assert int(code) == DamagedStoreError.exit_code
    assert all(line.startswith("-") for line in re.findall("^ExecStartPre=(.*)$", unit, re.MULTILINE))


def test_a_centre_that_hangs_is_started_anew():
    unit = (DEPLOY / "epic-central.service").read_text()
    (watchdog_s,) = re.findall("^WatchdogSec=(.*)$", unit, re.MULTILINE)
    assert int(watchdog_s) >= 2 * STUCK_S, "a batch on a slow machine is no hang"
    assert "\nType=notify\n" in unit and "\nRestart=on-failure\n" in unit


@pytest.mark.parametrize("name", [path.name for path in DEPLOY.glob("*.service")])
def test_a_unit_has_a_folder_for_compiled_loops(name):
    """Its user has no home and cannot write the installation; each job would compile for seconds."""
    unit = (DEPLOY / name).read_text()
    assert "\nProtectSystem=strict\n" in unit
    (folder,) = re.findall("^CacheDirectory=(.*)$", unit, re.MULTILINE)
    (cache,) = re.findall("^Environment=NUMBA_CACHE_DIR=(.*)$", unit, re.MULTILINE)
    assert cache.startswith(f"%C/{folder}")


def test_a_container_has_a_folder_for_compiled_loops():
    (service,) = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())["services"].values()
    (cache,) = re.findall(
        "^ENV NUMBA_CACHE_DIR=(.*)$",
        (DEPLOY / service["build"]["dockerfile"].rpartition("/")[2]).read_text(),
        re.MULTILINE,
    )
    mounted = [volume.split(":")[1] for volume in service["volumes"]]
    assert service["read_only"] and any(cache.startswith(f"{folder}/") for folder in mounted)


def test_a_centre_may_open_files_enough_for_devices_beside_whoever_holds_connections():
    """The usual limit of 1,024 is less than the page, the metrics, the ROUTER and the gateway may take together."""
    (service,) = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())["services"].values()
    (unit,) = re.findall("^LimitNOFILE=(.*)$", (DEPLOY / "epic-central.service").read_text(), re.MULTILINE)
    taken = 2 * http_server.MAX_CONNECTIONS + listener.MAX_WAITING + connection_limits.MAX_UNPROVEN
    for limit in (int(unit), service["ulimits"]["nofile"]):
        assert limit >= 4 * taken
