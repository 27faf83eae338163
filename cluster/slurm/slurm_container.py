"""The container that a job's agents and driver run in, as words of their commands. Pure.

The supervisor stays outside, where Slurm's commands are. The image has the packages; the code is that of the checkout.
Sources: https://github.com/NVIDIA/pyxis/wiki/Usage, https://apptainer.org/docs/user/latest/cli/apptainer_exec.html
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.errors import ClusterError, RecipeError
from configs.local_folders import local_folders, outermost
from configs.recipe import Recipe

__all__ = ["Container", "check_container", "container_of", "python_command"]


@dataclass(frozen=True)
class Container:
    """What a job's container is made of. `mounts` are whole: SRC:DST or SRC:DST:ro."""

    runtime: str  # pyxis, or the name of a command as apptainer
    image: str
    mounts: tuple[str, ...]
    working_folder: str
    python: str
    gpus: bool

    @property
    def image_path(self) -> Path | None:
        """None: its name in a registry."""
        return Path(self.image) if self.image.startswith("/") else None

    @property
    def step_flags(self) -> list[str]:
        """For srun, where its plugin makes the container."""
        if self.runtime != "pyxis":
            return []
        return [
            f"--container-image={self.image}",
            # With /tmp, where Ray has its sockets: the driver is in another container than the agent of its host.
            f"--container-mounts={','.join(['/tmp:/tmp', *self.mounts])}",
            f"--container-workdir={self.working_folder}",
        ]

    @property
    def prefix(self) -> list[str]:
        """In front of a command, where another command makes the container. It keeps the working folder."""
        if self.runtime == "pyxis":
            return []
        gpus = ["--nv"] if self.gpus else []
        return [self.runtime, "exec", *gpus, "--bind", ",".join(self.mounts), self.image]


def container_of(recipe: Recipe, working_folder: Path, checkout: Path) -> Container | None:
    """None when the recipe has none. Raises RecipeError for a folder that cannot be mounted."""
    slurm = recipe.slurm
    if slurm is None or slurm.container is None:
        return None
    folders = outermost([*local_folders(recipe, working_folder), checkout])
    for folder in folders:
        if ":" in str(folder) or "," in str(folder) or folder == Path("/"):
            raise RecipeError(f"{folder} cannot be mounted in slurm.container: it is /, or has a colon or comma in it")
    given = [mount if ":" in mount else f"{mount}:{mount}" for mount in slurm.container_mounts]
    return Container(
        runtime=slurm.container_runtime or default_runtime(slurm.container),
        image=_absolute(slurm.container, working_folder),
        mounts=(*(f"{folder}:{folder}" for folder in folders), *given),
        working_folder=str(working_folder),
        python=slurm.container_python,
        gpus=bool(recipe.workers.gpus),
    )


def default_runtime(image: str) -> str:
    """By the form of `image`: apptainer for a .sif file or a URL, else pyxis."""
    return "apptainer" if image.endswith(".sif") or "://" in image else "pyxis"


def _absolute(image: str, working_folder: Path) -> str:
    """A path as such: pyxis takes a name without a slash in front for one of a registry."""
    is_path = "://" not in image and (image.startswith((".", "/")) or image.endswith((".sif", ".sqsh", ".img")))
    return os.path.normpath(working_folder / image) if is_path else image


def check_container(container: Container, *, has_pyxis: bool, has_command: bool) -> list[str]:
    """Warnings of what the host that submits can see. Raises RecipeError or ClusterError."""
    if container.image_path is not None and not container.image_path.exists():
        raise RecipeError(f"slurm.container: there is no {container.image}: correct the path, or make the image")
    if container.runtime == "pyxis":
        if has_pyxis:
            return []
        raise ClusterError(
            "slurm.container is for pyxis, but this cluster's srun has no --container-image: ask for the plugin, or "
            "set slurm.container_runtime to apptainer"
        )
    if has_command:
        return []
    return [f"there is no {container.runtime} here: the hosts of the job must have it (slurm.setup may load it)"]


def python_command(
    container: Container | None, python: str, environment: Sequence[str], arguments: Sequence[str]
) -> list[str]:
    """A command of Python, in the container if there is one. `environment`: NAME=value, against the image's own."""
    if container is None:
        return [python, *arguments]
    return [*container.prefix, "env", *environment, container.python, *arguments]
