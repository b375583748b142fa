"""python tests/assignments make OUT | grade SUBMISSION...: the classroom. README.md beside this file says more."""

import argparse
import sys

from grading import grade_all
from making import make, read_table


def numbers(text):
    """The numbers of "8", "1-11" or "1,4-6"."""
    found, known = set(), {task["number"] for task in read_table()[0]}
    for part in text.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    if not found or found - known:
        raise argparse.ArgumentTypeError(f"{text}; the tasks are 1 to {max(known)}")
    return found


def parse(arguments):
    parser = argparse.ArgumentParser(prog="python tests/assignments", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="write OUT/student and OUT/grader, and prove them")
    making.add_argument("out", metavar="OUT")
    grading = commands.add_parser("grade", help="grade students' folders")
    grading.add_argument("submissions", nargs="+", metavar="SUBMISSION")
    grading.add_argument("--json", metavar="FILE", help="write Gradescope's results.json")
    grading.add_argument(
        "--secret", type=int, default=0, help="seed of the laws' examples: one a term"
    )
    for command in (making, grading):
        command.add_argument("--tasks", type=numbers, metavar="1-12", help="these tasks only")
    return parser.parse_args(arguments)


def main(arguments):
    asked = parse(arguments)
    try:
        if asked.command == "make":
            make(asked.out, asked.tasks)
        else:
            grade_all(asked.submissions, asked.tasks, asked.secret, asked.json)
    except ValueError as problem:
        print(f"tests/assignments: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
