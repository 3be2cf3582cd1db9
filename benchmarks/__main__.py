"""Every benchmark, or the ones named, each in a process of its own:

python -m benchmarks                       list them, then run all at their full setting
python -m benchmarks --list                only list them
python -m benchmarks cache bank --quick    run these; options are passed on to each
"""

import ast
import subprocess
import sys
from pathlib import Path

from .machine import machine


def scripts() -> dict[str, str]:
    """First line by name, of every module here that declares a benchmark."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        source = path.read_text("utf-8")
        if "bench.main()" in source and path.stem != "harness":
            found[path.stem] = (ast.get_docstring(ast.parse(source)) or "").split("\n")[0]
    return found


def main(arguments: list[str]) -> int:
    known = scripts()
    first = next((k for k, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    names, options = arguments[:first], arguments[first:]
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"There is no benchmark {unknown[0]!r}.", file=sys.stderr)
    if unknown or not names:
        print("\n".join(f"{name:20}{line}" for name, line in known.items()), flush=True)
    if unknown or "--list" in options:
        return 2 if unknown else 0
    print(f"\n> {machine()}", flush=True)
    failed = []
    for name in names or known:
        print(f"\n== {name}: {known[name]}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
