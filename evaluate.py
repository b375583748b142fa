"""Measures finished runs on the test set, which is read nowhere else: table, JSON and pictures.

`python evaluate.py RUN...` prints the results table, with `--enumerate` also what all 2^K policies
can do. `python evaluate.py RUN --images FILE...` answers for images of one's own.
"""

import sys
from functools import partial
from os.path import expanduser

from blockdrop_min.lab import report
from blockdrop_min.lab.program import Parser, guarded


def make_parser():
    """The parser of evaluate.py."""
    about = "The results table of a run, or mean ± deviation of several that differ in seed."
    parser = Parser(prog="evaluate.py", description=about, allow_abbrev=False)
    add = partial(parser.add_argument, type=expanduser)
    add("names", nargs="+", metavar="RUN", help="a run's folder, or demo")
    add("--json", dest="json_path", metavar="FILE", help="also write the numbers")
    how = {"dest": "enumerated", "action": "store_true"}
    parser.add_argument("--enumerate", **how, help="also run all 2^K policies")
    add("--images", nargs="+", metavar="FILE", help="only answer for these images")
    add("--data-dir", help="folder with the data; default: as in training")
    add("--device", default="auto", help="auto, cpu, cuda, ...")
    return parser


def run(names, images, **options):
    """What the options ask for. Returns the exit code."""
    if not images:
        return report.main(names, **options)
    if len(names) > 1 or options["json_path"] or options["enumerated"]:
        raise ValueError("--images takes one RUN, and neither --json nor --enumerate")
    return report.answer(names[0], images, options["device"])


def main(arguments=None):
    """`python evaluate.py`, with these arguments or the command line's. Returns the exit code."""
    options = make_parser().parse_args(arguments)
    return guarded("evaluate.py", partial(run, **vars(options)))


if __name__ == "__main__":
    sys.exit(main())
