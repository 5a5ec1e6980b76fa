"""VMBus: how a Hyper-V guest finds its devices and talks to them. Assumes the chapter on SynIC (`pyvmm.hyperv`).

A PCI machine shows its guest registers. Hyper-V shows it a bus of another kind: the guest and the host exchange small
messages to agree on what there is, and then each device gets two rings in ordinary guest memory and two doorbells.
Nothing in a ring causes an exit; only a doorbell does, and the rules below make doorbells rare.

**Transport.** Four things carry everything, all of them the hypervisor's (`Partition`):

    guest -> host  message  hypercall HvPostMessage (0x5C), up to 240 bytes  ->  Mailbox._listen, on a vCPU thread
    host -> guest  message  the slot of SINT 2 in a page of one VP, one at a time, then an interrupt
    guest -> host  event    hypercall HvSignalEvent (0x5D), connection 16 + relid  ->  Channel.signalled
                            or a bit in a page that the host polls (`monitor_page`), for drivers that demand it
    host -> guest  event    bit `relid` in another page of the channel's VP, then an interrupt

**Messages** (`protocol` for the bytes, `server` for their meaning). A guest that loads hv_vmbus and one driver:

    guest                                                    host
      INITIATE_CONTACT version 5.3, "answer on VP 0"   ->         not served: supported 0, and the guest
                                                       <-  VERSION_RESPONSE       tries the next older one
      REQUEST_OFFERS                                   ->
                                                       <-  OFFER relid 1, type, instance, connection 17
                                                       <-  ...
                                                       <-  ALL_OFFERS_DELIVERED
      (the type GUID selects a driver, its probe opens the channel)
      GPADL_HEADER relid 1, gpadl, pages               ->         pages checked against RAM (`gpadl`)
      GPADL_BODY more pages                            ->
                                                       <-  GPADL_CREATED status 0
      OPEN relid 1, gpadl, "receive ring at page 5"    ->         Ring, Channel, device.opened()
                                                       <-  OPEN_RESULT status 0
      ... packets in the rings, events as doorbells ...
      CLOSE relid 1                                    ->         device.closed(); no answer
      GPADL_TEARDOWN                                   ->
                                                       <-  GPADL_TORNDOWN
      UNLOAD (rmmod; at kexec and crash without CLOSE) ->         all channels closed
                                                       <-  UNLOAD_RESPONSE

    the host takes a device away:  RESCIND  ->  (CLOSE)  RELID_RELEASED  and only then may the relid be used again
    the guest asks a device for more channels (by packets):  OFFER with the same GUIDs, sub-channel 1, 2, ...

Linux waits for most of these without a time limit, so a host answers even a request that it refuses. A new
INITIATE_CONTACT may come at any time (a crash kernel, a reset): everything before it is void.

**Rings** (`ring`). One GPADL holds both; each begins with a header page:

    pages of the GPADL    0      1 .. 4          5      6 .. 9
                       +------+----------------+------+----------------+
                       |header| guest to host  |header| host to guest  |
                       +------+----------------+------+----------------+
                                               ^ OPEN's receive-ring page
    data area          0          read                    write                size
                       |..........|#######################|....................|
                                   packet packet packet

Each index has one owner: the writer moves `write`, the reader moves `read`. A writer rings the doorbell only when
the ring was empty before and the reader's interrupt mask is 0; a reader masks, drains, unmasks and looks again. The
looking again, and a full memory barrier on either side, is what makes this safe:

    writer                                      reader
      store packet, store write index             store mask = 0
      barrier                                     barrier
      load mask, load read index                  load write index
      mask 0 and was empty: doorbell              more there: go on reading

Whatever the order, one of the two sees the other's store. A full ring works the same way round: the writer stores how
much room it needs (the pending size), and the reader rings when it has made that much.

**Devices** (`device`, `channel`) have a small interface: `opened`, `received`, `closed`, `reset`, and a `Channel` for
sending and for timers. Those that need more get whole packets (`packet`), complete them at any time, own sub-channels
that come and go while the primary channel is open, and are notified before they are rescinded (`leaving`).
`mailbox` queues the messages of both sides; `bus` joins all of it in `Vmbus`, of which a machine has one.

Reading order: protocol, offer, states, channel_table, server, gpadl, packet, ring (run it: `python -m
pyvmm.vmbus.ring`), device, timers, channel, mailbox, monitor_page, bus; and tests/support/fake_guest.py, which is the
other side.
"""
