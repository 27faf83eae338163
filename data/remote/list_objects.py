"""Globs over object stores."""

import os
import re
from collections.abc import Iterator
from typing import Any

import obstore
from obstore.exceptions import BaseError

from configs.errors import DataError
from data.remote import object_stores
from data.remote.address import STORES, Address, parse_address
from data.shards.globs import glob_as_regex

__all__ = ["list_remote"]


_MAGIC = re.compile(r"[*?[]")


def list_remote(pattern: str) -> list[str]:
    """The URLs that match `s3://bucket/dir/part-*.tar`, sorted; `*` and `?` stay within a folder, `**` does not.

    DataError: http(s) has no listings, or the bucket cannot be listed. No match gives [].
    """
    address = parse_address(pattern)
    if address.scheme not in STORES:
        raise DataError(f"shards {address.name}: web servers do not list files: write a brace range a-{{000..009}}.tar")
    if _MAGIC.search(address.place):
        raise DataError(f"shards {address.name}: a glob cannot stand for buckets: write the bucket's name")
    # Whole folders only: obstore's prefixes end at a slash.
    literal = address.path[: magic.start()] if (magic := _MAGIC.search(address.path)) else address.path
    wanted = glob_as_regex(address.path)
    keys = _keys(address, literal.rpartition("/")[0])
    return sorted(f"{address.scheme}://{address.place}/{key}" for key in keys if wanted.fullmatch(key))


def _keys(address: Address, folder: str) -> Iterator[str]:
    store: Any = object_stores.listing_store(address, os.environ)
    try:
        for batch in obstore.list(store, folder or None):
            yield from (entry["path"] for entry in batch)
    except BaseError as error:
        cause = str(error).partition("\n")[0][:200]
        raise DataError(
            f"shards {address.name}: cannot be listed ({cause}): check the bucket, the credentials and the endpoint, "
            "or write a brace range"
        ) from None
