"""botocore's descriptions of AWS, without what this daemon does not need: they stay in memory as long as it runs."""

import functools
import gzip
import json
import re
from typing import Any

import botocore.loaders

_OPERATIONS = {"PutObject", "ListBuckets", "HeadBucket", "CreateSession"}  # the doctor's, and two that botocore calls
_SERVICES = {"s3", "sts", "sso", "oidc", "portal.sso"}  # credentials may come from the others


@functools.cache
def needed_descriptions() -> botocore.loaders.Loader:
    """Read once for all clients: a client that is made anew costs 10 ms and no memory, not 70 ms and 12 MB."""
    loader = botocore.loaders.create_loader()
    loader.file_loader = _FileLoader()
    loader.load_data("endpoints")
    loader.load_service_model("s3", "service-2")
    return loader


class _FileLoader(botocore.loaders.JSONFileLoader):
    def load_file(self, file_path: str) -> Any:
        for ending, open_file in ((".json", open), (".json.gz", gzip.open)):
            try:
                with open_file(file_path + ending, "rb") as file:
                    return _needed(json.load(file, object_pairs_hook=_without_documentation))
            except FileNotFoundError:
                continue
        return None


def _without_documentation(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: "" if key == "documentation" and isinstance(value, str) else value for key, value in pairs}


def _needed(description: dict[str, Any]) -> dict[str, Any]:
    """The services of `_SERVICES`; of S3 `_OPERATIONS` and the shapes that they name, directly or not."""
    for partition in description.get("partitions", ()):
        if "services" in partition:
            partition["services"] = _only(_SERVICES, partition["services"])
    if description.get("metadata", {}).get("serviceId") == "S3" and "operations" in description:
        description["operations"] = _only(_OPERATIONS, description["operations"])
        shapes, names, parts = description["shapes"], set[str](), [description["operations"]]
        while parts:
            named = set(re.findall(r'"shape": "(\w+)"', json.dumps(parts.pop()))) - names
            names |= named
            parts += (shapes[name] for name in named)
        description["shapes"] = _only(names, shapes)
    return description


def _only(names: set[str], parts: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in parts.items() if name in names}
