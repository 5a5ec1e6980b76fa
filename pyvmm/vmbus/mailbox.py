"""The mailbox of a machine's VMBus: the guest's messages that wait to be served, and ours that wait for its slot.

Source: Linux drivers/hv/hv.c, hv_post_message() for the statuses a guest understands; QEMU hw/hyperv/vmbus.c.

    vCPU thread   HvPostMessage -> _listen: checks, queue, status
    loop thread   _serve -> receive(message), as long as the guest reads what it is answered
                  post -> partition.post_message, one at a time
"""

from __future__ import annotations

import errno
import threading
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import NamedTuple

from pyvmm.hyperv.partition import Partition
from pyvmm.hyperv.tlfs import HypercallStatus
from pyvmm.vmbus import events as trace
from pyvmm.vmbus import protocol
from pyvmm.vmbus.protocol import MessageType, Version
from pyvmm.vmbus.states import Post
from pyvmm.vmbus.timers import Scheduler

RECEIVE_QUEUE_LIMIT = 64
"""Messages taken from the guest and not served yet. A longer queue is answered with "insufficient buffers", and Linux
tries again after a while; QEMU holds 16."""
OUTBOX_LIMIT = 64
"""Messages to the guest that are not in its slot yet. Above it nothing more of the guest is served, so that one which
asks and never reads costs us no more than this."""
MESSAGES_PER_STEP = 16
"""Messages served before the loop gets a turn."""
STEP_SECONDS = 0.005
"""Seconds after which a step ends as well: opening a channel with the largest rings there are (32 MiB) costs 5 ms."""

_STARTS_AFRESH = (MessageType.INITIATE_CONTACT, MessageType.UNLOAD)


class Incoming(NamedTuple):
    """A message of the guest: its type, the connection it came over, and all of its bytes."""

    kind: int
    connection_id: int
    payload: bytes


class Mailbox:
    """Both queues. All methods belong to the loop's thread, but for the listener, which the partition calls.

    `receive(message)` serves one message and must not raise; refusals of the partition are counted in `refused`.
    """

    def __init__(
        self,
        loop: Scheduler,
        partition: Partition,
        receive: Callable[[Incoming], object],
        refused: Counter[str],
        max_version: int,
    ) -> None:
        self._loop = loop
        self._partition = partition
        self._receive = receive
        self._refused = refused
        self._queue: deque[Incoming] = deque()
        self._queue_lock = threading.Lock()  # the queue and _serving, shared with vCPU threads
        self._serving = False
        self._outbox: deque[Post] = deque()
        self._in_flight = False  # one message at a time is with the partition, as in QEMU: its queue is bounded too
        self._posting = False
        self._epoch = 0  # counts calls of drop, to tell late answers for dropped messages
        self._connections = {protocol.CONTACT_CONNECTION_OLD}
        if max_version >= Version.WIN10_5_0:
            self._connections |= {protocol.CONTACT_CONNECTION, protocol.MESSAGE_CONNECTION}
        partition.listen(self._listen)

    # From the guest

    def forget_received(self) -> None:
        """Drop the messages that were not served yet."""
        with self._queue_lock:
            self._queue.clear()

    def _listen(self, connection_id: int, message_type: int, payload: bytes) -> int:
        """HvPostMessage, on a vCPU thread. Linux tries again on "insufficient buffers"; "invalid connection" on a
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
            if kind in _STARTS_AFRESH:
                self._queue.clear()  # moot now, and a crashed guest must not find the door shut
            elif len(self._queue) >= RECEIVE_QUEUE_LIMIT:
                return False
            self._queue.append(Incoming(kind, connection_id, payload))
            if self._serving:
                return True
            self._serving = True
        self._loop.post(self._serve)
        return True

    def _serve(self) -> None:
        """Serve what is queued, MESSAGES_PER_STEP or STEP_SECONDS at most, as long as the guest reads its answers."""
        until = monotonic() + STEP_SECONDS
        for _ in range(MESSAGES_PER_STEP):
            with self._queue_lock:
                if not self._queue or self._held():
                    self._serving = False
                    return
                message = self._queue.popleft()
            self._receive(message)
            if monotonic() > until:
                break
        self._loop.post(self._serve)

    def _held(self) -> bool:
        return len(self._outbox) >= OUTBOX_LIMIT and self._queue[0].kind not in _STARTS_AFRESH

    # To the guest

    def post(self, message: Post) -> None:
        """Send a message once all before it are out."""
        self._outbox.append(message)
        self._flush()

    def drop(self) -> None:
        """Forget what the guest has not seen yet."""
        self._partition.drop_messages(protocol.SINT)
        self._outbox.clear()
        self._in_flight = False
        self._epoch += 1

    def _flush(self) -> None:
        """Hand the partition the next message, once the one before lies in the slot."""
        if self._posting:
            return
        self._posting = True
        try:
            while self._outbox and not self._in_flight:
                self._hand_over(self._outbox.popleft())
        finally:
            self._posting = False

    def _hand_over(self, message: Post) -> None:
        if message.event is not None and message.event.on:
            message.event(*message.values)
        if trace.post_msg.on:
            trace.post_msg(int.from_bytes(message.payload[:4], "little"), len(message.payload))
        self._in_flight = True
        done = partial(self._posted, self._epoch)
        self._partition.post_message(message.vp, protocol.SINT, protocol.SYNIC_MESSAGE_TYPE, message.payload, done)

    def _posted(self, epoch: int, status: int) -> None:
        """The partition tells what became of a message."""
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
        """The guest read something: serve on if that was what we waited for."""
        with self._queue_lock:
            if self._serving or not self._queue or self._held():
                return
            self._serving = True
        self._loop.post(self._serve)
