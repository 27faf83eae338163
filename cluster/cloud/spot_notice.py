"""Whether the cloud is about to take this spot host away, asked of the provider's metadata service.

Sources: EC2 "Spot Instance interruption notices" (IMDSv2), Compute Engine "Spot VMs: detect preemption", Azure
"Scheduled Events".
"""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass

__all__ = ["is_preempted"]


_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class NoticeEndpoint:
    """Where a provider announces that a host ends, and the headers that it wants."""

    endpoint: str
    path: str
    headers: dict[str, str]


NOTICE_ENDPOINTS = {
    "aws": NoticeEndpoint("http://169.254.169.254", "/latest/meta-data/spot/instance-action", {}),
    "gcp": NoticeEndpoint(
        "http://metadata.google.internal", "/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"}
    ),
    "azure": NoticeEndpoint(
        "http://169.254.169.254", "/metadata/scheduledevents?api-version=2020-07-01", {"Metadata": "true"}
    ),
}


def is_preempted(provider: str, endpoint: str | None = None) -> bool:
    """Whether the provider has announced the end of this host; asks once.

    `endpoint`: in place of the provider's own, for tests. Raises OSError when the service does not answer, or refuses.
    """
    notice = NOTICE_ENDPOINTS[provider]
    base = endpoint or notice.endpoint
    headers = notice.headers | ({"X-aws-ec2-metadata-token": _aws_token(base)} if provider == "aws" else {})
    try:
        body = _get(urllib.request.Request(base + notice.path, headers=headers))
    except urllib.error.HTTPError as error:
        if provider == "aws" and error.code == 404:  # nothing is planned
            return False
        raise
    return announces_preemption(provider, body)


def announces_preemption(provider: str, body: str) -> bool:
    """What a provider's answer means. Raises OSError for one that is none of its."""
    try:
        match provider:
            case "aws":
                return json.loads(body)["action"] in ("terminate", "stop", "hibernate")
            case "gcp":
                return {"TRUE": True, "FALSE": False}[body.strip()]
            case _:
                kinds = [event["EventType"] for event in json.loads(body)["Events"]]
                return any(kind in ("Preempt", "Terminate") for kind in kinds)
    except (KeyError, TypeError, ValueError) as error:
        raise OSError(f"the {provider} metadata service answered {body[:80]!r}") from error


def _aws_token(base: str) -> str:
    headers = {"X-aws-ec2-metadata-token-ttl-seconds": "300"}
    return _get(urllib.request.Request(f"{base}/latest/api/token", method="PUT", headers=headers))


def _get(request: urllib.request.Request) -> str:
    # A metadata service is on the link: never through the proxy of the environment.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=_TIMEOUT_S) as answer:
        text: str = answer.read(65536).decode()
    return text
