"""python tests/assignments make OUT | grade SUBMISSION...: see README.md beside this file."""

import argparse
import sys

from classroom import grade, make


def main():
    parser = argparse.ArgumentParser(prog="python tests/assignments", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("make", help="write OUT/student and OUT/grader, and prove them")
    made.add_argument("out", metavar="OUT")
    graded = commands.add_parser("grade", help="grade students' folders")
    graded.add_argument("submissions", nargs="+", metavar="SUBMISSION")
    graded.add_argument("--json", metavar="FILE", help="write Gradescope's results.json")
    graded.add_argument("--secret", type=int, default=0, help="seed of the examples, one a term")
    for command in (made, graded):
        command.add_argument("--tasks", type=int, nargs="+", default=(), help="these only")
    asked = parser.parse_args()
    try:
        if asked.command == "make":
            make(asked.out, asked.tasks)
        else:
            grade(asked.submissions, asked.tasks, asked.secret, asked.json)
    except ValueError as problem:
        print(f"tests/assignments: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
