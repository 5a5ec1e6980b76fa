"""Reads rules: a line of text each (`--fault`), or tables of a TOML file (`--fault-file`).

    message.out:drop,type=OPEN_RESULT,once           [[rule]]
                                                     point = "message.out"
    torndown-withheld,after=1                        action = "drop"
                                                     type = "OPEN_RESULT"
                                                     once = true

                                                     [[rule]]
                                                     fault = "torndown-withheld"

Each error is a ConfigError of one line that says what would be right.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pyvmm.errors import ConfigError
from pyvmm.faults import layouts
from pyvmm.faults.points import POINTS, WORDS, Point
from pyvmm.faults.rules import Function, Rule, canonical
from pyvmm.files import FileError, read_file
from pyvmm.kvm.abi import Op
from pyvmm.kvm.handle import CHANGEABLE, DROPPABLE, REPEATABLE

TEXT_LIMIT = 2000
"""Characters of a rule. The longest useful ones have some 200, and a packet in hex."""
FILE_LIMIT = 1 << 20
RULES_LIMIT = 1000
DOT_LIMIT = 1000
"""Dots in a line: tomllib needs quadratic time for a dotted key."""
NUMBER_LIMIT = 1 << 64
BYTES_LIMIT = 1 << 16
"""Bytes to which an item can grow; a packet has 4096."""
MOST_SECONDS = 3600.0
MOST_TIMES = 1000
HELP = "help"

ACTIONS = {
    "pass": "leaves the item as it is: to count, or to enter a state (new=)",
    "drop": "loses it",
    "delay": "delivers it seconds= of guest time later",
    "duplicate": "delivers it times= more (1)",
    "reorder": "delivers it after others= more of its point have crossed (1)",
    "truncate": "cuts it to length= bytes, or by that many from its end if negative",
    "change": "stores bytes= (hex) at=, then to.NAME=NUMBER; length= cuts it, or fills it up with zeros",
    "insert": "delivers a copy, changed likewise, after it or place=before it",
    "fail": "fails it with errno=, such as ENOMEM",
}
NEEDS = {"delay": "seconds", "truncate": "length", "fail": "errno"}
"""The key without which an action means nothing."""
_KEYS_OF = {
    "delay": ("seconds",),
    "duplicate": ("times",),
    "reorder": ("others",),
    "truncate": ("length",),
    "change": ("at", "bytes", "length"),
    "insert": ("at", "bytes", "length", "place"),
    "fail": ("errno",),
}
COMMON = ("after", "count", "once", "state", "new")
"""Keys of every rule, and those that a named fault takes beside its rules' selectors."""


def action_keys(action: str) -> tuple[str, ...]:
    """Return the keys that belong to an action, without to.NAME."""
    return _KEYS_OF.get(action, ())


def parse_rules(text: str) -> list[Rule]:
    """Return the rule of a line of text, or those of a named fault. Raises ConfigError."""
    if len(text) > TEXT_LIMIT:
        raise ConfigError(f"a fault rule of {len(text)} characters: at most {TEXT_LIMIT}")
    head, *rest = (word.strip() for word in text.split(","))
    given: dict[str, str] = {}
    for word in rest:
        name, equals, value = (part.strip() for part in word.partition("="))
        if not name or (not equals and name != "once"):
            raise ConfigError(f"{word[:40]!r} in a fault rule is no KEY=VALUE: write it as type=OPEN_RESULT")
        if name in given:
            raise ConfigError(f"{name[:40]!r} is twice in a fault rule: leave one out")
        given[name] = value if equals else "on"
    point, colon, action = (part.strip() for part in head.partition(":"))
    if colon:
        return [make_rule(point, action, given)]
    return named_rules(head, given)


def named_rules(name: str, given: Mapping[str, str]) -> list[Rule]:
    """Return the rules of the library's fault `name`, with `given` selectors and counts added. Raises ConfigError."""
    from pyvmm.faults.library import LIBRARY

    if name not in LIBRARY:
        close = get_close_matches(name, [*LIBRARY, *POINTS], 1)
        hint = f"did you mean {close[0]!r}?" if close else "`pyvmm run --fault help` lists faults and points"
        if name in POINTS:
            hint = f"a rule is POINT:ACTION, such as {name}:{POINTS[name].actions[1]}"
        raise ConfigError(f"{name[:40]!r} is no fault: {hint}")
    made = []
    for text in LIBRARY[name].rules:
        head, *rest = text.split(",")
        words = {name: value if equals else "on" for name, equals, value in (word.partition("=") for word in rest)}
        point, _, action = head.partition(":")
        if {"once", "count"} & given.keys():
            words.pop("once", None)
            words.pop("count", None)
        rule = make_rule(point, action, words | dict(given), named=name)
        rule.fault = name
        made.append(rule)
    return made


def make_rule(
    point_name: str, action: str, given: Mapping[str, str], *, function: Function | None = None, named: str = ""
) -> Rule:
    """Return the rule with these keys and values. Raises ConfigError."""
    point = _point(point_name)
    if function is None and action not in point.actions:
        if action not in ACTIONS:
            close = get_close_matches(action, ACTIONS, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(point.actions)}"
            raise ConfigError(f"{action[:40]!r} is no action: {hint}")
        raise ConfigError(f"{action} makes no sense at {point.name}: there are {', '.join(point.actions)}")
    rule = Rule(point.name, action, function=function)
    for name, value in given.items():
        _take(rule, point, name, value, named)
    if rule.action in NEEDS and NEEDS[rule.action] not in given:
        raise ConfigError(f"{rule.action} needs {NEEDS[rule.action]}=: add it to the fault rule for {point.name}")
    if rule.action == "change" and not (rule.bytes or rule.to or rule.length is not None):
        raise ConfigError(f"change needs bytes=, length= or to.NAME=: add one to the fault rule for {point.name}")
    if point.name == "ioctl.out":
        _check_ioctl(rule)
    if (rule.bytes or rule.length is not None) and not point.has_bytes:
        raise ConfigError(f"what crosses {point.name} has no bytes: change it by {_changes(point)}")
    if rule.at + len(rule.bytes) > BYTES_LIMIT:
        raise ConfigError(f"bytes at {rule.at}: an item can have {BYTES_LIMIT} at most")
    return rule


def _check_ioctl(rule: Rule) -> None:
    """Raise ConfigError unless the rule selects an ioctl with which its action can be done."""
    op = rule.match.get("op")
    if op is not None and op not in Op.__members__:
        close = get_close_matches(op.upper(), Op.__members__, 1)
        hint = f"did you mean {close[0]}?" if close else "write it as in api.rst, without KVM_"
        raise ConfigError(f"{op[:40]!r} is no ioctl of KVM: {hint}")
    if rule.action in ("pass", "fail", "call"):
        return
    able = CHANGEABLE if rule.action == "change" else DROPPABLE if rule.action == "drop" else REPEATABLE
    if op is None or Op[op] not in able:
        names = ", ".join(sorted(each.name for each in able))
        raise ConfigError(f"{rule.action} at ioctl.out needs op= with one of {names}")


def _changes(point: Point) -> str:
    return ", ".join(f"to.{each}=" for each in point.settable) or "nothing"


def _point(name: str) -> Point:
    if name in POINTS:
        return POINTS[name]
    sides = [each for each in POINTS if each.split(".")[0] == name]
    close = sides or get_close_matches(name, POINTS, 1)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(POINTS)}"
    raise ConfigError(f"{name[:40]!r} is no point of a fault rule: {hint}")


def _take(rule: Rule, point: Point, name: str, value: str, named: str) -> None:
    """Store one key of a rule."""
    if name in _READERS and (name in COMMON or name in _KEYS_OF.get(rule.action, ())):
        _READERS[name](rule, value)
    elif name.startswith("to."):
        _take_change(rule, point, name.removeprefix("to."), value)
    elif name in point.selectors:
        _take_selector(rule, point, name, value)
    else:
        keys = [*COMMON, *_KEYS_OF.get(rule.action, ()), *point.selectors]
        close = get_close_matches(name, keys, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"it selects by {', '.join(point.selectors) or 'nothing'}"
        where = f"fault {named}, whose rule is for" if named else "a rule for"
        raise ConfigError(f"{name[:40]!r} is no key of {where} {point.name}:{rule.action}: {hint}")


def _take_selector(rule: Rule, point: Point, name: str, value: str) -> None:
    wanted = canonical(point, name, value)
    known = layouts.message_names(point.name)
    if name == point.kind and not wanted.isdecimal() and wanted not in known:
        close = get_close_matches(wanted, known, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
        raise ConfigError(f"{value[:40]!r} is no message at {point.name}: {hint}")
    if name in WORDS and wanted not in WORDS[name]:
        raise ConfigError(f"{name}={value[:40]!r}: it is one of {', '.join(WORDS[name])}")
    rule.match[name] = wanted


def _take_change(rule: Rule, point: Point, name: str, value: str) -> None:
    if rule.action not in ("change", "insert"):
        raise ConfigError(f"to.{name[:40]} belongs to the actions change and insert, not to {rule.action}")
    sizes = layouts.names(point.name)
    if name in WORDS and name in point.settable:
        if value not in WORDS[name]:
            raise ConfigError(f"to.{name}={value[:40]!r}: it is one of {', '.join(WORDS[name])}")
        rule.to[name] = value
        return
    if name not in point.settable and name not in sizes:
        known = [*point.settable, *sizes]
        close = get_close_matches(name, known, 1)
        hint = f"did you mean to.{close[0]}?" if close else f"there are {', '.join(known) or 'none'}"
        raise ConfigError(f"to.{name[:40]} cannot be changed at {point.name}: {hint}")
    kinds = layouts.message_types(point.name)
    if name in kinds and value.upper() in kinds[name].__members__:
        rule.to[name] = int(kinds[name][value.upper()])
        return
    most = 1 << 8 * sizes.get(name, 8)
    rule.to[name] = _number(f"to.{name}", value, 0, most - 1)


def _number(name: str, text: str, low: int, high: int) -> int:
    try:
        number = int(text, 0)
    except ValueError:
        raise ConfigError(f"{name}={text[:40]!r} is no number: write it as 5 or 0x1000") from None
    if not low <= number <= high:
        raise ConfigError(f"{name}={text[:40]}: it goes from {low} to {high:#x}")
    return number


def _read_bytes(rule: Rule, text: str) -> None:
    try:
        rule.bytes = bytes.fromhex(text)
    except ValueError:
        raise ConfigError(f"bytes={text[:40]!r}: write them in hex, such as bytes=0a00") from None
    if not rule.bytes:
        raise ConfigError("bytes= is empty: write them in hex, such as bytes=0a00")


def _read_seconds(rule: Rule, text: str) -> None:
    try:
        rule.seconds = float(text)
    except ValueError:
        raise ConfigError(f"seconds={text[:40]!r} is no number: write it as 0.5") from None
    if not 0 < rule.seconds <= MOST_SECONDS:  # refuses NaN too
        raise ConfigError(f"seconds={text[:40]}: more than 0, at most {MOST_SECONDS:g}")


def _read_errno(rule: Rule, text: str) -> None:
    found = getattr(errno, text, None) if text.startswith("E") else None
    if not isinstance(found, int):
        raise ConfigError(f"errno={text[:40]!r} is no error: write its name, such as ENOMEM")
    rule.errno = found


def _read_place(rule: Rule, text: str) -> None:
    if text not in ("before", "after"):
        raise ConfigError(f"place={text[:40]!r}: before or after")
    rule.before = text == "before"


def _read_once(rule: Rule, text: str) -> None:
    if text not in ("on", "off"):
        raise ConfigError(f"once={text[:40]!r}: on or off")
    if text == "on":
        rule.count = 1


def _read_state(name: str) -> Callable[[Rule, str], None]:
    def read(rule: Rule, text: str) -> None:
        if not text or len(text) > 40 or not text.replace("-", "").replace("_", "").isalnum():
            raise ConfigError(f"{name}={text[:40]!r}: a state is a word of letters and digits")
        setattr(rule, name, text)

    return read


def _read_number(name: str, low: int, high: int) -> Callable[[Rule, str], None]:
    return lambda rule, text: setattr(rule, name, _number(name, text, low, high))


_READERS: dict[str, Callable[[Rule, str], None]] = {
    "after": _read_number("after", 0, NUMBER_LIMIT),
    "count": _read_number("count", 1, NUMBER_LIMIT),
    "once": _read_once,
    "state": _read_state("state"),
    "new": _read_state("new"),
    "seconds": _read_seconds,
    "times": _read_number("times", 1, MOST_TIMES),
    "others": _read_number("others", 1, MOST_TIMES),
    "length": _read_number("length", -BYTES_LIMIT, BYTES_LIMIT),
    "at": _read_number("at", 0, BYTES_LIMIT),
    "bytes": _read_bytes,
    "errno": _read_errno,
    "place": _read_place,
}


def load_rules(file: Path) -> list[str]:
    """Return the rules of a TOML file as text. A ConfigError names the file, and the rule by its number."""
    import tomllib

    try:
        data = read_file(file, FILE_LIMIT)
    except FileError as error:
        raise ConfigError(f"fault rules: {error}") from error
    try:
        text = data.decode()
        if any(line.count(".") > DOT_LIMIT for line in text.splitlines()):
            raise ConfigError(f"{file} is no file of fault rules: a line has more than {DOT_LIMIT} dots")
        table = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8: a TOML file has to be") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error
    rules = table.pop("rule", [])
    if table or not isinstance(rules, list) or not all(isinstance(each, dict) for each in rules):
        raise ConfigError(f"{file}: fault rules are tables [[rule]] with point and action, or fault")
    if len(rules) > RULES_LIMIT:
        raise ConfigError(f"{file}: {len(rules)} fault rules, at most {RULES_LIMIT}")
    made = []
    for number, each in enumerate(rules, 1):
        try:
            text = _text_of(each)
            parse_rules(text)
        except ConfigError as error:
            raise ConfigError(f"{file}, rule {number}: {error}") from error
        made.append(text)
    return made


def _text_of(table: Mapping[str, Any]) -> str:
    """Return the text of a rule in a TOML table."""
    values = dict(table)
    changes = values.pop("to", {})
    if not isinstance(changes, dict):
        raise ConfigError("`to` is a table of values by name: to.status = 5")
    values |= {f"to.{name}": value for name, value in changes.items()}
    if "fault" in values:
        head = _word("fault", values.pop("fault"))
    elif "point" in values and "action" in values:
        head = f"{_word('point', values.pop('point'))}:{_word('action', values.pop('action'))}"
    else:
        raise ConfigError("a rule has point and action, or fault")
    return ",".join([head, *(f"{_word('key', name)}={_word(name, value)}" for name, value in values.items())])


def _word(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if not isinstance(value, (str, int, float)):
        raise ConfigError(f"{name[:40]!r} is neither a string nor a number")
    try:
        text = str(value)
    except ValueError:  # an integer of more than 4300 digits
        raise ConfigError(f"{name[:40]!r}: a number goes up to {NUMBER_LIMIT:#x}") from None
    if "," in text or "\n" in text:
        raise ConfigError(f"{name[:40]!r}: a value has no commas and no line ends")
    return text


def check_text(text: str) -> str:
    """Check a rule of the command line, or the word help; return it as given. Raises ConfigError."""
    if text != HELP:
        parse_rules(text)
    return text


def keyword_rules(point: str, action: str | Function, keys: Mapping[str, object]) -> list[Rule]:
    """Return the rule of a call from Python: `action` is one's name, or a function; `to` is a mapping."""
    name = "call" if callable(action) else action
    values = dict(keys)
    changes = values.pop("to", None)
    if isinstance(changes, Mapping):
        values |= {f"to.{each}": value for each, value in changes.items()}
    content = values.pop("bytes", None)
    if isinstance(content, bytes | bytearray):
        values["bytes"] = content.hex()
    elif content is not None:
        values["bytes"] = content
    words = {key: _word(key, value) for key, value in values.items()}
    return [make_rule(point, name, words, function=action if callable(action) else None)]
