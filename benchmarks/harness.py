"""The harness of every benchmark: cases and their arguments, tables, claims, saved results.

    bench = Benchmark(__file__, __doc__, example="rows --quick")

    @bench.case(quick={"rows": 2000})
    def rows(run: Run, rows: int = 20_000) -> None:
        table = run.table("format", "write, ms|.1f")
        table.row("memmap", 12.3)

    if __name__ == "__main__":
        bench.main()

A case is a function. Its parameters become options of the command, its defaults are the full setting, and `quick`
holds the values of the smallest setting. Options that several cases share are the fields of a frozen dataclass: a case
takes it as one parameter, whose default is an instance. A side is a function that runs in a process of its own (see
peers.py).
"""

import argparse
import fnmatch
import inspect
import json
import shlex
import sys
import time
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from .machine import machine
from .peers import run_process

RESULTS = Path(__file__).parent / "results"
Work = TypeVar("Work", bound=Callable[..., None])


def markdown(cells: Iterable[str]) -> str:
    """One row of a table."""
    return "| " + " | ".join(cells) + " |"


@dataclass
class Table:
    """A Markdown table that prints each row when it is known. A column is "name" or "name|format of its numbers"."""

    run: "Run"
    columns: Sequence[str]
    title: str = ""
    rows: list[list[Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [column.partition("|")[0] for column in self.columns]
        self.run.say(f"\n{self.title}\n" if self.title else "")
        self.run.say(f"{markdown(names)}\n{'|---' * len(names)}|")

    def row(self, *cells: Any) -> None:
        """Print one row: numbers in the column's format, None as an empty cell, everything else as text."""
        self.rows.append(list(cells))
        shown = []
        for column, cell in zip(self.columns, cells, strict=True):
            spec = column.partition("|")[2]
            number = isinstance(cell, (int, float, np.number)) and not isinstance(cell, bool)
            shown.append(format(cell, spec) if number else "" if cell is None else str(cell).replace("|", "/"))
        self.run.say(markdown(shown))


@dataclass
class Run:
    """What a case reports to: text, tables and claims are printed at once and kept for --save and --json."""

    quick: bool = False
    out: Path = Path("out")
    store_folder: str | None = None
    only: Sequence[str] = ()
    lines: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    claims: dict[str, bool | None] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    @property
    def store(self) -> Any:
        """The store of --store, else the user's."""
        from whence.cache import Store

        return Store(self.store_folder)

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.perf_counter() - self.began

    def say(self, text: object = "") -> None:
        print(text, flush=True)
        self.lines.append(str(text))

    def table(self, *columns: str, title: str = "") -> Table:
        self.tables.append(Table(self, columns, title))
        return self.tables[-1]

    def claim(self, text: str, verdict: bool | None, *details: str) -> None:
        """Say whether a claim of the documentation held; None: the measurement does not decide it."""
        self.claims[text] = verdict
        self.say(f"{ {True: 'held', False: 'DID NOT HOLD', None: 'undecided'}[verdict] }: {text}".strip())
        for detail in details:
            self.say(f"    {detail}")

    def claim_above(self, text: str, gap: Any, spec: str, unit: str = "") -> None:
        """A claim that a difference, an Interval, is above zero: undecided if its interval reaches zero."""
        verdict = None if gap.low <= 0 <= gap.high else bool(gap.low > 0)
        self.claim(text, verdict, f"{format(gap, spec)} {unit}".strip())

    def selected(self, names: Iterable[str]) -> list[str]:
        """The names that --only selects (all without it). Raises SystemExit when it selects none."""
        every = list(names)
        found = [n for n in every if not self.only or any(fnmatch.fnmatchcase(n, pattern) for pattern in self.only)]
        if not found:
            raise SystemExit(f"--only selects nothing here. Choose among: {', '.join(every)}.")
        return found

    def record(self) -> dict[str, Any]:
        """Everything reported, for --json."""
        tables = [
            {"title": t.title, "columns": [c.partition("|")[0] for c in t.columns], "rows": t.rows} for t in self.tables
        ]
        return {"tables": tables, "claims": self.claims, "text": "\n".join(self.lines), "seconds": self.seconds}


@dataclass(frozen=True)
class Case:
    """One measurement: a function of a Run and of options, its smallest setting, and whether it runs by default."""

    name: str
    work: Callable[..., None]
    quick: Mapping[str, Any]
    default: bool

    @property
    def own(self) -> dict[str, Any]:
        """Default by parameter of the function."""
        return {p.name: p.default for p in list(inspect.signature(self.work).parameters.values())[1:]}

    @property
    def parameters(self) -> dict[str, Any]:
        """Default by option: parameters, and the fields of those that are dataclasses."""
        return {n: v for name, default in self.own.items() for n, v in _fields(name, default).items()}

    @property
    def hints(self) -> dict[str, Any]:
        """Type by option."""
        shared = [get_type_hints(type(default)) for default in self.own.values() if is_dataclass(default)]
        return {name: hint for part in (get_type_hints(self.work), *shared) for name, hint in part.items()}

    def help_of(self, name: str) -> str:
        """The option's line under Args: in the docstring of the function or dataclass, and its default."""
        described = [self.work, *(type(default) for default in self.own.values() if is_dataclass(default))]
        lines = [line.strip() for one in described for line in (one.__doc__ or "").splitlines()]
        text = next((line.partition(":")[2].strip() for line in lines if line.startswith(f"{name}:")), "")
        default = self.parameters[name]
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        return f"{text.rstrip('.')} (default: {shown})".strip().replace("%", "%%")

    def __call__(self, run: Run, given: Mapping[str, Any]) -> None:
        chosen = {**(self.quick if run.quick else {}), **{n: v for n, v in given.items() if v is not None}}
        groups = {name: replace(value, **{n: v for n, v in chosen.items() if n in _fields(name, value)})
                  for name, value in self.own.items() if is_dataclass(value)}  # fmt: skip
        self.work(run, **{name: value for name, value in chosen.items() if name in self.own}, **groups)


def _fields(name: str, default: Any) -> dict[str, Any]:
    return {f.name: getattr(default, f.name) for f in fields(default)} if is_dataclass(default) else {name: default}


def argument(hint: Any, default: Any) -> dict[str, Any]:
    """The argparse settings of a parameter of this type."""
    if isinstance(default, bool):
        return {"action": "store_true", "default": None}
    settings: dict[str, Any] = {}
    if get_origin(hint) is tuple:
        settings["nargs"], hint = "+", get_args(hint)[0]
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    if get_origin(hint) is Literal:
        settings["choices"], hint = get_args(hint), type(get_args(hint)[0])
    return {**settings, "type": hint}


class Benchmark:
    """One script: its cases, its sides, its command."""

    def __init__(self, file: str, doc: str | None, example: str = "--quick") -> None:
        self.name = Path(file).stem
        self.doc, self.example = (doc or "").strip(), example
        self.cases: dict[str, Case] = {}
        self.sides: dict[str, Callable[[Path], None]] = {}

    def case(
        self, name: str | None = None, quick: Mapping[str, Any] | None = None, default: bool = True
    ) -> Callable[[Work], Work]:
        """Declare a case.

        Args:
            name: on the command line; the function's name by default.
            quick: options of the smallest setting.
            default: whether it runs when the command names no case.
        """

        def declare(work: Work) -> Work:
            case = Case(name or work.__name__, work, quick or {}, default)
            unknown = set(case.quick) - set(case.parameters)
            if unknown:
                raise TypeError(f"{case.name} has no parameter {unknown.pop()!r}. Remove it from `quick`.")
            self.cases[case.name] = case
            return work

        return declare

    def side(self, name: str, work: Callable[[Path], None]) -> None:
        """Declare what a process of its own runs; it reads its input from a folder and writes its output there."""
        self.sides[name] = work

    def run_side(
        self, name: str, folder: Path, packages: Sequence[str] = (), check: bool = True
    ) -> CompletedProcess[str]:
        """Run a declared side in a process of its own, with `packages` installed for that process alone."""
        return run_process(f"benchmarks.{self.name}", name, folder, packages, check)

    def parser(self) -> argparse.ArgumentParser:
        kind = argparse.RawDescriptionHelpFormatter
        about = "\n".join(
            f"  {c.name:14} {(c.work.__doc__ or '').strip().splitlines()[0]}" for c in self.cases.values()
        )
        command = f"python -m benchmarks.{self.name}"
        parser = argparse.ArgumentParser(
            command, description=self.doc, epilog=f"cases:\n{about}\n\nexample:\n  {command} {self.example}",
            formatter_class=kind,
        )  # fmt: skip
        parser.add_argument("cases", nargs="*", metavar="CASE", help=f"among: {', '.join(self.cases)}")
        parser.add_argument("--quick", action="store_true", help="the smallest setting, to try the script")
        parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="rows to measure; globs are allowed")
        parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured as JSON")
        parser.add_argument("--out", type=Path, default=Path("out"), help="folder of pages and plots (default: out)")
        parser.add_argument("--store", metavar="FOLDER", help="the store (default: the user's)")
        parser.add_argument("--save", action="store_true", help=f"write into benchmarks/results/{self.name}.md")
        parser.add_argument("--side", help=argparse.SUPPRESS)
        own = parser.add_argument_group("options of the cases")
        added: set[str] = set()
        for case in self.cases.values():
            hints = case.hints
            for name, default in case.parameters.items():
                if name not in added:
                    settings = argument(hints[name], default)
                    own.add_argument(f"--{name.replace('_', '-')}", dest=name, help=case.help_of(name), **settings)
                added.add(name)
        return parser

    def command(self, arguments: Sequence[str]) -> str:
        """The command that repeats this run, without what belongs to this machine."""
        shown = ["python", "-m", f"benchmarks.{self.name}"]
        for before, word in zip(["", *arguments], arguments):
            if not {before, word} & {"--json", "--out", "--store"} and word != "--save":
                shown.append(word)
        return shlex.join(shown)

    def main(self, arguments: Sequence[str] | None = None) -> None:
        """Run the command. Raises SystemExit for bad arguments."""
        parser, arguments = self.parser(), list(sys.argv[1:] if arguments is None else arguments)
        options = parser.parse_args(arguments)
        if options.side is not None:
            self.sides[options.side](options.out)
            return
        for name in options.cases:
            if name not in self.cases:
                parser.error(f"There is no case {name!r}. Choose among: {', '.join(self.cases)}.")
        cases = [c for c in self.cases.values() if (c.name in options.cases if options.cases else c.default)]
        given = {name: v for name, v in vars(options).items() if any(name in c.parameters for c in self.cases.values())}
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        for name, value in given.items():
            if value is not None and not any(name in case.parameters for case in cases):
                parser.error(f"--{name.replace('_', '-')} is no option of {', '.join(case.name for case in cases)}.")
        run = Run(options.quick, options.out, options.store, tuple(options.only))
        print(f"> {machine()}", flush=True)
        for case in cases:
            if len(cases) > 1:
                print(f"\n== {self.name} {case.name}", file=sys.stderr, flush=True)
            case(run, given)
        if options.json:
            options.json.write_text(json.dumps(run.record(), indent=1, default=float), "utf-8")
        if options.save:
            save(self.name, self.command(arguments), run.lines, RESULTS)


def save(name: str, command: str, lines: Iterable[str], folder: Path) -> Path:
    """Write a run into the results file of its script, beneath the command that prints it and the machine; a saved run
    of the same command is replaced, everything else in the file stays as it is."""
    begin, end = f"<!-- measured: {command} -->", "<!-- end -->"
    body = "\n".join(lines).strip()
    block = f"{begin}\n\n```sh\n{command}\n```\n\n> {machine()}\n\n{body}\n\n{end}"
    path = folder / f"{name}.md"
    text = path.read_text("utf-8") if path.exists() else f"# {name}\n"
    before, found, rest = text.partition(begin)
    if found:
        text = before + block + rest.partition(end)[2]
    else:
        text = f"{text.rstrip()}\n\n{block}\n"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path
