"""Collections larger than this machine, by simulation: 1,000 workers, 10⁹ tokens, 70 billion parameters.

An event simulation of the parts of `cutaway.collect`: one driver that hands out chunks, workers that load the model, compute and
write their files, a folder whose bandwidth they share and that makes so many files a second. What the driver does for a chunk is
measured here; rates of processors, networks and folders are assumptions, and printed. The tables of docs/design/scale.md are its
output.
"""

from __future__ import annotations

import argparse
import heapq
from dataclasses import dataclass, replace

TOKENS = 10**9
CHARACTERS = 4  # of a token
INDEX = 4.1  # bytes of the index for each row and site, as measured on WikiText-2
TEXT = 0.4  # bytes of a character after compression


@dataclass(frozen=True)
class Setting:
    """What a collection runs on.

    Args:
        workers: machines or shares of machines that each hold the model.
        operations: of a worker, each second, as it reaches them.
        weights: bytes that each worker reads at its start.
        folder: bytes a second that the shared folder takes or gives, in all.
        wire: bytes a second of one worker.
        files: files a second that the folder creates.
        driver: seconds of the driver for each chunk.
        characters: of a chunk.
        sites, width, number: what is stored: sites, numbers of each row, bytes of each.
        share: of the layers that run.
    """

    workers: int = 1000
    parameters: float = 70e9
    operations: float = 800e12
    weights: float = 140e9
    folder: float = 100e9
    wire: float = 5e9
    files: float = 5000.0
    driver: float = 0.003
    characters: int = 2**17
    sites: int = 1
    width: int = 8192
    number: int = 2
    share: float = 0.5

    @property
    def chunk_tokens(self) -> float:
        """Tokens of a chunk; chunks take half of their bound on average."""
        return 0.5 * self.characters / CHARACTERS

    @property
    def chunk_seconds(self) -> float:
        """A chunk's computation."""
        return self.chunk_tokens * 2 * self.parameters * self.share / self.operations

    @property
    def chunk_bytes(self) -> float:
        """A chunk's shard, index and texts."""
        rows = self.chunk_tokens * self.sites
        return rows * (self.width * self.number + INDEX) + TEXT * 0.5 * self.characters


class Shared:
    """A folder of which all transfers get equal shares, up to the wire of each (processor sharing, by virtual time)."""

    def __init__(self, rate: float, wire: float):
        self.rate, self.wire, self.now, self.virtual = rate, wire, 0.0, 0.0
        self.flows: list[tuple[float, int]] = []

    def _speed(self) -> float:
        return min(self.wire, self.rate / len(self.flows)) if self.flows else 0.0

    def advance(self, now: float) -> None:
        """Go on to a later time."""
        self.virtual += (now - self.now) * self._speed()
        self.now = now

    def add(self, now: float, size: float, who: int) -> None:
        """Begin a transfer."""
        self.advance(now)
        heapq.heappush(self.flows, (self.virtual + size, who))

    def next_end(self) -> float:
        """When the next transfer ends, if nothing begins before."""
        return self.now + max(0.0, self.flows[0][0] - self.virtual) / self._speed() if self.flows else float("inf")

    def end(self, now: float) -> int:
        """End the transfer that is due; whose it was."""
        self.advance(now)
        return heapq.heappop(self.flows)[1]


@dataclass(frozen=True)
class Outcome:
    """What a simulation gives, in seconds and bytes."""

    total: float
    loading: float
    busy: float
    driver: float
    folder: float
    files: float
    stored: float
    chunks: int

    @property
    def limit(self) -> str:
        """What the collection waits for most."""
        shares = {"workers": self.busy, "driver": self.driver, "folder": self.folder, "files": self.files}
        if self.loading > 0.5 * self.total:
            return "loading the model"
        return max(shares, key=lambda name: shares[name])


def simulate(setting: Setting) -> Outcome:
    """Run the events: load, hand out, compute, write three files, again."""
    chunks = int(TOKENS / setting.chunk_tokens)
    folder, events = Shared(setting.folder, setting.wire), list[tuple[float, int]]()
    loaded, left = set[int](), chunks
    driver_free = driver_busy = maker_free = maker_busy = busy = loading = now = 0.0
    for worker in range(min(setting.workers, chunks)):
        folder.add(0.0, setting.weights, worker)
    while folder.flows or events:
        transfer = folder.next_end()
        if events and events[0][0] <= transfer:  # a computation is done: make the files, then send them
            now, worker = heapq.heappop(events)
            maker_free = max(maker_free, now) + 3 / setting.files
            maker_busy += 3 / setting.files
            folder.add(max(now, maker_free) if not folder.flows else now, setting.chunk_bytes, worker)
            continue
        now = transfer
        worker = folder.end(now)
        if worker not in loaded:
            loaded.add(worker)
            loading = now
        if left:
            left -= 1
            driver_free = max(driver_free, now) + setting.driver
            driver_busy += setting.driver
            busy += setting.chunk_seconds
            heapq.heappush(events, (max(driver_free, maker_free) + setting.chunk_seconds, worker))
    stored = chunks * setting.chunk_bytes
    moved = stored + setting.weights * min(setting.workers, chunks)
    return Outcome(
        now,
        loading,
        busy / setting.workers / now,
        driver_busy / now,
        moved / setting.folder / now,
        maker_busy / now,
        stored,
        chunks,
    )


CASES = {
    "as a laptop's defaults": Setting(),
    "chunks of 2 MiB of text": Setting(characters=2**21),
    "… weights from each machine's own disk": Setting(characters=2**21, weights=0.0),
    "… 100 workers": Setting(characters=2**21, weights=0.0, workers=100),
    "… a folder of 10 GB/s": Setting(characters=2**21, weights=0.0, folder=10e9),
    "… and int8": Setting(characters=2**21, weights=0.0, folder=10e9, number=1),
    "… 10 sites, 100 GB/s": Setting(characters=2**21, weights=0.0, sites=10),
    "a driver of 30 ms": Setting(weights=0.0, driver=0.03),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--driver", type=float, default=0.003, help="Seconds of the driver for each chunk.")
    given = parser.parse_args()
    print(f"{TOKENS:.0e} tokens, 70e9 parameters of which half run; driver {given.driver * 1e3:.1f} ms for each chunk")
    print("| case | chunks | in all | loading | workers busy | driver busy | folder busy | files | stored | limit |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, setting in CASES.items():
        if setting.driver == Setting.driver:
            setting = replace(setting, driver=given.driver)
        found = simulate(setting)
        print(
            f"| {name} | {found.chunks:,} | {found.total:,.0f} s | {found.loading:,.0f} s | {found.busy:.0%} | "
            f"{found.driver:.0%} | {found.folder:.0%} | {found.files:.0%} | {found.stored / 1e12:.1f} TB | {found.limit} |"
        )


if __name__ == "__main__":
    main()
