"""Where a remote shard lies, and how it is called without secrets. Pure."""

from dataclasses import dataclass, field, replace
from urllib.parse import parse_qsl, unquote, urlsplit

import xxhash

from configs.errors import DataError

STORES = ("s3", "gs", "az")
SCHEMES = (*STORES, "http", "https")
# Parts of a query that grant access: they change while the object does not, and nobody else may see them.
_SECRETS = ("x-amz-", "x-goog-", "awsaccesskeyid", "googleaccessid", "signature", "expires", "policy", "key-pair-id")
_SAS = ("sv", "sr", "sig", "se", "st", "sp", "spr", "sip", "skoid", "sktid", "skt", "ske", "sks", "skv")
_TOKENS = ("token", "access_token", "auth", "key", "apikey", "api_key", "password")


@dataclass(frozen=True)
class Address:
    """A parsed URL. `place` is a bucket, a container, or host:port; `path` has no leading slash."""

    scheme: str
    place: str
    path: str
    query: str = field(default="", repr=False)
    login: str = field(default="", repr=False)

    @property
    def identity(self) -> str:
        """The URL without secrets; a query that selects contents enters as its hash."""
        chosen = [
            (name, value) for name, value in parse_qsl(self.query, keep_blank_values=True) if not _is_secret(name)
        ]
        return self._bare + (f"?{xxhash.xxh3_64_hexdigest(repr(chosen).encode())}" if chosen else "")

    @property
    def name(self) -> str:
        """As the user wrote it, without secrets."""
        return self._bare + ("?…" if self.query else "")

    @property
    def _bare(self) -> str:
        return f"{self.scheme}://{self.place}/{self.path}"

    def beside(self, suffix: str) -> "Address":
        """The address of the object named like this one plus `suffix`."""
        return replace(self, path=self.path + suffix)


def parse_address(url: str) -> Address:
    """DataError: another scheme, or no bucket or host, or no path."""
    scheme, mark, rest = url.partition("://")
    if not mark or scheme not in SCHEMES:
        raise DataError(f"shard {scheme}{mark}…: unknown kind of address: write one of {', '.join(SCHEMES)} or a path")
    address = _store_address(scheme, rest) if scheme in STORES else _web_address(url)
    if not address.place or not address.path:
        what = {"s3": "s3://bucket/key", "gs": "gs://bucket/key", "az": "az://container/key"}.get(scheme)
        raise DataError(f"shard {address.name}: incomplete: write {what or f'{scheme}://host/path'}")
    return address


def _store_address(scheme: str, rest: str) -> Address:
    # Keys may hold ? and #, so they are not parsed as URLs are.
    place, _, path = rest.partition("/")
    return Address(scheme, place, path)


def _web_address(url: str) -> Address:
    parts = urlsplit(url)
    login, _, place = parts.netloc.rpartition("@")
    return Address(parts.scheme, place, parts.path.lstrip("/"), parts.query, unquote(login))


def _is_secret(name: str) -> bool:
    lower = name.lower()
    return lower.startswith(_SECRETS) or lower in (*_SAS, *_TOKENS)
