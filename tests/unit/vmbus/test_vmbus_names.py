"""Names of devices by their types."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path

from pyvmm.vmbus.device import VmbusDevice
from pyvmm.vmbus.names import kind_of


def test_every_device_of_ours_has_a_name() -> None:
    root = Path(__file__).parents[3] / "devices"
    classes: set[type[VmbusDevice]] = set()
    for path in [*root.glob("*/*.py"), *root.glob("*.py")]:
        parts = path.relative_to(root).with_suffix("").parts
        module = import_module(".".join(["pyvmm.devices", *parts]).removesuffix(".__init__"))
        classes |= {each for _, each in inspect.getmembers(module, inspect.isclass) if issubclass(each, VmbusDevice)}
    offers = [each.OFFER for each in classes if hasattr(each, "OFFER")]
    assert len(offers) > 4
    assert [offer.name for offer in offers if not kind_of(str(offer.type), offer.name)] == []


def test_a_type_that_nobody_knows_has_none() -> None:
    assert kind_of("6d5c0b1e-3f0c-4c6f-9a55-70796d6d0001", "mirror") == ""
    assert kind_of("00000400-facb-11e6-bd58-64006a7986d3", "hvsock") == "Hyper-V socket"
