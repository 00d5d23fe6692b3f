"""`python -m pipelines` is `sagascope`."""

from pipelines.cli import main

if __name__ == "__main__":
    main()
