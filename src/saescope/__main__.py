"""`python -m saescope` does what the `saescope` command does."""

from saescope.surfaces.cli import main

if __name__ == "__main__":
    main()
