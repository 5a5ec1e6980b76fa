"""Names of VMBus devices by their types, as people know them from lsvmbus.

Source: Linux tools/hv/lsvmbus, vmbus_dev_dict, without its square brackets; `echo` is pyvmm's own.
"""

from __future__ import annotations

NAMES = {
    "0e0b6031-5213-4934-818b-38d90ced39db": "Operating system shutdown",
    "9527e630-d0ae-497b-adce-e80ab0175caf": "Time Synchronization",
    "57164f39-9115-4e78-ab55-382f3bd5422d": "Heartbeat",
    "a9a0f4e7-5a45-4d96-b827-8a841e8c03e6": "Data Exchange",
    "35fa2e29-ea23-4236-96ae-3a6ebacba440": "Backup (volume checkpoint)",
    "34d14be3-dee4-41c8-9ae7-6b174977c192": "Guest services",
    "525074dc-8985-46e2-8057-a307dc18a502": "Dynamic memory",
    "cfa8b69e-5b4a-4cc0-b98b-8ba1a1f3f95a": "Synthetic mouse",
    "f912ad6d-2b17-48ea-bd65-f927a61c7684": "Synthetic keyboard",
    "da0a7802-e377-4aac-8e77-0558eb1073f8": "Synthetic framebuffer adapter",
    "f8615163-df3e-46c5-913f-f2d2f965ed0e": "Synthetic network adapter",
    "32412632-86cb-44a2-9b5c-50d1417354f5": "Synthetic IDE Controller",
    "ba6163d9-04a1-4d29-b605-72e2ffb1dc7f": "Synthetic SCSI Controller",
    "2f9bcc4a-0069-4af3-b76b-6fd0be528cda": "Synthetic fiber channel adapter",
    "8c2eaf3d-32a7-4b09-ab99-bd1f1c86b501": "Synthetic RDMA adapter",
    "44c4f61d-4444-4400-9d52-802e27ede19f": "PCI Express pass-through",
    "6a3a6f0e-3c58-4b0f-9c4e-70796d6d6563": "Echo (pyvmm's, for uio_hv_generic)",
}


def kind_of(type: str, name: str = "") -> str:
    """Return what a device of this type is; empty for a type that nobody knows. `name`: the offer's."""
    return "Hyper-V socket" if name == "hvsock" else NAMES.get(type, "")
