"""Small shards and recipes for the tests of data."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from configs.recipe import Recipe

Samples = dict[str, dict[str, bytes]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def make_shard() -> Callable[[Path, Samples], Path]:
    def make(path: Path, samples: Samples) -> Path:
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for key, parts in samples.items():
                for part, contents in parts.items():
                    header = tarfile.TarInfo(f"{key}.{part}")
                    header.size = len(contents)
                    tar.addfile(header, io.BytesIO(contents))
        return path

    return make


@pytest.fixture
def text_shards(tmp_path: Path, make_shard: Callable[[Path, Samples], Path]) -> list[Path]:
    """Three shards of 40, 1 and 150 texts of 0 … 90 bytes."""
    random = np.random.default_rng(0)
    shards = []
    for number, count in enumerate((40, 1, 150)):
        texts = [bytes(random.integers(97, 123, random.integers(0, 91), dtype=np.uint8)) for _ in range(count)]
        samples = {f"s{number}-{i:03d}": {"txt": text} for i, text in enumerate(texts)}
        shards.append(make_shard(tmp_path / f"text-{number}.tar", samples))
    return shards


@pytest.fixture
def image_shard(tmp_path: Path, make_shard: Callable[[Path, Samples], Path], png: Callable[[int], bytes]) -> Path:
    """100 grey 8×8 images; image i is filled with i and labelled i modulo 10."""
    samples = {f"i{i:03d}": {"png": png(i), "cls": str(i % 10).encode()} for i in range(100)}
    return make_shard(tmp_path / "images.tar", samples)


@pytest.fixture
def png() -> Callable[[int], bytes]:
    def make(level: int) -> bytes:
        file = io.BytesIO()
        Image.fromarray(np.full((8, 8), level, np.uint8)).save(file, "PNG")
        return file.getvalue()

    return make


@pytest.fixture
def text_recipe() -> Callable[..., Recipe]:
    def make(shards: list[Path], context: int = 16, **data: Any) -> Recipe:
        names = [str(path) for path in shards]
        model = {"kind": "gpt", "context": context}
        fields = {"kind": "text", "train": {"shards": names}, "val": {"shards": names}, **data}
        return _recipe(model, fields, {"global": 8, "micro": 2})

    return make


@pytest.fixture
def image_recipe() -> Callable[..., Recipe]:
    def make(shards: list[Path], cpus: int = 1, **data: Any) -> Recipe:
        names = [str(path) for path in shards]
        model = {"kind": "resnet", "classes": 10, "stem": "small"}
        fields = {"kind": "image", "size": 8, "channels": 1, "train": {"shards": names}, "val": {"shards": names}}
        return _recipe(model, {**fields, **data}, {"global": 12, "micro": 3}, cpus)

    return make


def _recipe(model: dict[str, Any], data: dict[str, Any], batch: dict[str, Any], cpus: int = 1) -> Recipe:
    fields = {
        "run": {"name": "test", "steps": 100},
        "model": model,
        "data": data,
        "batch": batch,
        "optimizer": {"kind": "adamw"},
        "workers": {"cpus": cpus},
    }
    return Recipe.model_validate(fields)
