"""The template's resources with references filled in, and its policies evaluated as the IAM user guide says.

("Policy evaluation logic"; moto evaluates no conditions.)
"""

from __future__ import annotations

import fnmatch
import functools
import importlib.resources
import json
import re
from typing import Any

from tests.aws_cli import expand_for_each
from tests.aws_rig import ACCOUNT, IMAGES, README_PARAMETERS, TEMPLATE, VIDEOS


def is_allowed(statements: list[dict[str, Any]], action: str, resource: str, context: dict[str, str]) -> bool:
    """An explicit deny wins, and what nobody allows is denied. Knows the operators that our policies use, no others."""
    effects = {one["Effect"] for one in statements if _applies(one, action, resource, context)}
    return effects == {"Allow"}


def _applies(statement: dict[str, Any], action: str, resource: str, context: dict[str, str]) -> bool:
    assert set(statement) <= {"Sid", "Effect", "Principal", "Action", "Resource", "Condition"}
    assert statement.get("Principal", "*") == "*"
    return (
        any(fnmatch.fnmatchcase(action.lower(), pattern.lower()) for pattern in _list(statement["Action"]))
        and any(fnmatch.fnmatchcase(resource, pattern) for pattern in _list(statement["Resource"]))
        and all(
            _holds(operator, context.get(key), wanted)
            for operator, pairs in statement.get("Condition", {}).items()
            for key, wanted in pairs.items()
        )
    )


def _holds(operator: str, value: str | None, wanted: str) -> bool:
    if operator == "Null":
        return (value is None) == (wanted == "true")
    if operator == "StringNotEquals":  # without wildcards, and what is missing is not equal
        return value != wanted
    if value is None:
        return False
    return {"Bool": lambda: value == wanted, "NumericLessThan": lambda: float(value) < float(wanted)}[operator]()


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


NO_VALUE = object()
_FUNCTIONS, _LOGS = ("AlertMail", "Watch"), ("AlertMailLog", "WatchLog")
_ROLES, _RULES = ("AlertMailRole", "WatchRole", "CertificateRole"), ("WatchEvery5Minutes", "WatchWeekly")


def resolve(node: Any, values: dict[str, str], conditions: dict[str, bool]) -> Any:
    """A part of the template with its parameters and references filled in; `values` has "Videos.Arn" and the like."""
    if isinstance(node, list):
        return [resolve(item, values, conditions) for item in node]
    if not isinstance(node, dict):
        return node
    if "Ref" in node:
        return NO_VALUE if node["Ref"] == "AWS::NoValue" else values[node["Ref"]]
    if "Fn::GetAtt" in node:
        return values[".".join(_list(node["Fn::GetAtt"]))]
    if "Fn::Sub" in node:
        return re.sub(r"\$\{(.+?)\}", lambda match: values[match[1]], node["Fn::Sub"])
    if "Fn::If" in node:
        name, yes, no = node["Fn::If"]
        return resolve(yes if conditions[name] else no, values, conditions)
    resolved = {key: resolve(value, values, conditions) for key, value in node.items()}
    return {key: value for key, value in resolved.items() if value is not NO_VALUE}


@functools.cache
def _expanded() -> str:
    return json.dumps(expand_for_each(TEMPLATE, README_PARAMETERS))


def template_resources(*, clip_mails: bool = False, **more: str) -> dict[str, Any]:
    """The template's resources with the README's parameters; `more` are the values of further references."""
    values = {
        **README_PARAMETERS,
        "ExpireAfterDays": "90",
        "PushUrl": "",
        "SilentMinutes": "15",
        "Videos": VIDEOS,
        "Images": IMAGES,
        "Videos.Arn": f"arn:aws:s3:::{VIDEOS}",
        "Images.Arn": f"arn:aws:s3:::{IMAGES}",
        **dict.fromkeys(_FUNCTIONS, "name"),
        **{f"{name}.Arn": f"arn of {name}" for name in (*_FUNCTIONS, *_LOGS, *_ROLES, *_RULES)},
        **{name: f"/aws/lambda/{name}" for name in _LOGS},
        "AlertTopic": "topic",
        "MailTopic": "mail-topic",
        "ViewOnly": "view-only",
        "UploadOnly": "upload-only",
        "CertificateRoleAlias.RoleAliasArn": "alias",
        "AWS::Partition": "aws",
        "AWS::AccountId": ACCOUNT,
        "AWS::StackName": "guardianberry",
        **more,
    }
    conditions = {"Expire": True, "SendEmail": True, "UseCertificates": True, "MailClips": clip_mails}
    return resolve(json.loads(_expanded())["Resources"], values, conditions)


def camera_statements() -> list[dict[str, Any]]:
    """All that is said about a camera's request: its user's policy and both bucket policies."""
    resources = template_resources()
    users = [one["Properties"] for one in resources.values() if one["Type"] == "AWS::IAM::User"]
    assert [user["UserName"] for user in users] == ["guardianberry-front-door", "guardianberry-garage"]
    assert all(user["ManagedPolicyArns"] == ["upload-only"] and "Policies" not in user for user in users)
    assert resources["CertificateRole"]["Properties"]["ManagedPolicyArns"] == ["upload-only"]
    assert "Policies" not in resources["CertificateRole"]["Properties"]
    return statements_of(resources, "UploadOnly", "VideosPolicy", "ImagesPolicy")


def statements_of(resources: dict[str, Any], *names: str) -> list[dict[str, Any]]:
    documents = [resources[name]["Properties"]["PolicyDocument"] for name in names]
    return [statement for document in documents for statement in document["Statement"]]


def role_statements(role: str, **options: Any) -> list[dict[str, Any]]:
    """All that is said about a request of this function's role: its own policies and both bucket policies."""
    resources = template_resources(**options)
    assert "ManagedPolicyArns" not in resources[role]["Properties"]
    own = [one["PolicyDocument"]["Statement"] for one in resources[role]["Properties"]["Policies"]]
    return sum(own, statements_of(resources, "VideosPolicy", "ImagesPolicy"))


# As the daemon sends them.
UPLOAD = {"aws:SecureTransport": "true", "s3:TlsVersion": "1.3", "s3:if-none-match": "*"}


@functools.cache
def all_actions() -> tuple[str, ...]:
    """All that AWS has, by the list that cfn-lint comes with."""
    catalogue = json.loads((importlib.resources.files("cfnlint") / "data/AdditionalSpecs/Policies.json").read_text())
    actions = tuple(f"{service}:{action}" for service, known in catalogue.items() for action in known["Actions"])
    assert len(actions) > 10_000
    assert {"s3:putobject", "s3:getobject", "s3:deleteobject", "iam:createaccesskey"} <= {
        one.lower() for one in actions
    }
    return actions


def allowed_of_all(
    statements: list[dict[str, Any]], resources: tuple[str, ...], context: dict[str, str]
) -> set[tuple[str, str]]:
    """Which of all actions these statements allow on which of these resources."""
    allow = [{**one, "Resource": "*"} for one in statements if one["Effect"] == "Allow"]
    candidates = [action for action in all_actions() if is_allowed(allow, action, "any", context)]  # saves time
    return {
        (action.lower(), one)
        for action in candidates
        for one in resources
        if is_allowed(statements, action, one, context)
    }
