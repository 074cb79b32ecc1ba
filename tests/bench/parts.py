"""What is measured: the whole chain, usage against bare COPY, two workers, one message a transaction, long price lists,
history, memory; balance alone against bare COPY, a hot account, how long wallets are locked; holds."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import attrgetter
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from services.runtime.room import BATCH_RECORDS_MAX
from tests.bench import holds
from tests.bench.checks import chain_problems, posting_problems, stage_problems
from tests.bench.copying import copy_rates
from tests.bench.events import ACCOUNTS, Calls, calls
from tests.bench.heavier import PREFIXES, sell_by_carrier, store_history, store_identities
from tests.bench.posting import Posting, ledger_copy_rates, post
from tests.bench.processor_time import Used
from tests.bench.report import Row, percentile
from tests.bench.runs import Run, held, measure, started
from tests.bench.worlds import World, Worlds

PARTS = ("chain", "copy", "workers", "batch", "prices", "stored", "history", "posting", "holds")
PARTITIONS = 6

CHAIN_GOAL = 15_000.0
COPY_GOAL, WORKERS_GOAL, PRICES_GOAL = 0.25, 1.6, 0.7
POSTING_GOAL, GROUPED_GOAL, HOT_GOAL, LOCKED_MS_GOAL = 80_000.0, 0.5, 0.20, 10.0
SLOWER_GOAL, STORED_GOAL = 0.15, 0.10
MEMORY_GOAL_MB = 400.0

HOLD_P50_GOAL_MS, HOLD_P99_GOAL_MS, BUSY_P99_GOAL_MS = 1.5, 5.0, 25.0

STAGE_EVENTS = 150_000
POSTING_EVENTS = 300_000
SINGLE_EVENTS = 2_000  # one message a transaction: some hundreds a second
HISTORY = 1_000_000
HISTORY_EVENTS = 150_000
STORED = 4_000_000
STORED_REPEATS = 2
POSTING_WARM_UP = 80_000  # each connection of the pool has to meet a recharge: its first one costs some 20 ms
WARM_UP = 20_000  # a process that has just started is slower: it has its start before it is measured
STAGE_REPEATS, HISTORY_REPEATS, HOLDS_REPEATS = 3, 2, 3
HISTORY_UNTIL_S, REPEAT_UNTIL_S = 300.0, 720.0  # a slow machine gets less history and fewer repeats, not a longer run
USAGE_ALONE = {"usage": 1}
TWO_SESSION_MS = "12000"  # a consumer sees at a third of it that another has come; loading takes less than the whole


@dataclass
class Bench:
    """Collects rows; ``problems`` are sums that do not agree, each of them an error."""

    worlds: Worlds
    events: int
    only: Collection[str]
    tell: Callable[[str], None]
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    used: dict[str, dict[str, float]] | None = None
    _seed: int = 0
    _begun_at: float = field(default_factory=time.monotonic)

    async def run(self) -> None:
        """Every part that is asked for."""
        if {"chain", "history"} & set(self.only):
            await self._chain()
        if {"copy", "workers", "batch", "prices"} & set(self.only):
            await self._stage()
        if "stored" in self.only:
            await self._stored()
        if "posting" in self.only:
            await self._posting()
        if "holds" in self.only:
            await self._holds()

    def _is_over(self, seconds: float) -> bool:
        return time.monotonic() - self._begun_at > seconds

    def _calls(self, count: int, *, of_one: bool = False) -> Calls:
        self._seed += 1
        self.tell(f"making {count:,} events")
        return calls(count, seed=self._seed, now=datetime.now(UTC), partitions=PARTITIONS, of_one=of_one)

    # ---- the whole chain, and what history costs it ----------------------------------------------------------------

    async def _chain(self) -> None:
        async with AsyncExitStack() as stack:
            world = await stack.enter_async_context(self.worlds.fresh())
            await stack.enter_async_context(started(world))
            first = await self._through(world, self._calls(self.events), "the whole chain")
            self.problems += await chain_problems(world)
            self.used = first.used.per_event(first.events)
            if "chain" in self.only:
                self.rows.append(_chain_row(first))
            if "history" in self.only:
                await self._history(world, first)

    async def _history(self, old: World, first: Run) -> None:
        rates: dict[str, list[float]] = {"chain": [first.settled_rate], "with": [], "without": []}
        while old.loaded < HISTORY and not self._is_over(HISTORY_UNTIL_S):
            run = await self._through(old, self._calls(min(self.events, HISTORY - old.loaded)), "more history")
            rates["chain"].append(run.settled_rate)
        history = old.loaded
        sample, warm_up = self._calls(HISTORY_EVENTS), self._calls(WARM_UP)
        for number in range(HISTORY_REPEATS):
            if number and self._is_over(REPEAT_UNTIL_S):
                break
            again = self._calls(HISTORY_EVENTS)
            rates["with"].append((await self._through(old, again, f"with {old.loaded:,} rows of history")).settled_rate)
            with held(old):
                async with self.worlds.fresh() as young, started(young):
                    await self._through(young, warm_up, "warming up")
                    rates["without"].append((await self._through(young, sample, "without history")).settled_rate)
                    self.problems += await chain_problems(young)
        self.problems += await chain_problems(old)
        slower = 1 - median(rates["with"]) / median(rates["without"])
        note = (
            f"whole chain, {HISTORY_EVENTS:,} events: {_rates(rates['with'])} with {history:,} charges made by the rooms "
            f"themselves, {_rates(rates['without'])} without, in turns"
        )
        self.rows.append(_slower(f"history of {history:,} charges", SLOWER_GOAL, slower, note, rates))

    # ---- usage alone -----------------------------------------------------------------------------------------------

    async def _stage(self) -> None:
        many, few = self._calls(STAGE_EVENTS), self._calls(SINGLE_EVENTS)
        rates: dict[str, list[float]] = {"one": [], "copy": [], "copy_all": [], "two": [], "single": []}
        rates |= {"prices": [], "import": [], "memory": []}
        spent: dict[str, list[Run]] = {"one": [], "two": []}
        for number in range(STAGE_REPEATS):
            if number and self._is_over(REPEAT_UNTIL_S):
                break
            async with self.worlds.fresh() as world:
                async with started(world, USAGE_ALONE):
                    spent["one"].append(await self._alone(world, many, "usage, one worker"))
                    rates["one"].append(spent["one"][-1].published_rate)
                if "copy" in self.only:
                    self.tell("bare COPY")
                    charges, everything = await copy_rates(world, STAGE_EVENTS)
                    self.tell(f"  {charges:,.0f} charges/s, {everything:,.0f} events/s with identity and outbox")
                    rates["copy"].append(charges)
                    rates["copy_all"].append(everything)
            if "workers" in self.only:
                async with (
                    self.worlds.fresh() as world,
                    started(world, {"usage": 2}, TOLLBOOK_SESSION_MS=TWO_SESSION_MS),
                ):
                    spent["two"].append(await self._alone(world, many, "usage, two workers"))
                    rates["two"].append(spent["two"][-1].published_rate)
            if "batch" in self.only:
                async with self.worlds.fresh() as world, started(world, USAGE_ALONE, TOLLBOOK_BATCH_MAX_RECORDS="1"):
                    rates["single"].append((await self._alone(world, few, "one message a transaction")).published_rate)
            if "prices" in self.only:
                async with self.worlds.fresh() as world:
                    rates["import"].append(await sell_by_carrier(world))
                    async with started(world, USAGE_ALONE):
                        run = await self._alone(
                            world, many, f"usage, {PREFIXES:,} prefixes in a third book, half in tiers"
                        )
                        rates["prices"].append(run.published_rate)
                        rates["memory"].append(run.memory_mb)
        self.rows += _stage_rows({name: found for name, found in rates.items() if found}, spent)

    async def _stored(self) -> None:
        """Usage alone beside millions of charges and identities that were made before, and without them, in turns.

        The first run of a world is told and not counted: after a checkpoint PostgreSQL logs each page that is touched once
        as a whole, of the identities' index some 100 MB, whether a hundred thousand events follow or, in the quarter of an
        hour until the next one, twenty million.
        """
        many = self._calls(STAGE_EVENTS)
        rates: dict[str, list[float]] = {"with": [], "without": [], "memory": []}
        used: dict[str, list[Run]] = {"with": [], "without": []}
        async with self.worlds.fresh() as old:
            async with started(old, USAGE_ALONE):
                await self._alone(old, many, "usage, what is then copied")
            self.tell(f"storing {STORED:,} charges")
            await store_history(old, STORED)
            for _ in range(STORED_REPEATS):
                async with started(old, USAGE_ALONE):
                    first = await self._alone(
                        old, self._calls(STAGE_EVENTS), f"usage, with {old.loaded:,} charges, first"
                    )
                    run = await self._alone(old, self._calls(STAGE_EVENTS), f"usage, with {old.loaded:,} charges")
                rates.setdefault("first", []).append(first.published_rate)
                rates["with"].append(run.published_rate)
                rates["memory"].append(run.memory_mb)
                used["with"].append(run)
                async with self.worlds.fresh() as young:
                    await store_identities(young, STAGE_EVENTS)
                    async with started(young, USAGE_ALONE):
                        await self._alone(young, many, "usage, without history, first")
                        run = await self._alone(young, self._calls(STAGE_EVENTS), "usage, without history")
                rates["without"].append(run.published_rate)
                used["without"].append(run)
        slower = 1 - median(rates["with"]) / median(rates["without"])
        note = (
            f"with {_rates(rates['with'])} (an event takes {_processor_us(used['with'])}), without"
            f" {_rates(rates['without'])} ({_processor_us(used['without'])}), in turns; the first after a start with history"
            f" {_rates(rates['first'])}"
        )
        self.rows.append(_slower(f"usage, {STORED:,} charges stored", STORED_GOAL, slower, note, rates))
        self.rows.append(_memory(rates["memory"], f"with {STORED:,} charges stored"))

    # ---- balance alone ---------------------------------------------------------------------------------------------

    async def _posting(self) -> None:
        """Balance alone, on the charges of all accounts and on those of one; bare COPY of its ledger rows in the same run."""
        made = {"all": self._calls(POSTING_EVENTS), "one": self._calls(POSTING_EVENTS, of_one=True)}
        warm_up = self._calls(POSTING_WARM_UP)
        runs: dict[str, list[Posting]] = {"all": [], "one": []}
        copies: list[tuple[float, float]] = []
        for number in range(STAGE_REPEATS):
            if number and self._is_over(REPEAT_UNTIL_S):
                break
            for name, sample in made.items():
                async with self.worlds.fresh() as world:
                    self.tell(f"balance, charges of {name} of the accounts")
                    runs[name].append(await post(world, warm_up, sample))
                    self.tell(f"  {runs[name][-1].rate:,.0f} charges/s")
                    self.problems += await posting_problems(world)
                    if name == "all":
                        self.tell("bare COPY")
                        copies.append(await ledger_copy_rates(world))
        self.rows += _posting_rows(runs, copies)

    # ---- holds -----------------------------------------------------------------------------------------------------

    async def _holds(self) -> None:
        """Authorisations one after the other, and at a steady rate over HTTP beside the usage of a busy day."""
        took: dict[str, list[float]] = {"p50": [], "p99": [], "busy p50": [], "busy p99": [], "events": []}
        for number in range(HOLDS_REPEATS):
            if number and self._is_over(REPEAT_UNTIL_S):
                break
            async with self.worlds.fresh() as world:
                self.tell("holds, one caller at a time")
                found = await holds.alone(world)
                took["p50"].append(percentile(found, 0.5))
                took["p99"].append(percentile(found, 0.99))
                self.tell(f"  p50 {took['p50'][-1]:.2f} ms, p99 {took['p99'][-1]:.2f} ms")
            async with self.worlds.fresh() as world:
                self.tell(f"holds over HTTP, {holds.PER_S}/s beside {holds.EVENTS_PER_S:,} events/s")
                self._seed += 1
                found, events = await holds.beside_usage(world, self._seed)
                took["busy p50"].append(percentile(found, 0.5))
                took["busy p99"].append(percentile(found, 0.99))
                took["events"].append(events)
                self.problems += await holds.problems(world)
                self.tell(
                    f"  p50 {took['busy p50'][-1]:.1f} ms, p99 {took['busy p99'][-1]:.1f} ms; {events:,.0f} events/s"
                )
        self.rows += _holds_rows(took)

    async def _alone(self, world: World, made: Calls, what: str) -> Run:
        run = await self._measured(world, made, what)
        self.tell(f"  {run.published_rate:,.0f} events/s")
        self.problems += await stage_problems(world)
        return run

    async def _through(self, world: World, made: Calls, what: str) -> Run:
        run = await self._measured(world, made, what)
        self.tell(
            f"  {run.settled_rate:,.0f} events/s; published {run.published_s:.1f} s, on invoices {run.settled_s:.1f} s, "
            f"off wallets {run.debited_s:.1f} s"
        )
        return run

    async def _measured(self, world: World, made: Calls, what: str) -> Run:
        self.tell(f"{what}: {made.count:,} events")
        return await measure(world, made)


def _chain_row(run: Run) -> Row:
    return Row(
        "whole chain, settled",
        f"{CHAIN_GOAL:,.0f} events/s",
        f"{run.settled_rate:,.0f} events/s",
        run.settled_rate,
        run.settled_rate >= CHAIN_GOAL,
        f"{run.events:,} events of {ACCOUNTS:,} accounts preloaded, all rooms and servers on this machine; from the first "
        f"fetch: published {run.published_s:.1f} s, on invoices {run.settled_s:.1f} s, off wallets {run.debited_s:.1f} s",
        {"settled": [run.settled_rate]},
    )


def _stage_rows(rates: dict[str, list[float]], spent: dict[str, list[Run]]) -> list[Row]:
    one = median(rates["one"])
    rows = []
    for name, what in (("copy", "its charges alone"), ("copy_all", "all that it stores")):
        if name in rates:
            share = one / median(rates[name])
            note = f"usage {_rates(rates['one'])}, COPY {_rates(rates[name])}; {STAGE_EVENTS:,} events, in turns"
            note += f"; an event takes {_processor_us(spent['one'])}"
            rows.append(_ratio(f"usage, one worker / bare COPY of {what}", COPY_GOAL, share, note, rates))
    if "two" in rates:
        gain = median(rates["two"]) / one
        note = (
            f"two {_rates(rates['two'])}, one {_rates(rates['one'])}; the servers share the {os.cpu_count()} cores with"
        )
        note += f" them: an event takes {_processor_us(spent['two'])}"
        rows.append(_ratio("usage, two workers / one", WORKERS_GOAL, gain, note, rates))
    if "single" in rates:
        gain = one / median(rates["single"])
        note = f"{BATCH_RECORDS_MAX:,} records a transaction {_rates(rates['one'])}, one {_rates(rates['single'])}"
        rows.append(_ratio("batch / one message a transaction", None, gain, note, rates))
    if "prices" in rates:
        note = f"{PREFIXES:,} prefixes {_rates(rates['prices'])}, the demo's lists {_rates(rates['one'])}"
        note += f"; imported in {median(rates['import']):.1f} s"
        rows.append(
            _ratio(
                f"usage, third book of {PREFIXES:,} prefixes, half in tiers / without",
                PRICES_GOAL,
                median(rates["prices"]) / one,
                note,
                rates,
            )
        )
        rows.append(_memory(rates["memory"], f"with a book of {PREFIXES:,} prefixes"))
    return rows


def _processor_us(runs: Sequence[Run]) -> str:
    """What an event took of the processors, and how many of them they could hold at that in a second."""
    python, postgres, kafka = (
        median(seconds(run.used) / run.events * 1e6 for run in runs)
        for seconds in (_python, attrgetter("postgres_in_all"), attrgetter("kafka"))
    )
    bound = (os.cpu_count() or 1) / (python + postgres + kafka) * 1e6
    return (
        f"python {python:.1f}, PostgreSQL {postgres:.1f}, Kafka {kafka:.1f} us of processor time, by which all cores together"
        f" hold {bound:,.0f} events/s"
    )


def _python(used: Used) -> float:
    return sum(used.python.values())


def _posting_rows(runs: dict[str, list[Posting]], copies: list[tuple[float, float]]) -> list[Row]:
    every, hot = ([run.rate for run in runs[name]] for name in ("all", "one"))
    single, grouped = ([pair[n] for pair in copies] for n in (0, 1))
    last = runs["all"][-1]
    locked = sorted(ms for run in runs["all"] for ms in run.locked_ms)
    samples = {"all": every, "one": hot, "copy": single, "copy of groups": grouped, "ms": locked}
    share, rows = median(every) / median(single), median([run.row_rate for run in runs["all"]]) / median(grouped)
    return [
        Row(
            "balance, one worker",
            f"{POSTING_GOAL:,.0f} charges/s",
            f"{median(every):,.0f} charges/s",
            median(every),
            median(every) >= POSTING_GOAL,
            f"{POSTING_EVENTS:,} charges of {ACCOUNTS:,} accounts, from the first commit to the last; processor us a "
            f"charge: python {last.python_us:.1f}, postgres {last.postgres_us:.1f}; {last.rows:,} ledger rows in "
            f"{last.batches} batches, sealed",
            samples,
        ),
        _ratio(
            "balance / bare COPY of a ledger row a charge",
            GROUPED_GOAL,
            share,
            f"balance {_rates(every)}, COPY {_rates(single)}; of the grouped rows COPY {_rates(grouped)}, of which balance "
            f"writes {rows:.2f}",
            samples,
        ),
        _slower(
            "balance, one account takes all charges",
            HOT_GOAL,
            1 - median(hot) / median(every),
            f"one {_rates(hot)}, all {_rates(every)}, in turns",
            samples,
        ),
        Row(
            "wallets locked, p99",
            f"{LOCKED_MS_GOAL:.0f} ms",
            f"{percentile(locked, 0.99):.1f} ms",
            percentile(locked, 0.99),
            percentile(locked, 0.99) <= LOCKED_MS_GOAL,
            f"from the sending of the statement to after the commit, {len(locked)} batches of {len(every)} runs; half of "
            f"them at most {median(locked):.1f} ms, nine of ten {percentile(locked, 0.9):.1f} ms; the first of each run, when "
            f"all that a stopped process missed is due as well, {' '.join(f'{run.first_locked_ms:.1f}' for run in runs['all'])} ms",
            samples,
        ),
    ]


def _holds_rows(took: dict[str, list[float]]) -> list[Row]:
    alone = "one caller after the other, in process, committed to disk"
    busy = (
        f"over HTTP at {holds.PER_S}/s from the instant each was due, beside {median(took['events']):,.0f} events/s through"
        f" the whole chain; p50 {median(took['busy p50']):.1f} ms"
    )
    rows = []
    for what, goal_ms, samples, note in (
        ("authorise alone, p50", HOLD_P50_GOAL_MS, took["p50"], alone),
        ("authorise alone, p99", HOLD_P99_GOAL_MS, took["p99"], alone),
        ("authorise beside usage, p99", BUSY_P99_GOAL_MS, took["busy p99"], busy),
    ):
        found = median(samples)
        rows.append(Row(what, f"{goal_ms:g} ms", f"{found:.2f} ms", found, found <= goal_ms, note, {"ms": samples}))
    return rows


def _slower(what: str, goal: float, slower: float, note: str, samples: dict[str, list[float]]) -> Row:
    measured = f"{abs(slower):.1%} {'slower' if slower > 0 else 'faster'}"
    return Row(what, f"at most {goal:.0%} slower", measured, slower, slower <= goal, note, samples)


def _memory(found: list[float], note: str) -> Row:
    most = max(found)
    samples = {"MB": found}
    return Row(
        "memory of a usage worker",
        f"{MEMORY_GOAL_MB:.0f} MB",
        f"{most:.0f} MB",
        most,
        most <= MEMORY_GOAL_MB,
        note,
        samples,
    )


def _ratio(what: str, goal: float | None, value: float, note: str, samples: dict[str, list[float]]) -> Row:
    passed = None if goal is None else value >= goal
    return Row(what, "" if goal is None else f"{goal:g}", f"{value:.2f}", value, passed, note, samples)


def _rates(rates: list[float]) -> str:
    return " ".join(f"{rate:,.0f}" for rate in rates) + " events/s"


# ---- profile -------------------------------------------------------------------------------------------------------


async def profile(worlds: Worlds, rooms: Collection[str], events: int, console: Console) -> list[str]:
    """The whole chain with these rooms under the sampler; prints where their processor time goes. Returns problems."""
    async with worlds.fresh() as world:
        async with started(world, under=dict.fromkeys(rooms, "tests.bench.profiled"), BENCH_PROFILE=str(world.logs)):
            run = await measure(world, calls(events, seed=1, now=datetime.now(UTC), partitions=PARTITIONS))
            problems = await chain_problems(world)
        found = {room: json.loads((world.logs / f"profile-{room}.json").read_text()) for room in rooms}
    console.print(f"{run.settled_rate:,.0f} events/s", run.used.per_event(run.events))
    for room, seen in found.items():
        _show_profile(console, room, seen, run)
    return problems


def _show_profile(console: Console, room: str, seen: dict[str, Any], run: Run) -> None:
    """Shares of the samples, as microseconds an event of what the process used in the run."""
    used = run.used.python[room] / run.events * 1e6
    for name, heading in (("own", "own time"), ("within", "with all it calls"), ("lines", "by line")):
        table = Table("us an event", "share", "where", title=f"{room}: {heading}, {seen['samples']:,} samples")
        for where, count in seen[name]:
            share = count / seen["samples"]
            table.add_row(f"{share * used:.2f}", f"{share:.1%}", where)
        console.print(table)
    table = Table("ms each", "times", "us an event", "statement", title=f"{room}: statements by the clock")
    for text, times, seconds in seen["statements"]:
        table.add_row(f"{seconds / times * 1e3:.2f}", str(times), f"{seconds / run.events * 1e6:.2f}", text)
    console.print(table)
