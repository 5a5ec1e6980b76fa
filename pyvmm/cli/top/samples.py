"""What a machine said of itself, twice: figures, and rates between the two. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pyvmm.cli.output import balloon_state

Status = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes; None where it is not known."""

    boot: int | None
    actual: int | None
    target: int | None
    resident: int | None
    available: int | None
    committed: int | None
    out: int = 0  # in the balloon

    @property
    def pressure(self) -> float | None:
        """What the guest needs as a part of what it has; as `pyvmm.machine.autosize` counts it."""
        if not self.actual or self.committed is None or self.available is None:
            return None
        return max(self.committed - self.out, self.actual - self.available, 0) / self.actual


@dataclass(frozen=True, slots=True)
class Channel:
    """A VMBus channel; signals and packets a second, both directions, ring fill as parts of 1."""

    relid: int
    name: str
    state: str
    signals_in: float = 0.0
    signals_out: float = 0.0
    packets: float = 0.0
    total_packets: int = 0
    fill_in: float = 0.0
    fill_out: float = 0.0
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """A machine at one time."""

    name: str
    status: str
    uptime: float
    engine: str
    cpus: int
    memory: Memory
    balloon: str
    exits: dict[str, dict[str, float]] = field(default_factory=dict)  # vCPU -> kind -> a second
    channels: list[Channel] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=dict)  # exits since the machine's start or reset, by kind

    @property
    def exit_rate(self) -> float:
        """Exits a second, all vCPUs."""
        return sum(rate for kinds in self.exits.values() for rate in kinds.values())

    def exits_by_kind(self) -> list[tuple[str, float]]:
        """Rates over all vCPUs, most frequent first; those that do not happen now by how often they did."""
        rates = {kind: sum(kinds.get(kind, 0.0) for kinds in self.exits.values()) for kind in self.totals}
        return sorted(rates.items(), key=lambda each: (-each[1], -self.totals[each[0]]))


def sample(now: Status, before: Status | None, seconds: float) -> Sample:
    """Figures of `now`, rates since `before`, `seconds` earlier. After a reset of the machine rates begin anew."""
    memory, balloon = now.get("memory") or {}, now.get("balloon") or {}
    earlier = before or {}
    if earlier.get("resets") != now.get("resets"):
        earlier = {}
    return Sample(
        name=str(now.get("name", "")),
        status=str(now.get("status", "?")),
        uptime=_number(now.get("uptime")),
        engine=str(now.get("engine", "?")),
        cpus=int(_number(now.get("cpus"))),
        memory=Memory(
            boot=memory.get("boot"),
            actual=memory.get("actual"),
            target=memory.get("target"),
            resident=memory.get("resident"),
            available=balloon.get("available"),
            committed=balloon.get("committed"),
            out=int(_number(balloon.get("removed-guest")) + _number(balloon.get("removed-both"))),
        ),
        balloon=_balloon(balloon),
        exits=_exits(now.get("exits") or {}, earlier.get("exits"), seconds),
        totals=_totals(now.get("exits") or {}),
        channels=_channels(now.get("vmbus") or [], earlier.get("vmbus"), seconds),
    )


def as_json(sample: Sample) -> dict[str, Any]:
    """For programs: names with dashes as the monitor's, figures not rounded."""
    made = asdict(sample, dict_factory=lambda pairs: {key.replace("_", "-"): value for key, value in pairs})
    made["memory"]["pressure"] = sample.memory.pressure
    return made | {"exit-rate": sample.exit_rate}


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def _rate(now: object, before: object, seconds: float) -> float:
    return max(0.0, (_number(now) - _number(before)) / seconds) if seconds > 0 else 0.0


def _balloon(balloon: Status) -> str:
    parts = [balloon_state(str(balloon.get("state", "no balloon")))]
    if balloon.get("version"):
        parts.append(f"protocol {balloon['version']}")
    if balloon.get("last-result"):
        parts.append(str(balloon["last-result"]))
    return ", ".join(parts)


def _exits(now: Mapping[str, Any], before: Mapping[str, Any] | None, seconds: float) -> dict[str, dict[str, float]]:
    if before is None:
        return {vcpu: {} for vcpu in now}
    return {
        vcpu: {kind: _rate(count, (before.get(vcpu) or {}).get(kind), seconds) for kind, count in kinds.items()}
        for vcpu, kinds in now.items()
    }


def _totals(exits: Mapping[str, Any]) -> dict[str, int]:
    total: dict[str, int] = {}
    for kinds in exits.values():
        for kind, count in kinds.items():
            total[kind] = total.get(kind, 0) + count
    return total


def _channels(now: Iterable[Status], before: Iterable[Status] | None, seconds: float) -> list[Channel]:
    earlier = {row.get("relid"): row for row in before or ()}
    made = []
    for row in now:
        old = earlier.get(row.get("relid"))
        rates = {
            key: 0.0 if old is None else _rate(row.get(key), old.get(key), seconds)
            for key in ("signals-in", "signals-out", "packets-in", "packets-out")
        }
        trouble = str(row.get("broken") or "")
        if not trouble and row.get("refused"):
            trouble = f"{row['refused']} refused"
        made.append(
            Channel(
                relid=int(_number(row.get("relid"))),
                name=str(row.get("name", "?")),
                state=str(row.get("state", "?")),
                signals_in=rates["signals-in"],
                signals_out=rates["signals-out"],
                packets=rates["packets-in"] + rates["packets-out"],
                total_packets=int(_number(row.get("packets-in")) + _number(row.get("packets-out"))),
                fill_in=_number(row.get("ring-in-used")) / (_number(row.get("ring-in")) or 1),
                fill_out=_number(row.get("ring-out-used")) / (_number(row.get("ring-out")) or 1),
                trouble=trouble,
            )
        )
    return made
