"""Fault rules as text and in TOML files: what is read, and one line with the next step for what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.errors import ConfigError
from pyvmm.faults.parse import RULES_LIMIT, TEXT_LIMIT, check_text, load_rules, parse_rules
from pyvmm.faults.points import POINTS


def only(text: str) -> object:
    (rule,) = parse_rules(text)
    return rule


def test_a_rule_has_point_action_selectors_and_counts() -> None:
    (rule,) = parse_rules("message.out:drop, type=OPEN_RESULT,channel=hv-balloon,after=2,count=3,state=a,new=b")
    assert (rule.point, rule.action, rule.match) == (
        "message.out",
        "drop",
        {"type": "OPEN_RESULT", "channel": "hv-balloon"},
    )
    assert (rule.after, rule.count, rule.state, rule.new) == (2, 3, "a", "b")


@pytest.mark.parametrize(
    "text",
    [
        "message.out:drop,type=OPEN_RESULT,count=1",
        "packet.out:change,message=UNBALLOON_REQUEST,to.range_count=2000",
        "packet.in:truncate,channel=hv-balloon,length=-8",
        "packet.out:insert,at=3,bytes=0aff,place=before",
        "event.out:delay,seconds=0.5,after=1,state=opened,new=done",
        "message.in:reorder,others=3",
        "interrupt.out:duplicate,times=20",
        "discard.out:fail,errno=ENOMEM",
        "index.out:insert,channel=hv-balloon,to.ring=guest,to.word=mask,to.value=1",
        "message.out:change,to.type=2,to.vp=1",
    ],
)
def test_a_rule_s_text_is_read_as_the_same_rule(text: str) -> None:
    (rule,) = parse_rules(text)
    assert rule.text() == text
    assert parse_rules(rule.text()) == [rule]


def test_names_stand_for_numbers_and_numbers_for_names() -> None:
    assert parse_rules("message.out:change,to.type=rescind")[0].to == {"type": 2}
    assert parse_rules("packet.out:change,to.type=INFO")[0].to == {"type": 12}
    assert parse_rules("message.out:drop,type=open-result")[0].match == {"type": "OPEN_RESULT"}
    assert parse_rules("message.out:drop,type=0x6,relid=0x10")[0].match == {"type": "6", "relid": "16"}


def test_a_named_fault_is_its_rules_with_more_selectors_and_another_count() -> None:
    (rule,) = parse_rules("packet-lost,count=5,after=1")
    assert (rule.fault, rule.count, rule.after, rule.match["channel"]) == ("packet-lost", 5, 1, "hv-balloon")
    assert parse_rules("packet-lost")[0].count == 1
    assert parse_rules("torndown-withheld,channel=heartbeat")[0].match["channel"] == "heartbeat"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "lists faults and points"),
        ("nonsense", "lists faults and points"),
        ("torndown-witheld", "did you mean 'torndown-withheld'"),
        ("message.out", "a rule is POINT:ACTION, such as message.out:drop"),
        ("message:drop", "did you mean message.in or message.out"),
        ("mesage.out:drop", "did you mean message.out"),
        ("nothing:drop", "there are hypercall.in"),
        ("message.out:dorp", "did you mean 'drop'"),
        ("message.out:", "there are pass"),
        ("message.out:fail", "fail makes no sense at message.out: there are pass"),
        ("hypercall.out:drop", "there are pass, change"),
        ("memslot.out:delay,seconds=1", "there are pass, drop"),
        ("event.in:change,to.flag=1", "there are pass"),
        ("message.out:drop,type=OPEN_RSULT", "did you mean OPEN_RESULT"),
        ("message.out:drop,type=OPEN", "there are OFFER"),  # the guest's message
        ("message.out:drop,typ=OPEN_RESULT", "did you mean 'type'"),
        ("message.out:drop,x=1", "it selects by type"),
        ("message.out:drop,OPEN_RESULT", "write it as type=OPEN_RESULT"),
        ("message.out:drop,=1", "write it as type=OPEN_RESULT"),
        ("message.out:drop,", "write it as type=OPEN_RESULT"),
        ("message.out:drop,once,once", "leave one out"),
        ("message.out:drop,once=maybe", "on or off"),
        ("message.out:drop,count=0", "it goes from 1"),
        ("message.out:drop,count=x", "write it as 5 or 0x1000"),
        ("message.out:drop,after=-1", "it goes from 0"),
        ("message.out:drop,state=", "a word of letters and digits"),
        ("message.out:drop,state=a b", "a word of letters and digits"),
        ("message.out:drop,seconds=1", "did you mean"),  # or another key: it belongs to delay
        ("message.out:delay", "delay needs seconds="),
        ("message.out:delay,seconds=0", "more than 0"),
        ("message.out:delay,seconds=nan", "more than 0"),
        ("message.out:delay,seconds=soon", "write it as 0.5"),
        ("message.out:delay,seconds=1e9", "at most 3600"),
        ("message.out:truncate", "truncate needs length="),
        ("message.out:change", "change needs bytes=, length= or to.NAME="),
        ("message.out:change,bytes=xyz", "write them in hex"),
        ("message.out:change,bytes=", "write them in hex"),
        ("message.out:change,bytes=00,at=65536", "an item can have 65536"),
        ("event.out:insert,bytes=00", "has no bytes: change it by to.vp="),
        ("message.out:change,to.staus=1", "did you mean to.status"),
        ("message.out:change,to.status=x", "write it as 5 or 0x1000"),
        ("message.out:change,to.status=0x100000000", "it goes from 0 to 0xffffffff"),
        ("message.out:drop,to.status=1", "belongs to the actions change and insert"),
        ("index.out:change,to.word=x", "one of write, read, mask"),
        ("index.in:change,ring=x,to.value=1", "one of guest, host"),
        ("message.out:insert,place=behind", "before or after"),
        ("message.out:duplicate,times=1001", "it goes from 1 to 0x3e8"),
        ("discard.out:fail", "fail needs errno="),
        ("discard.out:fail,errno=12", "write its name, such as ENOMEM"),
        ("discard.out:fail,errno=EWRONG", "write its name, such as ENOMEM"),
        ("discard.out:fail,errno=errorcode", "write its name, such as ENOMEM"),
        ("ioctl.out:drop", "needs op= with one of HYPERV_EVENTFD"),
        ("ioctl.out:drop,op=CREATE_VCPU", "needs op= with one of HYPERV_EVENTFD"),
        ("ioctl.out:change,op=NMI,bytes=00", "needs op= with one of IRQ_LINE"),
        ("ioctl.out:fail,op=create_vcpuu,errno=EIO", "did you mean CREATE_VCPU"),
        ("ioctl.out:fail,op=X,errno=EIO", "api.rst"),
        ("torndown-withheld,seconds=1", "is no key of fault torndown-withheld"),
        ("x" * (TEXT_LIMIT + 1), f"at most {TEXT_LIMIT}"),
    ],
)
def test_a_bad_rule_is_refused_in_one_line_with_the_next_step(text: str, hint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_rules(text)
    message = str(refused.value)
    assert "\n" not in message and len(message) < 500
    if hint != "did you mean":
        assert hint in message


def test_only_the_command_line_knows_the_word_help() -> None:
    assert check_text("help") == "help"
    with pytest.raises(ConfigError):
        parse_rules("help")


def test_each_point_and_action_have_a_rule() -> None:
    for point in POINTS.values():
        needed = {"delay": ",seconds=1", "truncate": ",length=1", "fail": ",errno=EIO"}
        for action in point.actions:
            change = f",to.{point.settable[0]}=1" if point.settable else ",bytes=00"
            if point.name.startswith("index.out"):
                change = ",to.value=1"
            if point.name.startswith("ioctl") and action not in ("pass", "fail"):
                change, needed["delay"] = ",op=IRQ_LINE,bytes=00", ",op=IRQ_LINE,seconds=1"
                needed |= dict.fromkeys(("drop", "duplicate", "reorder"), ",op=IRQ_LINE")
            more = change if action == "change" else needed.get(action, "")
            assert parse_rules(f"{point.name}:{action}{more}")[0].action == action


GOOD = """
[[rule]]
point = "message.out"
action = "change"
type = "OPEN_RESULT"
once = true
to = { status = 5 }

[[rule]]
fault = "torndown-withheld"
after = 1

[[rule]]
point = "event.out"
action = "delay"
seconds = 0.25
"""


def test_a_file_has_rules_and_named_faults(tmp_path: Path) -> None:
    file = tmp_path / "faults.toml"
    file.write_text(GOOD)
    assert load_rules(file) == [
        "message.out:change,type=OPEN_RESULT,once=on,to.status=5",
        "torndown-withheld,after=1",
        "event.out:delay,seconds=0.25",
    ]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("rule = 5", "are tables [[rule]]"),
        ("rule = [5]", "are tables [[rule]]"),
        ("[rule]\npoint='x'", "are tables [[rule]]"),
        ("x = 1", "are tables [[rule]]"),
        ("[[rule]]", "rule 1: a rule has point and action, or fault"),
        ("[[rule]]\npoint='message.out'", "rule 1: a rule has point and action"),
        ("[[rule]]\nfault='eom-lost'\n[[rule]]\nfault='x'", "rule 2: 'x' is no fault"),
        ("[[rule]]\nfault=['eom-lost']", "neither a string nor a number"),
        ("[[rule]]\nfault='eom-lost'\nto=5", "to.status = 5"),
        ("[[rule]]\nfault='eom-lost'\nnew='a,b'", "no commas"),
        ("[[rule]]\nfault='eom-lost'\nafter=" + "9" * 5000, "is not TOML"),
        ("[[rule]]\nfault='eom-lost'\nafter=0x" + "f" * 5000, "a number goes up to"),
        ("[[rule", "is not TOML"),
        ("a." * 2000 + "b=1", "dots"),
        ("[[rule]]\nfault='eom-lost'\n" * (RULES_LIMIT + 1), f"at most {RULES_LIMIT}"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, text: str, hint: str) -> None:
    file = tmp_path / "faults.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_rules(file)
    assert hint in str(refused.value) and "\n" not in str(refused.value) and str(file) in str(refused.value)


@pytest.mark.parametrize(("content", "hint"), [(b"\xff\xfe", "UTF-8"), (b"#" * ((1 << 20) + 1), "larger")])
def test_other_files_are_refused(tmp_path: Path, content: bytes, hint: str) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(ConfigError, match=hint):
        load_rules(tmp_path / "f")
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match="fault rules"):
            load_rules(path)
