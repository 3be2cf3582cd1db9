"""Every benchmark, or the ones named: python -m benchmarks [NAME ...]

Each is a script of its own, `python -m benchmarks.NAME --help`; here all of them run one after another with their
default settings, each in a process of its own.
"""

import ast
import subprocess
import sys
from pathlib import Path


def scripts() -> dict[str, str]:
    """name -> first line, of every module here that is a script."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        source = path.read_text("utf-8")
        if "__main__" in source:
            found[path.stem] = (ast.get_docstring(ast.parse(source)) or "").split("\n")[0]
    return found


def main(names: list[str]) -> int:
    known = scripts()
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"There is no benchmark {unknown[0]!r}. There are:", file=sys.stderr)
        print("\n".join(f"  {name:24}{line}" for name, line in known.items()), file=sys.stderr)
        return 2
    from .machine import machine

    print(machine(), flush=True)
    failed = []
    for name in names or [name for name in known if name != "machine"]:
        print(f"\n== {name}: {known[name]}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
