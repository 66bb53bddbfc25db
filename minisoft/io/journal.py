"""What is finished of a long piece of work is written down, so that it goes on after a kill."""

import json
import re
from contextlib import suppress
from pathlib import Path

from minisoft.errors import InputError, expecting
from minisoft.io.atomic import writing


class Journal:
    """key -> value of everything finished, both JSON.  Every rank appends to a file of its own,
    FILE.part-RANK, whose first line is `facts`, all that decides the results; a new Journal knows
    the entries of all parts, by however many ranks.  The main rank keeps values until they are
    taken.  Raises InputError where a part has other facts.  path None: nothing is kept on disk."""

    def __init__(self, path: Path | None, facts: dict, world):
        self.path, self.world = path, world
        self.facts = json.loads(json.dumps(facts))
        self.file = None  # this rank's part, once it writes
        self.entries: dict[str, object] = {}  # JSON of the key -> value
        self.new: list[tuple[str, object]] = []  # those of this process
        for part in self._parts():
            self._read(part)
        world.gather_objects([0])  # everyone has read before anyone writes

    def missing(self, keys: list) -> list:
        """This rank's part of the keys without an entry."""
        new = [key for key in keys if json.dumps(key) not in self.entries]
        return new[self.world.rank :: self.world.size]

    def add(self, key, value) -> None:
        """Write down what is finished; a new part begins with the facts, an old one anew."""
        self.new.append((json.dumps(key), value))
        if self.path is None:
            return
        if self.file is None:
            part = self.path.with_name(f"{self.path.name}.part-{self.world.rank}")
            goes_on = part.is_file() and b"\n" in part.read_bytes()
            self.file = part.open("ab" if goes_on else "wb")
            self.file.write(b"\n" if goes_on else json.dumps(self.facts).encode() + b"\n")
        with writing(self.path):
            self.file.write(json.dumps([key, value]).encode() + b"\n")
            self.file.flush()

    def take(self, keys: list) -> list:
        """What all ranks have finished: the values of the keys, each once, on the main rank."""
        self.entries.update(self.world.gather_objects(self.new, to_all=False))
        self.new = []
        return [self.entries.pop(json.dumps(key)) for key in keys] if self.world.main else []

    def remove(self) -> None:
        """The work is done: its parts go."""
        if self.file:
            self.file.close()
        self.world.gather_objects([0])  # everyone has closed
        if self.world.main:
            for part in self._parts():
                part.unlink()

    def _parts(self) -> list[Path]:
        if self.path is None:
            return []
        part = re.compile(re.escape(f"{self.path.name}.part-") + "[0-9]+")
        return sorted(path for path in self.path.parent.iterdir() if part.fullmatch(path.name))

    def _read(self, part: Path) -> None:
        with expecting("UTF-8 text", part):
            lines = part.read_text("utf-8", errors="replace").split("\n")
        if len(lines) == 1 and json.dumps(self.facts).startswith(lines[0]):
            return  # killed before its first line was whole
        with expecting("JSON", f"{part}: line 1"):
            facts = dict(json.loads(lines[0]))
        names = sorted({*self.facts, *facts})
        if other := [name for name in names if facts.get(name) != self.facts.get(name)]:
            raise InputError(
                f"{part}: expected what an interrupted call with the same flags left, found other "
                f"values for {', '.join(other)}; repeat that call to go on with it, or remove the "
                ".part files"
            )
        for line in lines[1:-1]:
            with suppress(ValueError, TypeError):  # a line that a kill cut
                key, value = json.loads(line)
                self.entries[json.dumps(key)] = value if self.world.main else None
