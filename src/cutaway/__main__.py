"""`python -m cutaway`: the command line."""

from cutaway.cli import main

if __name__ == "__main__":
    main()
