"""python tests/assignments make OUT | grade SUBMISSION...: see README.md beside this file."""

import argparse
import sys

from classroom import grade, make


def main():
    parser = argparse.ArgumentParser(prog="python tests/assignments", description=__doc__)
    commands = parser.add_subparsers(required=True)
    made = commands.add_parser("make", help="write OUT/student and OUT/grader, and prove them")
    made.add_argument("out", metavar="OUT")
    made.set_defaults(run=make)
    graded = commands.add_parser("grade", help="grade students' folders")
    graded.add_argument("submissions", nargs="+", metavar="SUBMISSION")
    graded.set_defaults(run=grade)
    graded.add_argument("--json", metavar="FILE", dest="json_file", help="for Gradescope")
    graded.add_argument("--secret", type=int, default=0, help="seed of the examples, one a term")
    for command in (made, graded):
        command.add_argument("--tasks", type=int, nargs="+", default=(), help="these only")
    asked = vars(parser.parse_args())
    try:
        asked.pop("run")(**asked)
    except (ValueError, OSError) as problem:
        print(f"tests/assignments: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
