#!/usr/bin/env python3
"""Holds a run against docs/openapi.json: sends every example request of the document to a machine, and validates each
answer, each refusal and each event against the document's schemas. Needs /dev/kvm and python3-jsonschema.

answers_test.py VMM docs/openapi.json
"""
import http.client
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

import jsonschema

PATIENCE_SECONDS = 300
# The order in which verbs are sent. Verbs that end the machine come last. Every verb of the document must be in this list.
ORDER = [
    *("status", "statistics", "metrics", "api-schema", "log-level", "set-log-level", "pause", "resume", "balloon"),
    "memory",
    *("add-disk", "remove-disk", "add-net", "remove-net"),
    *("prefault", "add-memory", "jobs", "job", "cancel", "snapshot", "migrate", "events", "stop", "reset"),
]
# How each job ends that cannot succeed here. This machine has no PCI bus, no vmm waits for its migration, and its memory does
# not grow, because its guest has no driver for that.
ENDS = {
    **{"stop": "cancelled", "migrate": "failed", "memory": "failed"},
    **dict.fromkeys(("add-disk", "remove-disk", "add-net", "remove-net"), "failed"),
}
# Wrong requests: method, path, body, and the status of the refusal.
WRONG = [
    ("GET", "/nothing", None, 404),
    ("GET", "/pause", None, 405),
    ("POST", "/pause", '{"within": 3601}', 400),
    ("POST", "/stop", "{", 400),
    ("POST", "/stop", '{"within": -1}', 400),
    ("POST", "/stop", '{"no-such": 1}', 400),
    ("POST", "/balloon", "{}", 400),
    ("POST", "/balloon", '{"target": 1}', 400),
    ("POST", "/memory", "{}", 400),
    ("POST", "/memory", '{"size": 4096}', 400),
    ("POST", "/memory", '{"size": 1099511627776}', 400),
    ("POST", "/memory", '{"size": 536870912, "within": 3601}', 400),
    ("POST", "/prefault", '{"workers": 0}', 400),
    ("POST", "/add-disk", "{}", 400),
    ("POST", "/add-disk", '{"path": "relative"}', 400),
    ("POST", "/add-disk", '{"path": "/disk", "queues": 17}', 400),
    ("POST", "/add-disk", '{"path": "/disk", "sector": "1024"}', 400),
    ("POST", "/add-net", '{"tap": "with/slash"}', 400),
    ("POST", "/add-net", '{"tap": "a-name-of-16-byte"}', 400),
    ("POST", "/add-net", '{"tap": "tap1", "mac": "no"}', 400),
    ("POST", "/add-net", '{"tap": "tap1", "queues": 17}', 400),
    ("POST", "/add-net", "{}", 400),
    ("POST", "/add-net", '{"tap": "tap1", "user": true}', 400),
    ("POST", "/add-net", '{"tap": "tap1", "tcp": "80"}', 400),
    ("POST", "/add-net", '{"user": true, "tcp": "80,"}', 400),
    ("POST", "/add-net", '{"user": true, "udp": "127.0.0.1/0"}', 400),
    ("POST", "/add-net", '{"user": true, "queues": 2}', 400),
    ("POST", "/remove-disk", '{"name": "net0"}', 400),
    ("POST", "/remove-net", '{"name": ""}', 400),
    ("POST", "/snapshot", "{}", 400),
    ("POST", "/snapshot", '{"directory": "relative"}', 400),
    ("POST", "/migrate", "{}", 400),
    ("POST", "/migrate", '{"address": "unix:relative"}', 400),
    ("POST", "/migrate", '{"address": "tcp:192.0.2.1:4444"}', 400),
    ("POST", "/migrate", '{"address": "unix:/nobody", "streams": 17}', 400),
    ("GET", "/jobs/99", None, 404),
    ("GET", "/jobs/x", None, 400),
    ("DELETE", "/jobs/99", None, 404),
    ("GET", "/events?since=x", None, 400),
    ("PUT", "/log-level", '{"level": "loud"}', 400),
]


class Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=PATIENCE_SECONDS)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE_SECONDS)
        self.sock.connect(self.path)


class Machine:
    """A guest behind a control socket, and the document that its answers must match."""

    def __init__(self, vmm, document, folder):
        self.document = document
        self.folder = folder
        self.path = str(folder / "api")
        notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notified.bind(str(folder / "notify"))
        notified.settimeout(PATIENCE_SECONDS)
        self.process = subprocess.Popen(
            [vmm, "run", "-m", "256M,max=1G", "-c", "2", "--balloon", "0", "--rng", "--serial", "none", "--api", self.path]
            + ["--transport", "mmio"]
            + ["--cmdline", "passes=1000000"],
            env={**os.environ, "NOTIFY_SOCKET": str(folder / "notify")},
        )
        assert notified.recv(64) == b"READY=1"

    def ask(self, method, target, body=None):
        connection = Connection(self.path)
        connection.request(method, target, body)
        answer = connection.getresponse()
        result = answer.status, answer.headers.get_content_type(), answer.read().decode()
        connection.close()
        return result

    def validate(self, text, schema):
        document = {**schema, "components": self.document["components"]}
        jsonschema.Draft4Validator(document).validate(json.loads(text))

    def validate_answer(self, operation, status, kind, text):
        described = operation["responses"].get(str(status)) or operation["responses"][f"{status // 100}XX"]
        content = described["content"][kind]
        if kind == "application/json":
            self.validate(text, content["schema"])

    def wait_for_job(self, number):
        limit = time.monotonic() + PATIENCE_SECONDS
        while (job := json.loads(self.ask("GET", f"/jobs/{number}")[2]))["state"] == "running":
            assert time.monotonic() < limit, job
            time.sleep(0.02)
        return job


def operations_of(document):
    return {
        operation["operationId"]: (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def example_of(path, operation):
    """The target and the body of the example request. The document's own schemas must accept them."""
    query = []
    for parameter in operation.get("parameters", []):
        jsonschema.Draft4Validator(parameter["schema"]).validate(parameter["example"])
        value = json.dumps(parameter["example"]).strip('"')
        if parameter["in"] == "path":
            path = path.replace("{" + parameter["name"] + "}", value)
        else:
            query.append(f"{parameter['name']}={value}")
    body = None
    if "requestBody" in operation:
        content = operation["requestBody"]["content"]["application/json"]
        jsonschema.Draft4Validator(content["schema"]).validate(content["example"])
        body = json.dumps(content["example"])
    return path + ("?" + "&".join(query) if query else ""), body


def try_all(machine, document):
    operations = operations_of(document)
    assert sorted(operations) == sorted(ORDER), f"not the verbs of the document: {sorted(operations)}"
    for method, path, body, wanted in WRONG:
        status, kind, text = machine.ask(method, path, body)
        assert status == wanted and kind == "application/json", (method, path, body, status, text)
        machine.validate(text, document["components"]["schemas"]["Error"])
    for name in ORDER:
        method, path, operation = operations[name]
        target, body = example_of(path, operation)
        if name == "stop":
            body = '{"within": 3600}'  # Cancelled later, so that reset finds a machine.
        if name == "snapshot":
            body = json.dumps({"directory": str(machine.folder / "snapshot"), "resume": True})
        status, kind, text = machine.ask(method, target, body)
        assert status < 300, (name, status, text)
        machine.validate_answer(operation, status, kind, text)
        if status == 202 and operation["responses"]["202"]["content"][kind]["schema"]["$ref"].endswith("/Job"):
            number = json.loads(text)["id"]
            if name == "stop":
                machine.ask("DELETE", f"/jobs/{number}")
            job = machine.wait_for_job(number)
            machine.validate(json.dumps(job), document["components"]["schemas"]["Job"])
            # No vmm waits for the guest at the address of the example.
            assert job["state"] == ENDS.get(name, "done"), job
        if name == "events":
            lines = text.splitlines()
            assert len(lines) > 3, text
            for line in lines:
                machine.validate(line, document["components"]["schemas"]["Event"])
    assert machine.process.wait(PATIENCE_SECONDS) == 0


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    document = json.loads(pathlib.Path(sys.argv[2]).read_text())
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft4Validator.check_schema(schema)
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(sys.argv[1], document, pathlib.Path(folder))
        try:
            try_all(machine, document)
        finally:
            machine.process.kill()
            machine.process.wait()
    print(f"{len(ORDER)} verbs and {len(WRONG)} refusals are as the document says")


main()
