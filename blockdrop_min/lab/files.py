from .checkpoint import write_safely
from .process import locked


def claim(folder):
    pass
