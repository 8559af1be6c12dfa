"""What a trial of a server means: which promises hold on it, in which mode.

The modes: `hot`, two gateways with a subscription each; `take-over`, one subscription that the next gateway, or
the next run of the same one, takes up again; `recreate`, a new subscription and whatever history has.

Rules: what was not tried, or could not be told in the time, is `unknown` and never `yes`. What a trial saw goes
before what is known of the product.

What it does not do: talk to a server (`gateway.io.qualify`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from gateway.capabilities import Capabilities
from gateway.plan import EVENT_RATE_HZ
from gateway.profiles import Profile, profile_of
from gateway.server import Limits

Holds = Literal["yes", "no", "unknown"]
#: A sample as two subscriptions may compare it: source ticks (None where null), and all else of its value.
Seen = tuple[int | None, tuple[object, ...]]
SHARE_SAME, SHARE_OTHER = 0.8, 0.2
BRIDGE_S_MIN = 1.0  # a restart takes longer


class Tried(NamedTuple):
    """One thing that was tried: whether it works, None where that could not be told, and what was seen."""

    works: bool | None
    told: str


NOT_TRIED = Tried(None, "not tried")


@dataclass(slots=True)
class Trial:
    """What was seen and read on a server.

    Attributes:
        said: The server's own word on itself.
        limits: Of one call.
        session_timeout_s: As granted for what a gateway asks by default.
        variables: How many variables the trial used.
        historizing, history_readable: How many of them the server keeps history of, and lets us read.
        queue_asked, queue_got: Queue size.
        publishing_got_ms: Of 100 asked.
        publish_time: Whether messages carry their time.
        second_session, republish, republish_missing, transfer, resume: Tried.
        stamping: `S`, `U` or empty; see `mirror.tags.Tag`.
        compared: Samples that the stamping rests on.
    """

    said: Capabilities = field(default_factory=Capabilities)
    limits: Limits = field(default_factory=Limits)
    session_timeout_s: float = 0.0
    variables: int = 0
    historizing: int = 0
    history_readable: int = 0
    queue_asked: int = 0
    queue_got: int = 0
    publishing_got_ms: float = 0.0
    publish_time: bool | None = None
    second_session: Tried = NOT_TRIED
    republish: Tried = NOT_TRIED
    republish_missing: Tried = NOT_TRIED
    transfer: Tried = NOT_TRIED
    resume: Tried = NOT_TRIED
    stamping: str = ""
    compared: int = 0

    @property
    def profile(self) -> Profile | None:
        """What is known of the product."""
        return profile_of(self.said)

    @property
    def overflow(self) -> Tried:
        """Whether a queue that runs over is told."""
        if self.queue_got == 1:
            return Tried(False, "the queue is 1: a value that is overwritten is never told")
        if self.profile is None:
            return Tried(None, f"the queue is {self.queue_got}; whether Overflow is set was not tried")
        told = "sets Overflow" if self.profile.sets_overflow else "never sets Overflow"
        return Tried(self.profile.sets_overflow, f"the queue is {self.queue_got}; {self.profile.product} {told}")


class Promise(NamedTuple):
    """One promise in one mode."""

    mode: Literal["hot", "take-over", "recreate", "all"]
    promise: str
    holds: Holds
    because: str


def stamping(
    first: Mapping[int, Sequence[Seen]], second: Mapping[int, Sequence[Seen]]
) -> tuple[Literal["S", "U", ""], int]:
    """Compare what two subscriptions said of the same tags.

    Only the stretch that both saw is compared. Most samples the same with the same stamp: the source stamps
    (`S`). The same values with stamps that are never the same, or null: the server stamps when it samples (`U`).

    Returns:
        The class, empty where the tags contradict each other or did not say enough, and the samples compared.
    """
    verdicts: set[str] = set()
    compared = 0
    for tag in first.keys() & second.keys():
        verdict, count = _stamping(first[tag], second[tag])
        compared += count
        verdicts |= {verdict} if verdict else set()
    if "U" in verdicts:
        return "U", compared
    return ("S" if verdicts == {"S"} else ""), compared


def _stamping(first: Sequence[Seen], second: Sequence[Seen]) -> tuple[str, int]:
    """Return the class of one tag and the samples compared."""
    if any(ticks is None for ticks, _ in (*first, *second)):
        return "U", len(first) + len(second)
    if len(first) == len(second) == 1:  # it did not move
        if first[0][1] != second[0][1]:
            return "", 0
        return ("S" if first[0][0] == second[0][0] else "U"), 1
    stamps = [[t for t, _ in side if t is not None] for side in (first, second)]
    start, end = max(map(min, stamps)), min(map(max, stamps))
    a, b = ({s for s in side if s[0] is not None and start <= s[0] <= end} for side in (first, second))
    most = max(len(a), len(b))
    if not a or not b or {value for _, value in a}.isdisjoint(value for _, value in b):
        return "", 0
    share = len(a & b) / most
    return ("S" if share >= SHARE_SAME else "U" if share <= SHARE_OTHER else ""), most


def promises(trial: Trial) -> list[Promise]:
    """Return which promises hold in which mode, and why."""
    return [*_hot(trial), *_take_over(trial), *_recreate(trial), _declared(trial)]


def _hot(trial: Trial) -> list[Promise]:
    two = trial.second_session
    loss = Promise("hot", "nothing is lost while one of two gateways lives", _holds(two.works), two.told)
    copies: dict[str, tuple[Holds, str]] = {
        "S": ("yes", "the source stamps: both gateways get the same samples"),
        "U": ("no", "the server stamps at sampling: the copy of one gateway stands, the other's fills its holes"),
        "": ("unknown", "too little moved to tell who stamps"),
    }
    holds, because = copies[trial.stamping]
    if two.works is False:
        holds, because = "no", two.told
    return [loss, Promise("hot", "the copies of both gateways are equal", holds, because)]


def _take_over(trial: Trial) -> list[Promise]:
    """A gateway that is killed and started again, or replaced, within the session's life."""
    bridge_s = trial.queue_got / EVENT_RATE_HZ
    bound = (
        f"for {min(trial.session_timeout_s, bridge_s):.1f} s at {EVENT_RATE_HZ} changes/s of a tag: the session lives "
        f"{trial.session_timeout_s:.0f} s, a queue of {trial.queue_got} lasts {bridge_s:.1f} s"
    )
    ways = {"resume": trial.resume, "transfer": trial.transfer}
    works = [name for name, tried in ways.items() if tried.works]
    holds: Holds
    if works and trial.republish.works and min(trial.session_timeout_s, bridge_s) < BRIDGE_S_MIN:
        holds, because = "no", f"{' and '.join(works)} and Republish work, but only {bound}"
    elif works and trial.republish.works:
        holds, because = "yes", f"{' and '.join(works)} and Republish work; {bound}"
    elif works and trial.republish.works is False:
        holds, because = "no", f"messages under way are lost, and declared: Republish: {trial.republish.told}"
    elif works or any(tried.works is None for tried in ways.values()):
        holds, because = (
            "unknown",
            "; ".join(f"{n}: {t.told}" for n, t in {**ways, "Republish": trial.republish}.items()),
        )
    else:
        holds, because = "no", "; ".join(f"{name}: {tried.told}" for name, tried in ways.items())
    told: list[Promise] = []
    if trial.resume.works is not None:
        told.append(Promise(
            "take-over", "this gateway goes on after its own restart", _holds(trial.resume.works), trial.resume.told,
        ))  # fmt: skip
    lost = Promise("take-over", "nothing is lost when a gateway dies and the next takes over", holds, because)
    return [lost, *told]


def _recreate(trial: Trial) -> list[Promise]:
    what = "what was missed is filled in afterwards"
    if not trial.variables:
        return [Promise("recreate", what, "unknown", "no variables were looked at")]
    readable = f"history of {trial.history_readable} of {trial.variables} variables can be read"
    if trial.history_readable and trial.historizing:
        kept = f"{trial.historizing} are recorded"
        full = min(trial.history_readable, trial.historizing) == trial.variables
        return [Promise("recreate", what, "yes" if full else "unknown", f"{readable}, {kept}")]
    return [Promise("recreate", what, "no", f"{readable}, none is recorded: a gap stays a gap, and is declared")]


def _declared(trial: Trial) -> Promise:
    return Promise("all", "every loss is declared", _holds(trial.overflow.works), trial.overflow.told)


def _holds(works: bool | None) -> Holds:
    return "unknown" if works is None else "yes" if works else "no"


def advice(trial: Trial) -> str:
    """Return the mode to choose, in a sentence."""
    if trial.second_session.works:
        tail = "" if trial.stamping != "U" else "; one gateway's copy counts, since stamps differ"
        return f"hot: two gateways may each have a subscription{tail}"
    if trial.resume.works or trial.transfer.works:
        return "take-over: one subscription that is handed on"
    return "recreate: after each interruption a new subscription" + (" and history" if trial.history_readable else "")
