"""`python -m posenc`."""

from posenc.cli import run

if __name__ == "__main__":
    run()
