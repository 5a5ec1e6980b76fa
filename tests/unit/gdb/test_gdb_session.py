"""The debugger's session: one packet in, one reply out."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from pyvmm.gdb import registers
from pyvmm.gdb.packets import PACKET_SIZE, PacketReader
from pyvmm.gdb.session import Session
from pyvmm.gdb.target import CONTINUE, Kind, Signal, Step, Stop
from tests.support.fake_target import BASE, FakeTarget


class Talk:
    """A session in no-ack mode, and the packets that it has sent."""

    def __init__(self) -> None:
        self.target = FakeTarget()
        self.sent = bytearray()
        self.closed: list[str] = []
        self.session = Session(self.target, self.sent.extend, self.closed.append)
        self.session.begin()
        assert self("QStartNoAckMode") == "OK"

    def __call__(self, packet: str | bytes) -> str:
        """The reply, decoded; several are joined by spaces, none is empty."""
        self.sent.clear()
        self.session.handle(packet.encode() if isinstance(packet, str) else packet)
        return self.taken()

    def taken(self) -> str:
        packets = [each for each in PacketReader().feed(bytes(self.sent)) if isinstance(each, bytes)]
        self.sent.clear()
        return " ".join(each.decode("latin-1") for each in packets)


@pytest.fixture
def talk() -> Talk:
    return Talk()


def test_packets_are_acknowledged_until_the_debugger_asks_for_none() -> None:
    target, sent = FakeTarget(), bytearray()
    session = Session(target, sent.extend, lambda reason: None)
    session.begin()
    session.handle("damaged")
    session.handle(b"qC")
    session.handle("nak")
    assert sent == b"-+$QC1#c5$QC1#c5"
    session.handle(b"QStartNoAckMode")
    sent.clear()
    session.handle("damaged")
    session.handle(b"qC")
    assert sent == b"$QC1#c5"


def test_registers_are_described_in_the_order_of_the_g_packet(talk: Talk) -> None:
    text, at = "", 0
    while True:
        part = talk(f"qXfer:features:read:target.xml:{at:x},ffb")
        text, at = text + part[1:], at + len(part) - 1
        if part[0] == "l":
            break
    tree = ElementTree.fromstring(text)
    found = [(each.get("name"), each.get("bitsize")) for each in tree.iter("reg")]
    assert found == [(each.name, str(each.bits)) for each in registers.TABLE]
    assert [each.get("regnum") for each in tree.iter("reg")] == [str(n) for n in range(len(found))]
    known = {each.get("id") for each in tree.iter() if each.get("id")}
    builtin = {"int", "int32", "int64", "code_ptr", "data_ptr", "i387_ext", "uint128"}
    assert {str(each.get("type")) for each in tree.iter("reg")} <= known | builtin
    assert len(talk("g")) == 2 * sum(each.size for each in registers.TABLE)
    assert talk("qXfer:features:read:other.xml:0,100") == "E00"
    assert talk("qXfer:auxv:read::0,100") == ""


def test_registers_of_the_selected_vcpu_are_read_and_set(talk: Talk) -> None:
    assert talk("Hg2") == "OK"
    number = registers.NUMBER["rip"]
    assert talk(f"P{number:x}=1122334455667788") == "OK"
    assert talk.target.values[1]["rip"] == 0x8877665544332211
    assert talk(f"p{number:x}") == "1122334455667788"
    assert talk("Hg1") == "OK"
    assert talk(f"p{number:x}") == "00" * 8
    everything = talk("g")
    assert talk("G" + "05" + everything[2:]) == "OK"
    assert talk.target.values[0]["rax"] == 5
    assert talk(f"P{registers.NUMBER['cs']:x}=10000000").startswith("E")


def test_memory_is_read_and_written(talk: Talk) -> None:
    assert talk(f"M{BASE:x},3:0a0b0c") == "OK"
    assert talk(b"X%x,2:\x0d\x0e" % (BASE + 3)) == "OK"
    assert talk(b"X%x,0:" % BASE) == "OK"
    assert talk(f"m{BASE:x},5") == "0a0b0c0d0e"
    assert talk("m10,4") == "E0e"
    assert talk(f"M{BASE - 1:x},1:00") == "E0e"
    assert len(talk(f"m{BASE:x},ffffffff")) <= PACKET_SIZE


@pytest.mark.parametrize(
    "packet",
    ["m", "m1", "mx,1", "m-1,1", f"M{BASE:x},3:00", f"M{BASE:x},1:0", "P=", "Pffff=00", "P10=00", "pffff", "G00",
     "Hg3", "Hg", "Hx1", "T9", "Z0,1", "Zx,1,1", "vCont;x", "vCont;", "vCont;c:9", "vCont;r1", "c1000", "s1",
     "qThreadExtraInfo,9", "qThreadExtraInfo,", "qRcmd,0", "qRcmd,zz", "qXfer:features:read:target.xml:0"],
)  # fmt: skip
def test_a_malformed_packet_is_an_error_and_changes_nothing(talk: Talk, packet: str) -> None:
    assert talk(packet).startswith("E")
    assert talk.target.calls == ["attach"]
    assert talk("qC") == "QC1"


@pytest.mark.parametrize("packet", ["", "vMustReplyEmpty", "qTStatus", "!", "R00", "Z9,1,1", "bs", "\xff"])
def test_what_is_not_supported_gets_an_empty_reply(talk: Talk, packet: str) -> None:
    talk.session.handle(packet.encode("latin-1"))
    assert talk.taken() == ""
    assert talk("qC") == "QC1"


def test_breakpoints_are_passed_on(talk: Talk) -> None:
    assert talk("Z0,ffffffff81000000,1") == "OK"
    assert talk("z2,1000,8") == "OK"
    assert talk("Z2,1000,40") == "E1c"
    assert talk.target.calls[1:] == [
        ("insert", Kind.SOFTWARE, 0xFFFFFFFF81000000, 1),
        ("remove", Kind.WRITE, 0x1000, 8),
    ]


def test_threads_are_the_vcpus(talk: Talk) -> None:
    assert (talk("qfThreadInfo"), talk("qsThreadInfo")) == ("m1,2", "l")
    assert (talk("T2"), talk("qAttached")) == ("OK", "1")
    assert bytes.fromhex(talk("qThreadExtraInfo,2")) == b"vCPU 1"


@pytest.mark.parametrize(
    ("packet", "actions"),
    [
        ("vCont;c", {0: CONTINUE, 1: CONTINUE}),
        ("vCont;s:2;c", {1: Step(), 0: CONTINUE}),
        ("vCont;S05:1", {0: Step()}),
        ("vCont;r1000,1010:1;c:-1", {0: Step(0x1000, 0x1010), 1: CONTINUE}),
        ("c", {0: CONTINUE, 1: CONTINUE}),
        ("C05", {0: CONTINUE, 1: CONTINUE}),
        ("s", {0: Step()}),
    ],
)
def test_vcpus_are_resumed_as_asked(talk: Talk, packet: str, actions: object) -> None:
    assert talk(packet) == ""
    assert talk.target.calls[-1] == actions


@pytest.mark.parametrize(
    ("stop", "words"),
    [
        (Stop(1, reason="swbreak", address=0x77), ["T05", "thread:2;", "swbreak:;"]),
        (Stop(0, reason="watch", address=0x77), ["T05", "thread:1;", "watch:77;"]),
        (Stop(0, Signal.ABRT), ["T06", "thread:1;"]),
    ],
)
def test_a_stop_is_reported_with_its_vcpu_and_reason(talk: Talk, stop: Stop, words: list[str]) -> None:
    talk.target.values[stop.vcpu]["rip"] = 0x1234
    talk("vCont;c")
    talk.target.stopped(stop)
    reply = talk.taken()
    for word in words:
        assert word in reply
    assert f"{registers.NUMBER['rip']:02x}:3412000000000000;" in reply
    assert talk("?") == reply
    assert talk("qC") == f"QC{stop.vcpu + 1}"


def test_ctrl_c_stops_a_running_guest_and_means_nothing_to_a_stopped_one(talk: Talk) -> None:
    talk.session.handle("interrupt")
    assert talk.taken() == ""
    talk("vCont;c")
    talk.session.handle("interrupt")
    assert talk.taken().startswith("T02")


def test_a_packet_for_a_running_guest_stops_it_first(talk: Talk) -> None:
    talk("vCont;c")
    stop, reply = talk("qC").split()
    assert stop.startswith("T02")
    assert reply == "QC2"


def test_a_stop_while_the_debugger_holds_the_guest_is_not_sent(talk: Talk) -> None:
    talk.target.stopped(Stop(0))  # `monitor system_reset`
    assert talk.taken() == ""


def test_monitor_commands_answer_in_pieces(talk: Talk) -> None:
    first, last = talk("qRcmd," + b"hi".hex()).split()
    assert (bytes.fromhex(first[1:]), last) == (b"you said hi\n", "OK")
    *pieces, last = talk("qRcmd," + b"long".hex()).split()
    assert (b"".join(bytes.fromhex(each[1:]) for each in pieces), last) == (b"x" * 100_000, "OK")
    assert all(len(each) <= PACKET_SIZE for each in pieces)


@pytest.mark.parametrize(
    ("packet", "calls"), [("D", ["detach"]), ("k", ["detach", "kill"]), ("vKill;1", ["detach", "kill"])]
)
def test_the_debugger_leaves_or_kills_the_machine(talk: Talk, packet: str, calls: list[str]) -> None:
    assert talk(packet) == ("" if packet == "k" else "OK")
    assert (talk.target.calls[1:], len(talk.closed)) == (calls, 1)
    talk.session.disconnected()
    assert talk.target.calls[1:] == calls, "once"


def test_a_lost_debugger_leaves_the_machine_running(talk: Talk) -> None:
    talk("vCont;s:1")
    talk.session.disconnected()
    assert talk.target.calls[-1] == "detach"


def test_the_end_of_the_machine_is_the_program_s(talk: Talk) -> None:
    talk("vCont;c")
    talk.target.ended(0)
    assert talk.taken() == "W00"
    assert talk.closed
    assert talk("g").startswith("E")
