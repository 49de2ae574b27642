"""A stand-in for the `aws` command (and `ssh`), so that the commands in aws/README.md can be run against moto.

Like the real one it is made of botocore's models: operations and options that do not exist, and values of the wrong
type, are errors. It knows of the real one's extras only what the README uses. `aws` and `ssh` are small scripts in a
folder for PATH; `aws` hands its arguments to a thread of the test process, because loading boto3 anew for each command
would take a second every time.
"""

from __future__ import annotations

import functools
import json
import os
import socketserver
import sys
import threading
from pathlib import Path
from typing import Any

import boto3.session
import jmespath
from botocore import xform_name
from botocore.exceptions import BotoCoreError, ClientError

_AWS_SCRIPT = """#!{python} -IS
import json, os, socket, sys
with socket.create_connection(("127.0.0.1", {port})) as link:
    with link.makefile("rw") as talk:
        talk.write(json.dumps([os.getcwd(), sys.argv[1:]]) + "\\n")
        talk.flush()
        status, out, error = json.loads(talk.readline())
sys.stdout.write(out)
sys.stderr.write(error)
sys.exit(status)
"""

# ssh USER@HOST COMMAND: the camera is a folder here.
_SSH_SCRIPT = """#!/bin/sh
cd {home!r} && HOME={home!r} exec /bin/sh -c "$2"
"""


# Options whose name is not the API's, because the real command has another use for that.
_RENAMED = {("sns", "subscribe", "notification-endpoint"): "endpoint"}


class UsageError(Exception):
    pass


class AwsCli:
    """Use as a context manager. `path` is a PATH whose `aws` talks to `endpoint_url`, and whose `ssh` to `home`.

    `cwd` is the owner's folder, with our aws/ and docs/ in it.
    """

    def __init__(self, folder: Path, *, endpoint_url: str, home: Path, region: str) -> None:
        self._session = _session(region)
        self._endpoint_url = endpoint_url
        self.cwd, programs = folder, folder / "bin"
        programs.mkdir(parents=True)
        for ours in ("aws", "docs"):
            (folder / ours).symlink_to(Path(__file__).resolve().parent.parent / ours)
        _write_script(programs / "ssh", _SSH_SCRIPT.format(home=str(home)))
        self.path = f"{programs}:/usr/bin:/bin"
        cli = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                cwd, arguments = json.loads(self.rfile.readline())
                self.wfile.write(json.dumps(cli.run(arguments, Path(cwd))).encode() + b"\n")

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        port = self._server.server_address[1]
        _write_script(programs / "aws", _AWS_SCRIPT.format(python=sys.executable, port=port))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> AwsCli:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def client(self, service: str) -> Any:
        return self._session.client(service, endpoint_url=self._endpoint_url)

    def run(self, arguments: list[str], cwd: Path) -> tuple[int, str, str]:
        try:
            service, operation, *rest = arguments
            options = _options(rest)
            query, output = options.pop("query", [""])[0], options.pop("output", ["json"])[0]
            files = {name: options.pop(name)[0] for name in list(options) if name.endswith("-outfile")}
            if (service, operation) == ("cloudformation", "deploy"):
                answer = self._deploy(options, cwd)
            else:
                answer = self._call("s3" if service == "s3api" else service, operation, options, cwd)
            answer.pop("ResponseMetadata", None)
            for name, path in files.items():
                key = {"certificate-pem-outfile": "certificatePem"}[name]
                (cwd / path).write_text(answer[key])
            return 0, _show(jmespath.search(query, answer) if query else answer, output), ""
        except (BotoCoreError, ClientError, UsageError, ValueError, KeyError, OSError) as error:
            return 255, "", f"aws {' '.join(arguments)}: {type(error).__name__}: {error}\n"

    def _call(self, service: str, operation: str, options: dict[str, list[str]], cwd: Path) -> dict[str, Any]:
        client = self.client(service)
        names = {xform_name(name, "-"): name for name in client.meta.service_model.operation_names}
        if operation not in names:
            raise UsageError(f"{service} has no {operation}")
        shape = client.meta.service_model.operation_model(names[operation]).input_shape
        members = {xform_name(name, "-"): (name, member) for name, member in shape.members.items()} if shape else {}
        asked = {}
        for option, values in options.items():
            option = _RENAMED.get((service, operation, option), option)
            if option not in members:
                raise UsageError(f"{operation} has no --{option}")
            name, member = members[option]
            asked[name] = _value(values, member, cwd)
        return getattr(client, xform_name(names[operation]))(**asked)

    def _deploy(self, options: dict[str, list[str]], cwd: Path) -> dict[str, Any]:
        """`aws cloudformation deploy`, with Fn::ForEach expanded here because moto does not know it."""
        if set(options) != {"stack-name", "template-file", "capabilities", "parameter-overrides"}:
            raise UsageError(f"deploy with {sorted(options)}")
        parameters = dict(override.split("=", 1) for override in options["parameter-overrides"])
        body = expand_for_each(cwd / options["template-file"][0], parameters)
        needed = {"CAPABILITY_NAMED_IAM", "CAPABILITY_AUTO_EXPAND"}
        if not needed <= set(options["capabilities"]):
            raise UsageError(f"CloudFormation asks for {needed}")
        return self.client("cloudformation").create_stack(
            StackName=options["stack-name"][0],
            TemplateBody=json.dumps(body),
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
            Capabilities=options["capabilities"],
        )


@functools.cache
def _session(region: str) -> boto3.session.Session:
    """One for all: each reads botocore's models of the services anew, which takes a second."""
    return boto3.session.Session(
        aws_access_key_id="AKIAADMINISTRATOR", aws_secret_access_key="administrator", region_name=region
    )


def expand_for_each(template_file: Path, parameters: dict[str, str]) -> dict[str, Any]:
    """The template as the transform AWS::LanguageExtensions leaves it, by cfn-lint's own implementation of it."""
    import cfnlint.decode  # late: it takes a second, and each worker imports this module
    from cfnlint.template import Template
    from cfnlint.template.transforms._language_extensions import language_extension

    template, errors = cfnlint.decode.decode(str(template_file))
    if errors:
        raise UsageError(str(errors))
    for name, value in parameters.items():
        if name not in template["Parameters"]:
            raise UsageError(f"Parameters: [{name}] do not exist in the template")
        template["Parameters"][name]["Default"] = value  # where cfn-lint looks for what a list holds
    errors, template = language_extension(Template(str(template_file), template, ["eu-central-1"]))
    if errors:
        raise UsageError(str(errors))
    del template["Transform"]
    return json.loads(json.dumps(template))


def _options(rest: list[str]) -> dict[str, list[str]]:
    options: dict[str, list[str]] = {}
    name = ""
    for argument in rest:
        if argument.startswith("--"):
            name = argument[2:]
            options[name] = []
        elif not name:
            raise UsageError(f"unexpected {argument}")
        else:
            options[name].append(argument)
    return options


def _value(values: list[str], shape: Any, cwd: Path) -> Any:
    kind = shape.type_name
    if kind == "boolean" and not values:
        return True
    if kind == "list" and not values[0].startswith("["):
        return [_value([value], shape.member, cwd) for value in values]
    if len(values) != 1:
        raise UsageError(f"{len(values)} values for {shape.name}: {values}")
    if kind == "blob":
        return (cwd / values[0]).read_bytes()
    text = (cwd / values[0][7:]).read_text() if values[0].startswith("file://") else values[0]
    if kind == "structure" and not text.startswith("{"):  # the shorthand A=1,B=2
        parts = dict(part.split("=", 1) for part in text.split(","))
        return {name: _value([value], shape.members[name], cwd) for name, value in parts.items()}
    if kind == "map" and not text.startswith("{"):
        return dict(part.split("=", 1) for part in text.split(","))
    if kind in ("structure", "list", "map"):
        return json.loads(text)
    if kind in ("integer", "long"):
        return int(text)
    return {"true": True, "false": False}[text] if kind == "boolean" else text


def _show(answer: Any, output: str) -> str:
    if output != "text":
        return json.dumps(answer, indent=4, default=str) + "\n"
    if answer is None:
        return "None\n"
    return "\t".join(map(str, answer)) + "\n" if isinstance(answer, list) else f"{answer}\n"


def _write_script(path: Path, text: str) -> None:
    path.write_text(text)
    os.chmod(path, 0o755)
