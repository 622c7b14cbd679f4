"""docker-compose.yml, Dockerfile and Procfile: whole, and in step with the command line and the settings.

Docker's own check needs the client with its compose plugin; that the commands start is tested in
tests/integration/test_deployment.py.
"""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import tomllib
from collections.abc import Sequence

import pytest
import typer

from freshet.stream.cli import app
from freshet.stream.settings import from_environment
from tests.deployment import ROOT, compose, procfile, procfile_commands, service_commands
from tests.integration.apache_kafka import VERSION as KAFKA_VERSION

SERVICES = compose()["services"]


def parse(words: Sequence[str]) -> None:
    """Have the command line read a call, without running it. Raises click's UsageError for what it refuses."""
    command, left = typer.main.get_command(app), list(words)
    context = typer.Context(command, info_name="freshet")
    while hasattr(command, "resolve_command"):
        _, found, left = command.resolve_command(context, left)
        assert found is not None
        command = found
    command.make_context("freshet", left)


@pytest.mark.parametrize(("where", "words"), {**service_commands(), **procfile_commands()}.items())
def test_the_command_line_accepts_every_command(where: str, words: list[str]) -> None:
    parse(words)


@pytest.mark.parametrize("words", [["topics", "no-such"], ["no-such"], ["replay", "/log", "--no-such"], ["replay"]])
def test_the_check_of_commands_can_fail(words: list[str]) -> None:
    with pytest.raises(Exception, match=r"No such|Missing"):
        parse(words)


def test_the_services_are_those_of_the_documentation() -> None:
    assert set(SERVICES) == {"kafka", "redis", "topics", "worker", "replay"}
    assert SERVICES["replay"]["profiles"] == ["replay"]
    assert all("profiles" not in SERVICES[name] for name in SERVICES if name != "replay")
    assert set(procfile()) == {"broker", "redis", "worker"}


@pytest.mark.parametrize("name", [name for name, service in SERVICES.items() if "build" in service])
def test_settings_are_known_and_lead_to_the_services(name: str) -> None:
    settings = from_environment(SERVICES[name]["environment"])  # refuses a variable it does not know
    assert settings.kafka.bootstrap == "kafka:9092"
    assert settings.redis.url == "redis://redis:6379/0"


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_waits_for_can_happen(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        if how["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[other], f"{name} waits for {other} to be healthy, which it cannot be"
        else:
            assert how["condition"] == "service_completed_successfully"
            assert "restart" not in SERVICES[other], f"{other} never completes if it is started again"


def test_named_volumes_are_declared_and_used() -> None:
    used = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert {name for name in used if re.fullmatch(r"\w+", name)} == set(compose()["volumes"])


def test_ports_are_open_to_this_machine_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports), "neither server asks for a password"


def test_kafka_is_the_version_that_is_tested_and_its_listeners_agree() -> None:
    kafka = SERVICES["kafka"]
    assert kafka["image"] == f"apache/kafka:{KAFKA_VERSION}"
    settings = kafka["environment"]
    assert len(base64.urlsafe_b64decode(settings["CLUSTER_ID"] + "==")) == 16
    listening = {at.split("://")[0] for at in settings["KAFKA_LISTENERS"].split(",")}
    protocols = {pair.split(":")[0] for pair in settings["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")}
    advertised = dict(at.split("://") for at in settings["KAFKA_ADVERTISED_LISTENERS"].split(","))
    assert listening == protocols == {*advertised, settings["KAFKA_CONTROLLER_LISTENER_NAMES"]}
    assert advertised[settings["KAFKA_INTER_BROKER_LISTENER_NAME"]] == "kafka:9092"
    assert f"127.0.0.1:{advertised['OUTSIDE'].split(':')[1]}:" in kafka["ports"][0]
    assert f"kafka:{settings['KAFKA_LOG_DIRS']}" in kafka["volumes"]


def test_the_image_copies_what_is_there_and_names_an_extra() -> None:
    text = (ROOT / "Dockerfile").read_text()
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for line in re.findall(r"^COPY (.+) \S+$", text, re.M) for name in line.split()}
    assert copied == sent
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*re.findall(r"^ARG EXTRAS=(\w+)", text, re.M), *re.findall(r"--build-arg EXTRAS=(\w+)", text)]
    assert named
    assert set(named) <= set(project["optional-dependencies"])
    assert re.search(r"^FROM python:(\S+)-slim", text, re.M)[1] == project["requires-python"].removeprefix(">=")  # type: ignore[index]


def test_docker_compose_accepts_the_file() -> None:
    if shutil.which("docker") is None:
        pytest.skip("docker is not on the PATH")
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker has no compose plugin here")
    command = ["docker", "compose", "--profile", "replay", "config", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
