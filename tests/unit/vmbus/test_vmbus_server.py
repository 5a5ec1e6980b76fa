"""The server's state machines: each message in each state, and what is answered."""

from __future__ import annotations

import random
from uuid import UUID

import pytest

from pyvmm.memory import GuestMemory
from pyvmm.vmbus import protocol as p
from pyvmm.vmbus.offer import Offer
from pyvmm.vmbus.protocol import MessageType, Status, Version
from pyvmm.vmbus.server import Server
from pyvmm.vmbus.states import (
    Action,
    BusConnected,
    CloseRings,
    Contacted,
    Disconnected,
    DropMessages,
    Gone,
    Hidden,
    Offered,
    Open,
    Opened,
    OpenRings,
    Post,
    Rescinded,
    Serving,
)
from tests.support.fake_guest import gpadl_messages

TYPE = UUID("525074dc-8985-46e2-8057-a307dc18a502")
PAGES = [n << 12 for n in range(16, 26)]


def offer(number: int = 0) -> Offer:
    return Offer(f"device{number}", TYPE, UUID(int=number + 1))


class Harness:
    """A server, and what it wants done."""

    def __init__(self, **how: int) -> None:
        self.server = Server(GuestMemory.flat(1 << 20), **how)
        self.connection = 5

    def actions(self) -> list[Action]:
        taken = list(self.server.actions)
        self.server.actions.clear()
        return taken

    def say(self, message: p.Message | bytes, connection: int | None = None) -> list[Action]:
        data = message if isinstance(message, bytes) else message.build()
        self.server.receive(data, self.connection if connection is None else connection)
        return self.actions()

    def contact(
        self, version: int = Version.WIN10_5_3, *, vp: int = 0, sint: int = 2, connection: int = 0
    ) -> list[Action]:
        connection = connection or (4 if version >= 0x50000 else 1)
        self.connection = 5 if version >= 0x50000 else 1
        return self.say(p.InitiateContact(version, vp, sint, 0, 0), connection)

    def serve(self, version: int = Version.WIN10_5_3, devices: int = 1) -> None:
        for number in range(devices):
            self.server.add(offer(number))
        self.contact(version)
        self.say(p.RequestOffers())

    def lend(self, relid: int = 1, handle: int = 9) -> list[Action]:
        made: list[Action] = []
        for message in gpadl_messages(relid, handle, PAGES):
            made += self.say(message)
        return made

    def open(self, relid: int = 1, handle: int = 9, *, split: int = 5, vp: int = 0) -> list[Action]:
        made = self.say(p.OpenChannel(relid, relid, handle, vp, split, b""))
        for action in list(made):
            if isinstance(action, OpenRings):
                self.server.open_done(action.channel, 0)
        return made + self.actions()

    def opened(self, **how: int) -> Harness:
        self.serve(**how)
        self.lend()
        self.open()
        return self


def messages(actions: list[Action]) -> list[tuple[int, int]]:
    """(VP, message type) of what is posted."""
    return [(a.vp, int.from_bytes(a.payload[:4], "little")) for a in actions if isinstance(a, Post)]


def types(actions: list[Action]) -> list[int]:
    return [kind for _, kind in messages(actions)]


def last_status(actions: list[Action]) -> int:
    return int.from_bytes([a for a in actions if isinstance(a, Post)][-1].payload[-4:], "little")


@pytest.fixture
def harness() -> Harness:
    return Harness()


@pytest.mark.parametrize("kind", [k for k in p.GUEST_MESSAGES.values() if k.SINCE > Version.WIN8])
def test_a_message_newer_than_the_version_agreed_on_is_refused(harness: Harness, kind: type[p.Message]) -> None:
    harness.serve(max(v for v in Version if v < kind.SINCE))
    assert harness.say(kind.parse(bytes(240))) == []
    assert harness.server.refused[kind.TYPE.name] == 1


# Contact


@pytest.mark.parametrize("version", [v for v in Version if v <= p.LATEST_VERSION])
def test_served_version_is_accepted(harness: Harness, version: int) -> None:
    drop, connected, post = harness.contact(version)
    assert isinstance(drop, DropMessages) and isinstance(connected, BusConnected) and isinstance(post, Post)
    response = p.VersionResponse.parse(post.payload)
    assert (response.supported, response.connection_id) == (1, 5 if version >= 0x50000 else version)
    assert harness.server.state == Contacted(version, 0)


@pytest.mark.parametrize("version", [0, 13, 0x10001, 0x20003, 0x50004, 0x60000, 0xFFFFFFFF])
def test_other_version_is_refused_with_an_answer(harness: Harness, version: int) -> None:
    post = harness.contact(version)[-1]
    assert isinstance(post, Post)
    assert p.VersionResponse.parse(post.payload).supported == 0
    assert harness.server.state == Disconnected()
    assert harness.server.refused["INITIATE_CONTACT"] == 1


def test_version_6_is_served_on_request_with_no_features() -> None:
    post = Harness(max_version=Version.COPPER).contact(Version.COPPER, sint=0xFF << 32 | 2)[-1]
    assert isinstance(post, Post)
    response = p.VersionResponseFeatures.parse(post.payload)
    assert (len(post.payload), response.supported, response.feature_flags) == (20, 1, 0)


def test_newer_version_than_allowed_is_refused() -> None:
    post = Harness(max_version=Version.WIN10).contact(Version.WIN10_4_1)[-1]
    assert isinstance(post, Post)
    assert p.VersionResponse.parse(post.payload).supported == 0


@pytest.mark.parametrize(("version", "vp"), [(Version.WIN8_1, 1), (Version.WIN10_5_3, 1), (Version.WIN8, 0)])
def test_answers_go_to_the_vp_of_the_contact_since_3_0(version: int, vp: int) -> None:
    assert messages(Harness(vp_count=2).contact(version, vp=1)) == [(vp, MessageType.VERSION_RESPONSE)]


@pytest.mark.parametrize(
    "how",
    [{"vp": 1}, {"sint": 3}, {"connection": 1}, {"version": Version.WIN10, "connection": 4}, {"vp": 0xFFFFFFFF}],
)
def test_contact_that_cannot_be_obeyed_is_refused_on_vp_0(harness: Harness, how: dict[str, int]) -> None:
    made = harness.contact(**how)
    assert messages(made) == [(0, MessageType.VERSION_RESPONSE)]
    assert harness.server.state == Disconnected()


def test_new_contact_drops_everything() -> None:
    harness = Harness().opened()
    made = harness.contact()
    assert [type(a) for a in made] == [DropMessages, CloseRings, BusConnected, Post]
    assert not harness.server.gpadls.lists
    assert isinstance(harness.server.channels[1].state, Hidden)


def test_new_contact_answers_no_teardown_of_the_old_guest() -> None:
    harness = Harness().opened()
    harness.say(p.GpadlTeardown(1, 9))
    assert types(harness.contact()) == [MessageType.VERSION_RESPONSE]


# Offers


def test_offers_come_on_request_and_end_with_a_terminator(harness: Harness) -> None:
    harness.server.add(offer(0))
    harness.server.add(offer(1))
    harness.contact()
    made = harness.say(p.RequestOffers())
    assert types(made) == [MessageType.OFFER, MessageType.OFFER, MessageType.ALL_OFFERS_DELIVERED]
    assert isinstance(made[1], Post)
    second = p.OfferChannel.parse(made[1].payload)
    assert (second.relid, second.connection_id, second.instance) == (2, 18, UUID(int=2))
    assert (second.monitor_allocated, second.dedicated) == (0, 1)


def test_second_request_is_refused(harness: Harness) -> None:
    harness.serve()
    assert harness.say(p.RequestOffers()) == []
    assert harness.server.refused["REQUEST_OFFERS"] == 1


def test_device_added_later_is_offered_at_once(harness: Harness) -> None:
    harness.serve()
    harness.server.add(offer(7))
    assert types(harness.actions()) == [MessageType.OFFER]


def test_device_added_before_the_request_waits_for_it(harness: Harness) -> None:
    harness.contact()
    harness.server.add(offer(7))
    assert harness.actions() == []


def test_devices_keep_their_relid_over_a_reset(harness: Harness) -> None:
    first, second = harness.server.add(offer(0)), harness.server.add(offer(1))
    harness.server.remove(first)
    harness.server.reset("test")
    assert (second.relid, harness.server.add(offer(2)).relid) == (2, 1)


@pytest.mark.parametrize("message", [p.RequestOffers(), p.CloseChannel(1), p.RelidReleased(1)])
def test_nothing_is_served_before_contact(harness: Harness, message: p.Message) -> None:
    assert harness.say(message) == []
    assert harness.server.refused.total() == 1


def test_message_over_another_connection_is_refused(harness: Harness) -> None:
    harness.contact()
    assert harness.say(p.RequestOffers(), connection=4) == []


# Rescind


def test_rescinded_relid_is_free_only_after_release(harness: Harness) -> None:
    harness.serve()
    gone = harness.server.channels[1]
    harness.server.remove(gone)
    assert types(harness.actions()) == [MessageType.RESCIND]
    assert harness.server.add(offer(5)).relid == 2
    harness.say(p.RelidReleased(1))
    assert harness.server.add(offer(6)).relid == 1


def test_same_instance_is_offered_again_only_after_release(harness: Harness) -> None:
    harness.serve()
    harness.server.remove(harness.server.channels[1])
    again = harness.server.add(offer(0))
    assert types(harness.actions()) == [MessageType.RESCIND]
    assert types(harness.say(p.RelidReleased(1))) == [MessageType.OFFER]
    assert (again.relid, again.state) == (1, Offered())


def test_rescind_closes_and_release_drops_what_was_lent() -> None:
    harness = Harness().opened()
    harness.server.remove(harness.server.channels[1])
    assert [type(a) for a in harness.actions()] == [CloseRings, Post]
    assert harness.say(p.CloseChannel(1)) == []
    assert harness.server.refused.total() == 0
    assert harness.server.gpadls.lists
    harness.say(p.RelidReleased(1))
    assert not harness.server.gpadls.lists


def test_open_and_lend_for_a_rescinded_channel_are_answered_with_failure() -> None:
    harness = Harness().opened()
    harness.server.remove(harness.server.channels[1])
    harness.actions()
    made = harness.lend(handle=10)
    assert types(made) == [MessageType.GPADL_CREATED] and last_status(made)
    made = harness.open(handle=9)
    assert types(made) == [MessageType.OPEN_RESULT] and last_status(made)


def test_device_the_guest_never_saw_goes_quietly(harness: Harness) -> None:
    harness.contact()
    harness.server.remove(harness.server.add(offer(0)))
    assert harness.actions() == [] and not harness.server.channels


def test_waiting_device_can_be_removed(harness: Harness) -> None:
    harness.serve()
    harness.server.remove(harness.server.channels[1])
    harness.server.remove(harness.server.add(offer(0)))
    harness.actions()
    assert [type(each) for each in harness.say(p.RelidReleased(1))] == [Gone]


def test_new_contact_frees_rescinded_relids_and_places_who_waited(harness: Harness) -> None:
    harness.serve()
    harness.server.remove(harness.server.channels[1])
    again = harness.server.add(offer(0))
    harness.contact()
    assert (again.relid, list(harness.server.channels)) == (1, [1])


@pytest.mark.parametrize("relid", [0, 1, 2, 2048, 0xFFFFFFFF])
def test_release_of_a_channel_not_rescinded_is_refused(harness: Harness, relid: int) -> None:
    harness.serve()
    assert harness.say(p.RelidReleased(relid)) == []
    assert harness.server.refused["RELID_RELEASED"] == 1


# Open and close


def test_open_makes_rings_then_answers_then_opens_the_device(harness: Harness) -> None:
    harness.serve()
    assert types(harness.lend()) == [MessageType.GPADL_CREATED]
    rings, result, opened = harness.open()
    assert isinstance(rings, OpenRings) and isinstance(result, Post) and isinstance(opened, Opened)
    assert (rings.send_pages, rings.receive_pages) == (PAGES[:5], PAGES[5:])
    assert p.OpenResult.parse(result.payload).status == 0
    assert harness.server.channels[1].state == Open(9, 0)


@pytest.mark.parametrize(
    ("relid", "handle", "split", "vp"),
    [(2, 9, 5, 0), (1, 8, 5, 0), (1, 9, 1, 0), (1, 9, 9, 0), (1, 9, 0, 0), (1, 9, 0xFFFFFFFF, 0), (1, 9, 5, 1)],
)
def test_impossible_open_is_answered_with_failure(
    harness: Harness, relid: int, handle: int, split: int, vp: int
) -> None:
    harness.serve()
    harness.lend()
    made = harness.open(relid, handle, split=split, vp=vp)
    assert types(made) == [MessageType.OPEN_RESULT] and last_status(made) == Status.INVALID_PARAMETER
    assert harness.server.channels[1].state == Offered()


def test_second_open_is_answered_with_failure_and_changes_nothing() -> None:
    harness = Harness().opened()
    made = harness.open()
    assert types(made) == [MessageType.OPEN_RESULT] and last_status(made)
    assert isinstance(harness.server.channels[1].state, Open)


def test_rings_that_cannot_be_made_are_answered_with_failure(harness: Harness) -> None:
    harness.serve()
    harness.lend()
    (rings,) = harness.say(p.OpenChannel(1, 1, 9, 0, 5, b""))
    assert isinstance(rings, OpenRings)
    harness.server.open_done(rings.channel, Status.UNSUCCESSFUL)
    assert last_status(harness.actions()) == Status.UNSUCCESSFUL
    assert rings.channel.state == Offered()


def test_closed_channel_can_be_opened_again() -> None:
    harness = Harness().opened()
    assert [type(a) for a in harness.say(p.CloseChannel(1))] == [CloseRings]
    assert types(harness.say(p.GpadlTeardown(1, 9))) == [MessageType.GPADL_TORNDOWN]
    harness.lend(handle=10)
    assert any(isinstance(a, Opened) for a in harness.open(handle=10))


def test_teardown_in_use_is_answered_after_the_close() -> None:
    harness = Harness().opened()
    assert harness.say(p.GpadlTeardown(1, 9)) == []
    made = harness.say(p.CloseChannel(1))
    assert [type(a) for a in made] == [CloseRings, Post] and types(made) == [MessageType.GPADL_TORNDOWN]


@pytest.mark.parametrize(("relid", "handle"), [(1, 8), (2, 9), (0, 0)])
def test_teardown_of_a_list_not_lent_is_answered_for_linux_waits_and_counted(
    harness: Harness, relid: int, handle: int
) -> None:
    harness.serve()
    harness.lend()
    (answer,) = harness.say(p.GpadlTeardown(relid, handle))
    assert isinstance(answer, Post) and p.GpadlTorndown.parse(answer.payload).gpadl == handle
    assert harness.server.refused["GPADL_TEARDOWN"] == 1
    assert list(harness.server.gpadls.lists) == [(1, 9)]


def test_two_channels_may_use_the_same_id_for_their_lists(harness: Harness) -> None:
    harness.serve(devices=2)
    for relid in (1, 2):
        assert last_status(harness.lend(relid=relid)) == 0
    assert last_status(harness.lend(relid=2)) == Status.INVALID_PARAMETER
    harness.say(p.GpadlTeardown(1, 9))
    assert list(harness.server.gpadls.lists) == [(2, 9)]


def test_duplicate_gpadl_is_answered_with_failure(harness: Harness) -> None:
    harness.serve()
    harness.lend()
    made = harness.lend()
    assert types(made) == [MessageType.GPADL_CREATED] and last_status(made)


@pytest.mark.parametrize("relid", [0, 2, 2047, 4096])
def test_close_of_a_channel_that_is_not_there_is_refused(harness: Harness, relid: int) -> None:
    harness.serve()
    assert harness.say(p.CloseChannel(relid)) == []
    assert harness.server.refused["CLOSE"] == 1


def test_close_of_a_closed_channel_is_refused(harness: Harness) -> None:
    harness.serve()
    harness.say(p.CloseChannel(1))
    assert harness.server.refused["CLOSE"] == 1


# Modify, unload, hvsock


def test_modify_moves_events_and_is_answered_since_5_3() -> None:
    harness = Harness(vp_count=2).opened()
    made = harness.say(p.ModifyChannel(1, 1))
    assert types(made) == [MessageType.MODIFY_CHANNEL_RESPONSE] and last_status(made) == 0
    assert harness.server.channels[1].state == Open(9, 1)


@pytest.mark.parametrize(("version", "vp"), [(Version.WIN10_5_2, 1), (Version.WIN10_4_1, 1), (Version.WIN10, 0)])
def test_modify_before_5_3_is_silent_and_before_4_1_refused(version: int, vp: int) -> None:
    harness = Harness(vp_count=2).opened(version=version)
    assert harness.say(p.ModifyChannel(1, 1)) == []
    assert harness.server.channels[1].state == Open(9, vp)


@pytest.mark.parametrize(("relid", "vp"), [(1, 2), (2, 0), (1, 0xFFFFFFFE)])
def test_impossible_modify_is_answered_with_failure(relid: int, vp: int) -> None:
    harness = Harness(vp_count=2).opened()
    made = harness.say(p.ModifyChannel(relid, vp))
    assert types(made) == [MessageType.MODIFY_CHANNEL_RESPONSE] and last_status(made)


def test_unload_closes_all_and_is_answered_last() -> None:
    harness = Harness().opened()
    made = harness.say(p.Unload())
    assert [type(a) for a in made] == [DropMessages, CloseRings, Post]
    assert types(made) == [MessageType.UNLOAD_RESPONSE]
    assert harness.server.state == Disconnected()


def test_unload_is_answered_even_when_not_connected(harness: Harness) -> None:
    assert types(harness.say(p.Unload(), connection=1)) == [MessageType.UNLOAD_RESPONSE]


def test_unload_is_answered_where_the_guest_wanted_its_messages() -> None:
    harness = Harness(vp_count=4)
    harness.contact(vp=3)
    assert messages(harness.say(p.Unload())) == [(3, MessageType.UNLOAD_RESPONSE)]


def test_hvsock_connection_is_refused_with_an_answer(harness: Harness) -> None:
    harness.serve()
    made = harness.say(p.TlConnectRequest(UUID(int=1), UUID(int=2)))
    assert types(made) == [MessageType.TL_CONNECT_RESULT] and last_status(made) == Status.CONNECTION_REFUSED


def test_hvsock_connection_that_is_taken_is_refused_later_if_at_all(harness: Harness) -> None:
    harness.serve()
    asked: list[tuple[UUID, UUID]] = []
    harness.server.on_connect = lambda *names: asked.append(names) is None
    assert types(harness.say(p.TlConnectRequest(UUID(int=1), UUID(int=2)))) == []
    assert asked == [(UUID(int=1), UUID(int=2))]
    harness.server.refuse_connect(*asked[0])
    action = harness.server.actions.popleft()
    assert isinstance(action, Post) and p.TlConnectResult.parse(action.payload).status == Status.CONNECTION_REFUSED


def test_machine_reset_forgets_the_guest() -> None:
    harness = Harness().opened()
    harness.server.reset("machine reset")
    assert [type(a) for a in harness.actions()] == [DropMessages, CloseRings]
    assert harness.server.state == Disconnected()


# Noise


@pytest.mark.parametrize("seed", range(20))
def test_noise_never_raises_and_leaves_a_server_that_serves(seed: int) -> None:
    rng = random.Random(seed)
    harness = Harness(vp_count=2)
    harness.serve(devices=3)
    kinds = [*p.GUEST_MESSAGES, 0, 99, 0xFFFFFFFF]
    removed: list[Offer] = []
    for _ in range(400):
        body = bytearray(rng.randbytes(rng.choice([0, 4, 8, 12, 32, 140, 232])))
        for at in range(0, len(body) - 3, 4):  # small numbers reach further than noise
            if rng.random() < 0.7:
                body[at : at + 4] = rng.choice([0, 1, 2, 3, 5, 9, 16, 4096, 0x50003]).to_bytes(4, "little")
        data = rng.choice(kinds).to_bytes(4, "little") + bytes(4) + body
        for action in harness.say(data[: rng.choice([len(data), 250, 3])], rng.choice([1, 4, 5, 5, 5])):
            if isinstance(action, OpenRings):
                harness.server.open_done(action.channel, rng.choice([0, 1]))
        if rng.random() < 0.05:
            channel = rng.choice([*harness.server.channels.values()] or [None])
            if channel and not isinstance(channel.state, Rescinded):
                harness.server.remove(channel)
                removed.append(channel.offer)
        if removed and rng.random() < 0.3:
            harness.server.add(removed.pop())
    harness.contact()
    harness.say(p.RequestOffers())
    assert isinstance(harness.server.state, Serving)
