"""`python -m tsx`: the same command line, for machines where another `tsx` comes first on PATH."""

from tsx.cli.main import run

if __name__ == "__main__":
    run()
