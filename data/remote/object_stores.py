"""Buckets and containers through obstore: credentials as the environment has them, signed URLs, listings.

The bytes come through urllib3 (`ranged_get`): obstore 0.12.1 gives no Retry-After, names the status only inside a text,
and a request of its cannot be dropped from another thread, which back-off and hedging need.
"""

import configparser
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import obstore
from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, S3Store

from configs.errors import DataError
from data.remote.address import Address

Store = S3Store | GCSStore | AzureStore

_SIGNED_FOR = timedelta(hours=1)
_S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE")
_ECS = ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
_CREDENTIALS = {
    "s3": (*_S3_KEYS, *_ECS, "AWS_PROFILE"),
    "gs": (
        *("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH"),
        "GOOGLE_SERVICE_ACCOUNT_KEY",
    ),
    "az": (
        *("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_CLIENT_ID", "AZURE_CLIENT_ID"),
        *("AZURE_FEDERATED_TOKEN_FILE", "AZURE_STORAGE_USE_EMULATOR"),
    ),
}
# No signatures at all; no question to the machine's metadata server.
_UNSIGNED_SWITCHES = {
    "s3": ("AWS_SKIP_SIGNATURE", "AWS_EC2_METADATA_DISABLED"),
    "gs": ("GOOGLE_SKIP_SIGNATURE", "NO_GCE_CHECK"),
    "az": ("AZURE_SKIP_SIGNATURE", "AZURE_SKIP_SIGNATURE"),
}
_used_by: int | None = None


def signing_store(address: Address, environment: Mapping[str, str]) -> Store | None:
    """The bucket with the credentials that were found; None when there are none, so the object must be public.

    DataError: credentials are named by the environment, but cannot be used; or the endpoint cannot.
    """
    named = [name for name in _CREDENTIALS[address.scheme] if environment.get(name)]
    if _unsigned(address, environment, named):
        return None
    _base_url(address, environment)  # what is wrong with the endpoint is no fault of the credentials
    try:
        store = _open(address, environment)
        sign_url(store, address)
        return store
    except (DataError, BaseError, ValueError) as error:
        if not named:
            return None
        raise DataError(
            f"{address.name}: the credentials named by {', '.join(named)} cannot be used ({_first_line(error)}): "
            "correct them"
        ) from None


def listing_store(address: Address, environment: Mapping[str, str]) -> Store:
    """The bucket to be listed, without credentials when none are found."""
    if address.scheme == "az" and azure_sas(environment):
        return _open(address, environment)
    return signing_store(address, environment) or _open(address, environment, skip_signature=True)


def sign_url(store: Store, address: Address) -> str:
    """The URL that lets anyone GET the object for an hour. DataError: the credentials do not work."""
    _refuse_after_fork(address)
    try:
        return obstore.sign(store, "GET", address.path, _SIGNED_FOR)
    except BaseError as error:
        raise DataError(f"{address.name}: cannot be signed ({_first_line(error)}): renew the credentials") from None


def plain_url(address: Address, environment: Mapping[str, str]) -> str:
    """The unsigned URL of an object."""
    return f"{_base_url(address, environment)}/{quote(address.path)}"


def azure_sas(environment: Mapping[str, str]) -> str | None:
    """The shared access signature, ready for a query."""
    sas = environment.get("AZURE_STORAGE_SAS_TOKEN") or environment.get("AZURE_STORAGE_SAS_KEY")
    return sas.lstrip("?") if sas else None


def _open(address: Address, environment: Mapping[str, str], **access: Any) -> Store:
    _refuse_after_fork(address)
    base_url = _base_url(address, environment)  # checks the endpoint
    options = {"connect_timeout": "2s", "timeout": "60s", "allow_http": base_url.startswith("http://")}
    patience: dict[str, Any] = {"client_options": options, "retry_config": {"max_retries": 2}}
    if address.scheme == "gs":
        return GCSStore(address.place, **patience, **access)
    if address.scheme == "az":
        return AzureStore(address.place, **patience, **access)
    settings: dict[str, Any] = {"region": _s3_region(environment), "endpoint": _s3_endpoint(environment)}
    keys = {} if access else _profile(address, environment)
    return S3Store(address.place, **{k: v for k, v in settings.items() if v}, **keys, **patience, **access)


def _refuse_after_fork(address: Address) -> None:
    """obstore's threads do not outlive a fork: its calls would hang."""
    global _used_by
    if _used_by not in (None, os.getpid()):
        raise DataError(
            f"{address.name}: this process was forked from one that had used object stores already, which hangs: "
            'start workers with multiprocessing.get_context("spawn")'
        )
    _used_by = os.getpid()


def _unsigned(address: Address, environment: Mapping[str, str], named: list[str]) -> bool:
    skip, no_metadata = _UNSIGNED_SWITCHES[address.scheme]
    if _is_true(environment, skip):
        return True
    # Where nothing is named the role of the machine is asked for, unless that is switched off.
    has_profile = address.scheme == "s3" and _credentials_file(environment).is_file()
    return not named and not has_profile and _is_true(environment, no_metadata)


def _base_url(address: Address, environment: Mapping[str, str]) -> str:
    bases: dict[str, Callable[[Mapping[str, str]], str]] = {"s3": _s3_base, "gs": _gs_base, "az": _azure_base}
    base = bases[address.scheme](environment)
    if base.startswith("http://") and address.scheme == "s3" and not _is_true(environment, "AWS_ALLOW_HTTP"):
        raise DataError(f"{address.name}: the endpoint {base} has no TLS: set AWS_ALLOW_HTTP=true or use https")
    return f"{base}/{quote(address.place)}"


def _s3_base(environment: Mapping[str, str]) -> str:
    return _s3_endpoint(environment) or f"https://s3.{_s3_region(environment)}.amazonaws.com"


def _gs_base(_environment: Mapping[str, str]) -> str:
    return "https://storage.googleapis.com"


def _azure_base(environment: Mapping[str, str]) -> str:
    if _is_true(environment, "AZURE_STORAGE_USE_EMULATOR"):
        return "http://127.0.0.1:10000/devstoreaccount1"
    account = environment.get("AZURE_STORAGE_ACCOUNT_NAME")
    endpoint = environment.get("AZURE_STORAGE_ENDPOINT") or (account and f"https://{account}.blob.core.windows.net")
    if not endpoint:
        raise DataError("az:// needs the storage account's name: set AZURE_STORAGE_ACCOUNT_NAME")
    return endpoint.rstrip("/")


def _s3_endpoint(environment: Mapping[str, str]) -> str | None:
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    return endpoint.rstrip("/") if endpoint else None


def _s3_region(environment: Mapping[str, str]) -> str:
    return environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or "us-east-1"


def _credentials_file(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("AWS_SHARED_CREDENTIALS_FILE") or Path.home() / ".aws" / "credentials")


def _profile(address: Address, environment: Mapping[str, str]) -> dict[str, Any]:
    """The keys in the credentials file, which obstore does not read; the variables come first, as in AWS's tools."""
    if any(environment.get(name) for name in _S3_KEYS) or not _credentials_file(environment).is_file():
        return {}
    file = configparser.ConfigParser(interpolation=None)
    try:
        file.read(_credentials_file(environment), encoding="utf-8")
    except (configparser.Error, OSError, UnicodeError) as error:
        path = _credentials_file(environment)
        raise DataError(f"{address.name}: {path} cannot be read ({type(error).__name__}): correct it") from None
    profile = environment.get("AWS_PROFILE") or "default"
    if not file.has_section(profile):
        return {}
    keys = ("access_key_id", "secret_access_key", "session_token")
    return {key: value for key in keys if (value := file.get(profile, f"aws_{key}", fallback=""))}


def _is_true(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() in ("1", "true", "yes")


def _first_line(error: Exception) -> str:
    # The lines after the first repeat it for debugging, and may hold the request.
    return (str(error).splitlines() or [""])[0][:200]
