"""How an object is asked for: its http(s) URL, with what grants access to it."""

import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

from data.remote import object_stores
from data.remote.address import STORES, Address

# Temporary credentials end before a signature does; signing again costs 0.1 ms.
_SIGN_AGAIN_S = 120.0
_URL_SAFE = "%/:@!$&'()*+,;=~-._"


@dataclass(frozen=True)
class Request:
    """A GET that grants access: its URL and headers are never shown."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def protected(self) -> bool:
        """Whether TLS keeps bits from flipping on the way."""
        return self.url.startswith("https://")


def requests_for(address: Address, environment: Mapping[str, str]) -> Callable[[], Request]:
    """A function that gives a request valid at the time. DataError: the credentials named cannot be used."""
    if address.scheme not in STORES:
        request = _web_request(address)
    elif address.scheme == "az" and (sas := object_stores.azure_sas(environment)):
        request = Request(f"{object_stores.plain_url(address, environment)}?{sas}")
    elif (store := object_stores.signing_store(address, environment)) is not None:
        return _Signer(store, address)
    else:
        request = Request(object_stores.plain_url(address, environment))
    return lambda: request


class _Signer:
    """Signed requests for one object, each used for minutes."""

    def __init__(self, store: object_stores.Store, address: Address) -> None:
        self._store = store
        self._address = address
        self._latest: tuple[float, Request] | None = None

    def __call__(self) -> Request:
        # Without a lock, which a fork could leave taken: two threads may sign, which costs nothing.
        latest = self._latest
        if latest is None or time.monotonic() - latest[0] > _SIGN_AGAIN_S:
            latest = self._latest = (time.monotonic(), Request(object_stores.sign_url(self._store, self._address)))
        return latest[1]


def _web_request(address: Address) -> Request:
    # What the user escaped stays; what must be escaped is.
    url = f"{address.scheme}://{address.place}/{quote(address.path, safe=_URL_SAFE)}"
    login = {"Authorization": f"Basic {b64encode(address.login.encode()).decode()}"} if address.login else {}
    return Request(f"{url}?{address.query}" if address.query else url, login)
