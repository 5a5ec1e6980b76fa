"""`pyvmm image`: lists, builds, shows and removes guest images."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from pyvmm.cli import output
from pyvmm.sizes import format_size

if TYPE_CHECKING:
    from pyvmm.images.catalog import Image


def complete_image(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete image names."""
    from pyvmm.images.catalog import list_images

    return [each.name for each in list_images() if each.name.startswith(incomplete)]


@click.group()
def image() -> None:
    """Guest images: Debian kernels with a small initramfs, made on this computer and kept in the cache; and
    debian-12-root, the disk of a whole Debian.

    \b
    pyvmm image list
    pyvmm image build debian-6.12
    pyvmm run --image debian-6.12
    """


@image.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """Show which images there are and which are built."""
    from pyvmm.images.catalog import list_images

    found = list_images()
    if as_json:
        output.print_json([_facts(each) for each in found])
        return
    rows = []
    for each in found:
        state = "built" if each.built else "not built"
        name = f"{each.name} (default)" if each.default else each.name
        rows.append((name, state, each.release, format_size(sum(each.sizes.values())) if each.built else ""))
    output.table(("NAME", "STATE", "KERNEL", "SIZE"), rows)


@image.command()
@click.argument("name", required=False, shell_complete=complete_image)
@click.option("--force", is_flag=True, help="Build it again even if it is there.")
@click.option("--all", "everything", is_flag=True, help="Build every image.")
@click.option(
    "--include", multiple=True, metavar="PACKAGE[,...]", help="Install these on debian-12-root's disk, too."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def build(name: str | None, force: bool, everything: bool, include: tuple[str, ...], as_json: bool) -> None:
    """Build an image (the default one without NAME) from Debian's newest kernel package of its version.

    debian-12-root is a disk besides: a whole Debian, installed with mmdebstrap, that keeps what its guests write.

    \b
    pyvmm image build debian-12-root --include fio,iperf3
    """
    from pyvmm.images import catalog
    from pyvmm.process import signals_as_exceptions

    if everything and name is not None:
        raise click.UsageError("either NAME or --all")
    included = [package for each in include for package in each.split(",") if package]
    names = list(catalog.RECIPES) if everything else [name or catalog.DEFAULT]
    with signals_as_exceptions():
        built = [catalog.build_image(each, partial(_say, each), force, included) for each in names]
    if as_json:
        output.print_json([_facts(each) for each in built])
        return
    for each in built:
        output.echo(f"{each.name}: kernel {each.release}, {format_size(sum(each.sizes.values()))}")


@image.command()
@click.argument("name", required=False, shell_complete=complete_image)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str | None, as_json: bool) -> None:
    """Show where an image's files are and what is in it."""
    from pyvmm.images import catalog

    found = catalog.find_image(name or catalog.DEFAULT, build=False)
    if as_json:
        output.print_json(_facts(found))
        return
    output.echo(found.name + (" (default)" if found.default else ""), bold=True)

    def file(part: str) -> str:
        size = f"  ({format_size(found.sizes[part])})" if part in found.sizes else ""
        return f"{getattr(found, part)}{size}"

    output.fields(
        [
            ("release", found.release),
            ("package", found.package),
            ("kernel", file("kernel")),
            ("vmlinux", file("vmlinux")),
            ("initrd", file("initrd")),
            ("modules", " ".join(found.modules)),
            *([("disk", file("root"))] if found.root is not None else []),
        ]
    )


@image.command()
def config() -> None:
    """Print the options that a kernel of your own needs, as a fragment for its .config.

    \b
    pyvmm image config >pyvmm.config
    make defconfig
    scripts/kconfig/merge_config.sh .config pyvmm.config
    """
    from pyvmm.images.kernel_config import FRAGMENT

    output.echo(FRAGMENT.read_text(), nl=False)


@image.command()
@click.option("--all", "everything", is_flag=True, help="Remove everything that no built image needs.")
def clean(everything: bool) -> None:
    """Remove from the cache what images no longer need.

    That is: packages, kernels and initramfs not used for 30 days, those that take more than their part of the cache
    may (the longest unused first), and what killed processes left. This is done automatically when an image is made.
    """
    from pyvmm.images import catalog

    removed = catalog.tidy(everything=everything)
    output.echo("\n  ".join([f"{len(removed)} removed", *(f"{path.parent.name}/{path.name}" for path in removed)]))


def _facts(image: Image) -> dict[str, Any]:
    facts = asdict(image)
    if not image.built:
        for part in ("kernel", "vmlinux", "initrd"):
            del facts[part]
    return facts


def _say(name: str, text: str) -> None:
    output.echo(f"{name}: {text}", err=True)
