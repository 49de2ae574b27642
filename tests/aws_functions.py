"""The stack's functions, run as AWS Lambda would: the template's own text, its environment, its role's keys.

moto runs none without Docker. S3's and SNS's messages are taken from queues that are subscribed to the topics.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import time
import types
from typing import Any

import boto3
import boto3.session
import botocore.session

from tests.aws_policies import template_resources
from tests.aws_rig import IMAGES, REGION, SESSION, Moto, stack_output


class Queue:
    """A queue that is subscribed to one of the stack's topics."""

    def __init__(self, moto: Moto, topic: str) -> None:
        self._sqs = moto.service("sqs")
        self._url = self._sqs.create_queue(QueueName=f"queue-{topic.rpartition(':')[2]}")["QueueUrl"]
        asked = self._sqs.get_queue_attributes(QueueUrl=self._url, AttributeNames=["QueueArn"])
        moto.service("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=asked["Attributes"]["QueueArn"])

    def take(self) -> list[dict[str, Any]]:
        """What SNS delivered since the last call, oldest first: {"Subject": ..., "Message": ...}."""
        taken = []
        while messages := self._sqs.receive_message(QueueUrl=self._url, MaxNumberOfMessages=10).get("Messages"):
            for message in messages:
                taken.append(json.loads(message["Body"]))
                self._sqs.delete_message(QueueUrl=self._url, ReceiptHandle=message["ReceiptHandle"])
        return taken


class Stack:
    """The deployed stack, with what moto left out of it: the buckets' notifications."""

    def __init__(self, moto: Moto, *, clip_mails: bool = False) -> None:
        self.moto, self._s3 = moto, moto.service("s3")
        alerts = stack_output(moto, "AlertTopicArn")
        self.machines, self.people = Queue(moto, alerts), Queue(moto, stack_output(moto, "MailTopicArn"))
        self._resources = template_resources(clip_mails=clip_mails, AlertTopic=alerts)
        [told] = self._resources["Images"]["Properties"]["NotificationConfiguration"]["TopicConfigurations"]
        rules = told["Filter"]["S3Key"]["Rules"]
        filtered = {"Key": {"FilterRules": rules}}
        notice = {"TopicArn": told["Topic"], "Events": [told["Event"]], "Filter": filtered}
        self._s3.put_bucket_notification_configuration(
            Bucket=IMAGES, NotificationConfiguration={"TopicConfigurations": [notice]}
        )
        self.machines.take()
        iam = moto.service("iam")
        # moto keeps a role's own policies as Python would print them, and knows resources of S3's requests alone.
        for name in ("AlertMail", "Watch"):
            [role] = [one["RoleName"] for one in iam.list_roles()["Roles"] if f"-{name}Role-" in one["RoleName"]]
            for policy in iam.list_role_policies(RoleName=role)["PolicyNames"]:
                text = iam.get_role_policy(RoleName=role, PolicyName=policy)["PolicyDocument"]
                document = ast.literal_eval(text)
                for statement in document["Statement"]:
                    if not str(statement["Action"]).startswith("s3:"):
                        statement["Resource"] = "*"
                iam.put_role_policy(RoleName=role, PolicyName=policy, PolicyDocument=json.dumps(document))

    def clear(self) -> None:
        """Forget all messages so far."""
        self.machines.take()
        self.people.take()

    def put(self, bucket: str, key: str, body: bytes = b"x", **metadata: str) -> None:
        self._s3.put_object(Bucket=bucket, Key=key, Body=body, Metadata=metadata)

    def alert(self, **environment: str) -> None:
        """Run the function for each message that S3 has published."""
        for message in self.machines.take():
            record = {"EventSource": "aws:sns", "EventVersion": "1.0", "Sns": {**message, "Subject": None}}
            self.call("AlertMail", {"Records": [record]}, **environment)

    def call(
        self,
        name: str,
        event: Any,
        *,
        now_s: float | None = None,
        constants: dict[str, Any] | None = None,
        **environment: str,
    ) -> None:
        """One run of the function `name` at this time, with moto asking for keys and permissions."""
        inherited = dict(os.environ)
        settings = self._settings(name) | environment
        self.moto.check_keys(on=True)
        session = boto3.DEFAULT_SESSION
        try:
            for key in [key for key in os.environ if key.startswith("AWS_")]:
                del os.environ[key]
            os.environ.update(settings)
            boto3.DEFAULT_SESSION = boto3.session.Session(botocore_session=_new_session())
            names: dict[str, Any] = {"__name__": "index"}
            exec(compile(self._resources[name]["Properties"]["Code"]["ZipFile"], f"{name}.py", "exec"), names)
            names.update(constants or {})
            if now_s is not None:
                names["time"] = types.SimpleNamespace(time=lambda: now_s, strftime=time.strftime, gmtime=time.gmtime)
            names["handler"](event, None)
        finally:
            boto3.DEFAULT_SESSION = session
            os.environ.clear()
            os.environ.update(inherited)
            self.moto.check_keys(on=False)

    @functools.cache  # noqa: B019 (a stack lives as long as its test module)
    def _settings(self, name: str) -> dict[str, str]:
        """The environment that Lambda would make: the deployed function's own, and keys of its role."""
        properties = self._resources[name]["Properties"]
        deployed = self.moto.service("lambda").get_function_configuration(FunctionName=properties["FunctionName"])
        keys = self.moto.service("sts").assume_role(RoleArn=deployed["Role"], RoleSessionName=name)["Credentials"]
        return {
            **{key: str(value) for key, value in deployed["Environment"]["Variables"].items()},
            "AWS_ENDPOINT_URL": self.moto.url,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": keys["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": keys["SecretAccessKey"],
            "AWS_SESSION_TOKEN": keys["SessionToken"],
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }


_LOADER = SESSION._session.get_component("data_loader")


def _new_session() -> botocore.session.Session:
    """With credentials of its own, and the models that are loaded already: they take a second each time."""
    session = botocore.session.Session()
    session.register_component("data_loader", _LOADER)
    return session
