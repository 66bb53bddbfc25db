"""Finished pieces of a long piece of work, written down as they come, so that a killed program goes on where it stopped."""

import json
from pathlib import Path

from minisoft.errors import InputError, expecting


class Journal:
    """key -> value of every finished piece; keys and values are JSON.

    Every rank appends to a file of its own, FILE.part-RANK, a line for each piece; the first line holds `facts`, all that
    decides the results.  A new Journal knows the pieces of all parts, by however many ranks they were made (they must see
    the same folder).  Values are kept in memory on the main rank only, until they are taken.  Raises InputError where a
    part was made with other facts.  path None: nothing is kept on disk.
    """

    def __init__(self, path: Path | None, facts: dict, world):
        self.path, self.facts, self.world, self.file = path, json.loads(json.dumps(facts)), world, None
        self.pieces: dict[str, object] = {}  # JSON of the key -> value
        self.new: list[tuple[str, object]] = []  # those of this process
        for part in self._parts():
            self._read(part)
        world.gather_objects([0])  # everyone has read before anyone writes

    def _parts(self) -> list[Path]:
        return [] if self.path is None else sorted(
            part for part in self.path.parent.iterdir() if part.name.startswith(f"{self.path.name}.part-"))

    def _read(self, part: Path) -> None:
        with expecting("UTF-8 text", part):
            lines = part.read_text("utf-8", errors="replace").split("\n")
        if not lines[:-1]:
            return  # killed before its first line was whole
        with expecting("JSON", f"{part}: line 1"):
            found = dict(json.loads(lines[0]))
        other = [name for name in sorted(set(self.facts) | set(found)) if found.get(name) != self.facts.get(name)]
        if other:
            raise InputError(f"{part}: expected what an interrupted call with the same flags left, found other values for "
                             f"{', '.join(other)}; repeat that call to go on with it, or remove the .part files")
        for line in lines[1:-1]:
            try:
                piece = json.loads(line)
            except ValueError:
                continue  # a line that a kill cut
            if isinstance(piece, list):
                self.pieces[json.dumps(piece[0])] = piece[1] if self.world.main else None

    def _write(self, value) -> None:
        """Append a line to this rank's part; a new part begins with the facts, an old one may end in half a line."""
        if self.file is None:
            own = self.path.with_name(f"{self.path.name}.part-{self.world.rank}")
            begun = own.is_file() and b"\n" in own.read_bytes()
            self.file = own.open("ab" if begun else "wb")
            self.file.write(b"\n" if begun else json.dumps(self.facts).encode() + b"\n")
        self.file.write(json.dumps(value).encode() + b"\n")
        self.file.flush()

    def __contains__(self, key) -> bool:
        return json.dumps(key) in self.pieces

    def add(self, key, value) -> None:
        """Write down a finished piece."""
        if self.path:
            self._write([key, value])
        self.new.append((json.dumps(key), value))

    def collect(self) -> None:
        """The main rank gets the new pieces of all ranks."""
        self.pieces.update(self.world.gather_to_main(self.new))
        self.new = []

    def take(self, key):
        """The value of a piece, once, on the main rank after `collect`."""
        return self.pieces.pop(json.dumps(key))

    def remove(self) -> None:
        """The work is done: its parts go."""
        if self.file:
            self.file.close()
        self.world.gather_objects([0])  # everyone has closed
        if self.world.main:
            for part in self._parts():
                part.unlink()
