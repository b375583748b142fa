"""python tests/assignments make OUT | grade SUBMISSION...: see README.md beside this file."""

import argparse
import os
import sys
from pathlib import Path

from classroom import grade, make


def main():
    parser = argparse.ArgumentParser(prog="python tests/assignments", description=__doc__)
    commands = parser.add_subparsers(required=True)
    made = commands.add_parser("make", help="write OUT/student and OUT/grader, and prove them")
    made.add_argument("out", metavar="OUT", type=Path)
    made.set_defaults(run=make)
    graded = commands.add_parser("grade", help="grade students' folders or zips")
    graded.add_argument("submissions", nargs="+", metavar="SUBMISSION", type=Path)
    graded.set_defaults(run=grade)
    text = "Gradescope's file; of several submissions a folder for these"
    graded.add_argument("--json", type=Path, metavar="PATH", dest="json_path", help=text)
    graded.add_argument("--csv", type=Path, metavar="FILE", dest="csv_file", help="the table")
    text = "so many tasks at once"
    graded.add_argument("--at-once", type=int, default=os.cpu_count(), metavar="N", help=text)
    for command in (made, graded):
        command.add_argument("--tasks", type=int, nargs="+", default=(), help="these only")
        command.add_argument("--secret", type=int, help="seed of the examples, one a term")
    asked = vars(parser.parse_args())
    asked |= {name: path.absolute() for name, path in asked.items() if isinstance(path, Path)}
    try:
        return asked.pop("run")(**asked)
    except (ValueError, OSError) as problem:
        print(f"tests/assignments: {problem}", file=sys.stderr)
        return 4 if isinstance(problem, TimeoutError) else 2


if __name__ == "__main__":
    sys.exit(main())
