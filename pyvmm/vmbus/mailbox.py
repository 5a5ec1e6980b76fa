"""The mailbox of a machine's VMBus: queues of incoming messages, and of outgoing ones that wait for the SynIC slot.

Source: Linux drivers/hv/hv.c, hv_post_message() for the statuses a guest understands; QEMU hw/hyperv/vmbus.c.

    vCPU thread   HvPostMessage -> _listen: checks, queue, status
    loop thread   _serve -> receive(message), as long as the guest reads the answers
                  post -> partition.post_message, one at a time
"""

from __future__ import annotations

import errno
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import NamedTuple

from pyvmm.errors import HostError
from pyvmm.hyperv.partition import Partition
from pyvmm.hyperv.tlfs import HypercallStatus
from pyvmm.tap import Fields, Item
from pyvmm.vmbus import events as trace
from pyvmm.vmbus import protocol
from pyvmm.vmbus.protocol import MessageType, Version
from pyvmm.vmbus.states import Post
from pyvmm.vmbus.timers import Scheduler

RECEIVE_QUEUE_LIMIT = 512
"""Limit of incoming messages not served yet: those of a GPADL of 47 MiB, as uio_hv_generic's. When the queue is full
the answer is "insufficient buffers", and Linux retries after a while; QEMU holds 16."""
OUTBOX_LIMIT = 64
"""Limit of outgoing messages not in the guest's slot yet. Above it no incoming message is served, which bounds the
memory used for a guest that sends requests and never reads."""
MESSAGES_PER_STEP = 16
"""Limit of messages served per step."""
STEP_SECONDS = 0.005
"""Seconds after which a step ends as well: opening a channel with the largest rings there are (32 MiB) costs 5 ms."""

_CONNECTION_MESSAGES = (MessageType.INITIATE_CONTACT, MessageType.UNLOAD)


class Incoming(NamedTuple):
    """A message of the guest: its type, connection, and all of its bytes."""

    kind: int
    connection_id: int
    payload: bytes


class Mailbox:
    """The queues of both directions. All methods belong to the loop's thread, except the partition's listener.

    `receive(message)` serves one message and must not raise; refusals of the partition are counted in `refused`.
    `channel_name(relid)` names the channel for the tap.
    """

    def __init__(
        self,
        loop: Scheduler,
        partition: Partition,
        receive: Callable[[Incoming], object],
        refused: Counter[str],
        max_version: int,
        channel_name: Callable[[int], str] = lambda relid: "",
    ) -> None:
        self._tap = partition.taps.message
        self._channel_name = channel_name
        self._loop = loop
        self._partition = partition
        self._receive = receive
        self._refused = refused
        self._queue: deque[Incoming] = deque()
        self._queue_lock = threading.Lock()  # the queue and _serving, shared with vCPU threads
        self._serving = False
        self._outbox: deque[Post] = deque()
        self._in_flight = False  # the partition holds one message at a time, as in QEMU: its queue is bounded too
        self._posting = False
        self._epoch = 0  # counts calls of drop, to detect late answers for dropped messages
        self._connections = {protocol.CONTACT_CONNECTION_OLD}
        if max_version >= Version.WIN10_5_0:
            self._connections |= {protocol.CONTACT_CONNECTION, protocol.MESSAGE_CONNECTION}
        partition.listen(self._listen)

    # From the guest

    def forget_received(self) -> None:
        """Drop incoming messages that were not served yet."""
        with self._queue_lock:
            self._queue.clear()

    def _listen(self, connection_id: int, message_type: int, payload: bytes) -> int:
        """Handle HvPostMessage, on a vCPU thread. Linux retries on "insufficient buffers"; "invalid connection" on a
        contact makes it try the next version at once."""
        status, reason = HypercallStatus.SUCCESS, ""
        if connection_id not in self._connections:
            status, reason = HypercallStatus.INVALID_CONNECTION_ID, "no such connection"
        elif message_type != protocol.SYNIC_MESSAGE_TYPE:
            status, reason = HypercallStatus.INVALID_HYPERCALL_INPUT, f"message type {message_type:#x}"
        elif not protocol.MessageHeader.SIZE <= len(payload) <= protocol.MESSAGE_SIZE_MAX:
            status, reason = HypercallStatus.INVALID_HYPERCALL_INPUT, f"{len(payload)} bytes"
        else:
            kind = int.from_bytes(payload[:4], "little")
            if trace.recv_message.on:
                trace.recv_message(kind, len(payload))
            if not self._enqueue(kind, connection_id, payload):
                status, reason = HypercallStatus.INSUFFICIENT_BUFFERS, "queue full"
        if status and trace.hypercall_refused.on:
            trace.hypercall_refused(connection_id, status, reason)
        return status

    def _enqueue(self, kind: int, connection_id: int, payload: bytes) -> bool:
        with self._queue_lock:
            if kind in _CONNECTION_MESSAGES:
                self._queue.clear()  # obsolete now, and a crashed guest's contact must not find a full queue
            elif len(self._queue) >= RECEIVE_QUEUE_LIMIT:
                return False
            self._queue.append(Incoming(kind, connection_id, payload))
            if self._serving:
                return True
            self._serving = True
        self._loop.post(self._serve)
        return True

    def _serve(self) -> None:
        """Serve queued messages, MESSAGES_PER_STEP or STEP_SECONDS at most, while the guest reads its answers."""
        until = monotonic() + STEP_SECONDS
        for _ in range(MESSAGES_PER_STEP):
            with self._queue_lock:
                if not self._queue or self._serving_suspended():
                    self._serving = False
                    return
                message = self._queue.popleft()
            if self._tap.on:
                self._tap_received(message)
            else:
                self._receive(message)
            if monotonic() > until:
                break
        self._loop.post(self._serve)

    def _tap_received(self, message: Incoming) -> None:
        def deliver(item: Item) -> None:
            kind = int.from_bytes(item.data[:4], "little")
            self._receive(Incoming(kind, int(item.fields["connection"]), item.data))

        name = self._channel_name(protocol.relid_of(message.payload))
        fields: Fields = {"connection": message.connection_id, "channel": name}
        self._tap.cross("in", message.payload, fields, deliver)

    def _serving_suspended(self) -> bool:
        return len(self._outbox) >= OUTBOX_LIMIT and self._queue[0].kind not in _CONNECTION_MESSAGES

    # To the guest

    def post(self, message: Post) -> None:
        """Queue a message for the guest."""
        if self._tap.on:
            fields: Fields = {
                "vp": message.vp,
                "synic_type": message.synic_type,
                "relid": message.relid,
                "channel": self._channel_name(message.relid),
            }
            self._tap.cross("out", message.payload, fields, lambda item: self._queue_tapped(message, item))
        else:
            self._queue_message(message)

    def _queue_tapped(self, message: Post, item: Item) -> None:
        if len(item.data) > protocol.MESSAGE_SIZE_MAX:
            raise HostError(f"a message of {len(item.data)} bytes: a slot takes {protocol.MESSAGE_SIZE_MAX}")
        vp, synic_type = int(item.fields["vp"]), int(item.fields["synic_type"]) & 0xFFFFFFFF
        self._queue_message(replace(message, vp=vp, synic_type=synic_type, payload=item.data))

    def _queue_message(self, message: Post) -> None:
        self._outbox.append(message)
        self._flush()

    def drop(self) -> None:
        """Drop outgoing messages that are not in the guest's slot yet."""
        self._partition.drop_messages(protocol.SINT)
        self._outbox.clear()
        self._in_flight = False
        self._epoch += 1

    def _flush(self) -> None:
        """Pass the next message to the partition, once the previous one is in the slot."""
        if self._posting:
            return
        self._posting = True
        try:
            while self._outbox and not self._in_flight:
                self._post_to_slot(self._outbox.popleft())
        finally:
            self._posting = False

    def _post_to_slot(self, message: Post) -> None:
        if message.event is not None and message.event.on:
            message.event(*message.values)
        if trace.post_msg.on:
            trace.post_msg(int.from_bytes(message.payload[:4], "little"), len(message.payload))
        self._in_flight = True
        done = partial(self._posted, self._epoch)
        self._partition.post_message(message.vp, protocol.SINT, message.synic_type, message.payload, done)

    def _posted(self, epoch: int, status: int) -> None:
        """Handle the partition's status of a message."""
        if trace.msg_cb.on:
            trace.msg_cb(status)
        if status == -errno.EAGAIN or epoch != self._epoch:
            return  # still queued, or given up since
        if status:
            self._refused["POST"] += 1
        self._in_flight = False
        self._flush()
        self._serve_on()

    def _serve_on(self) -> None:
        """Resume serving after the guest has read a message, if serving was suspended for that."""
        with self._queue_lock:
            if self._serving or not self._queue or self._serving_suspended():
                return
            self._serving = True
        self._loop.post(self._serve)
