"""Guest images by name: a Debian cloud kernel, unpacked, and the initramfs that goes with it.

In the cache:

    packages/*.deb                     as fetched
    kernels/PACKAGE_VERSION/           vmlinuz, vmlinux, config, modules/NAME.ko, kernel.json
    initrd/NAME-HASH.cpio              HASH over all inputs: checkouts with different init scripts differ
    images/NAME.json                   the manifest; written last, so its files are complete

`find_image` reads the manifest and is quick. When the cache lacks an initramfs with this checkout's init and agent,
it makes one, which needs no network. Only `build_image` looks for newer packages. Files that were not used for a
month, or exceed `LIMITS`, are removed when something new is made (`tidy`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyvmm.cache import disk_errors, locked, mark_used, prune
from pyvmm.errors import ConfigError, HostError
from pyvmm.files import FileError, Shape, load_object
from pyvmm.images.debian_root import KERNEL, NAME, build_root, root_disk
from pyvmm.images.features import FEATURES, ON_DEMAND
from pyvmm.paths import cache_folder, make_folder, new_folder, scratch_folder, write_private

if TYPE_CHECKING:
    from pyvmm.images.packages import Package

MODULES = ("hv_vmbus", "hv_utils", "hv_balloon")
"""Modules that the guest loads, besides their dependencies."""

DEFAULT = "debian-6.1"

KERNEL_FACTS: dict[str, Shape] = {"release": str, "package": str, "modules": [str]}
"""Required members of a kernel.json and of a manifest."""

INITRDS = 16
"""Most initramfs per image whose sizes its manifest keeps: as many checkouts can be used side by side."""

UNUSED_SECONDS = 30 * 24 * 3600.0
LIMITS = {
    "initrd": 1 << 30,
    "own": 16 << 20,
    "vmlinux": 2 << 30,
    "packages": 2 << 30,
    "kernels": 4 << 30,
    "symbols": 256 << 20,
}
"""Size limits of the cache's parts, in bytes; files named in a manifest are not counted, and stay."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The source of an image's kernel: a package name pattern, and Debian suites that have it."""

    version: str
    suites: tuple[str, ...]

    @property
    def pattern(self) -> str:
        return rf"linux-image-{self.version.replace('.', '[.]')}[.][0-9][^ ]*-cloud-amd64"


RECIPES = {
    "debian-5.10": Recipe("5.10", ("bullseye",)),
    "debian-6.1": Recipe("6.1", ("bookworm",)),
    "debian-6.12": Recipe("6.12", ("bookworm", "trixie")),
    "debian-7.2": Recipe("7.2", ("trixie-backports", "sid", "forky")),
    "debian-7.3": Recipe("7.3", ("trixie-backports", "sid", "forky")),
}


@dataclass(frozen=True, slots=True)
class Image:
    """A guest image. Paths are meaningful only when `built`."""

    name: str
    built: bool
    default: bool = False
    kernel: Path = Path()  # bzImage
    vmlinux: Path = Path()
    initrd: Path = Path()
    release: str = ""  # uname -r
    package: str = ""
    modules: tuple[str, ...] = ()
    root: Path | None = None  # the disk of a whole Debian that it boots
    sizes: dict[str, int] = field(default_factory=dict)  # bytes, by kernel, vmlinux, initrd


Progress = Callable[[str], None]


def _quiet(_text: str) -> None:
    """Do nothing, as a Progress that prints nothing."""


def list_images() -> list[Image]:
    """Return all images that have a recipe, built or not."""
    disk, kernel = root_disk(), _load(KERNEL)
    root = _with_root(kernel, disk) if kernel is not None and disk.exists() else Image(NAME, False)
    return [*_kernel_images(), root]


def _with_root(kernel: Image, disk: Path) -> Image:
    """Return the image that boots a disk with the kernel of another image."""
    return replace(
        kernel, name=NAME, default=False, root=disk, sizes=kernel.sizes | {"root": disk.stat().st_blocks * 512}
    )


def _kernel_images() -> list[Image]:
    return [_load(name) or Image(name, False, name == DEFAULT) for name in RECIPES]


def find_image(
    name: str = DEFAULT, build: bool = True, progress: Progress = _quiet, features: Sequence[str] = ()
) -> Image:
    """Return the image, built first if necessary (and `build`). With `features` its initramfs has their modules too.

    Raises ConfigError for an unknown name; HostError.
    """
    if name == NAME:
        if not build and not root_disk().exists():
            raise ConfigError(f"image {name} is not built; `pyvmm image build {name}` does it")
        disk = build_root(progress)
        return _with_root(find_image(KERNEL, build, progress, _with_disk(features)), disk)
    _recipe(name)
    image = _load(name, ("kernel", "vmlinux"))
    if features:
        return _with_features(image, name, features, progress)
    if image is None:
        if not build:
            raise ConfigError(f"image {name} is not built; `pyvmm image build {name}` does it")
        return build_image(name, progress)
    if image.initrd.name != _initrd_name(image) or not _is_whole(image, "initrd"):
        if not _knows_features(image):
            return build_image(name, progress)
        with disk_errors(f"cannot build image {name}"), locked("images"):
            return _finish(image, progress)
    mark_used(image.initrd)
    return image


def _knows_features(image: Image) -> bool:
    """Return whether the kernel's folder has the modules of all features; one that an older pyvmm unpacked has
    not.
    """
    try:
        known: dict[str, Any] = load_object(image.kernel.parent / "kernel.json", {"features": dict})["features"]
    except FileError:
        return False
    return known.keys() >= FEATURES.keys()


def _with_features(image: Image | None, name: str, features: Sequence[str], progress: Progress) -> Image:
    """Return the image with an initramfs that has the modules of `features`, made if it is missing."""
    if image is None or not _features(image).keys() >= set(features):
        image = build_image(name, progress)  # it was built by a pyvmm that did not know them
    if not _features(image).keys() >= set(features):
        raise ConfigError(f"image {name}: its kernel has no modules for {', '.join(features)}; take another image")
    initrd = cache_folder("initrd", _initrd_name(image, features))
    if not initrd.exists():
        with disk_errors(f"cannot build image {name}"), locked("images"):
            progress(f"making the initramfs for {', '.join(features)}")
            _make_initrd(initrd, _read_modules(image, _modules(image, features)), progress, _on_demand(image))
    mark_used(initrd)
    return replace(image, initrd=initrd)


def _modules(image: Image, features: Sequence[str]) -> list[str]:
    """Return the names of the modules for an initramfs, in load order."""
    found = _features(image) if features else {}
    return [*image.modules, *dict.fromkeys(name for each in features for name in found[each])]


def _read_modules(image: Image, names: Sequence[str]) -> list[tuple[str, bytes]]:
    folder = image.kernel.parent / "modules"
    return [(name, (folder / f"{name}.ko").read_bytes()) for name in names]


def _on_demand(image: Image) -> list[tuple[str, bytes]]:
    """Return the modules that a guest loads when they are first wanted."""
    found = _features(image)
    return _read_modules(image, [name for each in ON_DEMAND for name in found.get(each, ())])


def known_image(name: str = DEFAULT, features: Sequence[str] = ()) -> Image:
    """Return the image as `find_image` does, without checking its files: for an emulated host, whose outer side has
    just checked them, and where each access to a file is several 9p requests.
    """
    if name == NAME:
        return _with_root(known_image(KERNEL, _with_disk(features)), root_disk())
    _recipe(name)
    image = _read(name)
    if image is not None and features and _features(image).keys() >= set(features):
        initrd = cache_folder("initrd", _initrd_name(image, features))
        return replace(image, initrd=initrd) if initrd.exists() else find_image(name, features=features)
    if image is None or features or image.initrd.name != _initrd_name(image):  # changed by another checkout since
        return find_image(name, features=features)
    return image


def build_image(
    name: str = DEFAULT, progress: Progress = _quiet, force: bool = False, included: Sequence[str] = ()
) -> Image:
    """Build an image from the newest package. Parts in the cache are reused, unless `force`. `included` are further
    packages on the disk of debian-12-root.

    `progress` is called at each step with a short text. Raises ConfigError for an unknown name or an unavailable
    kernel, HostError if a program or the disk fails; no partial output is left.
    """
    if name == NAME:
        disk = build_root(progress, force=force, included=included)
        return _with_root(find_image(KERNEL, progress=progress, features=("disk",)), disk)
    if included:
        raise ConfigError(f"image {name} has no packages; --include is for {NAME}")
    recipe = _recipe(name)
    with disk_errors(f"cannot build image {name}"), locked("images"):
        folder = _kernel(name, recipe, progress, force)
        facts = load_object(folder / "kernel.json", KERNEL_FACTS)
        image = Image(
            name=name,
            built=True,
            default=name == DEFAULT,
            kernel=folder / "vmlinuz",
            vmlinux=folder / "vmlinux",
            release=facts["release"],
            package=facts["package"],
            modules=tuple(facts["modules"]),
        )
        return _finish(image, progress, force)


def _with_disk(features: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(("disk", *features)))


def _recipe(name: str) -> Recipe:
    try:
        return RECIPES[name]
    except KeyError:
        raise ConfigError(f"no image is named {name!r}; there are {', '.join([*RECIPES, NAME])}") from None


def _manifest(name: str) -> Path:
    return cache_folder("images", f"{name}.json")


def _read(name: str) -> Image | None:
    """Read an image's manifest; None if there is none."""
    try:
        facts = load_object(_manifest(name), KERNEL_FACTS | {"kernel": str, "vmlinux": str, "initrd": str})
        if not isinstance(facts.get("sizes"), dict) or facts["sizes"].keys() - {"kernel", "vmlinux", "initrd"}:
            return None
        return Image(
            name=name,
            built=True,
            default=name == DEFAULT,
            kernel=Path(facts["kernel"]),
            vmlinux=Path(facts["vmlinux"]),
            initrd=Path(facts["initrd"]),
            release=facts["release"],
            package=facts["package"],
            modules=tuple(facts["modules"]),
            sizes=facts["sizes"],
        )
    except FileError:
        return None


def _load(name: str, parts: tuple[str, ...] = ("kernel", "vmlinux", "initrd")) -> Image | None:
    """Read an image's manifest; None if there is none, or `parts` of the image are missing."""
    image = _read(name)
    return image if image is not None and all(_is_whole(image, part) for part in parts) else None


def _is_whole(image: Image, part: str) -> bool:
    """Return whether each part has the size in the manifest; if not, it was truncated or replaced."""
    path: Path = getattr(image, part)
    try:
        return path.stat().st_size == image.sizes[part]
    except (OSError, KeyError):
        return False


def _features(image: Image) -> dict[str, list[str]]:
    """Return more modules, in load order, by feature; those that the kernel lacks (null) are left out."""
    try:
        given: dict[str, Any] = load_object(image.kernel.parent / "kernel.json", {"features": {str: object}})[
            "features"
        ]
    except FileError:  # written by a pyvmm that had no features
        return {}
    return {name: [*map(str, modules)] for name, modules in given.items() if isinstance(modules, list)}


def _initrd_name(image: Image, features: Sequence[str] = ()) -> str:
    from pyvmm.images.initramfs import recipe_hash

    return f"{'-'.join((image.name, *features))}-{recipe_hash(image.package, *_modules(image, features))}.cpio"


def _finish(image: Image, progress: Progress, force: bool = False) -> Image:
    """Make the initramfs, unless it exists, for an image whose kernel exists, and write the manifest."""
    initrd = cache_folder("initrd", _initrd_name(image))
    sizes = _initrd_sizes(image.name)
    if force or not initrd.exists() or sizes.pop(initrd.name, None) != initrd.stat().st_size:
        progress("making the initramfs")
        _make_initrd(initrd, _read_modules(image, image.modules), progress, _on_demand(image))
    sizes = dict([*sizes.items(), (initrd.name, initrd.stat().st_size)][-INITRDS:])
    facts = {
        "kernel": str(image.kernel),
        "vmlinux": str(image.vmlinux),
        "initrd": str(initrd),
        "initrds": sizes,
        "release": image.release,
        "package": image.package,
        "modules": list(image.modules),
        "sizes": {
            "kernel": image.kernel.stat().st_size,
            "vmlinux": image.vmlinux.stat().st_size,
            "initrd": initrd.stat().st_size,
        },
    }
    mark_used(initrd)
    write_private(_manifest(image.name), json.dumps(facts, indent=2).encode() + b"\n")
    done = _load(image.name)
    if done is None:
        raise HostError(f"image {image.name} vanished while it was built; is something else cleaning the cache?")
    tidy()
    return done


def _initrd_sizes(name: str) -> dict[str, int]:
    """Return the sizes of an image's initramfs in the cache, by name, the latest last."""
    try:
        sizes: dict[str, int] = load_object(_manifest(name), {"initrds": {str: int}})["initrds"]
    except FileError:
        return {}
    return sizes


def tidy(*, everything: bool = False) -> list[Path]:
    """Remove files not used for a month, files past LIMITS (the longest unused first) and leftovers of killed
    processes; with `everything` all that no image needs. Returns the removed files.
    """
    images = [image for image in map(_load, RECIPES) if image is not None]
    needed = {path for image in images for path in (image.kernel.parent, image.initrd)}
    removed = []
    for part, limit in LIMITS.items():
        seconds, limit = (0.0, 0) if everything else (UNUSED_SECONDS, limit)
        removed += prune(cache_folder(part), seconds, limit, needed)
    return removed


def _make_initrd(
    target: Path,
    modules: list[tuple[str, bytes]],
    progress: Progress,
    on_demand: Sequence[tuple[str, bytes]] = (),
) -> None:
    from pyvmm.images.busybox import applets, busybox
    from pyvmm.images.initramfs import build_initramfs

    program = busybox(progress)
    write_private(target, build_initramfs(program.read_bytes(), applets(program), modules, on_demand))


def initrd_for(label: str, modules: list[tuple[str, bytes]], progress: Progress = _quiet) -> Path:
    """Return the default guest's initramfs with other `modules` (kdir.KernelTree.load_order), made if missing.

    `label` becomes part of the file's name. Raises HostError if it cannot be made.
    """
    import hashlib

    from pyvmm.images.initramfs import recipe_hash

    contents = [f"{name} {hashlib.sha256(data).hexdigest()}" for name, data in modules]
    target = cache_folder("initrd", f"{label.replace('/', '_')}-{recipe_hash(*contents)}.cpio")
    if not target.exists():
        with disk_errors(f"cannot make an initramfs for {label}"), locked("images"):
            _make_initrd(target, modules, progress)
            tidy()
    mark_used(target)
    return target


def _kernel(name: str, recipe: Recipe, progress: Progress, force: bool) -> Path:
    """Return the folder of the newest kernel, fetched and unpacked if missing."""
    from pyvmm.images.packages import find_package

    progress("looking for the kernel package")
    try:
        package = find_package(recipe.pattern, recipe.suites)
    except (ConfigError, HostError):
        # Offline: an earlier build's kernel suffices.
        before = _load(name)
        if before is None or force:
            raise
        return before.kernel.parent
    folder = cache_folder("kernels", f"{package.name}_{package.version}".replace(":", "%3a"))
    if not force and _whole(folder):
        return folder
    with new_folder(folder) as new, scratch_folder(folder.parent) as scratch:
        _unpack_kernel(package, scratch, new, progress)
    return folder


def _whole(folder: Path) -> bool:
    """Return whether a kernel's folder in the cache is complete: its files, and `_unpack_kernel`'s last one."""
    try:
        facts = load_object(folder / "kernel.json", KERNEL_FACTS)
    except FileError:
        return False
    features = facts.get("features")
    if not isinstance(features, dict) or not features.keys() >= FEATURES.keys():
        return False  # unpacked by a pyvmm that had fewer features
    names = [*facts["modules"], *(name for modules in features.values() for name in modules or ())]
    files = [folder / "vmlinuz", folder / "vmlinux", *(folder / "modules" / f"{name}.ko" for name in names)]
    return all(file.is_file() and file.stat().st_size for file in files)


def _unpack_kernel(package: Package, scratch: Path, new: Path, progress: Progress) -> None:
    """Unpack a kernel package into `new`, with the packages into which it is split since Linux 7.0."""
    from pyvmm.images.modules import ModuleTree
    from pyvmm.images.packages import dependency, unpack_package
    from pyvmm.images.payload import unpack as unpack_kernel

    parts = [package]
    for kind in ("base", "binary", "modules"):
        part = dependency(package, f"linux-{kind}-.*")
        if part is not None:
            parts.append(part)
    for part in parts:
        progress(f"fetching {part.name}")
        unpack_package(part, scratch)
    trees = sorted([*scratch.glob("lib/modules/*"), *scratch.glob("usr/lib/modules/*")])
    kernels = sorted([*scratch.glob("boot/vmlinuz-*"), *(tree / "vmlinuz" for tree in trees)], key=Path.exists)
    if not trees or not kernels or not kernels[-1].exists():
        raise HostError(f"{package.name} {package.version} holds no kernel and modules where they used to be")
    data = kernels[-1].read_bytes()
    (new / "vmlinuz").write_bytes(data)
    progress("unpacking the kernel itself")
    (new / "vmlinux").write_bytes(unpack_kernel(data, package.name))
    for config in (*scratch.glob("boot/config-*"), *trees[0].glob("config")):
        (new / "config").write_bytes(config.read_bytes())
    make_folder(new / "modules")
    tree = ModuleTree(trees[0])
    modules = dict(tree.load_order(list(MODULES)))
    features: dict[str, list[str] | None] = {}
    files = dict(modules)
    for feature, wanted in FEATURES.items():
        try:
            found = dict(tree.load_order(list(wanted)))
        except ConfigError:
            features[feature] = None
        else:
            features[feature] = [name for name in found if name not in modules]
            files |= found
    for module, contents in files.items():
        (new / "modules" / f"{module}.ko").write_bytes(contents)
    facts = {
        "release": trees[0].name,
        "package": f"{package.name} {package.version}",
        "modules": list(modules),
        "features": features,
    }
    (new / "kernel.json").write_text(json.dumps(facts, indent=2) + "\n")
