"""python -m prunekern."""

from prunekern.cli import main

if __name__ == "__main__":  # workers of a comparison import this file again
    main()
